"""Who is subscribed to what, while messages are being fanned out and while they are not."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from sinks import Keeper, Worker

from router.carousel import Round
from router.message import Message
from router.table import Channel


@pytest.fixture
def worker() -> Worker:
    return Worker()


def names(worker: Worker) -> set[str]:
    return {name.decode() for name in worker.table.names()}


def test_an_empty_table_knows_nobody(worker: Worker) -> None:
    assert len(worker.table) == 0
    assert not names(worker)
    assert worker.table.find(b"room:a") is None
    assert worker.table.find(b"@alice") is None
    assert b"room:a" not in worker.table
    assert b"@alice" not in worker.table


def test_the_names_are_what_the_bus_has_to_be_subscribed_to(worker: Worker) -> None:
    alice = worker.keeper("alice", "room:a", "room:b")
    worker.keeper("zoë")
    assert names(worker) == {"@alice", "@zoë", "room:a", "room:b"}
    assert all(name in worker.table for name in worker.table.names())
    assert len(worker.table) == 4
    assert sorted(worker.table.leave(alice)) == [b"@alice", b"room:a", b"room:b"]
    assert names(worker) == {"@zoë"}


def test_a_channel_goes_with_its_last_subscriber(worker: Worker) -> None:
    alice, bob = worker.keeper("alice", "room:a"), worker.keeper("bob", "room:a")
    assert worker.table.leave(alice) == [b"@alice"]
    assert worker.table.leave(bob) == [b"@bob", b"room:a"]
    assert len(worker.table) == 0


def test_leaving_twice_changes_nothing(worker: Worker) -> None:
    alice = worker.keeper("alice", "room:a")
    worker.table.leave(alice)
    worker.keeper("alice", "room:a")
    assert worker.table.leave(alice) == []
    assert names(worker) == {"@alice", "room:a"}


def test_a_user_with_one_connection_is_a_bare_reference(worker: Worker) -> None:
    alice = worker.keeper("alice")
    assert worker.table.users == {"alice": alice}
    assert not worker.table.channels


def test_a_user_with_two_connections_is_a_channel_until_one_is_left(worker: Worker) -> None:
    one, two = worker.keeper("alice"), worker.keeper("alice")
    channel = worker.table.users["alice"]
    assert isinstance(channel, Channel)
    assert set(channel.sinks) == {one, two}
    assert len(worker.table) == 1
    assert worker.table.leave(one) == []
    assert worker.table.users["alice"] is two
    assert worker.table.leave(two) == [b"@alice"]


def test_a_user_who_leaves_in_the_middle_of_a_round_is_not_revived_by_its_end(worker: Worker) -> None:
    one, two = worker.keeper("alice"), worker.keeper("alice")
    worker.publish("@alice")
    assert worker.table.leave(one) == []
    assert worker.table.leave(two) == [b"@alice"]
    back = worker.keeper("alice")
    worker.drain()
    assert worker.table.users["alice"] is back
    assert not one.writes
    assert not two.writes
    assert not back.writes


def test_the_reference_comes_back_after_a_round(worker: Worker) -> None:
    alice = worker.keeper("alice")
    channel = worker.table.find(b"@alice")
    assert isinstance(channel, Channel)
    worker.carousel.add(channel, Message(b"gap", b"@alice", b"1", b""))
    assert worker.table.users["alice"] is channel
    assert worker.table.sole(b"@alice") is None
    worker.drain()
    assert alice.received() == [1]
    assert worker.table.sole(b"@alice") is alice
    assert worker.table.users == {"alice": alice}


def test_one_of_two_connections_leaves_in_a_round(worker: Worker) -> None:
    one, two = worker.keeper("alice"), worker.keeper("alice")
    worker.publish("@alice")
    worker.table.leave(one)
    worker.drain()
    assert worker.table.users["alice"] is two
    assert two.received() == [1]


def test_a_second_connection_in_a_round_begins_with_the_next_message(worker: Worker) -> None:
    one = worker.keeper("alice")
    worker.publish("@alice")
    two = worker.keeper("alice")
    worker.publish("@alice")
    worker.drain()
    assert one.received() == [1, 2]
    assert two.received() == [2]


def test_add_and_discard(worker: Worker) -> None:
    alice = worker.keeper("alice")
    worker.table.add(alice, b"room:a")
    worker.table.add(alice, b"room:a")
    worker.table.add(alice, b"room:b")
    assert [channel.name for channel in alice.channels] == [b"room:a", b"room:b"]
    assert worker.table.discard(alice, b"room:a")
    assert not worker.table.discard(alice, b"room:a")
    assert not worker.table.discard(alice, b"room:c")
    assert [channel.name for channel in alice.channels] == [b"room:b"]
    assert names(worker) == {"@alice", "room:b"}


def test_discard_tells_whether_the_channel_is_empty(worker: Worker) -> None:
    alice, bob = worker.keeper("alice", "room:a"), worker.keeper("bob", "room:a")
    assert not worker.table.discard(alice, b"room:a")
    assert worker.table.discard(bob, b"room:a")
    assert worker.table.find(b"room:a") is None


def test_someone_elses_channel_is_not_discarded(worker: Worker) -> None:
    alice, bob = worker.keeper("alice", "room:a"), worker.keeper("bob")
    assert not worker.table.discard(bob, b"room:a")
    channel = worker.table.find(b"room:a")
    assert channel is not None
    assert set(channel.sinks) == {alice}


def test_discard_in_a_round(worker: Worker) -> None:
    alice, bob = worker.keeper("alice", "room:a"), worker.keeper("bob", "room:a")
    worker.publish("room:a")
    worker.table.discard(alice, b"room:a")
    worker.drain()
    assert not alice.writes
    assert bob.received() == [1]


def test_the_tuple_of_one_channel_is_shared(worker: Worker) -> None:
    alice, bob = worker.keeper("alice", "room:a"), worker.keeper("bob", "room:a")
    carol = worker.keeper("carol")
    worker.table.add(carol, b"room:a")
    dave = worker.keeper("dave", "room:a", "room:b")
    worker.table.discard(dave, b"room:b")
    assert alice.channels is bob.channels is carol.channels is dave.channels


def test_a_channel_that_comes_back_is_a_new_one(worker: Worker) -> None:
    alice = worker.keeper("alice", "room:a")
    worker.publish("room:a")
    worker.table.leave(alice)
    bob = worker.keeper("bob", "room:a")
    worker.publish("room:a")
    worker.drain()
    assert not alice.writes
    assert bob.received() == [2]
    assert worker.table.leave(bob) == [b"@bob", b"room:a"]


def test_nothing_waits_for_the_garbage_collector(worker: Worker) -> None:
    """A worker's collector hardly ever runs: what is dropped must go by its reference count."""

    def churn() -> None:
        for number in range(50):
            keepers: list[Keeper] = [worker.keeper("alice", f"room:{number}", "room:all") for _ in range(2)]
            worker.table.add(keepers[0], b"room:more")
            worker.publish("room:all")
            worker.publish("@alice")
            worker.drain()
            worker.table.discard(keepers[1], b"room:all")
            for keeper in keepers:
                worker.table.leave(keeper)

    gc.collect()
    gc.disable()
    try:
        churn()
        assert not [found for found in gc.get_objects() if type(found) in {Channel, Round, Keeper}]
    finally:
        gc.enable()


class Roster:
    """Keeps who has come and gone."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def enter(self, user: str) -> None:
        self.heard.append(f"+{user}")

    def leave(self, user: str) -> None:
        self.heard.append(f"-{user}")


def test_a_roster_hears_of_every_subscription(worker: Worker) -> None:
    """Asked for once a channel; however one comes and goes, it is told once."""
    roster, asked = Roster(), list[bytes]()

    def roster_of(name: bytes) -> Any:
        asked.append(name)
        return roster if name == b"hall:a" else None

    worker.table.roster_of = roster_of
    alice = worker.keeper("alice", "hall:a", "room:a")
    bob = worker.keeper("bob")
    worker.table.add(bob, b"hall:a")
    worker.table.add(bob, b"hall:a")
    worker.table.discard(bob, b"hall:a")
    worker.table.discard(bob, b"hall:a")
    worker.table.leave(alice)
    worker.table.leave(alice)
    assert roster.heard == ["+alice", "+bob", "-bob", "-alice"]
    assert asked == [b"hall:a", b"room:a"]
    worker.keeper("carol", "hall:a")
    assert asked[2:] == [b"hall:a"]
