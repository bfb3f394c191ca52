"""What the search for silent workers takes for granted, of real servers: whose silence CLIENT LIST shows, and what a kill does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from stations import KINDS, Station, client_of, server_of, until, watched

from router import reaper, topology
from router.embedded import Embedded
from router.link import Link
from router.pipe import pack
from router.reaper import Reaper


@pytest.fixture(scope="module", params=KINDS)
def server(request: pytest.FixtureRequest) -> Iterator[Embedded]:
    with server_of(request.param) as server:
        yield server


@pytest.fixture
async def station(server: Embedded) -> AsyncIterator[Station]:
    async with watched(), Station(server.url) as station:
        yield station


async def test_a_worker_that_is_still_written_to_and_says_nothing_is_found(
    station: Station, server: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reaper, "SILENT_SECONDS_MAX", 2)
    monkeypatch.setattr(reaper, "QUIET_SECONDS", 2)
    cuts: list[int] = []
    lost: list[str] = []
    loop = asyncio.get_running_loop()

    class Counts:
        workers_cut = 0

    counts = Counts()
    searching = Reaper(station.bus, counts, lambda: cuts.append(1), clock=loop.time, later=loop.call_later)
    silent = Link(lambda _push: None, lambda: None, lambda: None, lost.append)
    name = f"{station.prefix}room:a".encode()
    await silent.open(topology.parse(server.url), None, "moorage:silent-0")  # type: ignore[arg-type]
    silent.subscriber.push(pack((b"SUBSCRIBE", name)))
    with client_of(server) as outside:
        await until(lambda: outside.pubsub_numsub(name) == [(name, 1)], "it is subscribed")

        def heard() -> int:
            searching.suspect()
            found: int = outside.publish(name, "still counted")
            return found

        await until(lambda: heard() == 0, "it is cut off", 15)
    await until(lambda: lost and cuts, "both sides know")
    assert counts.workers_cut == 1
    assert (station.bus.connected, station.bus.connects) == (True, 1)
