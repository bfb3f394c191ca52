"""A cluster under load: slots that migrate, nodes that die and are replaced; every message accounted for.

`MOORAGE_TEST_SEED` replays the choices of a run; it is printed at the start of each.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import redis
from accounting import Sites, account
from clusters import SLOTS, Cluster, Member, one_per_shard
from harness import Json, LineClient, Server, wait_until

from router.slots import slot_of, tags
from router.vector import shard_of

StartServer = Callable[..., Server]

CHANNELS = ["room:a", "room:b", "room:c", "room:d", "room:e", "brief:f"]
SHARDS = 8
ROOMS = one_per_shard("room:f", SHARDS)
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


@contextlib.contextmanager
def frozen(node: Member) -> Iterator[None]:
    """A node stands still."""
    assert node.pid is not None
    os.kill(node.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(node.pid, signal.SIGCONT)


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
        deeds.insert(5, self.hand_over)
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
        if self.done.count("kill_worker") < 8:  # within the budget of restarts
            self._rng.choice(self._servers).kill_worker(self._rng)

    async def freeze(self) -> None:
        """SIGSTOP of a node without a replica: the cluster can wait, or gives up for a while."""
        with frozen(self._rng.choice(self._cluster.masters[1:])):
            await asyncio.sleep(self._rng.uniform(0.3, 3.0))

    async def hand_over(self) -> None:
        """A replica takes over from a master that lives, as for maintenance."""
        await asyncio.to_thread(self._cluster.hand_over)

    async def fail_over(self) -> None:
        """A master is killed, its replica is promoted, and the dead one comes back as its replica."""
        dead = await asyncio.to_thread(self._cluster.fail_over)
        dead.restart()
        await asyncio.to_thread(self._cluster.comes_back, dead)


class Load(threading.Thread):
    """Publishes to one channel after the other, each when the one before it was answered."""

    def __init__(self, client: LineClient, channels: Sequence[str]) -> None:
        super().__init__(daemon=True)
        self.answers: list[Json] = []
        self._client, self._channels = client, channels
        self._stopping = threading.Event()

    def __enter__(self) -> Load:
        self.start()
        wait_until(lambda: len(self.answers) > 20, "load")
        return self

    def __exit__(self, *_: object) -> None:
        count = len(self.answers)
        wait_until(lambda: any(a["op"] == "published" for a in self.answers[count:]), "publishing works")
        self._stopping.set()
        self.join(20)

    def run(self) -> None:
        while not self._stopping.is_set():
            number = len(self.answers)
            channel = self._channels[number % len(self._channels)]
            self._client.send({"op": "publish", "id": number, "channel": channel, "data": number})
            while (answer := self._client.receive()) is None or answer["op"] == "gap":  # of its personal channel
                assert answer is not None
            assert answer["id"] == number
            self.answers.append({**answer, "channel": channel})
            self._stopping.wait(0.002)

    def taken(self, channel: str) -> list[int]:
        """What was answered with a position."""
        return [a["id"] for a in self.answers if a["op"] == "published" and a["channel"] == channel]


def heard(client: LineClient, load: Load) -> tuple[dict[str, list[int]], set[str]]:
    """Return what `client` hears of each channel, up to the last that was taken there, and where it is told of gaps."""
    lasts = {channel: taken[-1] for channel in ROOMS if (taken := load.taken(channel))}
    found: dict[str, list[int]] = {channel: [] for channel in ROOMS}
    gaps = set()
    while any(last not in found[channel] for channel, last in lasts.items()):
        message = client.receive()
        assert message is not None
        if message["op"] == "gap":
            gaps.add(message["channel"])
        else:
            found[message["channel"]].append(message["data"])
    return found, gaps


@pytest.mark.parametrize("way", ["key by key", "at once"])
def test_a_slot_that_migrates_costs_nobody_anything(start_server: StartServer, cluster: Cluster, way: str) -> None:
    server = start_server("--workers", "2", "--redis", cluster.url)
    listener = server.joined("listener", *ROOMS)
    before = listener.connected["position"]
    with Load(server.joined("speaker"), ROOMS) as load:
        for shard, target in ((0, 1), (3, 0), (0, 2)):
            slot = slot_of(tags(SHARDS)[shard])
            if way == "key by key":
                cluster.migrate(slot, cluster.masters[target], 0.05)
            else:
                cluster.migrate_at_once(slot, cluster.masters[target])
            count = len(load.answers)
            wait_until(lambda count=count: len(load.answers) > count + 2 * SHARDS, "it goes on")  # type: ignore[misc]
    assert {answer["op"] for answer in load.answers} == {"published"}, "a publish waits for the slot"
    found, gaps = heard(listener, load)
    assert not gaps
    assert found == {channel: load.taken(channel) for channel in ROOMS}
    late = server.joined("late", *ROOMS, position=before)
    assert late.connected["recovered"] is True
    assert heard(late, load) == (found, set())
    assert server.stats()["total"]["restarts"] == 0


def test_a_master_that_dies_is_told_of_in_its_shards_alone(start_server: StartServer, cluster: Cluster) -> None:
    server = start_server("--workers", "2", "--redis", cluster.url)
    listener = server.joined("listener", *ROOMS)
    before = listener.connected["position"]
    hers = {channel for shard, channel in enumerate(ROOMS) if slot_of(tags(SHARDS)[shard]) * 3 < SLOTS}
    with Load(server.joined("speaker"), ROOMS) as load:
        cluster.fail_over()
        wait_until(lambda: server.stats()["total"]["ready"] == 2, "both workers are ready again")
        count = len(load.answers)
        wait_until(lambda: len([a for a in load.answers[count:] if a["op"] == "published"]) > SHARDS, "it goes on")
    assert {answer["code"] for answer in load.answers if answer["op"] == "error"} <= {3005, 3006}
    found, gaps = heard(listener, load)
    assert gaps - {"@listener"} == hers
    late = server.joined("late", *ROOMS, position=before)
    assert late.connected["recovered"] is False
    told = {"@late", *hers} if shard_of(b"@late", SHARDS) in map(ROOMS.index, hers) else hers
    assert {late.expect("gap")["channel"] for _ in told} == told
    for channel in ROOMS:
        assert found[channel] == sorted(set(found[channel]))
        if channel not in hers:
            assert [number for number in found[channel] if number in load.taken(channel)] == load.taken(channel)


def test_a_shard_that_does_not_answer_is_named(start_server: StartServer, cluster: Cluster) -> None:
    server = start_server("--workers", "1", "--redis", cluster.url)
    with frozen(cluster.masters[2]):
        _status, answer = wait_until(lambda: _red(server), "not ready", seconds=5)
        assert answer["reason"].startswith("the bus ")
        assert answer["reason"].endswith(" of 8")
        assert server.request("GET", "/healthz")[0] == 200
    wait_until(lambda: _red(server) is None, "ready again, by itself")


def test_a_channel_that_was_left_is_come_back_to_from_where_it_was_left(
    start_server: StartServer, cluster: Cluster
) -> None:
    """While a shard is down on a worker, its part of the positions sent there may be one that a client was beyond elsewhere."""
    for member in cluster.members:  # otherwise all shards are down when one node is
        member.client.config_set("cluster-require-full-coverage", "no")
    ahead, behind = (start_server("--workers", "1", "--redis", cluster.url) for _ in range(2))
    here, left = ROOMS[0], ROOMS[-1]  # on other nodes
    user = next(name for n in range(1000) if shard_of(f"@{(name := f'u{n}')}".encode(), SHARDS) == 0)
    client = ahead.joined(user, here, left)
    ahead.publish(left, "had")
    had = client.expect("message", data="had")["position"]
    with frozen(cluster.masters[-1]):
        wait_until(lambda: _red(behind), "that shard is down")
        client = behind.joined(user, here, position=had)  # which it is not subscribed to any more
        behind.publish(here, "meanwhile")
        meanwhile = client.expect("message", data="meanwhile")["position"]
    wait_until(lambda: not _red(ahead) and not _red(behind), "all is well again")
    sites = Sites([], [], SHARDS)
    assert sites.read(meanwhile).of(left.encode()) < sites.read(had).of(left.encode()), (
        "or this is not the case in question"
    )
    behind.publish(left, "new")
    again = behind.joined(user, here, position=meanwhile)
    again.send({"op": "subscribe", "id": 1, "channel": left, "position": had})
    again.expect("subscribed", id=1, recovered=True)
    assert again.expect("message")["data"] == "new", "once, by the position at which it was left"
    late = behind.joined(user, here, left, position=meanwhile)
    assert late.connected["recovered"] is True
    assert [message["data"] for message in late.messages(2)] == ["had", "new"], "by a later one: nothing is lost"


def _red(server: Server) -> tuple[int, Json] | None:
    status, answer = server.request("GET", "/readyz")
    return (status, answer) if status != 200 else None


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
