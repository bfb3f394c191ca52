"""The bus behind Sentinel, real ones: the master is handed over, killed, frozen, demoted under our hands."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from quorum import Quorum, needs_redis_server
from stations import Station, number, until, watched

from router import clients
from router.bus import BusDown, Refused, Unconfirmed

pytestmark = needs_redis_server

# An election that fails is held anew after four seconds and more, and on a busy machine several fail; or a master is taken for
# dead that is only slow, and is replaced in its turn.
ELECTED_SECONDS_MAX = 60.0


@pytest.fixture
def quorum(tmp_path: Path) -> Iterator[Quorum]:
    with Quorum(tmp_path) as quorum:
        yield quorum


@pytest.fixture
async def station(quorum: Quorum) -> AsyncIterator[Station]:
    async with watched(), Station(quorum.url) as station:
        yield station


async def back(station: Station, times: int = 2) -> None:
    await until(
        lambda: len(station.restored) >= times and station.bus.healthy(), "the bus is back", ELECTED_SECONDS_MAX
    )


class Load:
    """Publishes one message after the other, and keeps every answer."""

    def __init__(self, station: Station) -> None:
        self.answers: list[object] = []
        self._station = station
        self._stopping = False

    async def start(self) -> None:
        await self._station.join(b"room:a")
        self._task = asyncio.get_running_loop().create_task(self._run())
        await until(lambda: len(self.answers) > 100, "load")

    async def _run(self) -> None:
        while not self._stopping:
            self.answers.append(await self._station.publish(b"room:a"))
            await asyncio.sleep(0 if isinstance(self.answers[-1], bytes) else 0.02)

    async def settle(self) -> None:
        """See that publishing works again, and that everybody was told one of the things that may be told."""
        count = len(self.answers)
        await until(lambda: self._has_published(count), "publishing works again", ELECTED_SECONDS_MAX)
        self._stopping = True
        await self._task
        assert {type(answer) for answer in self.answers} <= {bytes, BusDown, Unconfirmed, Refused}
        await self._station.comes(b"room:a", await self._station.publish(b"room:a"))

    def _has_published(self, since: int) -> bool:
        return any(isinstance(each, bytes) for each in self.answers[since:])


async def test_a_planned_failover_is_followed(station: Station, quorum: Quorum) -> None:
    load = Load(station)
    await load.start()
    before = quorum.master_port()
    quorum.fail_over()
    await back(station)
    await load.settle()
    assert station.bus._node.address == f"main ({quorum.host}:{quorum.master_port()})"
    assert quorum.master_port() != before


async def test_a_master_that_is_killed_is_replaced(station: Station, quorum: Quorum) -> None:
    load = Load(station)
    await load.start()
    quorum.servers[quorum.ports[0]].kill()
    await until(lambda: not station.bus.connected, "it is noticed")
    await back(station)
    await load.settle()


async def test_a_master_that_freezes_is_replaced_and_not_followed_when_it_thaws(
    station: Station, quorum: Quorum
) -> None:
    await station.join(b"room:a")
    frozen = quorum.servers[quorum.ports[0]].pid
    os.kill(frozen, signal.SIGSTOP)
    try:
        await back(station)
        position = await station.publish(b"room:a")
    finally:
        os.kill(frozen, signal.SIGCONT)
    await until(lambda: quorum.client(quorum.ports[0]).role()[0] == "slave", "it has been told")
    assert number(await station.publish(b"room:a")) == number(position) + 1
    assert station.lost == 1


async def test_the_client_of_the_admin_process_follows(quorum: Quorum) -> None:
    client = clients.client(quorum.url)
    async with clients.reaching(client, 3.0) as ask:
        await ask("SET", "key", "1")
    quorum.wait_synced()
    before = quorum.master_port()
    quorum.fail_over()

    async def is_followed() -> bool:
        try:
            async with clients.reaching(client, 3.0) as ask:
                return bool(await ask("SET", "key", "2", "GET") == b"1")
        except (BusDown, Refused, Unconfirmed):
            return False

    await asyncio.to_thread(quorum.wait_moved, before)
    async with asyncio.timeout(ELECTED_SECONDS_MAX):
        while not await is_followed():
            await asyncio.sleep(0.05)
    await client.aclose()
