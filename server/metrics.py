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
from server.meter import Meter
from server.stats import BOUNDS, FIELDS, Field, Histogram, Kind, Pages, Snapshot

PREFIX = "moorage_"

Ceilings = Callable[[], Iterable[tuple[str, int]]]
"""Name of a limit, and how many connections the host holds before it binds."""

_SUFFIX = {Kind.COUNTER: "_total", Kind.GAUGE: "", Kind.HISTOGRAM: ""}
_LABELS = [{"le": str(bound) if bound < float("inf") else "+Inf"} for bound in (*BOUNDS, float("inf"))]
_CLOSE_LABELS = {
    "reason": [{"reason": code.name.lower()} for code in Close],
    "code": [{"code": str(int(code))} for code in Close],
}


class WorkerCollector(Collector):
    """Every metric that this host knows now. Safe to call from any thread."""

    def __init__(self, pages: Pages, meter: Meter, ceilings: Ceilings = tuple) -> None:
        self._pages = pages
        self._meter = meter
        self._ceilings = ceilings
        self._processes = host.Processes()
        self._lock = threading.Lock()
        self._workers = [str(i) for i in range(len(pages))]

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not cost a scrape."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Read every metric; blocks for the memory of all workers when the last is 15 s old."""
        with self._lock:  # two scrapes may come at the same time
            snapshots = [page.read() for page in self._pages]
            self._processes.keep({s.pid for s in snapshots})
            parts = (
                self._counted(snapshots), self._used(snapshots), self._left(snapshots), self._of_kernel(), self._capacity()
            )  # fmt: skip
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
        for i, (worker, snapshot) in enumerate(zip(self._workers, snapshots, strict=True)):
            _add(restarts, self._pages.restarts(i), worker=worker)
            if not snapshot.pid or (usage := self._processes.usage(snapshot.pid)) is None:
                continue
            for metric, value in zip((cpu, resident, fds, limit), usage, strict=True):
                _add(metric, value, worker=worker)
        yield from (restarts, cpu, resident, fds, limit)

    def _left(self, snapshots: Sequence[Snapshot]) -> Iterator[Metric]:
        """How far a drain of the server has come; both are 0 while there is none."""
        window = self._pages.window
        seconds = _metric("drain_seconds_left", "Until the last sessions are told to leave", Kind.GAUGE)
        sessions = _metric("drain_sessions_left", "Sessions that a drain has still to end", Kind.GAUGE)
        _add(seconds, round(window.seconds_left(time.monotonic()), 3) if window else 0)
        _add(sessions, sum(s.stats.connections for s in snapshots) if window else 0)
        yield from (seconds, sessions)

    def _of_kernel(self) -> Iterator[Metric]:
        """What is the host's, and what one connection takes of it."""
        if (tcp := host.kernel_tcp()) is not None:
            memory = _metric("kernel_tcp_memory_bytes", "Memory of all TCP buffers of the host", Kind.GAUGE)
            sockets = _metric("kernel_tcp_sockets", "TCP sockets of the host", Kind.GAUGE)
            _add(memory, tcp.memory_bytes)
            _add(sockets, tcp.sockets)
            yield from (memory, sockets)
        each = _metric("bytes_per_connection", "Memory of one connection", Kind.GAUGE)
        for part, size in self._meter.bytes_per_connection().items():
            _add(each, size, part=part)
        yield each

    def _capacity(self) -> Iterator[Metric]:
        """Where each limit ends it, as far as that has been measured."""
        held = _metric("capacity_connections", "Connections this host can hold before the limit is reached", Kind.GAUGE)
        for name, connections in self._ceilings():
            _add(held, connections, limit=name)
        yield held


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
