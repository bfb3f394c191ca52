"""From the bus to the subscribers: whatever goes wrong in between, everything once, in order, or a gap."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, ItemsView, Iterator, Sequence

import pytest
from journals import KEPT, Desk, Ear, number

from router.bus import BusDown
from router.carousel import Carousel
from router.embedded import Embedded
from router.feed import Feed
from router.journal import Retention
from router.message import Message
from router.notice import GAPS_PER_TURN
from router.outcome import Refused, Unconfirmed
from router.position import parse
from router.repair import NAMES_PER_READ
from router.replay import Reader
from router.table import Table

FEW = Retention(3, 3600)


@pytest.fixture(scope="module")
def server() -> Iterator[Embedded]:
    with Embedded() as embedded:
        yield embedded


@pytest.fixture
def line(server: Embedded) -> Iterator[Line]:
    desk = Desk(server)
    line = Line(desk)
    line.restore()
    yield line
    desk.close()


class Line:
    """The way from Redis to a feed, by hand: what Redis has sent waits here until it is pumped."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.table = Table()
        self.full: list[object] = []
        self.waiting: list[int] = []
        self.later: deque[Callable[[], None]] = deque()
        carousel = Carousel(self.table, slice_seconds_max=60.0, on_full=self.full.append, on_done=lambda _s: None)
        self.feed = Feed(
            self.table, carousel, later=lambda call, *args: self.later.append(lambda: call(*args)),
            on_lag=lambda _message: None, on_waiting=self.waiting.append,
        )  # fmt: skip
        self.feed.bus = self  # type: ignore[assignment]
        self.feed.reader = Reader(desk, desk.keys)
        self.up = False
        self.subscribed: set[bytes] = set()  # as Redis knows it
        self.lapsing: set[bytes] = set()  # unsubscribed by Redis, which is not known here yet
        self.sent: deque[Callable[[], None]] = deque()
        self.joining: list[Callable[[bytes | None], None]] = []
        self.published: dict[bytes, list[int]] = {}

    # The bus, as a feed sees it.

    def join(self, names: Sequence[bytes], done: Callable[[bytes | None], None]) -> None:
        if not self.up:
            self.later.append(lambda: done(None))
            return
        self.subscribed.update(name for name in names if name not in self.lapsing)
        began = self.desk.now()
        self.joining.append(done)

        def joined() -> None:
            self.joining.remove(done)
            done(began)

        self.sent.append(joined)

    def leave(self, names: Sequence[bytes]) -> None:
        if not self.joining:
            self.subscribed -= {name for name in names if name not in self.feed}

    # What happens.

    def publish(self, name: bytes, retention: Retention = KEPT, *, lost: bool = False) -> int:
        payload = self.desk.publish(name, retention=retention)
        self.published.setdefault(name, []).append(number(payload))
        if self.up and name in self.subscribed and not lost:
            self.sent.append(lambda: self.feed.message(name, payload))
        return number(payload)

    def whisper(self, name: bytes) -> None:
        """Publish a live-only message."""
        if self.up and name in self.subscribed:
            self.sent.append(lambda: self.feed.message(name, b',"from":"a","at":1,"data":1'))

    def lapse(self, name: bytes) -> None:
        """Redis unsubscribes, and is asked to subscribe again when that is known here."""
        self.subscribed.discard(name)
        self.lapsing.add(name)

        def told() -> None:
            self.feed.lapsed(name)
            self.subscribed.add(name)
            self.lapsing.discard(name)
            at = self.desk.now()
            self.sent.append(lambda: self.feed.rejoined(name, at))

        self.sent.append(told)

    def cut(self) -> None:
        self.up = False
        self.sent.clear()
        self.lapsing.clear()
        self.feed.lost()
        joining, self.joining = self.joining, []
        for done in joining:
            done(None)
        self.desk.fail(Unconfirmed("cut"))

    def restore(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        """The bus is back; `meanwhile` happens behind the position that it has, and before the feed is told."""
        self.up = True
        self.subscribed = set(self.feed.names())
        at = self.desk.now()
        meanwhile()
        self.pump()
        self.feed.restored(at)

    def miss(self, name: bytes) -> None:
        """Have a message missed, and its repair wait for answers."""
        self.desk.is_prompt = False
        self.cut()
        self.publish(name)
        self.restore()

    def pump(self, count: int | None = None) -> None:
        while self.sent and count != 0:
            self.sent.popleft()()
            self.feed.batch()
            count = None if count is None else count - 1

    def run_later(self) -> None:
        while self.later:
            self.later.popleft()()

    def settle(self) -> None:
        """Let everything come to its end."""
        while self.sent or self.later or self.desk.asked:
            self.pump()
            self.run_later()
            self.desk.answer()
        self.feed.batch()
        self.run_later()

    def ear(self, user: str, *rooms: bytes) -> Ear:
        """Let somebody in, now."""
        ears: list[Ear] = []
        self.feed.join(
            [b"@" + user.encode(), *rooms], lambda _began: ears.append(Ear(user).enter(self.table, *rooms))
        )  # fmt: skip
        self.settle()
        return ears[0]


def test_messages_go_straight_on(line: Line) -> None:
    alice, bob = line.ear("alice", b"room:a"), line.ear("bob", b"room:a", b"room:b")
    sent = [line.publish(name) for name in (b"room:a", b"room:b", b"room:a", b"@alice", b"room:nobody")]
    line.settle()
    assert alice.numbers() == [sent[0], sent[2], sent[3]]
    assert bob.numbers() == sent[:3]
    assert line.feed.repairs == 0
    assert line.feed.received == 4


def test_what_was_missed_while_the_bus_was_down_comes_first_and_in_one_order(line: Line) -> None:
    ear = line.ear("alice", b"room:a", b"room:b")
    line.publish(b"room:a")
    line.settle()
    line.cut()
    missed = [line.publish(name) for name in (b"room:b", b"room:a", b"@alice", b"room:b")]
    line.desk.is_prompt = False
    line.restore()
    new = [line.publish(b"room:a"), line.publish(b"room:b")]
    line.pump()
    assert ear.numbers() == [1], "nothing overtakes what was missed"
    line.settle()
    assert ear.numbers() == [1, *missed, *new]
    assert ear.gaps() == []


def test_what_comes_between_the_position_and_the_word_that_the_bus_is_back(line: Line) -> None:
    """They are two events: messages may come in between."""
    ear = line.ear("alice", b"room:a")
    for _ in range(2):
        line.cut()
        line.restore(lambda: [line.publish(b"room:a") for _ in range(3)])
        line.publish(b"room:a")
        line.settle()
    assert ear.numbers() == line.published[b"room:a"]
    assert ear.gaps() == []


def test_a_hole_is_filled_before_the_message_behind_it(line: Line) -> None:
    ear = line.ear("alice", b"room:a", b"room:b")
    line.publish(b"room:a")
    line.publish(b"room:a", lost=True)
    line.publish(b"room:b")
    line.publish(b"room:a", lost=True)
    line.publish(b"room:a")
    line.publish(b"room:b")
    line.settle()
    assert ear.numbers() == [1, 3, 2, 4, 5, 6]
    assert ear.gaps() == []
    first, late = ear.heard[1][2], ear.heard[2][2]
    assert late.of(b"room:b") == first.id, "the other channel has gone on, and does not go back"
    assert late.of(b"room:a").number == 2


def test_a_second_hole_behind_the_first(line: Line) -> None:
    ear = line.ear("alice", b"room:a", b"room:b")
    for name in (b"room:a", b"room:b"):
        line.publish(name)
    line.desk.is_prompt = False
    for name in (b"room:a", b"room:b", b"room:a", b"room:b"):
        line.publish(name, lost=True)
        line.publish(name)
    line.settle()
    assert ear.numbers(b"room:a") == line.published[b"room:a"]
    assert ear.numbers(b"room:b") == line.published[b"room:b"]
    assert ear.gaps() == []


def test_a_name_that_lapses(line: Line) -> None:
    """The others are held, and none of them is lost for being older than where it is back."""
    ear = line.ear("alice", b"room:a", b"room:b")
    line.publish(b"room:a")
    line.settle()
    line.lapse(b"room:a")
    for name in (b"room:a", b"room:b", b"room:a", b"room:b"):
        line.publish(name)
    line.settle()
    line.publish(b"room:a")
    line.settle()
    assert ear.numbers() == [1, 2, 3, 4, 5, 6]


def test_names_that_lapse_while_a_repair_is_under_way(line: Line) -> None:
    ear = line.ear("alice", b"room:a", b"room:b", b"room:c")
    line.publish(b"room:a")
    line.settle()
    line.miss(b"room:a")
    for name in (b"room:b", b"room:c"):
        line.lapse(name)
        line.publish(name)
        line.publish(b"room:a")
    line.pump()
    line.publish(b"room:c")
    line.settle()
    assert ear.numbers() == list(range(1, 8))
    assert ear.gaps() == []


def test_a_name_that_lapses_while_hundreds_that_have_are_read(line: Line) -> None:
    """As when one slot of a cluster migrates, and then another: a repair asks for more names than fit one read."""
    rooms = [b"room:%d" % each for each in range(2 * NAMES_PER_READ + 10)]
    ear = line.ear("alice", *rooms, b"room:last")
    for name in rooms:
        line.lapse(name)
    line.publish(rooms[-1])
    line.desk.is_prompt = False
    line.pump()
    line.desk.answer(1)
    line.lapse(b"room:last")
    line.publish(b"room:last")
    line.pump(1)
    line.settle()
    assert ear.numbers() == [1, 2]
    assert ear.gaps() == []


def test_the_bus_fails_again_in_the_middle_of_a_repair(line: Line) -> None:
    ear = line.ear("alice", b"room:a")
    line.publish(b"room:a")
    line.settle()
    line.desk.is_prompt = False
    for _ in range(3):
        line.cut()
        line.publish(b"room:a")
        line.restore()
        line.publish(b"room:a")
        line.pump()
        line.desk.answer(1)
    line.settle()
    assert ear.numbers() == line.published[b"room:a"]


def test_who_comes_during_a_repair_waits_for_its_place(line: Line) -> None:
    first = line.ear("first", b"room:a")
    line.publish(b"room:a")
    line.settle()
    line.miss(b"room:a")
    line.publish(b"room:a")
    seconds: list[tuple[bytes | None, Ear]] = []
    line.feed.join(
        [b"@second", b"room:a"], lambda began: seconds.append((began, Ear("second").enter(line.table, b"room:a")))
    )
    behind = line.publish(b"room:a")
    line.pump()
    assert seconds == []
    assert b"@second" in line.feed
    assert b"@second" in set(line.feed.names())
    line.settle()
    began, second = seconds[0]
    assert first.numbers() == line.published[b"room:a"]
    assert second.numbers() == [behind]
    assert began is not None
    assert not line.feed._entering


def test_who_comes_during_a_repair_that_fails_is_told_so(line: Line) -> None:
    line.ear("first", b"room:a")
    line.miss(b"room:a")
    began: list[bytes | None] = []
    line.feed.join([b"@second"], began.append)
    line.pump()
    line.cut()
    assert began == [None]
    assert b"@second" not in line.feed
    assert not line.feed._entering


class Looked(Counter[bytes]):
    """Counts the looks at all that is in it."""

    looks = 0

    def items(self) -> ItemsView[bytes, int]:
        self.looks += 1
        return super().items()


def test_of_a_crowd_that_comes_during_a_repair_each_leaves_the_others_alone(line: Line) -> None:
    """A look at all who are left, for each of them, held up the loop: of 20,000 for 10 s."""
    line.ear("first", b"room:a")
    line.miss(b"room:a")
    entering = line.feed._entering = Looked()
    began: list[bytes | None] = []
    at = line.desk.now()
    for n in range(1000):
        line.feed._joined([b"@u%d" % n, b"room:%d" % n], began.append, at)
    assert len(entering) == 2000
    entering.looks = 0
    line.cut()
    assert began == [None] * 1000
    assert line.feed._entering is entering
    assert (len(entering), entering.looks) == (0, 0)


def test_who_comes_while_the_bus_is_down_hears_from_the_head_on(line: Line) -> None:
    line.ear("first", b"room:a")
    line.publish(b"room:a")
    line.settle()
    line.cut()
    ears: list[Ear] = []
    line.feed.join([b"@second", b"room:b"], lambda _began: ears.append(Ear("second").enter(line.table, b"room:b")))
    line.run_later()
    missed = line.publish(b"room:b")
    line.restore()
    line.settle()
    assert ears[0].numbers() == [missed]
    assert ears[0].gaps() == []


def test_nothing_from_before_a_beginning_comes_behind_it(line: Line) -> None:
    """The channel had messages, this worker had no subscriber of it, and then the bus was cut."""
    for _ in range(3):
        line.publish(b"room:a")
    ear = line.ear("alice", b"room:a")
    line.cut()
    line.restore()
    line.settle()
    assert ear.numbers() == []


def test_a_live_only_message_does_not_go_back_behind_a_beginning(line: Line) -> None:
    line.ear("first", b"room:a")
    for _ in range(3):
        line.publish(b"room:elsewhere")
    ear = line.ear("alice", b"live:a")
    line.whisper(b"live:a")
    line.settle()
    assert [(op, at.id.number) for op, _, at in ear.heard] == [("message", 3)]


def test_another_master_whose_clock_is_behind_is_not_silence(line: Line) -> None:
    """Numbers alone say what is later: the time that was told last has not reached the one that has taken over."""
    ear = line.ear("alice", b"room:a")
    line.publish(b"room:a")
    line.settle()
    line.desk.client.hset("test:$clock", "ms", ear.heard[-1][2].id.ms + 60_000)
    line.ear("bob")
    assert line.feed.head == line.desk.now()
    line.cut()
    line.desk.client.hset("test:$clock", mapping={"ms": ear.heard[-1][2].id.ms, "run": "0" * 40})
    line.desk.now()
    line.publish(b"room:a")
    line.restore()
    line.settle()
    assert ops(ear, b"room:a") == ["message", "gap"]


def test_another_epoch_is_a_gap_on_every_channel(line: Line) -> None:
    ear = line.ear("alice", b"room:a", b"room:b")
    line.publish(b"room:a")
    line.settle()
    line.cut()
    line.desk.client.flushall()
    line.desk.lasts.clear()
    line.restore()
    line.publish(b"room:a")
    line.settle()
    assert sorted(ear.gaps()) == [b"@alice", b"room:a", b"room:b"]
    assert ear.numbers() == [1, 1]
    assert len({position.epoch for _, _, position in ear.heard}) == 2
    assert [op for op, _, _ in ear.heard] == ["message", "gap", "gap", "gap", "message"]


def test_data_lost_under_a_bus_that_stays_up(line: Line) -> None:
    """FLUSHALL: the messages go on, with smaller numbers in another epoch."""
    ear = line.ear("alice", b"room:a")
    for _ in range(3):
        line.publish(b"room:a")
    line.settle()
    line.desk.client.flushall()
    line.desk.lasts.clear()
    for _ in range(2):
        line.publish(b"room:a")
    line.settle()
    assert ear.numbers() == [1, 2, 3, 1, 2]
    assert [op for op, name, _ in ear.heard if name == b"room:a"] == ["message"] * 3 + ["gap"] + ["message"] * 2


def test_what_is_no_longer_held_is_a_gap_and_the_others_are_whole(line: Line) -> None:
    ear = line.ear("alice", b"few:a", b"room:a")
    line.publish(b"few:a", FEW)
    line.settle()
    line.cut()
    for _ in range(5):
        line.publish(b"few:a", FEW)
        line.publish(b"room:a")
    line.restore()
    line.publish(b"few:a", FEW)
    line.settle()
    assert ear.gaps() == [b"few:a"]
    assert line.feed.gaps == 1
    assert ear.numbers(b"room:a") == line.published[b"room:a"]
    assert ear.numbers(b"few:a")[-4:] == line.published[b"few:a"][-4:]


def test_a_hole_that_is_no_longer_held(line: Line) -> None:
    ear = line.ear("alice", b"few:a", b"room:a")
    line.publish(b"few:a", FEW)
    for _ in range(5):
        line.publish(b"few:a", FEW, lost=True)
    line.publish(b"room:a")
    line.publish(b"few:a", FEW)
    line.settle()
    assert ear.gaps() == [b"few:a"]
    assert ear.numbers(b"few:a") == [1, 5, 6, 8]
    _, _, gap = next(each for each in ear.heard if each[0] == "gap")
    assert (gap.of(b"room:a").number, gap.of(b"few:a").number) == (7, 1)


def test_a_redis_that_refuses_to_tell_is_a_gap_and_no_silence(line: Line) -> None:
    ear = line.ear("alice", b"room:a")
    line.publish(b"room:a")
    line.settle()
    line.cut()
    line.publish(b"room:a")
    line.desk.is_prompt = False
    line.restore()
    line.desk.fail(Refused("BUSY"))
    line.settle()
    line.publish(b"room:a")
    line.settle()
    assert set(ear.gaps()) == {b"@alice", b"room:a"}
    assert ear.numbers()[-1] == 3


def test_more_than_a_repair_may_hold_is_a_gap(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.repair.BYTES_MAX", 1000)
    ear = line.ear("alice", b"room:a")
    line.publish(b"room:a")
    line.settle()
    line.cut()
    for _ in range(500):
        line.publish(b"room:a")
    line.restore()
    line.settle()
    assert ear.gaps() == [b"room:a"]
    assert ear.numbers() == sorted(set(ear.numbers()))


def test_what_is_held_counts_as_waiting(line: Line) -> None:
    """So that the bus stops reading; but not while it has to read, to hear that a name is back."""
    line.ear("alice", b"room:a")
    line.publish(b"room:a")
    line.settle()
    line.miss(b"room:a")
    for _ in range(10):
        line.publish(b"room:a")
    line.pump()
    assert line.waiting[-1] > 10 * 30
    line.lapse(b"room:a")
    line.pump(1)
    assert line.waiting[-1] == 0
    line.settle()
    assert line.waiting[-1] == 0


def test_what_is_none_of_ours(line: Line) -> None:
    ear = line.ear("alice", b"room:a")
    junk = [b"", b"hello", b"a b", b"a b c", b"a-1 b-2 c", b"\xff\xfe \xff \xff", b"0123abcd-1-2 x ,", b"0-0-0 1-1 ,"]
    for payload in junk:
        with pytest.raises(ValueError, match=r"."):
            line.feed.message(b"room:a", payload)
        line.publish(b"room:a")
        line.settle()
    line.miss(b"room:a")
    for payload in junk:
        line.feed.message(b"room:a", payload)
    line.settle()
    assert ear.numbers() == line.published[b"room:a"]
    assert ear.gaps() == []


def test_a_bus_that_is_down_already_when_a_repair_begins(line: Line) -> None:
    ear = line.ear("alice", b"room:a")
    line.publish(b"room:a")
    line.settle()
    line.cut()
    line.publish(b"room:a")
    line.desk.is_prompt = False
    line.restore()
    line.desk.fail(BusDown("gone"))
    line.cut()
    line.desk.is_prompt = True
    line.restore()
    line.settle()
    assert ear.numbers() == [1, 2]


LIVE = b"live:a"
ROOMS = [b"room:a", b"room:b", b"few:a"]


class Listener:
    """An ear with where it began and ended."""

    def __init__(self, ear: Ear, began: int) -> None:
        self.ear, self.began, self.ended = ear, began, 1 << 60


class Storm:
    """Everything that can happen to a bus, in any order."""

    def __init__(self, line: Line, rng: random.Random, few: Retention) -> None:
        self.line, self.rng, self.few = line, rng, few
        self.listeners: list[Listener] = []
        self.names = [*ROOMS, *(b"@u%d" % n for n in range(3))]

    def step(self) -> None:
        deeds = [self.publish] * 8 + [self.pump] * 5 + [self.answer] * 4 + [self.enter, self.enter, self.leave]
        self.rng.choice([*deeds, self.lapse, self.cut, self.whisper])()

    def _retention(self, name: bytes) -> Retention:
        return self.few if name == b"few:a" else Retention()

    def publish(self) -> None:
        name = self.rng.choice(self.names)
        self.line.publish(name, self._retention(name))

    def whisper(self) -> None:
        self.line.whisper(LIVE)

    def pump(self) -> None:
        self.line.pump(self.rng.randrange(6))

    def answer(self) -> None:
        self.line.desk.answer(self.rng.randrange(3))
        self.line.run_later()

    def lapse(self) -> None:
        name = self.rng.choice(ROOMS)
        if self.line.up and name in self.line.subscribed:
            self.line.lapse(name)

    def cut(self) -> None:
        if self.line.up:
            self.line.cut()
            for _ in range(self.rng.randrange(4)):
                self.rng.choice([self.publish, self.enter, self.line.run_later])()
            self.line.run_later()  # the bus needs more than a turn to connect

        def meanwhile() -> None:
            for _ in range(self.rng.randrange(3)):
                self.publish()

        self.line.restore(meanwhile)

    def enter(self) -> None:
        rooms = self.rng.sample([*ROOMS, LIVE], self.rng.randrange(5))
        user = f"u{self.rng.randrange(3)}"

        def done(began: bytes | None) -> None:
            at = parse(began or self.line.feed.head)
            assert at is not None
            self.listeners.append(Listener(Ear(user).enter(self.line.table, *rooms), at.id.number))

        self.line.feed.join([b"@" + user.encode(), *rooms], done)

    def leave(self) -> None:
        here = [listener for listener in self.listeners if listener.ended == 1 << 60]
        if here:
            left = self.rng.choice(here)
            channels = [channel.name for channel in left.ear.channels]
            self.line.leave(self.line.table.leave(left.ear))
            left.ended = 0
            left.ear.channels = tuple(map(self.line.table.__class__().channel, channels))  # remembered, not subscribed


def check(listener: Listener, published: dict[bytes, list[int]], may_lack: bytes | None) -> None:
    """Everything behind the beginning, once and in order, but on `may_lack`, where a gap may say otherwise."""
    ear = listener.ear
    names = [b"@" + ear.user.encode(), *(channel.name for channel in ear.channels)]
    for name in names:
        reached = listener.began
        for _, _, at in ear.heard:
            assert at.of(name).number >= reached, f"{name!r} goes back"
            reached = at.of(name).number
        if name == LIVE:
            continue
        heard = ear.numbers(name)
        due = [n for n in published.get(name, []) if n > listener.began]
        assert all(n > listener.began for n in heard)
        if listener.ended == 0:
            assert heard == due[: len(heard)] or name == may_lack
        elif name != may_lack:
            assert heard == due
        else:
            events = [(op, at.of(name).number) for op, of, at in ear.heard if of == name]
            for lacking in set(due) - set(heard):
                gap_since = False
                for op, at_number in events:
                    if op == "message" and at_number > lacking:
                        break
                    gap_since = op == "gap" or (gap_since and op != "message")
                assert gap_since, f"{lacking} of {name!r} lost without a word: {events}"


@pytest.mark.parametrize("few", [Retention(), Retention(2, 3600)], ids=["all is kept", "few are kept"])
@pytest.mark.parametrize("seed", range(25))
def test_whatever_happens(line: Line, seed: int, few: Retention) -> None:
    storm = Storm(line, random.Random(seed), few)
    line.desk.is_prompt = False
    for _ in range(250):
        storm.step()
    line.settle()
    if not line.up:
        line.restore()
        line.settle()
    for name in storm.names:
        line.publish(name, storm._retention(name))
    line.settle()
    assert len(storm.listeners) > 5
    for listener in storm.listeners:
        check(listener, line.published, b"few:a" if few.messages_max == 2 else None)
        if few.messages_max > 2:
            assert listener.ear.gaps() == []
    assert not line.feed._entering
    assert line.waiting[-1] == 0


def test_a_message_shown_for_its_lag_is_one_of_each_batch(line: Line) -> None:
    shown: list[Message] = []
    line.feed._on_lag = shown.append
    line.ear("alice", b"room:a")
    for _ in range(2):
        payloads = [line.desk.publish(b"room:a") for _ in range(3)]
        for payload in payloads:
            line.feed.message(b"room:a", payload)
        line.feed.batch()
    assert len(shown) == 2


class Follower:
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def lost(self) -> None:
        self.told.append("lost")

    def restored(self) -> None:
        self.told.append("restored")

    def rejoined(self, name: bytes) -> None:
        self.told.append(f"rejoined {name.decode()}")

    def tick(self) -> None:
        self.told.append("tick")


def test_who_follows_is_told_what_happens_to_the_bus(line: Line) -> None:
    follower = Follower()
    line.feed.followers = (follower,)
    line.ear("alice", b"room:a")
    line.cut()
    line.restore()
    line.settle()
    line.lapse(b"room:a")
    line.settle()
    line.feed.tick()
    assert follower.told == ["lost", "restored", "rejoined room:a", "tick"]


def test_what_is_announced_has_the_newest_position_and_is_not_kept(line: Line) -> None:
    ear, other = line.ear("alice", b"room:a"), line.ear("bob", b"room:b")
    line.publish(b"room:a")
    line.settle()
    line.feed.announce(b"room:a", b"join", [b',"user":"bob"', b',"user":"carol"'])
    line.feed.announce(b"room:nobody", b"join", [b',"user":"bob"'])
    line.settle()
    joins = [(channel, str(position).encode()) for op, channel, position in ear.heard if op == "join"]
    assert joins == [(b"room:a", line.feed.head)] * 2
    assert not any(op == "join" for op, *_ in other.heard)


def test_a_feed_is_not_steady_while_a_channel_lacks_something_from_before_the_head(line: Line) -> None:
    line.ear("alice", b"room:a", b"room:b")
    line.publish(b"room:a")
    line.settle()
    assert line.feed.is_steady
    line.desk.is_prompt = False
    line.publish(b"room:a", lost=True)
    line.publish(b"room:b")
    line.publish(b"room:a")
    line.pump()
    assert not line.feed.is_steady
    line.settle()
    assert line.feed.is_steady
    line.cut()
    line.publish(b"room:a")
    line.restore()
    assert line.feed.is_steady, "what is missing is all behind the head"
    line.settle()


def test_a_gap_of_a_channel_that_keeps_nothing_is_told_by_others(line: Line) -> None:
    line.feed.is_durable = lambda name: name != b"typing:a"
    ear = line.ear("alice", b"typing:a", b"room:a")
    line.publish(b"room:a")
    line.settle()
    line.cut()
    line.desk.client.flushall()
    line.restore()
    line.settle()
    assert sorted(ear.gaps()) == [b"@alice", b"room:a"]


def test_a_hole_that_was_being_filled_when_the_bus_went_down_is_filled_when_it_is_back(line: Line) -> None:
    """The others had gone on behind it, so that the head says nothing of it."""
    ear = line.ear("alice", b"room:a", b"room:b")
    first = line.publish(b"room:a")
    line.settle()
    line.desk.is_prompt = False
    lost = line.publish(b"room:a", lost=True)
    later = [line.publish(b"room:b"), line.publish(b"room:a")]
    line.pump()
    line.cut()
    line.desk.is_prompt = True
    line.restore()
    line.settle()
    assert sorted(ear.numbers()) == [first, lost, *later]
    assert ear.gaps() == []


# A new epoch, and many to be told.


MANY = 1000


def crowd(line: Line) -> list[Ear]:
    ears = [Ear(f"u{n}").enter(line.table, b"room:a") for n in range(MANY)]
    line.subscribed = set(line.feed.names())
    line.publish(b"room:a")
    line.settle()
    return ears


def forget(line: Line) -> None:
    """Let Redis lose its data."""
    line.desk.client.flushall()
    line.desk.lasts.clear()


def ops(ear: Ear, *names: bytes) -> list[str]:
    return [op for op, name, _ in ear.heard if name in names]


def test_many_are_told_a_few_at_a_time_and_what_comes_meanwhile_waits(line: Line) -> None:
    ears = crowd(line)
    forget(line)
    line.cut()
    line.restore()
    assert line.feed.gaps <= MANY + GAPS_PER_TURN, "one for each in the room, and of personal channels a few"
    line.publish(b"room:a")
    line.publish(b"@u999")
    entered: list[bytes | None] = []
    line.feed.join([b"@late", b"room:a"], entered.append)
    line.pump()
    assert (ears[999].numbers(), entered, line.waiting[-1] > 0) == ([1], [], True)
    line.settle()
    assert [ops(ear, b"room:a") for ear in ears] == [["message", "gap", "message"]] * MANY
    assert all(ops(ear, b"@" + ear.user.encode())[0] == "gap" for ear in ears)
    assert ops(ears[999], b"@u999") == ["gap", "message"]
    assert [int((began or b"").rpartition(b"-")[2]) for began in entered] == [2]
    assert line.feed.gaps == 2 * MANY
    assert line.waiting[-1] == 0


def test_a_bus_that_fails_while_they_are_told_lets_nobody_out(line: Line) -> None:
    ears = crowd(line)
    forget(line)
    line.cut()
    line.restore()
    line.publish(b"room:a", lost=True)
    line.cut()
    line.run_later()
    line.restore()
    line.settle()
    for ear in ears:
        assert ops(ear, b"@" + ear.user.encode()), "told"
        assert ops(ear, b"room:a")[-1] == "gap"


def test_a_name_that_lapses_while_they_are_told(line: Line) -> None:
    ears = crowd(line)
    forget(line)
    line.cut()
    line.restore()
    line.lapse(b"room:a")
    line.publish(b"room:a")
    line.publish(b"@u7")
    line.pump()
    line.publish(b"room:a")
    line.settle()
    assert [ear.numbers(b"room:a") for ear in ears] == [[1, 1, 3]] * MANY
    assert ops(ears[7], b"@u7") == ["gap", "message"]


def test_who_is_cut_off_between_two_gaps_of_a_new_epoch_is_told_again(line: Line) -> None:
    """What one has been told of vouches for the new epoch no sooner than all has been told."""
    ear = line.ear("alice", b"room:a", b"room:b")
    line.publish(b"room:b")
    line.settle()
    lost = line.feed.head[:8].decode()
    line.cut()
    line.publish(b"room:b")
    forget(line)
    line.restore()
    line.settle()
    *gaps, last = [(name, at.epoch) for op, name, at in ear.heard if op == "gap"]
    assert gaps == [(b"room:a", lost), (b"room:b", lost)]
    assert last == (b"@alice", line.feed.head[:8].decode()), "from here on one may come back to it"
    assert last[1] != lost


def test_nothing_vouches_for_a_new_epoch_while_they_are_told(line: Line) -> None:
    crowd(line)
    ear, lost = line.ear("alice", *(b"room:%d" % n for n in range(GAPS_PER_TURN))), line.feed.head[:8]
    forget(line)
    line.cut()
    line.restore()
    assert {at.epoch for _, _, at in ear.heard} == {lost.decode()}
    assert (line.feed.here[:8], line.feed.is_steady) == (lost, False)
    assert line.feed.newest[:8] != lost
    line.settle()
    assert (line.feed.here[:8], line.feed.is_steady) == (line.feed.newest[:8], True)


def test_a_join_that_finds_a_new_epoch_behind_a_hole_vouches_for_it_no_sooner(line: Line) -> None:
    """What was missed is lost while it is being read, and the first to know of it is somebody who comes."""
    ear, lost = line.ear("alice", b"room:a", b"live:a"), line.feed.head[:8].decode()
    line.cut()
    line.publish(b"room:a")
    line.desk.is_prompt = False
    line.restore()
    forget(line)
    line.feed.join([b"room:b"], lambda _began: None)
    line.settle()
    line.whisper(b"live:a")
    line.settle()
    assert [name for op, name, at in ear.heard if op == "gap" and at.epoch == lost] == [b"room:a", b"live:a"]
    assert [(op, name) for op, name, at in ear.heard if at.epoch != lost] == [
        ("gap", b"@alice"),
        ("message", b"live:a"),
    ]


def test_a_new_epoch_that_was_not_told_to_all_is_known_all_the_same(line: Line) -> None:
    """The bus says what is known when it connects: a Redis that has lost that epoch too is found out by it."""
    crowd(line)
    forget(line)
    line.cut()
    line.restore()
    known = line.feed.newest
    line.cut()
    assert line.feed.newest == known
    assert line.feed.here[:8] != known[:8]


def test_a_join_that_finds_a_new_epoch_tells_everybody(line: Line) -> None:
    ear = line.ear("alice", b"room:a")
    before = line.feed.head[:8]
    forget(line)
    late = line.ear("bob", b"room:a")
    line.publish(b"room:a")
    line.settle()
    assert line.feed.head[:8] != before
    assert ops(ear, b"room:a") == ["gap", "message"]
    assert ops(late, b"room:a") == ["message"]


def test_a_message_of_a_new_epoch_is_behind_the_gap_that_it_brings(line: Line) -> None:
    """Who has all gaps and is cut off before the message gets it by coming back with the position of the last one."""
    ear = line.ear("alice", b"room:a")
    forget(line)
    line.publish(b"room:b")
    line.publish(b"room:a")
    line.settle()
    (gap,) = (at for op, name, at in ear.heard if (op, name) == ("gap", b"@alice"))
    (message,) = (at for op, _, at in ear.heard if op == "message")
    assert [op for op, _, _ in ear.heard] == ["gap", "gap", "message"]
    assert gap.epoch == message.epoch
    assert (gap.id.number, message.id.number) == (1, 2)
