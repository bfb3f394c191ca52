"""Fan-out in slices: few writes, in order, in time, and at a cost that grows with the messages alone."""

from __future__ import annotations

from functools import partial

import pytest
from sinks import LINES, Keeper, NamedLane, Worker


@pytest.fixture
def worker() -> Worker:
    return Worker()


def crowd(worker: Worker, size: int, *rooms: str, lane: NamedLane = LINES) -> list[Keeper]:
    return [worker.keeper(f"{rooms[0]}-{number}", *rooms, lane=lane) for number in range(size)]


def slow(worker: Worker, keepers: list[Keeper], seconds: float) -> None:
    """Let every write to `keepers` take a while."""

    def pass_time() -> None:
        worker.clock.now += seconds

    for keeper in keepers:
        keeper.on_offer = pass_time


def test_a_message_to_nobody_is_nothing(worker: Worker) -> None:
    assert not worker.carousel
    worker.publish("room:a")
    assert not worker.carousel
    assert not worker.carousel.turn()


def test_one_message_is_one_write_each(worker: Worker) -> None:
    keepers = crowd(worker, 1000, "room:a")
    worker.publish("room:a")
    assert worker.drain() == 1
    assert [keeper.writes for keeper in keepers] == [[b"lines room:a 1\n"]] * 1000
    assert (worker.carousel.writes, worker.carousel.deliveries) == (1000, 1000)


def test_a_burst_is_one_write_each(worker: Worker) -> None:
    keepers = crowd(worker, 1000, "room:a")
    for _ in range(20):
        worker.publish("room:a")
    worker.drain()
    assert all(len(keeper.writes) == 1 and keeper.received() == list(range(1, 21)) for keeper in keepers)
    assert (worker.carousel.writes, worker.carousel.deliveries) == (1000, 20_000)


def test_the_burst_of_one_user_is_one_write(worker: Worker) -> None:
    alice = worker.keeper("alice")
    for _ in range(20):
        worker.publish("@alice")
    worker.drain()
    assert len(alice.writes) == 1
    assert alice.received() == list(range(1, 21))


@pytest.mark.parametrize("rooms", [["room:a"], ["room:a", "room:b", "room:c"]])
def test_a_message_is_encoded_once_a_lane(worker: Worker, rooms: list[str]) -> None:
    lanes = [NamedLane(b"lines"), NamedLane(b"sse")]
    keepers = [keeper for lane in lanes for keeper in crowd(worker, 500, *rooms, lane=lane)]
    slow(worker, keepers, 0.01)
    for _ in range(20):
        worker.publish(rooms[0])
        worker.publish(rooms[-1])
        worker.carousel.turn()
    worker.drain()
    assert all(keeper.received() == list(range(1, 41)) for keeper in keepers)
    assert [lane.encoded for lane in lanes] == [40, 40]


def test_a_slice_ends_in_time(worker: Worker) -> None:
    keepers = crowd(worker, 1000, "room:a")
    slow(worker, keepers, 0.01)  # a slice is 1 s
    worker.publish("room:a")
    assert worker.carousel.turn()
    assert sum(bool(keeper.writes) for keeper in keepers) == 112  # looks at the clock every 16
    assert worker.drain() == 8
    assert all(keeper.received() == [1] for keeper in keepers)


@pytest.mark.parametrize("rooms", [["room:a"], ["room:a", "room:b"]])
def test_sinks_are_served_in_the_order_in_which_they_came(worker: Worker, rooms: list[str]) -> None:
    """They lie in memory in about that order, which is worth a tenth of the cost of a broadcast."""
    keepers = crowd(worker, 200, *rooms)
    served: list[Keeper] = []
    for keeper in keepers:
        keeper.on_offer = partial(served.append, keeper)
    for _ in range(2):
        served.clear()
        for room in rooms:
            worker.publish(room)
        worker.drain()
        assert served == keepers


def test_a_message_in_the_middle_of_a_walk_joins_it(worker: Worker) -> None:
    keepers = crowd(worker, 1000, "room:a")
    slow(worker, keepers, 0.01)
    worker.publish("room:a")
    worker.carousel.turn()
    early = [keeper for keeper in keepers if keeper.writes]
    late = [keeper for keeper in keepers if not keeper.writes]
    worker.publish("room:a")
    worker.drain()
    assert [len(keeper.writes) for keeper in early] == [2] * len(early)
    assert [len(keeper.writes) for keeper in late] == [1] * len(late)
    assert all(keeper.received() == [1, 2] for keeper in keepers)


def test_who_waits_longest_is_served_first(worker: Worker) -> None:
    keepers = crowd(worker, 1000, "room:a")
    slow(worker, keepers, 0.01)
    worker.publish("room:a")
    turns = 0
    while not all(keeper.writes for keeper in keepers):
        worker.carousel.turn()
        worker.publish("room:a")
        turns += 1
    assert turns == 9  # one walk, however many messages come meanwhile


def test_the_cost_of_steady_traffic_is_linear() -> None:
    worker = Worker()
    lane = NamedLane(b"lines")
    keepers = crowd(worker, 10_000, "room:a", lane=lane)
    slow(worker, keepers, 0.05)  # a slice is 32 sinks: a walk is 313 slices
    for _ in range(400):
        worker.publish("room:a")
        worker.carousel.turn()
    worker.drain()
    assert all(len(keeper.writes) <= 3 for keeper in keepers)
    assert keepers[0].received() == keepers[-1].received() == list(range(1, 401))
    assert lane.encoded == 400


def test_order_is_kept_over_all_channels_of_a_sink(worker: Worker) -> None:
    both = crowd(worker, 100, "room:a", "room:b")
    slow(worker, both, 0.02)
    for name in ("room:a", "room:b", "@room:a-3", "room:b", "room:a", "@room:a-3", "room:a"):
        worker.publish(name)
        worker.carousel.turn()
    worker.drain()
    assert both[3].received() == [1, 2, 3, 4, 5, 6, 7]
    assert both[4].received() == [1, 2, 4, 5, 7]


def test_a_sink_of_a_small_room_is_not_overtaken_by_a_big_one(worker: Worker) -> None:
    crowd(worker, 1000, "room:big")
    slow(worker, [both := worker.keeper("alice", "room:big", "room:small")], 5.0)
    worker.publish("room:big")
    worker.publish("room:small")
    worker.drain()
    assert both.received() == [1, 2]
    assert len(both.writes) == 1


@pytest.mark.parametrize("seconds", [0.001, 0.01, 0.1, 2.0])
def test_a_big_round_does_not_starve_a_small_one(worker: Worker, seconds: float) -> None:
    big = crowd(worker, 2000, "room:big")
    slow(worker, big, seconds)
    worker.publish("room:big")
    worker.carousel.turn()
    alice = worker.keeper("alice")
    worker.publish("@alice")
    before = worker.carousel.writes
    served: list[int] = []
    alice.on_offer = lambda: served.append(sum(bool(keeper.writes) for keeper in big))
    while not served:
        worker.carousel.turn()
    assert served[0] - before <= 64


def test_many_rounds_take_turns(worker: Worker) -> None:
    rooms = {f"room:{number}": crowd(worker, 200, f"room:{number}") for number in range(10)}
    for room, keepers in rooms.items():
        slow(worker, keepers, 0.02)
        worker.publish(room)
    for _ in range(10):
        worker.carousel.turn()
    served = [sum(bool(keeper.writes) for keeper in keepers) for keepers in rooms.values()]
    assert min(served) > 0
    assert max(served) <= 2 * 64
    worker.drain()
    assert all(len(keeper.writes) == 1 for keepers in rooms.values() for keeper in keepers)


def test_a_full_sink_is_reported_and_hurts_nobody(worker: Worker) -> None:
    keepers = crowd(worker, 100, "room:a")
    keepers[7].has_room = keepers[70].has_room = False
    worker.publish("room:a")
    worker.publish("room:a")
    worker.drain()
    assert set(worker.full) == {keepers[7], keepers[70]}
    assert sum(keeper.received() == [1, 2] for keeper in keepers) == 98
    assert worker.carousel.bytes_waiting == 0


def test_a_full_sink_that_takes_others_with_it(worker: Worker) -> None:
    """Closing one connection may close more, which are about to be served in two rounds."""
    keepers = crowd(worker, 100, "room:a", "room:b")
    for keeper in keepers:
        keeper.has_room = False

    def all_leave(_sink: object) -> None:
        for keeper in keepers:
            worker.table.leave(keeper)

    worker.carousel._on_full = all_leave
    worker.publish("room:a")
    worker.publish("room:b")
    worker.drain()
    assert len(worker.table) == 0
    assert worker.carousel.bytes_waiting == 0


@pytest.mark.parametrize("rooms", [["room:a"], ["room:a", "room:b"]])
def test_what_is_published_when_a_sink_is_full_reaches_everybody(worker: Worker, rooms: list[str]) -> None:
    """Telling a room that somebody has left it, in the middle of its round."""
    keepers = crowd(worker, 100, *rooms)
    keepers[50].has_room = False

    def left(sink: object) -> None:
        worker.on_full(sink)
        worker.publish(rooms[0])

    worker.carousel._on_full = left
    for room in rooms:
        worker.publish(room)
    worker.drain()
    expected = list(range(1, len(rooms) + 2))
    assert all(keeper.received() == expected for keeper in keepers if keeper is not keepers[50])


def test_leaving_in_the_middle_of_a_walk(worker: Worker) -> None:
    keepers = crowd(worker, 500, "room:a")
    slow(worker, keepers, 0.01)
    worker.publish("room:a")
    worker.carousel.turn()
    worker.publish("room:a")
    for keeper in keepers:
        worker.table.leave(keeper)
    served = worker.carousel.writes
    assert not worker.carousel.turn()
    assert worker.carousel.writes == served
    assert worker.carousel.bytes_waiting == 0


def test_bytes_waiting_is_what_is_in_the_logs(worker: Worker) -> None:
    keepers = crowd(worker, 500, "room:a")
    slow(worker, keepers, 0.01)
    worker.publish("room:a", b"x" * 1000)
    worker.carousel.turn()
    worker.publish("room:a", b"x" * 10)
    assert worker.carousel.bytes_waiting == 1010
    while worker.carousel.bytes_waiting == 1010:
        assert worker.carousel.turn()
    assert worker.carousel.bytes_waiting == 10
    worker.drain()
    assert worker.carousel.bytes_waiting == 0


def test_flush_serves_what_is_owed_and_only_that(worker: Worker) -> None:
    alice = worker.keeper("alice", "room:a", "room:b")
    worker.carousel.flush(alice)
    assert not alice.writes
    for name in ("room:a", "@alice", "room:b"):
        worker.publish(name)
    worker.carousel.flush(alice)
    assert alice.received() == [1, 2, 3]
    assert len(alice.writes) == 1
    worker.carousel.flush(alice)
    worker.drain()
    assert len(alice.writes) == 1
    assert worker.carousel.deliveries == 3


def test_flush_of_a_full_sink_reports_it(worker: Worker) -> None:
    alice = worker.keeper("alice", "room:a")
    alice.has_room = False
    worker.publish("room:a")
    worker.carousel.flush(alice)
    assert worker.full == [alice]
    worker.drain()


def test_a_walk_tells_how_long_its_messages_took(worker: Worker) -> None:
    keepers = crowd(worker, 10, "room:a")
    worker.publish("room:a")
    worker.clock.now += 0.25
    slow(worker, keepers, 0.05)
    worker.drain()
    assert worker.seconds == [pytest.approx(0.75)]


def test_a_round_that_never_ends_tells_how_long_its_messages_took(worker: Worker) -> None:
    slow(worker, crowd(worker, 100, "room:a"), 0.05)
    for _ in range(100):
        worker.publish("room:a")
        worker.carousel.turn()
    assert worker.carousel
    assert len(worker.seconds) > 50
    assert max(worker.seconds) < 8.0  # a walk of five seconds, and what was begun before it


def test_what_is_for_one_alone_takes_turns_with_a_broadcast() -> None:
    worker = Worker(slice_seconds=1.0)
    keepers = crowd(worker, 1000, "room:a")
    alice = worker.keeper("alice")
    slow(worker, [*keepers, alice], 2.0)
    worker.publish("room:a")
    worker.publish("@alice")
    for turn in range(1, 10):
        worker.publish("@alice")
        before = sum(bool(keeper.writes) for keeper in keepers)
        worker.carousel.turn()
        assert len(alice.writes) == turn, "between two turns of the broadcast"
        assert sum(bool(keeper.writes) for keeper in keepers) > before, "which goes on as well"
    worker.drain()
    assert all(keeper.received() == [1] for keeper in keepers)


def test_many_who_are_written_to_alone_are_served_in_slices() -> None:
    worker = Worker(slice_seconds=1.0)
    keepers = [worker.keeper(f"u{number}") for number in range(100)]
    slow(worker, keepers, 0.1)
    for _ in range(2):
        for number in range(100):
            worker.publish(f"@u{number}")
    assert worker.carousel.turn()
    served = sum(bool(keeper.writes) for keeper in keepers)
    assert 10 <= served < 30
    assert worker.drain() > 3
    assert [keeper.received() for keeper in keepers] == [[number, number + 100] for number in range(1, 101)]
    assert (worker.carousel.writes, worker.carousel.deliveries) == (100, 200)


def test_a_second_connection_comes_while_something_waits_for_the_first(worker: Worker) -> None:
    first = worker.keeper("alice", "room:a")
    worker.publish("@alice")
    worker.publish("room:a")
    second = worker.keeper("alice")
    worker.publish("@alice")
    worker.drain()
    assert first.received() == [1, 2, 3]
    assert len(first.writes) == 1
    assert second.received() == [3]


def test_what_waits_for_one_who_leaves_is_dropped(worker: Worker) -> None:
    first = worker.keeper("alice")
    worker.publish("@alice")
    worker.table.leave(first)
    second = worker.keeper("alice")
    worker.publish("@alice")
    worker.drain()
    assert first.writes == []
    assert second.received() == [2]
    assert worker.carousel.bytes_waiting == 0


def test_flush_serves_what_is_for_one_alone(worker: Worker) -> None:
    alice = worker.keeper("alice")
    worker.publish("@alice")
    worker.carousel.flush(alice)
    assert alice.received() == [1]
    worker.publish("@alice")
    worker.drain()
    assert alice.received() == [1, 2]


def test_who_is_written_to_alone_and_has_no_room_is_reported(worker: Worker) -> None:
    alice, bob = worker.keeper("alice"), worker.keeper("bob")
    alice.has_room = False
    for name in ("@alice", "@bob"):
        worker.publish(name)
    worker.drain()
    assert worker.full == [alice]
    assert bob.received() == [2]
