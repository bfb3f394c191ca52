"""The bus of a shard and the pipes it shares, against a real cluster: slots on the move, answers that are whose they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from types import TracebackType

import pytest
from clusters import Cluster
from stations import until, watched

from router import cluster as module
from router import nodes as nodes_module
from router import topology
from router.cluster import ShardBus
from router.cluster_client import ClusterClient
from router.journal import Retention
from router.link import Link, Strand
from router.listeners import Listeners
from router.nodes import Nodes
from router.outcome import BusDown, Refused, Unconfirmed
from router.pipe import Reply, pack
from router.site import Site
from router.slots import Address, slot_of, tags

pytestmark = pytest.mark.xdist_group("cluster")

SHARDS = 4


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(masters=2, replicas=0) as cluster:
        yield cluster


class Berths:
    """The buses of all shards of one worker, and what they have told."""

    def __init__(self, cluster: Cluster) -> None:
        place = topology.parse(f"{cluster.url}?shards={SHARDS}")
        assert isinstance(place, Site)
        self.messages: list[tuple[bytes, bytes]] = []
        self.lost: list[int] = []
        self.restored: list[int] = []
        self.present: set[bytes] = set()
        self.nodes = Nodes(place, "test:", None, "test", lambda: None, lambda: None)
        self.buses = [
            ShardBus(
                self.nodes, shard, keys, self, self._listeners(shard), worker=f"w{shard}", place=lambda at: b"at " + at
            )
            for shard, keys in enumerate(place.keys("test:"))
        ]

    def _listeners(self, shard: int) -> Listeners:
        def ignore(*_: object) -> None:
            pass

        return Listeners(
            message=lambda name, payload: self.messages.append((name, payload)),
            batch=ignore,
            answered=ignore,
            reply=ignore,
            control=ignore,
            lost=lambda: self.lost.append(shard),
            restored=lambda _at: self.restored.append(shard),
            lapsed=ignore,
            rejoined=ignore,
            head=lambda: b"",
        )

    def __contains__(self, name: bytes, /) -> bool:
        return name in self.present

    def names(self) -> list[bytes]:
        return list(self.present)

    def publish(self, shard: int, members: bytes, once: bytes = b"") -> asyncio.Future[Reply]:
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.buses[shard].publish(b"room:a", members, Retention(), future.set_result, once=once)
        return future

    async def __aenter__(self) -> Berths:
        self._tasks = [asyncio.get_running_loop().create_task(bus.run()) for bus in self.buses]
        await until(lambda: all(bus.connected for bus in self.buses), "connected")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        self.nodes.close()
        await asyncio.sleep(0)


@pytest.fixture
async def berths(cluster: Cluster) -> AsyncIterator[Berths]:
    async with watched(), Berths(cluster) as berths:
        yield berths


async def test_shards_share_a_link_with_the_others_of_their_node(berths: Berths) -> None:
    assert len(list(berths.nodes.links)) == 2
    answers = [berths.publish(shard, b',"n":1') for shard in range(SHARDS)]
    found = await asyncio.gather(*answers)
    assert all(isinstance(reply, bytes) and reply.startswith(b"at ") for reply in found)


async def test_a_publish_waits_in_its_place_for_a_slot_that_migrates(cluster: Cluster, berths: Berths) -> None:
    slot = slot_of(tags(SHARDS)[0])
    source = cluster.owner(slot)
    target = next(master for master in cluster.masters if master is not source)
    berths.present.add(b"room:a")
    joined: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    berths.buses[0].join([b"room:a"], joined.set_result)
    assert await joined is not None
    await berths.publish(0, b',"n":0')
    target.client.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", source.id)
    source.client.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", target.id)
    # A node that gives a slot away still serves the keys that it has: the idempotency key is one that it has not.
    answers = [berths.publish(0, b',"n":%d' % number, b"p %d" % number) for number in range(1, 6)]
    await until(lambda: berths.lost, "the shard is on the move")
    answers += [berths.publish(0, b',"n":%d' % number, b"p %d" % number) for number in range(6, 9)]
    await asyncio.to_thread(cluster.finish_migration, slot, source, target)
    found = await asyncio.gather(*answers)
    assert all(isinstance(reply, bytes) for reply in found), found
    numbers = [int(reply.rsplit(b"-", 1)[1]) for reply in found if isinstance(reply, bytes)]
    assert numbers == list(range(numbers[0], numbers[0] + 8)), "in order, and once"
    # The nodes may yet disagree on whose slot it is, and one of them have the shard leave once more.
    await until(lambda: berths.lost.count(0) == berths.restored.count(0) - 1, "the shard is back")
    assert set(berths.lost) == {0}, "the others go on"


async def test_a_slot_that_nobody_has_is_waited_for_in_vain(
    cluster: Cluster, berths: Berths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOVING_SECONDS_MAX", 0.3)
    slot = slot_of(tags(SHARDS)[1])
    source = cluster.owner(slot)
    target = next(master for master in cluster.masters if master is not source)
    await berths.publish(1, b',"n":0')
    target.client.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", source.id)
    source.client.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", target.id)
    reply = await asyncio.wait_for(berths.publish(1, b',"n":1', b"a new key"), 5)
    assert isinstance(reply, BusDown)
    source.client.execute_command("CLUSTER SETSLOT", slot, "STABLE")
    target.client.execute_command("CLUSTER SETSLOT", slot, "STABLE")
    await until(lambda: berths.buses[1].connected, "it is back")
    assert isinstance(await berths.publish(1, b',"n":2'), bytes)


async def test_an_unused_link_is_closed(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes_module, "IDLE_SECONDS", 0.05)
    async with watched(), Berths(cluster) as berths:
        only = berths.buses[0]
        for other in berths.buses[1:]:
            other._detach("not wanted")
        used = await berths.nodes.link(0)
        await until(lambda: [*berths.nodes.links] == [used], "one is left")
        assert only.connected


async def test_who_listens_finds_a_slot_that_has_moved(cluster: Cluster) -> None:
    place = topology.parse(f"{cluster.url}?shards={SHARDS}")
    assert isinstance(place, Site)
    tag = tags(SHARDS)[2]
    source = cluster.owner(slot_of(tag))
    target = next(master for master in cluster.masters if master is not source)
    async with watched():
        client = ClusterClient(place, None, 3.0)
        async with client.listening(b"{%b}a" % tag):
            await asyncio.to_thread(cluster.migrate, slot_of(tag), target)
        with pytest.raises(BusDown, match="MOVED"):
            async with client.listening(b"{%b}a" % tag):
                pass
        async with client.listening(b"{%b}a" % tag) as heard:
            target.client.execute_command("SPUBLISH", b"{%b}a" % tag, b"hello")
            assert await asyncio.wait_for(heard(), 5) == b"hello"
        await client.aclose()
        await asyncio.sleep(0)


async def test_a_client_outlives_the_nodes_that_its_url_names(cluster: Cluster) -> None:
    place = topology.parse(f"{cluster.url}?shards={SHARDS}")
    assert isinstance(place, Site)
    key = b"test:{%b}a" % tags(SHARDS)[3]
    async with watched():
        client = ClusterClient(place, None, 3.0)
        await client.ask("GET", key)
        client.site = place._replace(seeds=(Address("127.0.0.1", 1),))  # as if those were gone
        await client.aclose()  # and every connection cut
        assert await client.ask("GET", key) is None
        await client.aclose()
        await asyncio.sleep(0)


# One pipe, several users.


@pytest.fixture
async def link(cluster: Cluster) -> AsyncIterator[Link]:
    place = topology.parse(cluster.url)
    assert isinstance(place, Site)
    owner = cluster.owner(slot_of(tags(SHARDS)[0]))
    async with watched():
        link = Link(lambda _push: None, lambda: None, lambda: None, lambda _why: None)
        await link.open(place.node(Address("127.0.0.1", owner.port)), None, "test")
        yield link
        link.close("over")
        await asyncio.sleep(0)


def here_and_elsewhere(cluster: Cluster) -> tuple[bytes, bytes]:
    """A tag whose slot the node of the first shard has, and one that another has."""
    owner = cluster.owner(slot_of(tags(SHARDS)[0]))
    other = next(tag for tag in tags(SHARDS) if cluster.owner(slot_of(tag)) is not owner)
    return tags(SHARDS)[0], other


async def test_a_refused_subscription_takes_nobody_elses_answer(cluster: Cluster, link: Link) -> None:
    here, elsewhere = here_and_elsewhere(cluster)
    refused: list[str] = []
    good, bad = Strand(link.subscriber, refused.append), Strand(link.subscriber, refused.append)
    for _ in range(3):
        good.push(pack((b"SSUBSCRIBE", b"{%b}a" % here, b"{%b}b" % here)))
        first = asyncio.ensure_future(good.ask("ECHO", "first"))
        bad.push(pack((b"SSUBSCRIBE", b"{%b}a" % elsewhere, b"{%b}b" % elsewhere)))
        second = asyncio.ensure_future(bad.ask("ECHO", "second"))
        bad.push(pack((b"SUNSUBSCRIBE", b"{%b}a" % elsewhere)))
        third = asyncio.ensure_future(good.ask("ECHO", "third"))
        assert [await first, await second, await third] == [b"first", b"second", b"third"]
    assert refused
    assert all(why.startswith("MOVED ") for why in refused)
    assert len(link.subscriber) == 0


async def test_a_strand_that_is_given_up_answers_who_waits_and_leaves_the_pipe(link: Link) -> None:
    refused: list[str] = []
    one, other = Strand(link.subscriber, refused.append), Strand(link.subscriber, refused.append)
    asked, stays = asyncio.ensure_future(one.ask("ECHO", "one")), asyncio.ensure_future(other.ask("ECHO", "other"))
    await asyncio.sleep(0)
    one.close("given up")
    with pytest.raises(Unconfirmed, match="given up"):
        await asked
    assert await stays == b"other"
    with pytest.raises(Unconfirmed, match="given up"):
        await one.ask("ECHO", "late")
    one.push(pack((b"SSUBSCRIBE", b"x")))
    assert await other.ask("ECHO", "again") == b"again"
    assert not refused


async def test_a_refused_command_is_refused(link: Link) -> None:
    with pytest.raises(Refused, match="unknown command"):
        await Strand(link.subscriber, lambda _why: None).ask("NONSENSE")
