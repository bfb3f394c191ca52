"""Every message accounted for, while the master is handed over and killed. What Redis itself has lost is told."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from accounting import Answered, Sites, Stamp, account
from harness import Server
from quorum import Quorum, needs_redis_server

pytestmark = needs_redis_server

StartServer = Callable[..., Server]

CHANNELS = ["room:a", "room:b", "room:c"]
CONFIG = '[[namespace]]\nprefix = "room"\nhistory_messages_max = 50000\n'


class Failovers:
    """One that is planned, which loses what the old master goes on answering, and one because it was killed."""

    def __init__(self, quorum: Quorum) -> None:
        self.done: list[str] = []
        self._quorum = quorum

    async def run(self, seconds: float) -> None:
        """Let there be load for `seconds` before, between and after."""
        await asyncio.sleep(seconds)
        await asyncio.to_thread(self._plan)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(self._kill)
        await asyncio.sleep(seconds)

    def _plan(self) -> None:
        before = self._quorum.master_port()
        self._quorum.fail_over()
        self.done.append(f"{before} hands over to {self._quorum.wait_moved(before)}")
        self._quorum.wait_followed()

    def _kill(self) -> int:
        before = self._quorum.master_port()
        self._quorum.servers[before].kill()
        self.done.append(f"{before} killed, followed by {self._quorum.wait_moved(before)}")
        return before

    def lost(self, answered: Mapping[Answered, Stamp]) -> set[Answered]:
        """Return what was answered and is not there any more."""
        master = self._quorum.client(self._quorum.master_port())
        kept = {channel: {id for id, _ in master.xrange(f"moorage:$stream:{channel}")} for channel in CHANNELS}
        return {message for message, id in answered.items() if f"{id.ms}-{id.number}" not in kept[message.channel]}


class ManyFailovers(Failovers):
    """One after the other; who was killed comes back, empty, as a replica."""

    async def run(self, seconds: float) -> None:
        """Let masters come and go for `seconds`."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await asyncio.to_thread(self._plan)
            await asyncio.sleep(2)
            dead = await asyncio.to_thread(self._kill)
            await asyncio.sleep(2)
            self._quorum.start(dead, self._quorum.master_port())
            await asyncio.to_thread(self._quorum.wait_followed)


@pytest.fixture
def seed() -> int:
    found = int(os.environ.get("MOORAGE_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"MOORAGE_TEST_SEED={found}")
    return found


async def run(
    start_server: StartServer, directory: Path, chaos: type[Failovers], seed: int, *, seconds: float, crowd: int
) -> None:
    path = directory / "moorage.toml"
    path.write_text(CONFIG)
    with Quorum(directory) as quorum:
        options = ("--redis", quorum.url, "--config", str(path))
        servers = [start_server("--workers", "2", *options), start_server("--workers", "1", *options)]
        sites = Sites([server.tcp for server in servers], [server.http for server in servers])
        await account(sites, chaos(quorum), CHANNELS, seed, seconds, crowd)
        for server in servers:  # while Redis runs
            server.__exit__(None, None, None)


async def test_every_message_is_accounted_for(start_server: StartServer, tmp_path: Path, seed: int) -> None:
    await run(start_server, tmp_path, Failovers, seed, seconds=2.0, crowd=12)


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_every_message_is_accounted_for_over_minutes(
    start_server: StartServer, tmp_path: Path, seed: int
) -> None:
    await run(start_server, tmp_path, ManyFailovers, seed, seconds=120.0, crowd=30)
