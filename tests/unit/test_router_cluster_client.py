from __future__ import annotations

import asyncio

import pytest

from router import cluster_client, topology
from router.cluster_client import ClusterClient
from router.pipe import Pipe
from router.site import Site
from router.slots import Address


async def test_those_who_come_at_once_share_a_pipe_and_no_other_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Pipe] = []

    async def opens(pipe: Pipe, *_: object) -> None:
        opened.append(pipe)
        await asyncio.sleep(0)

    async def owner(_client: ClusterClient, _slot: int) -> Address:
        return Address("node", 6379)

    monkeypatch.setattr(cluster_client, "_open", opens)
    monkeypatch.setattr(ClusterClient, "_owner", owner)
    site = topology.parse("redis+cluster://node")
    assert isinstance(site, Site)
    client = ClusterClient(site, None, 1.0)
    first, second = await asyncio.gather(client._reach(1), client._reach(2))
    assert first is second
    assert len(opened) == 2
    (other,) = [pipe for pipe in opened if pipe is not first]
    assert other._closed
    assert await client._reach(3) is first
    await client.aclose()
    assert first._closed
    assert await client._reach(4) is not first
