"""Memory of one connection, measured while the server fills up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from server import host
from server.stats import Snapshot

READ_SECONDS_MIN = 15.0  # between two readings of every worker's memory
CONNECTIONS_MIN = 1000  # fewer tell nothing about one
SAMPLE_GROWTH = 1.5  # connections of a worker from one sample to the next
SAMPLE_CONNECTIONS_MIN = 50  # and at least so many more
EMPTY_CONNECTIONS_MAX = 100  # so few do not blur what a worker takes without any
SETTLED_SHARE = 0.1  # a page is up to a second old: what has changed more since the last look may not fit the memory


class Sample(NamedTuple):
    """What a worker took when it held so many."""

    connections: int
    private_bytes: int


class Footprint:
    """Memory of one connection: of user space, the slope of the workers' memory over the last doubling of connections.

    Not all that a worker takes above what it took when it was empty: the first connections wake up code and tables,
    some 400 kB a worker, which at 2,000 connections would double the figure. (It does where a server has filled within a
    second; the more connections, the less.) A worker that has lost connections keeps its memory, so its line ends at the
    most that it held.
    """

    def __init__(self, processes: host.Processes) -> None:
        self._processes = processes
        self._lines: dict[int, list[Sample]] = {}  # by pid, connections ascending
        self._seen: dict[int, int] = {}  # connections at the last look, by pid
        self._read_at = float("-inf")

    def notice(self, snapshots: Iterable[Snapshot]) -> None:
        """Read workers that are new or have grown; forget those that are gone. Cheap when there are none."""
        living = {s.pid: s.stats.connections for s in snapshots if s.pid}
        self._lines = {pid: line for pid, line in self._lines.items() if pid in living}
        for pid, connections in self._settled(living):
            line = self._lines.get(pid)
            if not line or connections >= line[-1].connections * SAMPLE_GROWTH + SAMPLE_CONNECTIONS_MIN:
                self._read(pid, connections)
        self._seen = living

    def bytes_per_connection(self, snapshots: Sequence[Snapshot], now: float) -> dict[str, float]:
        """The parts that are known; none below CONNECTIONS_MIN. Reads workers again every READ_SECONDS_MIN at the most."""
        living = {s.pid: s.stats.connections for s in snapshots if s.pid}
        if now - self._read_at >= READ_SECONDS_MIN:
            self._read_at = now
            self._read_again(living)
        if sum(living.values()) < CONNECTIONS_MIN:
            return {}
        parts = {"user": self._user(), "kernel": host.kernel_bytes_per_connection()}
        return {part: size for part, size in parts.items() if size is not None}

    def _read_again(self, living: dict[int, int]) -> None:
        """Those that hold more than when they were read last, or next to nothing: they grow a little while they warm up."""
        for pid, connections in self._settled(living):
            line = self._lines.get(pid)
            if not line or connections > line[-1].connections or connections <= EMPTY_CONNECTIONS_MAX:
                self._read(pid, connections)

    def _settled(self, living: dict[int, int]) -> list[tuple[int, int]]:
        return [
            (pid, connections)
            for pid, connections in living.items()
            if abs(connections - self._seen.get(pid, 0)) <= SETTLED_SHARE * connections
        ]

    def _user(self) -> float | None:
        """The slope of all workers together; None when they were not seen with few enough connections."""
        more = grown = 0
        for line in self._lines.values():
            last = line[-1]
            first = max((s for s in line if 2 * s.connections <= last.connections), default=last)
            more += last.connections - first.connections
            grown += last.private_bytes - first.private_bytes
        return max(grown, 0) / more if more >= CONNECTIONS_MIN / 2 else None

    def _read(self, pid: int, connections: int) -> None:
        size = self._processes.private_bytes(pid)
        if size is None:
            return
        line = self._lines.setdefault(pid, [])
        if len(line) == 1 and connections <= EMPTY_CONNECTIONS_MAX:
            line.clear()
        if not line or connections > line[-1].connections:
            # What lies between two samples that far apart is of no use: the line stays short.
            if len(line) > 1 and line[-1].connections < line[-2].connections * SAMPLE_GROWTH + SAMPLE_CONNECTIONS_MIN:
                line.pop()
            line.append(Sample(connections, size))
