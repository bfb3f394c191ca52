"""What workers did and used, cut into windows: pages written by hand, the processor time of real processes."""

from __future__ import annotations

import os
import time

import pytest

from server import limits
from server.meter import WINDOW_SECONDS_MAX, Meter, Windows, _Look
from server.stats import Pages, Stats

STEP = 1.0


def look(
    at: float, accepted: int, cpu: float, *, connections: int = 0, pid: int = 1, written: float | None = None
) -> _Look:
    return _Look(at, connections, (accepted, 0, 0, 0, 0), {pid: cpu}, at - 0.1 if written is None else written)


def test_a_window_ends_when_nothing_was_under_way() -> None:
    windows = Windows()
    for at, accepted, cpu in ((0, 0, 0.0), (1, 50, 0.2), (2, 90, 0.5), (3, 90, 0.6)):
        windows.add(look(at, accepted, cpu, connections=accepted))
    (window,) = windows
    assert (window.seconds, window.accepted) == (3, 90)
    assert window.cpu_seconds == pytest.approx(0.6)
    assert window.connection_seconds == pytest.approx(25 + 70 + 90)


def test_counters_that_were_not_written_again_may_be_old() -> None:
    windows = Windows()
    windows.add(look(0, 0, 0.0))
    windows.add(look(1, 0, 0.3, written=-0.5))
    assert list(windows) == []


def test_a_busy_time_is_cut_after_ten_seconds() -> None:
    windows = Windows()
    for at in range(int(2 * WINDOW_SECONDS_MAX) + 1):
        windows.add(look(at, 10 * at, 0.01 * at))
    assert [(window.seconds, window.accepted) for window in windows] == [(10, 100), (10, 100)]


def test_quiet_windows_are_put_together_while_as_many_are_connected() -> None:
    windows = Windows()
    for at in range(31):
        windows.add(look(at, 0, 0.001 * at, connections=1000 if at < 20 else 4000))
    found = [(round(window.seconds), round(window.connection_seconds / window.seconds)) for window in windows]
    assert found == [(19, 1000), (1, 2500), (10, 4000)]
    assert all(window.is_quiet for window in windows)


def test_a_replaced_worker_begins_a_new_window() -> None:
    windows = Windows()
    windows.add(look(0, 0, 5.0, pid=1))
    windows.add(look(1, 10, 0.1, pid=2))
    windows.add(look(2, 10, 0.2, pid=2))
    (window,) = windows
    assert (window.accepted, round(window.cpu_seconds, 3)) == (0, 0.1)


def test_processors_in_use_are_those_of_the_last_minute() -> None:
    windows = Windows()
    assert windows.cores_used() is None
    for at in range(200):
        windows.add(look(at, 0, 0.9 * min(at, 100) + 0.1 * at))
    assert windows.cores_used() == pytest.approx(0.1)


def test_a_meter_reads_real_processes() -> None:
    pages = Pages.create(2)
    meter = Meter(pages)
    for accepted in (0, 7, 7):
        pages[0].write(Stats(accepted=accepted, connections_tcp=accepted), time.monotonic(), os.getpid())
        meter.look()
    sum(range(200_000))
    pages[0].write(Stats(accepted=7, connections_tcp=7), time.monotonic(), os.getpid())
    meter.look()
    found = meter.read()
    assert (found["connections"], found["connections_min"], found["bytes_per_connection"]) == (7, 1000, {})
    mine, absent = found["workers"]
    assert (mine["pid"], mine["fd_reserved"]) == (os.getpid(), limits.DESCRIPTORS_RESERVED)
    assert mine["fd_limit"] > mine["open_fds"] > 2
    assert absent == {"worker": 1, "pid": 0, "connections": 0}
    assert sum(window["accepted"] for window in found["windows"]) == 7
    assert 0 < found["cpu_cores_used"] < 1.5
