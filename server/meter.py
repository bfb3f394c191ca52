"""What the workers cost while they work: looked at about once a second, as input of a capacity model.

`/api/capacity` and `/metrics` both read it. It judges nothing: whoever runs the admin process hands in the model.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from server import host, limits
from server.footprint import CONNECTIONS_MIN, Footprint
from server.stats import Pages, Snapshot

WINDOW_SECONDS_MAX = 10.0
WINDOWS_MAX = 600
QUIET_SECONDS_MAX = 60.0  # windows in which nothing happened are put together, up to this
USED_SECONDS = 60.0  # over which the processors in use are averaged
COUNTERS = ("accepted", "published", "received_messages", "deliveries", "writes")


class Window(NamedTuple):
    """What all workers did and used in a while. `connection_seconds`: one connection held for one second is one."""

    seconds: float
    connection_seconds: float
    accepted: int
    published: int
    received_messages: int
    deliveries: int
    writes: int
    cpu_seconds: float

    @property
    def is_quiet(self) -> bool:
        """True when nobody came and nothing was sent."""
        return not (self.accepted or self.published or self.received_messages or self.deliveries)


class _Look(NamedTuple):
    """One look at all workers."""

    at: float
    connections: int
    counted: tuple[int, ...]
    cpu: dict[int, float]  # seconds by pid
    written: float  # the oldest page

    def cpu_seconds_since(self, before: _Look) -> float:
        """What the workers of both looks used between them."""
        return sum(seconds - before.cpu[pid] for pid, seconds in self.cpu.items() if pid in before.cpu)


class Windows:
    """The last working time, cut where nothing was under way.

    Workers write their counters twice a second, while the processor time is of this moment: at a busy edge the two would not
    belong together. So a window ends when the counters stood still between two looks, or at the latest after 10 s,
    when a second at its edges weighs little.
    """

    def __init__(self) -> None:
        self._closed: deque[Window] = deque(maxlen=WINDOWS_MAX)
        self._first: _Look | None = None
        self._last: _Look | None = None
        self._connection_seconds = 0.0
        self._recent: deque[tuple[float, float]] = deque()  # when, processor seconds since the look before

    def __iter__(self) -> Iterator[Window]:
        return iter(self._closed)

    def add(self, look: _Look) -> None:
        """Go on with what is seen now."""
        first, last, self._last = self._first, self._last, look
        if first is None or last is None or first.cpu.keys() != look.cpu.keys():  # a worker was replaced
            self._first, self._connection_seconds = look, 0.0
            return
        self._connection_seconds += (look.at - last.at) * (last.connections + look.connections) / 2
        self._recent.append((look.at, look.cpu_seconds_since(last)))
        while look.at - self._recent[0][0] > USED_SECONDS:
            self._recent.popleft()
        is_still = look.counted == last.counted and look.written > last.at
        if is_still or look.at - first.at >= WINDOW_SECONDS_MAX:
            counted = [now - then for now, then in zip(look.counted, first.counted, strict=True)]
            held, used = self._connection_seconds, look.cpu_seconds_since(first)
            self._close(Window._make([look.at - first.at, held, *counted, used]))
            self._first, self._connection_seconds = look, 0.0

    def cores_used(self) -> float | None:
        """Processors in use by all workers over the last minute; None before two looks."""
        if len(self._recent) < 2:
            return None
        seconds = self._recent[-1][0] - self._recent[0][0]
        return sum(cpu for _, cpu in list(self._recent)[1:]) / seconds if seconds > 0 else None

    def _close(self, window: Window) -> None:
        if self._closed and window.is_quiet and (before := self._closed[-1]).is_quiet:
            held, holds = (w.connection_seconds / w.seconds for w in (before, window))
            if abs(held - holds) <= 0.1 * max(held, holds) and before.seconds < QUIET_SECONDS_MAX:
                self._closed[-1] = Window._make(a + b for a, b in zip(before, window, strict=True))
                return
        self._closed.append(window)


class Meter:
    """Memory, processor time and descriptors of the workers. Safe to call from any thread."""

    def __init__(self, pages: Pages, clock: Callable[[], float] = time.monotonic) -> None:
        self._pages = pages
        self._clock = clock
        self._processes = host.Processes()
        self._footprint = Footprint(self._processes)
        self._windows = Windows()
        self._lock = threading.Lock()

    def look(self) -> None:
        """Look at the workers. Call about once a second."""
        with self._lock:
            snapshots = [page.read() for page in self._pages]
            self._footprint.notice(snapshots)
            self._windows.add(self._seen(snapshots))

    def bytes_per_connection(self) -> dict[str, float]:
        """The parts that are known: `user` and `kernel`. Blocks for the memory of all workers when that is 15 s old."""
        with self._lock:
            return dict(self._bytes_per_connection([page.read() for page in self._pages]))

    def read(self) -> dict[str, Any]:
        """Everything measured, as plain objects. What is not known is absent; blocks as `bytes_per_connection` does."""
        with self._lock:
            snapshots = [page.read() for page in self._pages]
            self._processes.keep({s.pid for s in snapshots})
            return {
                "connections": sum(s.stats.connections for s in snapshots),
                "connections_min": CONNECTIONS_MIN,
                "workers": [self._worker(number, snapshot) for number, snapshot in enumerate(snapshots)],
                "bytes_per_connection": dict(self._bytes_per_connection(snapshots)),
                "cpu_cores_used": self._windows.cores_used(),
                "windows": [window._asdict() for window in self._windows],
            }

    def _bytes_per_connection(self, snapshots: Sequence[Snapshot]) -> dict[str, float]:
        return self._footprint.bytes_per_connection(snapshots, self._clock())

    def _worker(self, number: int, snapshot: Snapshot) -> dict[str, Any]:
        usage = self._processes.usage(snapshot.pid) if snapshot.pid else None
        found: dict[str, Any] = {"worker": number, "pid": snapshot.pid, "connections": snapshot.stats.connections}
        if usage is not None:
            # The last ones are kept back: server/pool.py gives them to no session.
            reserved = limits.DESCRIPTORS_RESERVED
            found |= {"open_fds": usage.open_fds, "fd_limit": usage.fd_limit, "fd_reserved": reserved}
        return found

    def _seen(self, snapshots: Sequence[Snapshot]) -> _Look:
        at = self._clock()
        living = [s for s in snapshots if s.pid]
        cpu = {s.pid: seconds for s in living if (seconds := host.cpu_seconds(s.pid)) is not None}
        counted = tuple(sum(getattr(s.stats, name) for s in living) for name in COUNTERS)
        written = min((s.clock for s in living), default=0.0)
        return _Look(at, sum(s.stats.connections for s in living), counted, cpu, written)
