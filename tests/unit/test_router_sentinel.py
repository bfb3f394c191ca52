from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from router import sentinel
from router.sentinel import NoMaster, Sentinels
from router.topology import parse


class Fake:
    """Answers as a sentinel does: with an address, with "never heard of it", with an error, or not at all."""

    def __init__(self, answer: bytes | None) -> None:
        self.answer = answer
        self.asked = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked += 1
        while data := await reader.read(65536):
            if self.answer is None:
                continue
            for command in data.split(b"*")[1:]:
                known = {b"HELLO": b"%1\r\n+proto\r\n:3\r\n", b"SENTINEL": self.answer}
                writer.write(next((reply for name, reply in known.items() if name in command), b"+OK\r\n"))
        writer.close()


def at(port: int) -> bytes:
    return b"*2\r\n$9\r\n127.0.0.1\r\n$%d\r\n%d\r\n" % (len(str(port)), port)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is: nobody who answers is given up."""
    monkeypatch.setattr(sentinel, "ASK_SECONDS_MAX", 30.0)


@pytest.fixture
async def fakes() -> AsyncIterator[list[Fake]]:
    found = [Fake(at(7000)) for _ in range(3)]
    for fake in found:
        await fake.start()
    yield found
    for fake in found:
        await fake.stop()


def sentinels(fakes: list[Fake]) -> Sentinels:
    hosts = ",".join(f"127.0.0.1:{fake.port}" for fake in fakes)
    found = parse(f"redis+sentinel://bob:hush@{hosts}/main/2")
    assert isinstance(found, Sentinels)
    return found


async def test_the_master_is_at_the_address_that_is_answered(fakes: list[Fake]) -> None:
    place = sentinels(fakes)
    assert place.address == "main (not found yet)"
    node = await place.locate()
    assert node == parse("redis://bob:hush@127.0.0.1:7000/2")
    assert place.address == "main (127.0.0.1:7000)"


async def test_each_try_begins_with_another_sentinel(fakes: list[Fake]) -> None:
    """The one that was asked first may be cut off, and know no better."""
    place = sentinels(fakes)
    for port, fake in enumerate(fakes, 7000):
        fake.answer = at(port)
    assert {(await place.locate()).port for _ in fakes} == {7000, 7001, 7002}
    assert [fake.asked for fake in fakes] == [1, 1, 1]


SILENCE_SECONDS = 1.0  # that tell who is silent from who is slow


@pytest.mark.parametrize("answer", [None, b"_\r\n", b"*-1\r\n", b"-ERR no\r\n", b"+garbage", b"HTTP/1.1 400\r\n\r\n"])
async def test_one_sentinel_that_knows_is_enough(
    fakes: list[Fake], answer: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if answer is None:
        monkeypatch.setattr(sentinel, "ASK_SECONDS_MAX", SILENCE_SECONDS)
    place = sentinels(fakes)
    fakes[0].answer = fakes[1].answer = answer
    for _ in fakes:
        assert (await place.locate()).port == 7000


async def test_when_nobody_knows_it_is_told_what_each_said(fakes: list[Fake], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentinel, "ASK_SECONDS_MAX", SILENCE_SECONDS)
    place = sentinels(fakes)
    fakes[0].answer, fakes[1].answer, fakes[2].answer = None, b"_\r\n", b"-NOPERM not for you\r\n"
    await fakes[2].stop()
    started = time.monotonic()
    with pytest.raises(NoMaster) as caught:
        await place.locate()
    assert time.monotonic() - started < 5 * SILENCE_SECONDS
    told = str(caught.value)
    assert f"127.0.0.1:{fakes[0].port}: no answer in 1 s" in told
    assert f"127.0.0.1:{fakes[1].port} knows no master 'main'" in told
    assert f"connecting to 127.0.0.1:{fakes[2].port}" in told
    assert "hush" not in told
