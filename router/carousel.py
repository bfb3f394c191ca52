"""Fan-out in slices: every subscriber's turn sends, as one write, all it has not had yet.

A channel with messages to send has a `Round`. The carousel gives each round a turn of a few sinks, so that a broadcast
to a hundred thousand does not hold up a message to one, and stops after a slice of time so that the loop can accept,
read and receive. While a round walks, new messages join its log: the sinks it has not reached yet get them in the same
write, the ones it has already served form a new cohort behind. So latency is bounded by one walk over the subscribers,
and under load the cost of a message falls.

What is for one sink alone, as in most personal channels, has no round: it is a letter, and letters and rounds take turns.

Order. One position covers all channels of a connection: a client that has seen position 7 will never ask for 6. A sink
must therefore get its messages in order of arrival over *all* its channels. So whenever a sink is served while several
rounds are under way, what the other rounds still owe it is merged into the same write.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from operator import itemgetter

from router.message import Message
from router.table import Channel, Lane, Sink, Table

_SINKS_PER_TURN = 64  # of one round, before the next round has its turn: about half a millisecond
_SINKS_PER_CLOCK = 16  # sinks served between two looks at the clock

# A message with its number in order of arrival at this worker, and its frame in each lane that has needed it.
Entry = tuple[int, Message, dict[Lane, bytes]]
Debt = tuple["Round | Letters", int]  # what is owed to a sink: the log from that number on

_number_of = itemgetter(0)


class Cohort:
    """Sinks that are equally far: all of them lack a round's log from `number` on, since the time `since_s`.

    They are served in the order in which they came, which is about the order in which they and their sockets lie in
    memory. An index of who is in it is made only when somebody has to be found: keeping one would cost a broadcast a
    tenth more, because between two writes to sockets the processor's caches are the kernel's.
    """

    __slots__ = ("_index", "_order", "number", "since_s")

    def __init__(self, sinks: Iterable[Sink] = ()) -> None:
        self.number = 0
        self.since_s = 0.0
        self._order = list(sinks)
        self._index: set[Sink] | None = None  # when there is one, it tells who of the order is still in

    def __len__(self) -> int:
        return len(self._order if self._index is None else self._index)

    def __iter__(self) -> Iterator[Sink]:
        return iter(self._order if self._index is None else self._index)

    def lack(self, number: int, now: float) -> None:
        """Note that all lack the log from `number` on; from here on sinks only leave."""
        self.number, self.since_s = number, now
        self._order.reverse()  # the first to be served comes last, where a list is short of it at no cost

    def extend(self, sinks: Collection[Sink]) -> None:
        """Add sinks that are not in."""
        self._order += sinks
        if self._index is not None:
            self._index.update(sinks)

    def discard(self, sink: Sink) -> bool:
        """Take one sink out; False when it is not in."""
        if self._index is None:
            self._index = set(self._order)
        if sink not in self._index:
            return False
        self._index.remove(sink)
        return True

    def take(self, count: int) -> list[Sink]:
        """Take at most `count` sinks out, in order."""
        batch = self._order[-count:]
        del self._order[-count:]
        batch.reverse()
        if self._index is not None:
            batch = [sink for sink in dict.fromkeys(batch) if sink in self._index]
            self._index.difference_update(batch)
        return batch


class Letters:
    """Messages for one sink alone, since the time `since_s`: of a personal channel with one subscriber, as most have."""

    __slots__ = ("log", "since_s")

    def __init__(self, since_s: float) -> None:
        self.log: list[Entry] = []
        self.since_s = since_s

    def since(self, _number: int) -> list[Entry]:
        """Return all of them; not to be changed."""
        return self.log


class Round:
    """The fan-out of one channel's messages.

    Every subscriber is in exactly one place: in the cohort of those who lack the log from some number on, or among the
    `fresh`, who lack nothing. `cohorts` are in order of that number, so the front one is the furthest behind.
    """

    __slots__ = ("channel", "cohorts", "fresh", "log")

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.log: list[Entry] = []
        self.cohorts: list[Cohort] = []
        self.fresh = Cohort(channel.sinks)

    def append(self, number: int, message: Message, now: float) -> None:
        """Add a message: whoever lacked nothing now lacks this one."""
        self.log.append((number, message, {}))
        if self.fresh:
            self.fresh.lack(number, now)
            self.cohorts.append(self.fresh)
            self.fresh = Cohort()

    def since(self, number: int) -> list[Entry]:
        """Return the log from `number` on; not to be changed."""
        log = self.log
        return log if log[0][0] >= number else log[bisect_left(log, number, key=_number_of) :]

    def add(self, sink: Sink) -> None:
        """Count in a new subscriber: it lacks nothing of what was before it came."""
        self.fresh.extend((sink,))

    def take(self, sink: Sink) -> int:
        """Return the number from which on `sink` lacks the log, and count it as served; 0 when it lacks nothing."""
        for cohort in self.cohorts:
            if cohort.discard(sink):
                self.add(sink)
                return cohort.number
        return 0

    def discard(self, sink: Sink) -> None:
        """Forget a sink that has left."""
        if not self.fresh.discard(sink):
            any(cohort.discard(sink) for cohort in self.cohorts)

    def advance(self) -> list[Entry]:
        """Drop the cohorts in front that are served, and return the part of the log that nobody lacks any more."""
        cohorts = self.cohorts
        while cohorts and not cohorts[0]:
            del cohorts[0]
        done = self.log
        self.log = self.since(cohorts[0].number) if cohorts else []
        return done[: len(done) - len(self.log)]


class Carousel:
    """All rounds of one worker.

    `on_full(sink)` is told of a sink that had no room, behind a few others, and may unsubscribe it, or has done so since;
    `on_done(seconds)` how long it took until everybody who was subscribed to a message had it.
    """

    def __init__(
        self,
        table: Table,
        *,
        slice_seconds_max: float,
        on_full: Callable[[Sink], None],
        on_done: Callable[[float], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.deliveries = 0  # messages times sinks
        self.writes = 0
        self.bytes_waiting = 0  # in the logs of all rounds: back-pressure on the bus goes by it
        self._table = table
        self._slice_s = slice_seconds_max
        self._on_full = on_full
        self._on_done = on_done
        self._clock = clock
        self._rounds: deque[Round] = deque()
        self._letters: dict[Sink, Letters] = {}
        self._addressees: deque[Sink] = deque()  # of letters, in order; also some who have been served since
        self._number = 0

    def __bool__(self) -> bool:
        return bool(self._rounds or self._letters)

    def add(self, channel: Channel, message: Message) -> None:
        """Queue `message` for every subscriber that `channel` has now."""
        self._number += 1
        current = channel.round
        if current is None:
            current = channel.round = Round(channel)
            self._rounds.append(current)
        current.append(self._number, message, self._clock())
        self.bytes_waiting += len(message.members)

    def post(self, sink: Sink, message: Message) -> None:
        """Queue `message` for `sink` alone."""
        self._number += 1
        letters = self._letters.get(sink)
        if letters is None:
            letters = self._letters[sink] = Letters(self._clock())
            self._addressees.append(sink)
        letters.log.append((self._number, message, {}))
        self.bytes_waiting += len(message.members)

    def turn(self) -> bool:
        """Serve for at most one slice of time; True when there is more to do."""
        deadline = self._clock() + self._slice_s
        rounds = self._rounds
        in_time = True
        while rounds:
            current = rounds[0]
            if self._is_served(current):
                rounds.popleft()
                current.channel.round = None
                self._table.settle(current.channel)
            elif in_time:
                self._hand_out()
                alone = len(rounds) == 1 and not self._letters
                in_time = (self._serve if alone else self._serve_merging)(current, deadline)
                rounds.rotate(-1)  # out of time or not: its next turn comes behind everybody else's
            else:
                return True
        while in_time and self._letters:
            self._hand_out()
            in_time = self._clock() < deadline
        return bool(self)  # somebody who had no room may have been told of meanwhile

    def flush(self, sink: Sink) -> None:
        """Serve `sink` everything that any round still owes it, so that what is offered next comes after."""
        if self:
            debts = self._take(sink)
            if debts:
                payload, count = _payload(sink.lane, debts)
                self.writes += 1
                self.deliveries += count
                if not sink.offer(payload):
                    self._on_full(sink)

    def tell(self, sink: Sink, messages: Iterable[Message]) -> None:
        """Serve `sink` everything that any round still owes it, and behind that `messages`, which are for it alone."""
        self.flush(sink)
        frames = [sink.lane.encode(message) for message in messages]
        if frames:
            self.writes += 1
            self.deliveries += len(frames)
            if not sink.offer(b"".join(frames)):
                self._on_full(sink)

    def _is_served(self, current: Round) -> bool:
        """Drop what nobody lacks any more of `current`; True when nothing is left."""
        cohorts = current.cohorts
        if cohorts:
            if cohorts[0]:
                return False
            self._on_done(self._clock() - cohorts[0].since_s)
        for _, message, _ in current.advance():
            self.bytes_waiting -= len(message.members)
        return not cohorts

    def _serve(self, current: Round, deadline: float) -> bool:
        """Serve the front cohort of the only round; False when time is up."""
        cohort = current.cohorts[0]
        debts: tuple[Debt] = ((current, cohort.number),)
        payloads: dict[Lane, bytes] = {}
        count = 0
        full: list[Sink] = []
        in_time = True
        while cohort and in_time:
            batch = cohort.take(_SINKS_PER_CLOCK)
            current.fresh.extend(batch)  # counted as served before they are: nothing between two writes but writes
            for sink in batch:
                lane = sink.lane
                payload = payloads.get(lane)
                if payload is None:
                    payload, count = _payload(lane, debts)
                    payloads[lane] = payload
                if not sink.offer(payload):
                    full.append(sink)
            self.writes += len(batch)
            self.deliveries += count * len(batch)
            in_time = self._clock() < deadline
        for sink in full:
            self._on_full(sink)
        return in_time

    def _serve_merging(self, current: Round, deadline: float) -> bool:
        """Serve a few sinks of the front cohort, each with what the other rounds owe it too; False when time is up."""
        cohort = current.cohorts[0]
        here: Debt = (current, cohort.number)
        payloads: dict[tuple[object, ...], tuple[bytes, int]] = {}  # neighbours often share all their channels
        full: list[Sink] = []
        in_time = True
        for _ in range(_SINKS_PER_TURN // _SINKS_PER_CLOCK):
            batch = cohort.take(_SINKS_PER_CLOCK)
            current.fresh.extend(batch)
            for sink in batch:
                debts = (here, *self._take(sink, current))
                key = (sink.lane, *debts)
                found = payloads.get(key)
                if found is None:
                    found = payloads[key] = _payload(sink.lane, debts)
                payload, count = found
                if not sink.offer(payload):
                    full.append(sink)
                self.deliveries += count
            self.writes += len(batch)
            in_time = self._clock() < deadline
            if not (cohort and in_time):
                break
        for sink in full:
            self._on_full(sink)
        return in_time

    def _hand_out(self) -> None:
        """Serve the next few of those who have letters, each with what the rounds owe it too."""
        addressees = self._addressees
        full: list[Sink] = []
        for _ in range(_SINKS_PER_CLOCK):
            if not addressees:
                break
            sink = addressees.popleft()
            debts = self._take(sink) if self._rounds else self._take_letters(sink)
            if debts and self._table.holds(sink):  # otherwise it has been served with something else, or has left
                payload, count = _payload(sink.lane, debts)
                self.writes += 1
                self.deliveries += count
                if not sink.offer(payload):
                    full.append(sink)
        for sink in full:
            self._on_full(sink)

    def _take_letters(self, sink: Sink) -> list[Debt]:
        letters = self._letters.pop(sink, None)
        if letters is None:
            return []
        if not self._letters:
            self._addressees.clear()
        for _, message, _ in letters.log:
            self.bytes_waiting -= len(message.members)
        self._on_done(self._clock() - letters.since_s)
        return [(letters, 0)]

    def _take(self, sink: Sink, but: Round | None = None) -> list[Debt]:
        """Return its letters and what every round, `but` one, owes `sink`, and count it as served."""
        debts = self._take_letters(sink) if self._letters else []
        for channel in (*sink.channels, self._table.users.get(sink.user)):
            if isinstance(channel, Channel) and channel.round is not None and channel.round is not but:
                number = channel.round.take(sink)
                if number:
                    debts.append((channel.round, number))
        return debts


def _payload(lane: Lane, debts: Sequence[Debt]) -> tuple[bytes, int]:
    """Return all messages that are owed, in order of arrival and as one piece, and how many they are."""
    entries = [entry for owing, number in debts for entry in owing.since(number)]
    if len(debts) > 1:
        entries.sort(key=_number_of)
    frames = []
    for _, message, encoded in entries:
        frame = encoded.get(lane)
        if frame is None:
            frame = encoded[lane] = lane.encode(message)
        frames.append(frame)
    return frames[0] if len(frames) == 1 else b"".join(frames), len(frames)
