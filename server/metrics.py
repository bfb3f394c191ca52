"""`/metrics`: one scrape shows all workers of the host, read from their shared pages and from the kernel."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, chain

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from server import host
from server.close import Close
from server.stats import BOUNDS, FIELDS, Field, Histogram, Kind, Pages, Snapshot

PREFIX = "moorage_"
PSS_SECONDS_MIN = 15.0  # between two readings of every worker's memory
CONNECTIONS_MIN = 1000  # fewer tell nothing about one
EMPTY_CONNECTIONS_MAX = 100  # so few do not blur what a worker takes without any

_SUFFIX = {Kind.COUNTER: "_total", Kind.GAUGE: "", Kind.HISTOGRAM: ""}
_LABELS = [{"le": str(bound) if bound < float("inf") else "+Inf"} for bound in (*BOUNDS, float("inf"))]
_CLOSE_LABELS = {
    "reason": [{"reason": code.name.lower()} for code in Close],
    "code": [{"code": str(int(code))} for code in Close],
}


class Footprint:
    """Memory of one connection: of user space, what the workers take above what they took when they were empty."""

    def __init__(self, processes: host.Processes) -> None:
        self._processes = processes
        self._empty: dict[int, int] = {}  # PSS in bytes by pid
        self._read_at = float("-inf")
        self._parts: dict[str, float] = {}

    def notice(self, snapshots: Iterable[Snapshot]) -> None:
        """Read workers never seen before, while they are empty; forget those that are gone. Cheap when none is new."""
        living = {s.pid: s for s in snapshots if s.pid}
        self._empty = {pid: size for pid, size in self._empty.items() if pid in living}
        self._read_empty(s for pid, s in living.items() if pid not in self._empty)

    def bytes_per_connection(self, snapshots: Sequence[Snapshot], now: float) -> dict[str, float]:
        """The parts that are known, at most PSS_SECONDS_MIN old; none below CONNECTIONS_MIN."""
        if now - self._read_at >= PSS_SECONDS_MIN:
            self._read_at = now
            self._parts = self._measure(snapshots)
        return self._parts

    def _measure(self, snapshots: Sequence[Snapshot]) -> dict[str, float]:
        connections = sum(s.stats.connections for s in snapshots)
        if connections < CONNECTIONS_MIN:
            self._read_empty(snapshots)  # once more: a worker grows a little while it warms up
            return {}
        parts = {"user": self._user(snapshots, connections), "kernel": host.kernel_bytes_per_connection()}
        return {part: size for part, size in parts.items() if size is not None}

    def _user(self, snapshots: Sequence[Snapshot], connections: int) -> float | None:
        if not self._empty:  # no worker was seen in time
            return None
        usual = sum(self._empty.values()) / len(self._empty)
        sizes = {s.pid: self._processes.pss_bytes(s.pid) for s in snapshots if s.pid}
        grown = sum(size - self._empty.get(pid, usual) for pid, size in sizes.items() if size is not None)
        return max(grown, 0.0) / connections

    def _read_empty(self, snapshots: Iterable[Snapshot]) -> None:
        for s in snapshots:
            if s.pid and s.stats.connections <= EMPTY_CONNECTIONS_MAX:
                size = self._processes.pss_bytes(s.pid)
                if size is not None:
                    self._empty[s.pid] = size


class WorkerCollector(Collector):
    """Everything of DESIGN's metrics that this host knows now. Safe to call from any thread."""

    def __init__(self, pages: Pages, clock: Callable[[], float] = time.monotonic) -> None:
        self._pages = pages
        self._clock = clock
        self._processes = host.Processes()
        self._footprint = Footprint(self._processes)
        self._lock = threading.Lock()
        self._workers = [str(i) for i in range(len(pages))]

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not cost a scrape."""
        return ()

    def notice(self) -> None:
        """Look at workers that are new, before they fill up. Call about once a second."""
        with self._lock:
            self._footprint.notice(page.read() for page in self._pages)

    def collect(self) -> Iterator[Metric]:
        """Read every metric; blocks for the PSS of all workers when the last is PSS_SECONDS_MIN old."""
        with self._lock:  # two scrapes may come at the same time
            snapshots = [page.read() for page in self._pages]
            self._processes.keep({s.pid for s in snapshots})
            parts = (self._counted(snapshots), self._used(snapshots), self._of_kernel(snapshots))
            return chain.from_iterable([list(part) for part in parts])

    def _counted(self, snapshots: Sequence[Snapshot]) -> Iterator[Metric]:
        """What the workers counted themselves."""
        families: dict[str, Metric] = {}
        for field in FIELDS:
            metric = families.setdefault(field.metric, _metric(field.metric, field.help, field.kind))
            for worker, snapshot in zip(self._workers, snapshots, strict=True):
                metric.samples += _samples(field, metric.name, worker, getattr(snapshot.stats, field.name))
        yield from families.values()

    def _used(self, snapshots: Sequence[Snapshot]) -> Iterator[Metric]:
        """What the kernel counted of the workers."""
        restarts = _metric("worker_restarts", "Replacements of this worker", Kind.COUNTER)
        cpu = _metric("worker_cpu_seconds", "Processor time of the process, user and system", Kind.COUNTER)
        resident = _metric("worker_resident_bytes", "Resident memory, shared pages included", Kind.GAUGE)
        fds = _metric("worker_open_fds", "Open descriptors", Kind.GAUGE)
        limit = _metric("worker_fd_limit", "RLIMIT_NOFILE: the most descriptors", Kind.GAUGE)
        capacity = 0
        for i, (worker, snapshot) in enumerate(zip(self._workers, snapshots, strict=True)):
            _add(restarts, self._pages.restarts(i), worker=worker)
            if not snapshot.pid or (usage := self._processes.usage(snapshot.pid)) is None:
                continue
            for metric, value in zip((cpu, resident, fds, limit), usage, strict=True):
                _add(metric, value, worker=worker)
            capacity += max(0, usage.fd_limit - usage.open_fds) + snapshot.stats.connections
        held = _metric("capacity_connections", "Connections this host can hold before the limit is reached", Kind.GAUGE)
        _add(held, capacity, limit="fds")
        yield from (restarts, cpu, resident, fds, limit, held)

    def _of_kernel(self, snapshots: Sequence[Snapshot]) -> Iterator[Metric]:
        """What is the host's, and what one connection takes of it."""
        if (tcp := host.kernel_tcp()) is not None:
            memory = _metric("kernel_tcp_memory_bytes", "Memory of all TCP buffers of the host", Kind.GAUGE)
            sockets = _metric("kernel_tcp_sockets", "TCP sockets of the host", Kind.GAUGE)
            _add(memory, tcp.memory_bytes)
            _add(sockets, tcp.sockets)
            yield from (memory, sockets)
        each = _metric("bytes_per_connection", "Memory of one connection", Kind.GAUGE)
        for part, size in self._footprint.bytes_per_connection(snapshots, self._clock()).items():
            _add(each, size, part=part)
        yield each


def _metric(name: str, help: str, kind: Kind) -> Metric:
    return Metric(PREFIX + name, help, kind.value)


def _add(metric: Metric, value: float, **labels: str) -> None:
    suffix = "_total" if metric.type == "counter" else ""
    metric.samples.append(Sample(metric.name + suffix, labels, value))


def _samples(field: Field, name: str, worker: str, value: object) -> Iterator[Sample]:
    """What one worker's `value` of `field` is in the exposition format."""
    labels = {"worker": worker}
    if isinstance(value, Histogram):
        buckets = zip(_LABELS, accumulate(value.counts), strict=True)
        yield from (Sample(name + "_bucket", labels | bound, count) for bound, count in buckets)
        yield Sample(name + "_count", labels, sum(value.counts))
        yield Sample(name + "_sum", labels, value.total)
    elif isinstance(value, dict):
        codes = zip(_CLOSE_LABELS[field.by_close], value.values(), strict=True)
        yield from (Sample(name + "_total", labels | code, count) for code, count in codes if count)
    elif isinstance(value, int):
        yield Sample(name + _SUFFIX[field.kind], labels | dict([field.label] if field.label else ()), value)


def render(families: Iterable[Metric], accept: str) -> tuple[bytes, str]:
    """Return the page a scraper reads and its content type, in the better format that the header `accept` takes.

    prometheus_client negotiates. Its encoders take 4 and 8 us a line (9,300 lines for 106 workers), because they must
    expect any name; here nothing needs an escape: label values are numbers and names of our own.
    """
    _, content_type = choose_encoder(accept)
    openmetrics = content_type.startswith("application/openmetrics-text")
    lines: list[str] = []
    for family in families:
        name = family.name + "_total" if family.type == "counter" and not openmetrics else family.name
        lines += f"# HELP {name} {family.documentation}", f"# TYPE {name} {family.type}"
        lines += [f"{s.name}{_braces(s.labels)} {s.value}" for s in family.samples]
    lines += ["# EOF", ""] if openmetrics else [""]
    return "\n".join(lines).encode(), content_type


def _braces(labels: dict[str, str]) -> str:
    return "{" + ",".join([f'{name}="{value}"' for name, value in labels.items()]) + "}" if labels else ""
