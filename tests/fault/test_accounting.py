"""Every message accounted for, while workers are killed and Redis is cut off, frozen and restarted.

`MOORAGE_TEST_SEED` replays the choices of a run; it is printed at the start of each.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
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
from harness import Server
from journals import publish_args

from router import journal
from router.embedded import Embedded

StartServer = Callable[..., Server]

KEYS = journal.Keys("moorage:")
OVERFLOWS = "client_output_buffer_limit_disconnections"
OVERFLOW_SECONDS_MAX = 30.0
# Valkey 9 keeps strings of over 16 KiB for all their readers once, and does not count them as anybody's buffer.
OVERFLOW_MESSAGE_BYTES = 12_000
OVERFLOW_MESSAGES_MAX = 200  # far more than a socket takes and Redis keeps: whoever is subscribed is cut off before
CHANNELS = ["room:a", "room:b", "room:c", "brief:d"]
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
def durable(tmp_path: Path) -> Iterator[Embedded]:
    """A Valkey that keeps what it has over a restart."""
    with Embedded(directory=tmp_path / "valkey") as embedded:
        yield embedded


class Chaos:
    """What goes wrong."""

    def __init__(self, servers: list[Server], valkey: Embedded, rng: random.Random) -> None:
        self.done: list[str] = []
        self.overflows = 0  # connections that Redis has cut because they were read too slowly
        self._servers, self._valkey, self._rng = servers, valkey, rng
        self._operator = redis.Redis.from_url(valkey.url)

    async def run(self, seconds: float) -> None:
        """Let one thing after the other go wrong, each at least once in the first third."""
        until = time.monotonic() + seconds
        deeds = [self.kill_worker, self.cut_subscribers, self.cut_publishers, self.freeze, self.restart, self.overflow]
        self._rng.shuffle(deeds)
        for deed in deeds:
            await self._do(deed)
        while time.monotonic() < until:
            await self._do(self._rng.choice(deeds))
        self._operator.close()

    async def _do(self, deed: Callable[[], object]) -> None:
        self.done.append(deed.__name__)
        found = deed()
        if asyncio.iscoroutine(found):
            await found
        await asyncio.sleep(self._rng.uniform(0.2, 1.2))

    def kill_worker(self) -> None:
        """SIGKILL."""
        if self.done.count("kill_worker") < 8:  # within the budget of restarts
            self._rng.choice(self._servers).kill_worker(self._rng)

    def cut_subscribers(self) -> None:
        """CLIENT KILL of everything that subscribes."""
        with contextlib.suppress(redis.RedisError):
            self._operator.client_kill_filter(_type="pubsub")

    def cut_publishers(self) -> None:
        """CLIENT KILL of one of the others."""
        with contextlib.suppress(redis.RedisError):
            clients = [each for each in self._operator.client_list() if each["name"].startswith("moorage")]
            if clients:
                self._operator.client_kill_filter(_id=self._rng.choice(clients)["id"])

    async def freeze(self) -> None:
        """SIGSTOP for a while: shorter than the bus's patience, or longer."""
        assert self._valkey.pid is not None
        os.kill(self._valkey.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(self._rng.uniform(0.5, 4.0))
        finally:
            os.kill(self._valkey.pid, signal.SIGCONT)

    async def overflow(self) -> None:
        """Let a worker stand still until Redis has too much for it; one that is not connected just then is let go by."""
        self._operator.config_set("client-output-buffer-limit", "pubsub 200kb 100kb 1")
        before = self._overflows()
        deadline = time.monotonic() + OVERFLOW_SECONDS_MAX
        while self._overflows() == before:
            assert time.monotonic() < deadline, "no worker was cut off for reading too slowly"
            workers = list(self._rng.choice(self._servers).workers().values())
            if workers:
                await self._stand_still(self._rng.choice(workers), before)
            await asyncio.sleep(0.1)
        self.overflows += self._overflows() - before

    async def _stand_still(self, worker: psutil.Process, before: int) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.suspend()
            try:
                for serial in range(OVERFLOW_MESSAGES_MAX):
                    self._publish_large(CHANNELS[serial % 3], serial)
                    if self._overflows() > before:
                        break
                    await asyncio.sleep(0)
            finally:
                worker.resume()

    def _overflows(self) -> int:
        found: int = self._operator.info("stats")[OVERFLOWS]
        return found

    def _publish_large(self, channel: str, serial: int) -> None:
        text = "x" * OVERFLOW_MESSAGE_BYTES
        data = json.dumps({"publisher": "operator", "serial": serial, "text": text}, separators=(",", ":"))
        members = journal.members(None, time.time_ns() // 1_000_000, data.encode())
        args = publish_args(KEYS, channel.encode(), members, journal.Retention(50_000, 3600))
        self._operator.execute_command("EVAL", journal.PUBLISH, *args)

    def restart(self) -> None:
        """Redis comes back with what it had."""
        self._valkey.restart()


def settings(directory: Path) -> str:
    path = directory / "moorage.toml"
    path.write_text(CONFIG)
    return str(path)


async def test_every_message_is_accounted_for(
    start_server: StartServer, durable: Embedded, tmp_path: Path, seed: int
) -> None:
    options = ("--redis", durable.url, "--config", settings(tmp_path))
    servers = [start_server("--workers", "2", *options), start_server("--workers", "1", *options)]
    sites = Sites([server.tcp for server in servers], [server.http for server in servers])
    chaos = Chaos(servers, durable, random.Random(seed))
    await account(sites, chaos, CHANNELS, seed, seconds=9.0, crowd=12)
    assert chaos.overflows


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_every_message_is_accounted_for_over_minutes(
    start_server: StartServer, durable: Embedded, tmp_path: Path, seed: int
) -> None:
    options = ("--redis", durable.url, "--config", settings(tmp_path))
    servers = [start_server("--workers", "2", *options), start_server("--workers", "2", *options)]
    sites = Sites([server.tcp for server in servers], [server.http for server in servers])
    chaos = Chaos(servers, durable, random.Random(seed))
    await account(sites, chaos, CHANNELS, seed, seconds=180.0, crowd=60)
    assert chaos.overflows
