"""What ends a worker, and what does not."""

from __future__ import annotations

import asyncio

import pytest

from server.tasks import Tasks


@pytest.fixture
async def tasks() -> Tasks:
    return Tasks(asyncio.get_running_loop())


async def wait(result: object = None) -> None:
    await asyncio.sleep(0)
    if isinstance(result, BaseException):
        raise result


async def ended(tasks: Tasks) -> None:
    await asyncio.wait_for(tasks.ended, 5)


async def test_an_order_ends_it_once(tasks: Tasks) -> None:
    tasks.end()
    tasks.end()
    await ended(tasks)


async def test_a_task_that_fails_ends_it(tasks: Tasks) -> None:
    tasks.start(wait())
    tasks.start(wait(OSError("deaf")))
    tasks.start(wait(OSError("mute")))
    with pytest.raises(OSError, match="deaf"):
        await ended(tasks)


async def test_a_task_that_is_done_or_cancelled_does_not(tasks: Tasks) -> None:
    done, cancelled = tasks.start(wait()), tasks.start(wait())
    cancelled.cancel()
    await asyncio.wait([done, cancelled])
    await asyncio.sleep(0)  # what is told of the end of a task is told in the next turn
    assert not tasks.ended.done()


async def test_a_callback_that_fails_ends_it(tasks: Tasks) -> None:
    asyncio.get_running_loop().call_soon(int, "pool")
    with pytest.raises(ValueError, match="pool"):
        await ended(tasks)


async def test_what_fails_behind_the_end_changes_nothing(tasks: Tasks) -> None:
    failing = tasks.start(wait(OSError("too late")))
    tasks.end()
    await asyncio.wait([failing])
    await asyncio.sleep(0)
    await ended(tasks)


async def test_an_error_of_one_connection_is_logged(tasks: Tasks, caplog: pytest.LogCaptureFixture) -> None:
    asyncio.get_running_loop().call_exception_handler({"message": "of one connection", "exception": OSError()})
    assert "of one connection" in caplog.text
    assert not tasks.ended.done()
