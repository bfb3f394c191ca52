from __future__ import annotations

import os

import orjson

from server.close import Close
from server.overview import Overview, as_json
from server.stats import Pages, Stats


def test_workers_and_their_total() -> None:
    pages, stats = Pages.create(3), Stats(connections_tcp=2, connections_sse=3, ready=1, accepted=9)
    pages.supervisor_pid = 41
    stats.loop_lag.observe(0.25)
    pages[0].write(stats, 100.0, os.getpid())
    pages[0].write(stats, 110.0, os.getpid())
    pages[1].write(stats, 105.0, 2**22 + 1)  # above pid_max: no such process
    pages.restarted(1)
    seen = orjson.loads(orjson.dumps(Overview(pages).read(110.5)))
    one, gone, starting = seen["workers"]
    assert (one["worker"], one["pid"], one["silent_seconds"], one["uptime_seconds"]) == (0, os.getpid(), 0.5, 10.5)
    assert one["connections"] == 5
    assert one["open_fds"] > 0
    assert one["loop_lag_seconds"] == {"count": 1, "sum": 0.25}
    assert (gone["silent_seconds"], gone["restarts"]) == (5.5, 1)
    assert "resident_bytes" not in gone
    assert (starting["pid"], starting["silent_seconds"], starting["ready"]) == (0, None, 0)
    total = seen["total"]
    assert (total["connections"], total["ready"], total["accepted"], total["restarts"]) == (10, 2, 18, 1)
    assert total["open_fds"] == one["open_fds"]
    assert (seen["supervisor"], seen["admin"]) == (41, os.getpid())
    assert seen["kernel"]["tcp_sockets"] >= 0


def test_only_codes_that_occurred_are_shown() -> None:
    stats = Stats()
    stats.closed[Close.SLOW] += 2
    stats.handshake_failures[Close.BAD_REQUEST] += 1
    shown = as_json(stats)
    assert (shown["closed"], shown["handshake_failures"]) == ({"3002": 2}, {"bad_request": 1})
