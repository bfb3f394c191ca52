from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.registry import Collector

from server.close import Close
from server.meter import Meter
from server.metrics import WorkerCollector, render
from server.stats import Pages, Stats

TEXT = "text/plain;version=0.0.4"
OPENMETRICS = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3"
CONTRACT = {
    "connections", "accepted_total", "handshake_failures_total", "closed_total", "received_messages_total",
    "published_total", "deliveries_total", "writes_total", "backlogged_connections", "backlog_bytes", "fanout_seconds",
    "bus_lag_seconds", "loop_lag_seconds", "worker_restarts_total", "worker_cpu_seconds_total", "worker_open_fds",
    "worker_resident_bytes", "worker_fd_limit", "kernel_tcp_memory_bytes", "kernel_tcp_sockets",
    "bytes_per_connection", "capacity_connections",
}  # fmt: skip


def two_workers() -> Pages:
    """Worker 0 is this process, worker 1 has not written yet."""
    pages, stats = Pages.create(2), Stats(accepted=10, connections_tcp=3, connections_sse=4, ready=1)
    stats.closed[Close.SLOW] += 2
    stats.handshake_failures[Close.HANDSHAKE_TIMEOUT] += 1
    stats.fanout.observe(0.003)
    stats.fanout.observe(0.0001)
    stats.fanout.observe(60.0)
    pages[0].write(stats, 1.0, os.getpid())
    pages.restarted(1)
    return pages


def collector(pages: Pages) -> WorkerCollector:
    return WorkerCollector(pages, Meter(pages), lambda: [("fds", 39_800), ("net.netfilter.nf_conntrack_max", 65_536)])


def scraped(pages: Pages, accept: str = TEXT) -> dict[str, Metric]:
    body, content_type = render(collector(pages).collect(), accept)
    parse = parse_openmetrics if content_type.startswith("application/openmetrics-text") else parse_text
    return {family.name: family for family in parse(body.decode())}


def value(families: dict[str, Metric], name: str, **labels: str) -> float | None:
    found = [
        s.value for f in families.values() for s in f.samples if s.name == "moorage_" + name and s.labels == labels
    ]
    assert len(found) <= 1
    return found[0] if found else None


@pytest.mark.parametrize("accept", [TEXT, OPENMETRICS, ""])
def test_a_scrape_shows_the_numbers_of_every_worker(accept: str) -> None:
    families = scraped(two_workers(), accept)
    assert value(families, "accepted_total", worker="0") == 10
    assert value(families, "accepted_total", worker="1") == 0
    assert value(families, "connections", worker="0", transport="tcp") == 3
    assert value(families, "connections", worker="0", transport="sse") == 4
    assert value(families, "closed_total", worker="0", code="3002") == 2
    assert value(families, "handshake_failures_total", worker="0", reason="handshake_timeout") == 1
    assert value(families, "worker_restarts_total", worker="1") == 1
    assert families["moorage_accepted"].type == "counter"
    assert families["moorage_connections"].type == "gauge"


def test_a_histogram_is_cumulative() -> None:
    families = scraped(two_workers())
    samples = [s for s in families["moorage_fanout_seconds"].samples if s.labels["worker"] == "0"]
    buckets = {s.labels["le"]: s.value for s in samples if "le" in s.labels}
    assert (buckets["0.0001"], buckets["0.0025"], buckets["0.005"], buckets["10.0"], buckets["+Inf"]) == (1, 1, 2, 2, 3)
    assert value(families, "fanout_seconds_count", worker="0") == 3
    assert value(families, "fanout_seconds_sum", worker="0") == pytest.approx(60.0031)
    assert families["moorage_fanout_seconds"].type == "histogram"


def test_what_the_kernel_counts_is_there_for_living_workers_only() -> None:
    families = scraped(two_workers())
    for name in ("worker_cpu_seconds_total", "worker_resident_bytes", "worker_open_fds", "worker_fd_limit"):
        assert (value(families, name, worker="0") or 0) > 0
        assert value(families, name, worker="1") is None


def test_every_ceiling_of_the_model_is_a_label() -> None:
    families = scraped(two_workers())
    assert value(families, "capacity_connections", limit="fds") == 39_800
    assert value(families, "capacity_connections", limit="net.netfilter.nf_conntrack_max") == 65_536


def test_every_metric_of_the_contract_is_declared() -> None:
    body, _ = render(collector(two_workers()).collect(), TEXT)
    declared = {line.split()[2] for line in body.decode().splitlines() if line.startswith("# TYPE")}
    assert {f"moorage_{name}" for name in CONTRACT} <= declared
    assert all(name.startswith("moorage_") for name in declared)


@pytest.mark.parametrize(
    ("accept", "parse", "encode"),
    [(TEXT, parse_text, generate_latest), (OPENMETRICS, parse_openmetrics, openmetrics.generate_latest)],
)
def test_our_encoder_says_what_the_library_would(
    accept: str, parse: Callable[[str], Iterable[Metric]], encode: Callable[[CollectorRegistry], bytes]
) -> None:
    families = list(collector(two_workers()).collect())

    class Recorded(Collector):
        """One reading for both: what the kernel counts goes on."""

        def collect(self) -> Iterable[Metric]:
            return families

    registry = CollectorRegistry()
    registry.register(Recorded())
    ours = list(parse(render(families, accept)[0].decode()))
    assert ours == list(parse(encode(registry).decode()))
    assert sum(len(family.samples) for family in ours) == sum(len(family.samples) for family in families)


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        ("nonsense;;;,", "text/plain; version=0.0.4; charset=utf-8"),
        (OPENMETRICS, "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores"),
    ],
)
def test_the_format_is_negotiated(accept: str, content_type: str) -> None:
    body, found = render([], accept)
    assert found == content_type
    assert body == (b"# EOF\n" if "openmetrics" in content_type else b"")
