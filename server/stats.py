"""What one worker has counted, and the shared page on which it shows that to the supervisor and the admin process.

`Stats` declares every number once: its kind, the metric it feeds and its help text. The layout of a page,
what a replaced worker carries on, and `/metrics` all follow from that table.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints

from server.close import Close
from server.drain import Window

BOUNDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
"""Upper bounds of a histogram's buckets in seconds, inclusive; one more bucket holds what is above the last."""

_READS_MAX = 3


class Histogram:
    """How often a duration fell into each bucket of BOUNDS (not cumulative), and the sum of all in seconds."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds


class Kind(Enum):
    """What may happen to a number: counters and histograms only grow, and survive their worker; gauges do not."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Field(NamedTuple):
    """What is declared of one attribute of `Stats`."""

    kind: Kind
    help: str
    metric: str = ""  # without prefix and suffix; the attribute's name unless said
    label: tuple[str, str] | None = None  # a fixed label and its value
    by_close: Literal["", "reason", "code"] = ""  # one number a close code, labelled by its name or its number
    name: str = ""
    width: int = 1  # how many numbers it takes on a page


_COUNTER, _GAUGE, _HISTOGRAM = Kind
_CODES = tuple(Close)


def _zeros() -> dict[Close, int]:
    return dict.fromkeys(_CODES, 0)


@dataclass(slots=True)
class Stats:
    """A worker's numbers: plain attributes, bumped where the thing happens. Flags are 0 or 1."""

    accepted: Annotated[int, Field(_COUNTER, "Connections accepted")] = 0
    connections_tcp: Annotated[int, Field(_GAUGE, "Sessions held", "connections", ("transport", "tcp"))] = 0
    connections_sse: Annotated[int, Field(_GAUGE, "Sessions held", "connections", ("transport", "sse"))] = 0
    handshaking: Annotated[int, Field(_GAUGE, "Connections accepted that are not sessions yet")] = 0
    handshake_failures: Annotated[
        dict[Close, int], Field(_COUNTER, "Connections ended before they were sessions", by_close="reason")
    ] = field(default_factory=_zeros)
    closed: Annotated[dict[Close, int], Field(_COUNTER, "Sessions ended", by_close="code")] = field(
        default_factory=_zeros
    )
    sessions_refused: Annotated[int, Field(_COUNTER, "Sessions refused at a limit or while draining")] = 0
    census_overflows: Annotated[
        int, Field(_COUNTER, "Times that a connection was not counted for a limit because the table of counts was full")
    ] = 0
    accept_pauses: Annotated[int, Field(_COUNTER, "Pauses of accepting because descriptors or memory ran out")] = 0
    received_messages: Annotated[int, Field(_COUNTER, "Messages received from the bus")] = 0
    published: Annotated[int, Field(_COUNTER, "Publishes the bus has taken")] = 0
    publishes_limited: Annotated[int, Field(_COUNTER, "Publishes refused because they came too fast")] = 0
    publish_failures: Annotated[int, Field(_COUNTER, "Publishes answered with an error")] = 0
    deliveries: Annotated[int, Field(_COUNTER, "Messages handed to subscribers: messages times subscribers")] = 0
    writes: Annotated[int, Field(_COUNTER, "System calls that carried deliveries")] = 0
    gaps_sent: Annotated[int, Field(_COUNTER, "Gaps told to subscribers: what they missed is no longer held")] = 0
    joins_leaves: Annotated[int, Field(_COUNTER, "Users whose joining or leaving was told, one a channel")] = 0
    join_leave_summaries: Annotated[
        int, Field(_COUNTER, "Times that so many joined or left a channel that only their number was told")
    ] = 0
    roster_users: Annotated[int, Field(_GAUGE, "Users of other workers known because of joins and leaves")] = 0
    roster_overflows: Annotated[
        int, Field(_COUNTER, "Times that users were not taken into a roster because there were too many")
    ] = 0
    backlogged_connections: Annotated[int, Field(_GAUGE, "Sessions whose socket takes no more at the moment")] = 0
    backlog_bytes: Annotated[int, Field(_GAUGE, "Bytes waiting for such sessions")] = 0
    subscriptions: Annotated[int, Field(_GAUGE, "Channels subscribed on the bus")] = 0
    bus_connected: Annotated[int, Field(_GAUGE, "1 while the bus answers")] = 0
    bus_reconnects: Annotated[int, Field(_COUNTER, "Connections to the bus made again")] = 0
    bus_pauses: Annotated[
        int, Field(_COUNTER, "Times that Redis was made to wait because too much waited for subscribers here")
    ] = 0
    workers_cut: Annotated[
        int, Field(_COUNTER, "Silent workers, of this host or another, that Redis was made to close the connections of")
    ] = 0
    ready: Annotated[int, Field(_GAUGE, "1 while the worker may be given new connections")] = 0
    draining: Annotated[int, Field(_GAUGE, "1 while the worker asks its sessions to leave")] = 0
    drained: Annotated[int, Field(_GAUGE, "1 when they have left, and the worker waits for the others")] = 0
    fanout: Annotated[
        Histogram, Field(_HISTOGRAM, "Time of one message's round to all subscribers", "fanout_seconds")
    ] = field(default_factory=Histogram)
    bus_lag: Annotated[Histogram, Field(_HISTOGRAM, "From publish to receive", "bus_lag_seconds")] = field(
        default_factory=Histogram
    )
    loop_lag: Annotated[Histogram, Field(_HISTOGRAM, "How late the event loop ran a timer", "loop_lag_seconds")] = (
        field(default_factory=Histogram)
    )

    @property
    def connections(self) -> int:
        """Sessions of both transports."""
        return self.connections_tcp + self.connections_sse


def _declared() -> Iterator[Field]:
    for name, hint in get_type_hints(Stats, include_extras=True).items():
        (declared,) = hint.__metadata__
        width = len(BOUNDS) + 2 if declared.kind is Kind.HISTOGRAM else len(_CODES) if declared.by_close else 1
        yield declared._replace(name=name, metric=declared.metric or name, width=width)


FIELDS = tuple(_declared())


def _numbers(stats: Stats) -> Iterator[float]:
    """Every number of `stats` in the order of a page."""
    for name in Stats.__slots__:
        value = getattr(stats, name)
        if isinstance(value, Histogram):
            yield from value.counts
            yield value.total
        elif isinstance(value, dict):
            yield from value.values()
        else:
            yield value


def _from_numbers(numbers: Sequence[float], kinds: Collection[Kind] = tuple(Kind)) -> Stats:
    """Undo `_numbers`; fields that are not of `kinds` stay zero."""
    stats, end = Stats(), 0
    for f in FIELDS:
        start, end = end, end + f.width
        if f.kind not in kinds:
            continue
        if f.kind is Kind.HISTOGRAM:
            histogram = getattr(stats, f.name)
            histogram.counts[:] = numbers[start : end - 1]
            histogram.total = numbers[end - 1]
        elif f.by_close:
            setattr(stats, f.name, dict(zip(_CODES, numbers[start:end], strict=True)))
        else:
            setattr(stats, f.name, numbers[start])
    return stats


def total(parts: Iterable[Stats]) -> Stats:
    """The sum of several workers; a flag becomes the number of workers that show it."""
    columns = zip(*map(_numbers, [Stats(), *parts]), strict=True)
    return _from_numbers([sum(column) for column in columns])


class Snapshot(NamedTuple):
    """What a page said. Clocks are the event loop's: seconds of CLOCK_MONOTONIC. A page never written has pid 0."""

    clock: float
    pid: int
    started: float
    stats: Stats


# Eight bytes each, in native order: no padding, and one aligned store each.
_CLOCK = struct.Struct("@d")
_CRC = struct.Struct("@Q")
_SLOT = struct.Struct(
    "@qdqd" + "".join("q" * (f.width - 1) + "d" if f.kind is Kind.HISTOGRAM else "q" * f.width for f in FIELDS)
)
_SLOT_BYTES = _SLOT.size + _CRC.size
PAGE_BYTES = -(-(_CLOCK.size + 2 * _SLOT_BYTES) // mmap.PAGESIZE) * mmap.PAGESIZE


class Page:
    """One worker's part of the shared map: one writer, any number of readers, no lock.

    The writer fills two slots in turn, each with a sequence number and a checksum; a reader takes the newest that is
    whole. So a reader never sees half a write, a worker killed inside one leaves the write before it,
    and nothing depends on the order in which this machine's cores see each other's stores.
    """

    __slots__ = ("_memory", "_pid", "_sequence", "_started")

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._pid = self._sequence = 0
        self._started = 0.0

    def write(self, stats: Stats, clock: float, pid: int) -> None:
        """Show `stats` at `clock`, the event loop's time in seconds."""
        if pid != self._pid:
            self._sequence, *_ = self._newest() or (0,)
            self._pid, self._started = pid, clock
        self._sequence += 1
        body = _SLOT.pack(self._sequence, clock, pid, self._started, *_numbers(stats))
        at = _CLOCK.size + self._sequence % 2 * _SLOT_BYTES
        self._memory[at : at + _SLOT_BYTES] = body + _CRC.pack(zlib.crc32(body))
        _CLOCK.pack_into(self._memory, 0, clock)

    def clock(self) -> float:
        """When the page was written last, in seconds of the writer's clock; 0.0 if never. Cheap."""
        return float(_CLOCK.unpack_from(self._memory, 0)[0])

    def read(self) -> Snapshot:
        """What the worker wrote last."""
        if (newest := self._newest()) is None:
            return Snapshot(0.0, 0, 0.0, Stats())
        _, clock, pid, started, *numbers = newest
        return Snapshot(clock, pid, started, _from_numbers(numbers))

    def restore(self) -> Stats:
        """What a replacement starts from: counters and histograms go on, gauges begin at zero."""
        newest = self._newest()
        if newest is None:
            return Stats()
        return _from_numbers(newest[4:], (Kind.COUNTER, Kind.HISTOGRAM))

    def _newest(self) -> tuple[Any, ...] | None:
        """The slot written last, unpacked; None if there is none."""
        for _ in range(_READS_MAX):  # again only if the reader slept between two writes, or nothing was written yet
            copy = bytes(self._memory[_CLOCK.size : _CLOCK.size + 2 * _SLOT_BYTES])
            slots = [s for s in (_whole(copy[:_SLOT_BYTES]), _whole(copy[_SLOT_BYTES:])) if s is not None]
            if slots:
                return max(slots)  # the sequence number comes first
        return None


def _whole(slot: bytes) -> tuple[Any, ...] | None:
    body = slot[: _SLOT.size]
    if _CRC.unpack_from(slot, _SLOT.size)[0] != zlib.crc32(body):
        return None
    return _SLOT.unpack(body)


_SUPERVISOR_PID, _BEGAN_MS, _WINDOW_MS, _SESSIONS, _ASKED_MS, _RESTARTS = range(6)


class Pages:
    """The pages of all workers, and the supervisor's own numbers, in one anonymous map shared across fork.

    The supervisor is the only writer of its part, but for the seconds that the admin process asks it for; every number there
    is one aligned store.
    """

    __slots__ = ("_numbers", "_pages")

    def __init__(self, memory: memoryview, count: int) -> None:
        self._pages = [Page(memory[i * PAGE_BYTES : (i + 1) * PAGE_BYTES]) for i in range(count)]
        self._numbers = memory[count * PAGE_BYTES :].cast("q")

    @classmethod
    def create(cls, count: int) -> Pages:
        """Pages for `count` workers. Call before the first fork."""
        supervisor_bytes = 8 * (_RESTARTS + count)
        return cls(memoryview(mmap.mmap(-1, count * PAGE_BYTES + supervisor_bytes)), count)

    def __len__(self) -> int:
        return len(self._pages)

    def __getitem__(self, worker: int) -> Page:
        return self._pages[worker]

    def __iter__(self) -> Iterator[Page]:
        return iter(self._pages)

    @property
    def supervisor_pid(self) -> int:
        """The supervisor's process id; 0 until it has said so."""
        return self._numbers[_SUPERVISOR_PID]

    @supervisor_pid.setter
    def supervisor_pid(self, pid: int) -> None:
        self._numbers[_SUPERVISOR_PID] = pid

    @property
    def window(self) -> Window | None:
        """In which the server is left; None while it is not."""
        if not self._numbers[_BEGAN_MS]:
            return None
        return Window(self._numbers[_BEGAN_MS] / 1000, self._numbers[_WINDOW_MS] / 1000, self._numbers[_SESSIONS])

    @window.setter
    def window(self, window: Window) -> None:
        self._numbers[_WINDOW_MS], self._numbers[_SESSIONS] = round(window.seconds * 1000), window.sessions
        self._numbers[_BEGAN_MS] = round(window.began_at * 1000)

    @property
    def asked_seconds(self) -> float:
        """In how many seconds the admin process was asked to empty the server."""
        return self._numbers[_ASKED_MS] / 1000

    @asked_seconds.setter
    def asked_seconds(self, seconds: float) -> None:
        self._numbers[_ASKED_MS] = round(seconds * 1000)

    def restarts(self, worker: int) -> int:
        """How often the supervisor replaced this worker."""
        return self._numbers[_RESTARTS + worker]

    def restarted(self, worker: int) -> None:
        """Count one replacement. Supervisor only."""
        self._numbers[_RESTARTS + worker] += 1
