"""What a worker carries on of the one that it replaces."""

from __future__ import annotations

import asyncio
import os

import pytest

from server import config
from server.shard import Place, Shard
from server.stats import FIELDS, Kind, Pages, Stats


@pytest.mark.parametrize("redis_url", ["unix:///nowhere", "redis+cluster://127.0.0.1:1"])
def test_a_replacement_counts_on(redis_url: str) -> None:
    page = Pages.create(1)[0]
    counters = [field.name for field in FIELDS if field.kind is Kind.COUNTER and not field.by_close]
    page.write(Stats(**dict.fromkeys(counters, 7)), 1.0, 77)  # type: ignore[arg-type]  # names of numbers

    async def replace() -> None:
        place = Place(0, "node", [], [], page, lambda: None)
        Shard(config.load({}, {}), place, redis_url, None)._write_page()

    asyncio.run(replace())
    snapshot = page.read()
    assert snapshot.pid == os.getpid()
    assert {name: getattr(snapshot.stats, name) for name in counters} == dict.fromkeys(counters, 7)
