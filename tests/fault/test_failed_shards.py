"""What a killed master had answered and its replica never got is found out, whatever becomes of the shard before anybody asks."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

import pytest
from accounting import Sites
from clusters import Cluster, Member, one_per_shard
from harness import Server, wait_until
from journals import publish_args

from router import position
from router.journal import SHARDED, Keys
from router.position import Position
from router.slots import slot_of, tags

TAG = tags(8)[0]
KEYS = Keys(f"moorage:{{{TAG.decode()}}}", SHARDED)
SLOT = slot_of(TAG)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster() as cluster:
        yield cluster


def publish(node: Member) -> Position:
    args = publish_args(KEYS, b"room:a", b',"data":1')
    (found,) = node.client.execute_command("EVAL", SHARDED.publishing, *args)
    return position.read(found)


def look(node: Member, known: Position | None = None) -> Position:
    return position.read(node.client.execute_command("EVAL", SHARDED.now, *KEYS.now_args(known)))


@contextlib.contextmanager
def losing(cluster: Cluster) -> Iterator[None]:
    """What is written here is answered by a master, is not had by its replica, and is lost with the master behind it."""
    master, (replica,) = cluster.owner(SLOT), cluster.replicas
    wait_until(lambda: master.client.execute_command("WAIT", 1, 1000) == 1, "the replica has all that was before")
    assert replica.pid is not None
    os.kill(replica.pid, signal.SIGSTOP)
    master.client.client_kill_filter(_type="replica")  # otherwise its kernel would have what it has not read
    yield
    master.kill()
    os.kill(replica.pid, signal.SIGCONT)
    wait_until(lambda: replica.role == "master", "the replica is promoted")
    master.restart()
    cluster.comes_back(master)


def lose_a_message(cluster: Cluster) -> Position:
    """Return the position of a message that is lost, in the epoch that should end."""
    master = cluster.owner(SLOT)
    look(master)
    kept = publish(master)
    with losing(cluster):
        lost = publish(master)
    assert (lost.epoch, lost.id.number) == (kept.epoch, kept.id.number + 1)
    return lost


def test_it_is_promoted(cluster: Cluster) -> None:
    lost = lose_a_message(cluster)
    assert look(cluster.owner(SLOT)).epoch != lost.epoch


@pytest.mark.parametrize("way", ["key by key", "at once"])
def test_it_is_promoted_and_migrates_before_anybody_looks(cluster: Cluster, way: str) -> None:
    """The node that has the slot then is of another group: to it, this looks like a migration."""
    lost = lose_a_message(cluster)
    (cluster.migrate if way == "key by key" else cluster.migrate_at_once)(SLOT, cluster.masters[1])
    assert look(cluster.masters[1]).epoch != lost.epoch


def test_who_was_killed_is_the_master_again_before_anybody_looks(cluster: Cluster) -> None:
    """It was the last to write there, as far as its replica knows."""
    lost = lose_a_message(cluster)
    cluster.hand_over()
    assert cluster.owner(SLOT) is cluster.masters[0]
    found = look(cluster.masters[0])
    assert found.id.number < lost.id.number, "it is lost"
    assert found.epoch != lost.epoch


def test_an_epoch_that_was_lost_with_its_node_is_missed(cluster: Cluster) -> None:
    """Somebody who knows of it ends the one that has come back in its place."""
    first = look(cluster.masters[0])
    unknown = first._replace(epoch="0badcafe")
    second = look(cluster.masters[0], unknown)
    assert second.epoch not in (first.epoch, unknown.epoch)
    assert {look(cluster.masters[0], known).epoch for known in (unknown, first, second, None)} == {second.epoch}, "once"


def test_a_slot_that_only_migrates_stays_in_its_epoch(cluster: Cluster) -> None:
    at = publish(cluster.masters[0])
    for target in (1, 2, 0, 1):
        cluster.migrate(SLOT, cluster.masters[target])
        found = look(cluster.masters[target], at)
        assert (found.epoch, found.id.number) == (at.epoch, at.id.number)
        at = publish(cluster.masters[target])
        assert at.id.number == found.id.number + 1


def test_who_subscribes_late_with_a_number_that_is_given_out_again_is_not_recovered(
    start_server: Callable[..., Server], cluster: Cluster
) -> None:
    """What was heard is lost, and what was published since, with the same number, was not heard."""
    server = start_server("--workers", "1", "--redis", cluster.url)
    room, sites = one_per_shard("room:", 8)[0], Sites([], [], 8)
    client = server.joined("late", room)
    server.publish(room, "kept")
    with losing(cluster):
        server.publish(room, "lost")
        _kept, lost = client.messages(2)
    heard = lost["position"]
    wait_until(lambda: server.request("GET", "/readyz")[0] == 200, "all shards are up")
    server.publish(room, "new")
    client = server.joined("late")
    at = client.connected["position"]
    assert sites.read(at).of(room.encode()).number == sites.read(heard).of(room.encode()).number, (
        "or it is another case"
    )
    client.send({"op": "subscribe", "id": 1, "channel": room, "position": heard})
    client.expect("subscribed", id=1, recovered=False)
