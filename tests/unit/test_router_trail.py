"""What was missed over several shards: shard by shard, every position true where one may be cut, gaps known from the start."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from router.message import Message
from router.outcome import Unconfirmed
from router.position import Id, Position
from router.replay import PAGE_BYTES_MAX, Entry, Page
from router.trail import Trail
from router.vector import Vector, parse, shard_of

SHARDS = 3
EPOCHS = ("0000000a", "0000000b", "0000000c")
NAMES = {shard: [n for n in (b"room:%d" % i for i in range(60)) if shard_of(n, SHARDS) == shard] for shard in range(3)}


class Library:
    """Pages of two messages each; of some channels something is lacking."""

    def __init__(self, numbers: dict[bytes, list[int]], lacking: set[bytes] = frozenset()) -> None:  # type: ignore[assignment]
        self.numbers, self.lacking = numbers, lacking
        self.fault: Exception | None = None
        self.asked: list[tuple[bytes, int]] = []

    def page(
        self, name: bytes, epoch: str, after: Id, upto: Id, done: Callable[[Page | Exception], None], *,
        bytes_max: int = PAGE_BYTES_MAX,
    ) -> None:  # fmt: skip
        assert epoch == EPOCHS[shard_of(name, SHARDS)]
        self.asked.append((name, after.number))
        if self.fault is not None:
            done(self.fault)
            return
        found = [number for number in self.numbers[name] if after.number < number <= upto.number]
        entries = [
            Entry(Id(number, number), Message(b"message", name, b"%b-%d-%d" % (epoch.encode(), number, number), b","))
            for number in found[:2]
        ]
        done(Page(entries, len(found) > 2, name not in self.lacking))


def vector(*numbers: int) -> Vector:
    return Vector(tuple(Position(epoch, Id(n, n)) for epoch, n in zip(EPOCHS, numbers, strict=True)))


def walk(trail: Trail) -> list[Message]:
    found: list[Message] = []
    for _ in range(50):
        if trail.is_done:
            return found
        trail.step(lambda step: found.extend(step) if isinstance(step, list) else pytest.fail(str(step)))
    pytest.fail("it does not end")


A, B, C = NAMES[0][0], NAMES[1][0], NAMES[2][0]
NUMBERS = {A: [1, 2, 3, 4, 5], B: [6, 7, 8], NAMES[1][1]: [9], C: [3]}


def test_shard_by_shard_each_in_its_order() -> None:
    trail = Trail(Library(NUMBERS), vector(1, 6, 3), vector(5, 9, 3), NUMBERS)
    found = walk(trail)
    assert [(message.channel, int(message.members == b",")) for message in found] == [
        (A, 1), (A, 1), (A, 1), (A, 1), (B, 1), (B, 1), (NAMES[1][1], 1)
    ]  # fmt: skip
    assert not trail.gaps


@pytest.mark.parametrize("cut", range(8))
def test_wherever_one_is_cut_the_rest_comes_and_nothing_twice(cut: int) -> None:
    since, upto = vector(1, 6, 3), vector(5, 9, 3)
    first = walk(Trail(Library(NUMBERS), since, upto, NUMBERS))[:cut]
    at = parse(first[-1].position, SHARDS) if first else since
    assert at is not None
    rest = walk(Trail(Library(NUMBERS), at, upto, NUMBERS))
    everything = walk(Trail(Library(NUMBERS), since, upto, NUMBERS))
    ids = [(each.channel, parse(each.position, SHARDS).of(each.channel)) for each in [*first, *rest]]  # type: ignore[union-attr]
    assert ids == [(each.channel, parse(each.position, SHARDS).of(each.channel)) for each in everything]  # type: ignore[union-attr]


def test_a_channel_that_is_behind_goes_first_and_can_be_cut_anywhere() -> None:
    behind, upto = vector(1, 9, 3).but(B, Id(6, 6)), vector(5, 9, 3)
    everything = walk(Trail(Library(NUMBERS), behind, upto, NUMBERS))
    assert [message.channel for message in everything] == [B, B, A, A, A, A]
    for cut in range(1, 7):
        at = parse(everything[cut - 1].position, SHARDS)
        assert at is not None
        rest = walk(Trail(Library(NUMBERS), at, upto, NUMBERS))
        assert [each.channel for each in rest] == [each.channel for each in everything[cut:]]


@pytest.mark.parametrize("wanted", [{A}, {A, NAMES[1][1]}])
def test_a_channel_that_is_behind_and_not_come_back_to_holds_up_nothing(wanted: set[bytes]) -> None:
    """She was cut while she was sent the past of B, and comes back without it."""
    since, upto = vector(1, 8, 3).but(B, Id(6, 6)), vector(5, 9, 3)
    found = walk(Trail(Library(NUMBERS), since, upto, wanted))
    assert [message.channel for message in found if message.channel == A] == [A] * 4
    assert {message.channel for message in found} == wanted
    for message in found:
        assert parse(message.position, SHARDS) is not None


def test_a_bug_is_handed_to_who_waits(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    trail = Trail(Library(NUMBERS), vector(1, 6, 3), vector(5, 9, 3), NUMBERS)
    monkeypatch.setattr("router.vector.pack", lambda _text: 1 / 0)
    told: list[object] = []
    trail.step(told.append)
    assert [type(each) for each in told] == [ZeroDivisionError]
    assert "cannot be handed out" in caplog.text


def test_gaps_of_all_shards_are_known_with_the_first_step() -> None:
    trail = Trail(Library(NUMBERS, {B}), vector(1, 6, 3), vector(5, 9, 3), NUMBERS)
    trail.step(lambda _found: None)
    assert trail.gaps == [B]
    assert not trail.is_done


def test_a_shard_of_another_epoch_is_a_gap_and_the_others_are_gone_on_from() -> None:
    since = vector(1, 6, 3)
    since = since.having(1, Position("ffffffff", Id(6, 6)))
    upto = vector(5, 9, 3)
    trail = Trail(Library(NUMBERS), since, upto, NUMBERS)
    assert trail.since == since.having(1, upto.parts[1])
    assert [message.channel for message in walk(trail)] == [A] * 4
    assert set(trail.gaps) == {B, NAMES[1][1]}


def test_one_that_is_ahead_is_none_either() -> None:
    trail = Trail(Library(NUMBERS), vector(6, 9, 3), vector(5, 9, 3), [A, B])
    assert not trail.is_done
    assert walk(trail) == []
    assert trail.gaps == [A]


def test_a_shard_without_channels_of_ours_may_be_of_any_epoch() -> None:
    since = vector(5, 9, 3).having(2, Position("ffffffff", Id(6, 6)))
    trail = Trail(Library(NUMBERS), since, vector(5, 9, 3), [A, B])
    assert trail.is_done
    assert not trail.gaps
    assert trail.since == since


def test_a_fault_is_told_once() -> None:
    library = Library(NUMBERS)
    library.fault = Unconfirmed("cut")
    told: list[object] = []
    Trail(library, vector(1, 6, 3), vector(5, 9, 3), NUMBERS).step(told.append)
    assert told == [library.fault]
