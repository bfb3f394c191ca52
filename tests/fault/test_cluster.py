"""A cluster under load: slots that migrate, nodes that die and are replaced; every message accounted for.

`MOORAGE_TEST_SEED` replays the choices of a run; it is printed at the start of each.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis
from accounting import Sites, account
from clusters import Cluster, Member
from harness import Server

from router.slots import slot_of, tags

StartServer = Callable[..., Server]

CHANNELS = ["room:a", "room:b", "room:c", "room:d", "room:e", "brief:f"]
SHARDS = 8
CONFIG = """
[[namespace]]
prefix = "room"
history_messages_max = 50000

[[namespace]]
prefix = "brief"
history_messages_max = 5
"""


@pytest.fixture
def seed() -> int:
    found = int(os.environ.get("MOORAGE_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"MOORAGE_TEST_SEED={found}")
    return found


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster() as cluster:
        yield cluster


class Chaos:
    """What goes wrong with a cluster."""

    def __init__(self, servers: list[Server], cluster: Cluster, rng: random.Random) -> None:
        self.done: list[str] = []
        self._servers, self._cluster, self._rng = servers, cluster, rng

    async def run(self, seconds: float) -> None:
        """Let one thing after the other go wrong, each at least once in the beginning."""
        until = time.monotonic() + seconds
        deeds = [self.migrate, self.migrate_at_once, self.cut_subscribers, self.kill_worker, self.freeze]
        self._rng.shuffle(deeds)
        deeds.insert(2, self.fail_over)
        for deed in deeds:
            await self._do(deed)
        while time.monotonic() < until:
            await self._do(self._rng.choice(deeds))

    async def _do(self, deed: Callable[[], object]) -> None:
        self.done.append(deed.__name__)
        found = deed()
        if asyncio.iscoroutine(found):
            await found
        await asyncio.sleep(self._rng.uniform(0.2, 0.8))

    def _slot_and_target(self) -> tuple[int, Member]:
        slot = slot_of(tags(SHARDS)[self._rng.randrange(SHARDS)])
        owner = self._cluster.port_of(slot)
        masters = [m for m in self._cluster.members if m.alive() and m.role == "master" and m.port != owner]
        return slot, self._rng.choice(masters)

    async def migrate(self) -> None:
        """Key by key, with pauses: for a while a slot is neither here nor there."""
        await asyncio.to_thread(self._cluster.migrate, *self._slot_and_target(), self._rng.choice([0.0, 0.05]))

    async def migrate_at_once(self) -> None:
        """All keys of a slot together."""
        await asyncio.to_thread(self._cluster.migrate_at_once, *self._slot_and_target())

    def cut_subscribers(self) -> None:
        """CLIENT KILL of everything that subscribes, on one node."""
        node = self._rng.choice([member for member in self._cluster.members if member.alive()])
        with contextlib.suppress(redis.RedisError):
            node.client.client_kill_filter(_type="pubsub")

    def kill_worker(self) -> None:
        """SIGKILL."""
        workers = list(self._rng.choice(self._servers).workers().values())
        if workers and self.done.count("kill_worker") < 8:  # within the budget of restarts
            with contextlib.suppress(psutil.NoSuchProcess):
                self._rng.choice(workers).kill()

    async def freeze(self) -> None:
        """SIGSTOP of a node without a replica: the cluster can wait, or gives up for a while."""
        node = self._rng.choice(self._cluster.masters[1:])
        assert node.pid is not None
        os.kill(node.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(self._rng.uniform(0.3, 3.0))
        finally:
            os.kill(node.pid, signal.SIGCONT)

    async def fail_over(self) -> None:
        """A master is killed, its replica is promoted, and the dead one comes back as its replica."""
        dead = await asyncio.to_thread(self._cluster.fail_over)
        dead.restart()
        await asyncio.to_thread(self._cluster.comes_back, dead)


async def run(
    start_server: StartServer, cluster: Cluster, directory: Path, seed: int, seconds: float, crowd: int
) -> None:
    path = directory / "moorage.toml"
    path.write_text(CONFIG)
    options = ("--redis", cluster.url, "--config", str(path))
    servers = [start_server("--workers", "2", *options), start_server("--workers", "1", *options)]
    sites = Sites([server.tcp for server in servers], [server.http for server in servers], SHARDS)
    chaos = Chaos(servers, cluster, random.Random(seed))
    await account(sites, chaos, CHANNELS, seed, seconds, crowd)
    assert {"migrate", "migrate_at_once", "fail_over"} <= set(chaos.done)


async def test_every_message_is_accounted_for(
    start_server: StartServer, cluster: Cluster, tmp_path: Path, seed: int
) -> None:
    await run(start_server, cluster, tmp_path, seed, seconds=8.0, crowd=12)


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_every_message_is_accounted_for_over_minutes(
    start_server: StartServer, cluster: Cluster, tmp_path: Path, seed: int
) -> None:
    await run(start_server, cluster, tmp_path, seed, seconds=180.0, crowd=40)
