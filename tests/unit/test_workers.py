"""The supervisor's decisions, with time as an argument. Its processes are in `tests/fault/test_workers.py`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

import workers
from server.child import Child, schedule
from server.stats import Pages, Stats
from workers import may_restart


def test_a_restart_budget_is_a_window_that_slides() -> None:
    spent: list[float] = []
    assert all(may_restart(spent, at, count_max=3, window_s=60.0) for at in (0.0, 10.0, 20.0))
    assert not may_restart(spent, 30.0, count_max=3, window_s=60.0)
    assert may_restart(spent, 71.0, count_max=3, window_s=60.0), "of those before, only two are in the window"
    assert spent == [20.0, 30.0, 71.0]


def test_exit_codes_tell_apart() -> None:
    codes = [workers.OK, workers.CRASHED, workers.BAD_CONFIG, workers.CANNOT_BOOT, workers.CRASH_LOOP]
    assert codes == [0, 1, 2, 3, 4]


def silent_at(child: Child, first: int, last: int = 400) -> int | None:
    """Look at a child every second, as a supervisor does; return when it was silent."""
    return next((now for now in range(first, last) if child.is_silent(now)), None)


def test_a_child_is_silent_when_its_clock_stands_still() -> None:
    page = Pages.create(1)[0]
    child = Child("worker 0", lambda: None, [], page, 0)
    assert silent_at(child, 100) is None, "it does not run"
    child.pidfd, child.started_at = 0, 100.0
    assert silent_at(child, 100) == 111, "it may take so long to start"
    page.write(Stats(), 205.0, os.getpid())
    assert silent_at(child, 205) == 216
    page.write(Stats(), 300.0, os.getpid())
    assert not child.is_silent(350), "who has not looked for so long has waited itself"
    child.page = None
    assert silent_at(child, 400, 500) is None, "the admin process shows no clock"


@pytest.mark.parametrize(
    ("state", "share", "found"),
    [
        (True, 0.0, None),  # it never gets a processor
        (True, 0.1, 188),  # it has had ten seconds of one, and did not come round
        (True, 1.0, 111),  # it runs in circles
        (False, 0.0, 111),  # it sleeps, or was stopped
    ],
)
def test_a_child_that_waits_for_a_processor_is_not_silent(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, state: bool, share: float, found: int | None
) -> None:
    child = Child("worker 0", lambda: None, [], Pages.create(1)[0], 0, pid=1, pidfd=0, started_at=100.0)
    ran = iter(range(1000))
    monkeypatch.setattr("server.child.schedule", lambda _pid: (state, next(ran) * share))
    assert silent_at(child, 102, 250) == found
    assert ("for a processor" in caplog.text) == (state and share < 1.0)


def test_how_a_process_is_scheduled() -> None:
    is_ready, ran = schedule(os.getpid())
    assert is_ready
    assert 0.0 < ran < 1e6
    assert schedule(2**22 + 1) == (False, 0.0), "there is no such process"
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            deadline = time.monotonic() + 20.0
            while schedule(process.pid)[0]:  # it starts
                assert time.monotonic() < deadline
        finally:
            process.kill()


def test_a_child_that_is_not_running_gets_no_signal() -> None:
    child = Child("worker 0", lambda: None, [])
    child.kill(signal.SIGKILL)
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    child.pidfd = os.pidfd_open(process.pid)
    process.wait()
    child.kill(signal.SIGTERM)  # it has ended, and has not been reaped by us: no error
    os.close(child.pidfd)


def test_cores_are_those_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5, 1, 3})
    assert workers.cores() == [1, 3, 5]
