"""Fan-out in slices: every subscriber's turn sends, as one write, all it has not had yet.

A channel with messages to send has a `Round`. The carousel gives each round a turn of a few sinks, so that a broadcast to a
hundred thousand does not hold up a message to one, and stops after a slice of time so that the loop can accept, read and
receive. While a round walks, new messages join its log: the sinks it has not reached yet get them in the same write, the
ones it has already served form a new cohort behind. So latency is bounded by one walk over the subscribers, and under load
the cost of a message falls.

Order. One position covers all channels of a connection: a client that has seen position 7 will never ask for 6. A sink must
therefore get its messages in order of arrival over *all* its channels. So whenever a sink is served while several rounds
are under way, what the other rounds still owe it is merged into the same write.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from operator import itemgetter

from router.message import Message
from router.table import Channel, Lane, Sink, Table

_SINKS_PER_TURN = 64  # of one round, before the next round has its turn: about half a millisecond
_SINKS_PER_CLOCK = 16  # sinks served between two looks at the clock

Numbered = tuple[int, Message]  # a message with its number in order of arrival at this worker


class Round:
    """The fan-out of one channel's messages.

    Every subscriber is in exactly one place: in the cohort of those who lack the log from some number on, or among the
    `fresh`, who lack nothing. `cohorts` are in order of that number, so the front one is the furthest behind.
    """

    __slots__ = ("channel", "cohorts", "fresh", "log", "payloads", "started_s")

    def __init__(self, channel: Channel, now: float) -> None:
        self.channel = channel
        self.log: list[Numbered] = []
        self.cohorts: deque[tuple[int, set[Sink]]] = deque()
        self.fresh: set[Sink] = set(channel.sinks)
        self.payloads: dict[Lane, bytes] = {}  # of the front cohort, with the log as it is now
        self.started_s = now

    def append(self, number: int, message: Message) -> None:
        """Add a message: whoever lacked nothing now lacks this one."""
        self.log.append((number, message))
        self.payloads.clear()
        if self.fresh:
            self.cohorts.append((number, self.fresh))
            self.fresh = set()

    def lacks(self, sink: Sink) -> int:
        """Return the number from which on `sink` lacks the log; 0 when it lacks nothing."""
        for number, cohort in self.cohorts:
            if sink in cohort:
                return number
        return 0

    def since(self, number: int) -> list[Numbered]:
        """Return the log from `number` on."""
        return [entry for entry in self.log if entry[0] >= number]

    def take(self, sink: Sink) -> list[Numbered]:
        """Return what `sink` lacks, and count it as served."""
        number = self.lacks(sink)
        if not number:
            return []
        self.discard(sink)
        self.fresh.add(sink)
        return self.since(number)

    def discard(self, sink: Sink) -> None:
        """Forget a sink that has left."""
        self.fresh.discard(sink)
        for _, cohort in self.cohorts:
            cohort.discard(sink)

    def advance(self) -> list[Numbered]:
        """Drop the cohorts that are served, and return the part of the log that nobody lacks any more."""
        cohorts = self.cohorts
        if cohorts and cohorts[0][1]:
            return []
        while cohorts and not cohorts[0][1]:
            cohorts.popleft()
        self.payloads.clear()
        done = self.log
        self.log = self.since(cohorts[0][0]) if cohorts else []
        return done[: len(done) - len(self.log)]


class Carousel:
    """All rounds of one worker.

    `on_full(sink)` is told of a sink that had no room and may unsubscribe it; `on_done(seconds)` how long a round took.
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
        self._number = 0

    def __bool__(self) -> bool:
        return bool(self._rounds)

    def add(self, channel: Channel, message: Message) -> None:
        """Queue `message` for every subscriber that `channel` has now."""
        self._number += 1
        current = channel.round
        if current is None:
            current = channel.round = Round(channel, self._clock())
            self._rounds.append(current)
        current.append(self._number, message)
        self.bytes_waiting += len(message.members)

    def turn(self) -> bool:
        """Serve for at most one slice of time; True when there is more to do."""
        deadline = self._clock() + self._slice_s
        rounds = self._rounds
        while rounds:
            current = rounds[0]
            for _, message in current.advance():
                self.bytes_waiting -= len(message.members)
            if not current.cohorts:
                rounds.popleft()
                self._end(current)
                continue
            serve = self._serve if len(rounds) == 1 else self._serve_merging
            if not serve(current, deadline):
                return True
            rounds.rotate(-1)
        return False

    def flush(self, sink: Sink) -> None:
        """Serve `sink` everything that any round still owes it, so that what is offered next comes after."""
        if self._rounds:
            owed = self._owed(sink)
            if owed:
                self._offer(sink, _join(sink.lane, owed), len(owed))

    def _serve(self, current: Round, deadline: float) -> bool:
        """Serve the front cohort of the only round; False when time is up."""
        number, cohort = current.cohorts[0]
        owed = current.since(number)
        clock, payloads, served, pop = self._clock, current.payloads, current.fresh.add, cohort.pop
        full: list[Sink] = []
        in_time = True
        while cohort and in_time:
            batch = min(len(cohort), _SINKS_PER_CLOCK)
            for _ in range(batch):
                sink = pop()
                lane = sink.lane
                payload = payloads.get(lane)
                if payload is None:
                    payload = payloads[lane] = _join(lane, owed)
                if not sink.offer(payload):
                    full.append(sink)
                served(sink)
            self.writes += batch
            self.deliveries += len(owed) * batch
            in_time = clock() < deadline
        for sink in full:
            self._on_full(sink)
        return in_time

    def _serve_merging(self, current: Round, deadline: float) -> bool:
        """Serve a few sinks of the front cohort, each with what the other rounds owe it too; False when time is up."""
        number, cohort = current.cohorts[0]
        owed = current.since(number)
        for turn in range(1, _SINKS_PER_TURN + 1):
            if not cohort:  # closing a sink that was full may have taken others with it
                break
            sink = cohort.pop()
            current.fresh.add(sink)
            elsewhere = self._owed(sink)
            if elsewhere:
                merged = sorted(owed + elsewhere, key=itemgetter(0))
                self._offer(sink, _join(sink.lane, merged), len(merged))
            else:
                payload = current.payloads.get(sink.lane)
                if payload is None:
                    payload = current.payloads[sink.lane] = _join(sink.lane, owed)
                self._offer(sink, payload, len(owed))
            if turn % _SINKS_PER_CLOCK == 0 and self._clock() >= deadline:
                return False
        return self._clock() < deadline

    def _offer(self, sink: Sink, payload: bytes, count: int) -> None:
        self.writes += 1
        self.deliveries += count
        if not sink.offer(payload):
            self._on_full(sink)

    def _rounds_of(self, sink: Sink) -> Iterator[Round]:
        personal = self._table.personal_round(sink.user)
        if personal is not None:
            yield personal
        for channel in sink.channels:
            if channel.round is not None:
                yield channel.round

    def _owed(self, sink: Sink) -> list[Numbered]:
        """Take, from every round, what it owes `sink`, in order of arrival."""
        owed: list[Numbered] = []
        for each in self._rounds_of(sink):
            owed += each.take(sink)
        owed.sort(key=itemgetter(0))
        return owed

    def _end(self, done: Round) -> None:
        done.channel.round = None
        self._table.settle(done.channel)
        self._on_done(self._clock() - done.started_s)


def _join(lane: Lane, entries: list[Numbered]) -> bytes:
    encode = lane.encode
    if len(entries) == 1:
        return encode(entries[0][1])
    return b"".join([encode(message) for _, message in entries])
