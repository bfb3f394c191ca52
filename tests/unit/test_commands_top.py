"""What two samples of a server come to, and how it is laid out. Terminal and server are in `tests/integration/test_top.py`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from commands import top
from commands.top import Sample
from server.overview import as_json
from server.stats import Histogram, Stats

URL = "http://127.0.0.1:7490"


def lags(count: int, total: float) -> Histogram:
    histogram = Histogram()
    histogram.counts[0], histogram.total = count, total
    return histogram


def worker(number: int, pid: int, cpu: float, **stats: Any) -> dict[str, Any]:
    return {
        "worker": number, "pid": pid, "restarts": 0, "silent_seconds": 0.1 if pid else None, "uptime_seconds": 5.0,
        "cpu_seconds": cpu, "resident_bytes": 40 << 20, "open_fds": 20, "fd_limit": 1000,
        **as_json(Stats(**{"bus_connected": 1, "ready": 1} | stats)),
    }  # fmt: skip


def sample(at: int, *workers: dict[str, Any], drain: dict[str, Any] | None = None, **total: Any) -> Sample:
    stats = {
        "at": at, "supervisor": 1, "admin": 2, "workers": list(workers), "drain": drain,
        "total": {"restarts": 0, "cpu_seconds": 0.0, **as_json(Stats(**total))},
    }  # fmt: skip
    ceilings = [{"limit": "descriptors", "connections": 20_000, "more": 19_970}]
    return Sample(URL, stats, {"ceilings": ceilings})


BEFORE = sample(1_000, worker(0, 11, 1.0), worker(1, 12, 4.0))
NOW = sample(
    3_000,
    worker(0, 11, 1.5, connections_tcp=10, connections_sse=20, accepted=30, deliveries=4_000, writes=40,
           loop_lag=lags(8, 0.004), bus_lag=lags(2, 0.001)),
    worker(1, 13, 0.5, accepted=5, backlogged_connections=3),
    connections_tcp=10, connections_sse=20, accepted=35, deliveries=4_000, writes=40, handshaking=2,
    backlogged_connections=3, backlog_bytes=2048, subscriptions=7, bus_lag=lags(2, 0.001), loop_lag=lags(8, 0.004),
)  # fmt: skip


def test_rates_come_from_two_samples() -> None:
    first, second = top.rows(BEFORE, NOW)
    assert (first.connections, first.tcp, first.sse) == (30, 10, 20)
    assert (first.accepts_per_second, first.deliveries_per_second, first.writes_per_second) == (15.0, 2_000.0, 20.0)
    assert (first.cpu_percent, first.resident_bytes) == (25.0, 40 << 20)
    assert (first.loop_lag_seconds, first.bus_lag_seconds) == (0.0005, 0.0005)
    assert second.cpu_percent is None, "another process since then"
    assert (second.accepts_per_second, second.bus_lag_seconds, second.backlogged) == (2.5, None, 3)
    everything = top.total(BEFORE, NOW)
    assert (everything.connections, everything.accepts_per_second, everything.cpu_percent) == (30, 17.5, 25.0)
    assert everything.resident_bytes is None, "workers share pages"


def test_a_counter_that_went_back_is_no_negative_rate() -> None:
    assert top.rows(NOW, BEFORE._replace(stats=BEFORE.stats | {"at": 9_000}))[0].accepts_per_second == 0.0


def test_what_a_worker_counted_goes_by_when_it_showed_it() -> None:
    """Samples are 2 s apart, but the pages that were read 1.5 s."""
    before = sample(1_000, worker(0, 11, 1.0) | {"silent_seconds": 0.1})
    now = sample(3_000, worker(0, 11, 1.5, accepted=30) | {"silent_seconds": 0.6})
    assert top.rows(before, now)[0].accepts_per_second == 20.0
    assert top.rows(before, now)[0].cpu_percent == 25.0
    stuck = sample(3_000, worker(0, 11, 1.5) | {"silent_seconds": 2.1})
    assert top.rows(before, stuck)[0].accepts_per_second is None, "nothing has been shown since"
    assert top.total(before, stuck).accepts_per_second is None


def test_a_single_sample_has_no_rates() -> None:
    row = top.rows(Sample(URL, {}, {}, "no answer"), NOW)[0]
    assert row[5:9] == (None, None, None, None)
    assert row.connections == 30


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({}, "ready"),
        ({"ready": 0}, "not ready"),
        ({"ready": 0, "bus_connected": 0}, "bus down"),
        ({"ready": 0, "draining": 1}, "draining"),
        ({"ready": 0, "draining": 1, "drained": 1}, "left"),
        ({"pid": 0}, "starting"),
        ({"silent_seconds": 4.0}, "silent"),
    ],
)
def test_the_state_of_a_worker(change: dict[str, Any], state: str) -> None:
    assert top.state(worker(0, 11, 1.0) | change) == state


def test_the_table() -> None:
    lines = top.table([BEFORE], [NOW])
    assert lines[0].startswith("moorage top - ")
    assert lines[0].endswith(f", {URL}, 2 workers, 0 restarts")
    assert lines[1:5] == [
        "connections: 30 (10 tcp, 20 sse), 2 in handshake, 3 slow with 2 kB waiting",
        "room: 19,970 more, then descriptors",
        "redis: connected, lag 500 us, 7 channels, 0 reconnects",
        "",
    ]
    assert lines[5:] == [
        "WORKER  STATE  CONNS  TCP  SSE  ACCEPT/s  DELIVER/s  WRITE/s  CPU%    RSS  LOOP LAG  BUS LAG  SLOW",
        "0       ready     30   10   20        15      2,000       20  25.0  40 MB    500 us   500 us     0",
        "1       ready      0    0    0       2.5          0        0     -  40 MB         -        -     3",
        "all               30   10   20        18      2,000       20  25.0      -    500 us   500 us     3",
    ]


def test_the_order_of_rows() -> None:
    lines = top.table([BEFORE], [NOW], sort="backlogged")
    assert [line.split()[0] for line in lines[-3:]] == ["1", "0", "all"]


def test_a_drain_and_a_bus_that_is_down_show() -> None:
    drain = {"seconds": 60.0, "seconds_left": 20.4, "sessions": 300, "sessions_left": 100}
    lines = top.table([BEFORE], [sample(3_000, worker(4, 11, 1.0, bus_connected=0), worker(5, 0, 0.0), drain=drain)])
    assert lines[3] == "redis: down for workers 4, lag -, 0 channels, 0 reconnects"
    assert lines[4] == "draining: [####################..........] 100 of 300 sessions left, 20 s left"


def test_what_was_not_measured_is_not_told() -> None:
    assert top.table([BEFORE], [NOW._replace(capacity={"ceilings": []})])[2] == "room: not measured yet"


def test_several_servers_are_a_row_each() -> None:
    gone = Sample("http://127.0.0.2:7490", {}, {}, "nothing listens on http://127.0.0.2:7490")
    lines = top.table([BEFORE, gone], [NOW, gone])
    assert lines[0] == "nothing listens on http://127.0.0.2:7490"
    assert [line.split()[0] for line in lines[2:]] == ["SERVER", URL, "http://127.0.0.2:7490"]
    assert lines[-1].split()[1:] == ["no", "answer", *["-"] * len(top.COLUMNS)]


def test_json_has_what_the_table_has() -> None:
    gone = Sample("http://127.0.0.2:7490", {}, {}, "nothing listens")
    found = json.loads(json.dumps(top.as_json([BEFORE, gone], [NOW, gone])))
    assert found[1] == {"url": "http://127.0.0.2:7490", "fault": "nothing listens"}
    assert found[0]["workers"][0]["deliveries_per_second"] == 2000.0
    assert found[0]["total"]["connections"] == 30
    assert found[0]["redis"] == {"down_for": [], "lag_seconds": 0.0005, "channels": 7, "reconnects": 0}


@pytest.mark.parametrize(
    ("columns", "height", "shown"),
    [
        (80, 10, ["0", "1", "2", "3", "4", "sum"]),
        (80, 6, ["0", "1", "2", "3", "4", "sum"]),
        (80, 5, ["0", "1", "2", "(2 more rows)", "sum"]),
        (4, 4, ["0", "1", "(3 m", "sum"]),
        (2, 10, ["0", "1", "2", "3", "4", "su"]),
        (80, 2, ["0", "1"]),
    ],
)
def test_a_table_fits_its_terminal(columns: int, height: int, shown: list[str]) -> None:
    assert top.clip(["0", "1", "2", "3", "4", "sum"], columns, height) == shown


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-"), (0.0, "0 us"), (0.0004, "400 us"), (0.25, "250.0 ms"), (2.0, "2.0 s")]
)
def test_short_times(seconds: float | None, text: str) -> None:
    assert top.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (2048, "2 kB"), (40 << 20, "40 MB"), (3 << 29, "1.5 GB"), (5 << 40, "5120.0 GB")]
)
def test_sizes(count: int, text: str) -> None:
    assert top.size(count) == text
