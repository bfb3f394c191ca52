"""The feeds of all shards together: one position, joins that begin at one instant, holes that concern one shard."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

import pytest
from journals import TEXT

from router import notice
from router.carousel import Carousel
from router.feed import Joined
from router.feeds import Feeds, ShardFeed
from router.notice import GAPS_PER_TURN
from router.pipe import Done
from router.position import Id
from router.table import Channel, Table
from router.vector import Vector, shard_of

SHARDS = 3
EPOCHS = [b"0000000a", b"0000000b", b"0000000c"]


def room(shard: int, number: int = 0) -> bytes:
    """A channel in a shard."""
    return [name for name in (b"room:%d" % n for n in range(99)) if shard_of(name, SHARDS) == shard][number]


class Line:
    """The bus of a shard, by hand: joins wait here until they are answered."""

    def __init__(self) -> None:
        self.connects = 1
        self.joins: deque[tuple[Sequence[bytes], Joined]] = deque()
        self.left: list[bytes] = []

    def join(self, names: Sequence[bytes], done: Joined) -> None:
        self.joins.append((names, done))

    def leave(self, names: Iterable[bytes]) -> None:
        self.left += names

    def ask(self, command: tuple[bytes, ...], done: Done) -> None:
        raise AssertionError(command)


class Ear:
    """A subscriber that keeps what it hears: channel, position."""

    lane = TEXT

    def __init__(self, user: str, feeds: Feeds) -> None:
        self.user = user
        self.channels: tuple[Channel, ...] = ()
        self.heard: list[tuple[bytes, Vector]] = []
        self._feeds = feeds

    def offer(self, frame: bytes) -> bool:
        for line in frame.splitlines():
            _op, channel, position = line.split(b" ")
            at = self._feeds.read(position)
            assert at is not None, position
            self.heard.append((channel, at))
        return True


class World:
    """A worker's feeds, and the lines of its shards."""

    def __init__(self, slice_seconds_max: float = 60.0) -> None:
        self.table = Table()
        self.later: deque[Callable[[], None]] = deque()
        self.waiting: list[int] = []
        carousel = Carousel(
            self.table, slice_seconds_max=slice_seconds_max, on_full=lambda _: None, on_done=lambda _: None
        )
        self.feeds = Feeds(
            SHARDS, self.table, carousel, later=lambda call, *args: self.later.append(lambda: call(*args)),
            on_lag=lambda _: None, on_waiting=self.waiting.append,
        )  # fmt: skip
        self.lines = [Line() for _ in range(SHARDS)]
        for feed, line in zip(self.feeds.shards, self.lines, strict=True):
            feed.bus = line  # type: ignore[assignment]

    def at(self, shard: int, number: int) -> bytes:
        return b"%b-%d-%d" % (EPOCHS[shard], 1000 + number, number)

    def up(self) -> World:
        for shard, feed in enumerate(self.feeds.shards):
            feed.restored(self.at(shard, 0))
        return self

    def message(self, name: bytes, number: int, before: int) -> None:
        shard = shard_of(name, SHARDS)
        before_id = b"%d-%d" % (1000 + before, before) if before else b"0-0"
        payload = b'%b %b ,"from":null,"at":1,"data":1' % (self.at(shard, number), before_id)
        self.feeds.shards[shard].message(name, payload)
        self.feeds.batch()

    def answer(self, shard: int, number: int | None) -> None:
        """Answer the joins of a shard that wait."""
        joins, self.lines[shard].joins = self.lines[shard].joins, deque()
        for _names, done in joins:
            done(None if number is None else self.at(shard, number))

    def enter(self, user: str, *rooms: bytes) -> tuple[Ear, list[bytes | None]]:
        """Join, and enter the table when that is done; where it begins is in the list then."""
        ear, began = Ear(user, self.feeds), list[bytes | None]()

        def done(at: bytes | None) -> None:
            began.append(at)
            ear.channels = self.table.gather(list(rooms))
            self.table.enter(ear)

        self.feeds.join(rooms, done)
        while self.later:
            self.later.popleft()()
        return ear, began

    def numbers(self, began: bytes | None) -> list[int]:
        at = self.feeds.read(began)
        assert at is not None
        return [part.id.number for part in at.parts]


@pytest.fixture
def world() -> World:
    return World().up()


def test_a_join_asks_every_shard_and_begins_where_all_are_then(world: World) -> None:
    ear, began = world.enter("alice", room(0), room(1))
    assert all(line.joins for line in world.lines), "the one without a channel too"
    world.answer(0, 3)
    world.message(room(0), 4, 0)
    world.answer(2, 9)
    assert not began
    world.answer(1, 5)
    assert world.numbers(began[0]) == [4, 5, 9], "what came meanwhile was before it"
    assert not ear.heard
    world.message(room(0), 5, 4)
    world.message(room(1), 6, 5)
    assert [(name, [part.id.number for part in at.parts]) for name, at in ear.heard] == [
        (room(0), [5, 5, 9]), (room(1), [5, 6, 9])
    ]  # fmt: skip


def test_the_joins_of_a_turn_share_a_look_at_the_shards_that_none_concerns(world: World) -> None:
    began: list[bytes | None] = []
    for _ in range(3):
        world.feeds.join([room(0)], began.append)
    assert [len(line.joins) for line in world.lines] == [4, 1, 1]
    for shard in range(SHARDS):
        world.answer(shard, 7)
    assert [world.numbers(each) for each in began] == [[7, 7, 7]] * 3


def test_names_stay_subscribed_until_the_last_shard_has_answered(world: World) -> None:
    world.enter("alice", room(0), room(1))
    world.answer(0, 3)
    assert room(0) in world.feeds.shards[0]
    assert room(0) in [*world.feeds.shards[0].names()]
    world.answer(2, 1)
    world.answer(1, 1)
    assert world.lines[0].left == [room(0)], "it may be left now, if nobody is there"
    assert not world.feeds.shards[0]._entering


def test_a_shard_that_is_down_lets_in_without_a_position_where_it_matters(world: World) -> None:
    world.feeds.shards[1].lost()
    _ear, began = world.enter("alice", room(0), room(1))
    world.answer(0, 1)
    world.answer(1, None)
    world.answer(2, 1)
    assert began == [None]
    _ear, elsewhere = world.enter("bob", room(0))
    assert not world.lines[1].joins, "it is not even asked"
    world.answer(0, 2)
    world.answer(2, 2)
    assert world.numbers(elsewhere[0])[0] == 2


def test_a_shard_that_is_lost_while_the_others_answer(world: World) -> None:
    _ear, began = world.enter("alice", room(0), room(1))
    world.answer(0, 1)
    world.feeds.shards[0].lost()
    world.answer(2, 1)
    world.answer(1, 1)
    assert not began
    world.answer(0, None)  # asked once more
    assert began == [None]


def test_a_hole_in_one_shard_holds_up_no_other(world: World) -> None:
    ear, _began = world.enter("alice", room(0), room(1))
    for shard in range(SHARDS):
        world.answer(shard, 0)
    world.message(room(0), 1, 0)
    world.feeds.shards[0].lapsed(room(0))
    world.message(room(0), 2, 1)
    world.message(room(1), 1, 0)
    assert [name for name, _ in ear.heard] == [room(0), room(1)]
    assert [part.id.number for part in ear.heard[-1][1].parts] == [1, 1, 0], "only what has been delivered"


def test_another_epoch_of_one_shard_is_told_in_its_channels(world: World) -> None:
    ear, _began = world.enter("alice", room(0), room(0, 1), room(1))
    for shard in range(SHARDS):
        world.answer(shard, 0)
    world.feeds.shards[0].lost()
    world.feeds.shards[0].restored(b"0000000f-2000-0")
    while world.later:
        world.later.popleft()()
    assert {name for name, _ in ear.heard} == {room(0), room(0, 1)} | (
        {b"@alice"} if shard_of(b"@alice", SHARDS) == 0 else set()
    )
    assert {at.parts[0].epoch for _, at in ear.heard} == {"0000000a"}, "they do not vouch for each other"
    world.message(room(1), 1, 0)
    assert [part.epoch for part in ear.heard[-1][1].parts[:2]] == ["0000000f", "0000000b"]


def test_another_shard_does_not_vouch_for_a_new_epoch_that_is_being_told(world: World) -> None:
    ear, _began = world.enter("alice", room(0), room(1))
    for shard in range(SHARDS):
        world.answer(shard, 0)
    crowd = [world.enter(f"u{n}", room(0))[0] for n in range(SHARDS * GAPS_PER_TURN * 2)]
    for shard in range(SHARDS):
        world.answer(shard, 0)
    world.feeds.shards[0].lost()
    world.feeds.shards[0].restored(b"0000000f-2000-0")
    assert not world.feeds.shards[0].flows
    world.message(room(1), 1, 0)
    assert ear.heard[-1][0] == room(1)
    assert ear.heard[-1][1].parts[0].epoch == "0000000a"
    while world.later:
        world.later.popleft()()
    world.message(room(1), 2, 1)
    assert ear.heard[-1][1].parts[0].epoch == "0000000f"
    assert all(each.heard for each in crowd)


def test_a_shard_has_told_all_of_a_new_epoch_however_busy_the_others_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notice, "GAPS_PER_TURN", 10)
    world = World(slice_seconds_max=0.0).up()  # a turn serves a few of a large room
    crowd = [world.enter(f"u{n}", room(0), room(1))[0] for n in range(100)]
    for shard in range(SHARDS):
        world.answer(shard, 0)
    world.feeds.shards[0].lost()
    world.feeds.shards[0].restored(b"0000000f-2000-0")
    for number in range(1, 200):
        world.message(room(1), number, number - 1)
        for _ in range(len(world.later)):
            world.later.popleft()()
        assert world.waiting[-1] > 0, "the next message is there before all have had this one"
    assert world.feeds.shards[0].flows
    mine = {name for name in world.table.names() if shard_of(name, SHARDS) == 0}
    assert {name for ear in crowd for name, _ in ear.heard} == {room(1), *mine}


def test_what_a_shard_has_held_waits_no_longer_when_it_goes_down(world: World) -> None:
    """Otherwise the links of the others, which may be paused for it, would be until it is back."""
    for n in range(SHARDS * GAPS_PER_TURN * 2):
        world.enter(f"u{n}", room(0))
    for shard in range(SHARDS):
        world.answer(shard, 0)
    world.feeds.shards[0].lost()
    world.feeds.shards[0].restored(b"0000000f-2000-0")
    world.message(room(0), 1, 0)
    assert world.waiting[-1] > 0, "it waits for all to be told of the new epoch"
    world.feeds.shards[0].lost()
    while world.later:
        world.later.popleft()()
    assert world.waiting[-1] == 0


def test_every_shard_has_its_names_and_no_others(world: World) -> None:
    ear, _began = world.enter("alice", room(0), room(1), room(2), room(2, 1))
    for shard in range(SHARDS):
        world.answer(shard, 0)
    for shard, feed in enumerate(world.feeds.shards):
        assert all(shard_of(name, SHARDS) == shard for name in feed.names())
    assert {name for feed in world.feeds.shards for name in feed.names()} == {
        b"@alice", room(0), room(1), room(2), room(2, 1)
    }  # fmt: skip
    assert ear.channels


def test_before_any_shard_is_reached_there_is_no_position() -> None:
    feeds = World().feeds
    assert feeds.head == b""
    assert feeds.read(feeds.head) is None
    feed: ShardFeed = feeds.shards[1]
    feed.head = b"0000000b-1-1"
    at = feeds.read(feeds.head)
    assert at is not None
    assert [part.id for part in at.parts] == [Id(0, 0), Id(1, 1), Id(0, 0)]


def test_counts_are_of_all_shards(world: World) -> None:
    world.feeds.received = 5
    world.enter("alice", room(0), room(1))
    for shard in range(SHARDS):
        world.answer(shard, 0)
    world.message(room(0), 1, 0)
    world.message(room(1), 1, 0)
    assert (world.feeds.received, world.feeds.gaps, world.feeds.repairs) == (7, 0, 0)
    assert world.waiting[-1] == 0
    assert isinstance(world.feeds.of(room(2)), ShardFeed)


def test_a_message_for_nobody_moves_its_shard_on(world: World) -> None:
    world.message(room(1), 4, 0)
    assert world.numbers(world.feeds.head) == [0, 4, 0]


def test_what_is_for_one_alone_carries_the_position_of_all_shards(world: World) -> None:
    ear = Ear("alice", world.feeds)
    world.table.enter(ear)
    other = next(shard for shard in range(SHARDS) if shard != shard_of(b"@alice", SHARDS))
    name = next(b"room:%d" % n for n in range(100) if shard_of(b"room:%d" % n, SHARDS) == other)
    world.message(name, 5, 0)
    world.message(b"@alice", 3, 0)
    ((heard, at),) = ear.heard
    assert heard == b"@alice"
    assert at.part(b"@alice").id.number == 3
    assert at.part(name).id.number == 5
