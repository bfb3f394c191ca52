"""A process that is to be kept running: how to signal it, and how to tell that it is stuck."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from server import limits
from server.stats import Page

log = logging.getLogger("moorage.supervisor")


@dataclass
class Child:
    """`work` is what it does, `page` where its heartbeat shows. `keeps` are the sockets it needs of all that are open."""

    name: str
    work: Callable[[], None]
    keeps: list[socket.socket]
    page: Page | None = None
    number: int = -1
    pid: int = 0
    pidfd: int = -1
    started_at: float = -math.inf  # or tried to be
    _looked: tuple[float, float, float] = (
        0.0,
        0.0,
        0.0,
    )  # at a clock that stands still: the clock, when, CPU time by then
    _silent: float = 0.0  # of the time since, how long it could have shown its clock

    @property
    def is_running(self) -> bool:
        """True until it has been reaped."""
        return self.pidfd >= 0

    def adopt(self, pid: int) -> None:
        """Watch the process that has been forked for it. Raises: OSError when there is no descriptor for that: it is ended."""
        try:
            self.pid, self.pidfd = pid, os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise

    def kill(self, signum: signal.Signals) -> None:
        """Send a signal, if it runs."""
        if self.is_running:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signum)

    def is_silent(self, now: float) -> bool:
        """True when its loop has not shown its clock for too long, although it had a processor.

        One that only waits for its turn is not stuck: to replace it would send its clients away, and them to others that wait.
        """
        if self.page is None or not self.is_running:
            return False
        shown = max(self.page.clock(), self.started_at)
        if now - shown <= limits.SUSPECT_SECONDS:
            return False
        is_ready, ran = schedule(self.pid)
        clock, at, ran_by_then = self._looked
        self._looked = shown, now, ran
        if clock != shown:
            self._silent = limits.SUSPECT_SECONDS
        else:
            # Who looks seldom has waited itself. What a process that is ready did not run, it waited.
            passed = min(now - at, limits.SUSPECT_SECONDS)
            self._silent += min(passed, ran - ran_by_then) if is_ready else passed
        if self._silent <= limits.SILENT_SECONDS_MAX < now - shown:
            log.warning(
                "%s (pid %d) has waited %.0f s for a processor: this machine is overloaded",
                self.name, self.pid, now - shown - self._silent,
            )  # fmt: skip
        return self._silent > limits.SILENT_SECONDS_MAX


def schedule(pid: int) -> tuple[bool, float]:
    """Return whether a process is ready to run or runs, and how long it has run, seconds; of one that is gone, (False, 0.0).

    The state in /proc/PID/stat, and the first number of /proc/PID/schedstat; the second, how long it has waited, does not
    know yet of a wait that has not ended. See proc_pid_stat(5), https://docs.kernel.org/scheduler/sched-stats.html.
    """
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1]
        return state == b"R", int(Path(f"/proc/{pid}/schedstat").read_bytes().split()[0]) / 1e9
    except (OSError, IndexError):
        return False, 0.0


def ending(code: int) -> str:
    """Say what an exit code means, negative for a signal; real-time ones have no name, signal(7)."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def reap_strangers(known: Collection[int]) -> None:
    """Reap the dead that are not among `known`, up to the first that is: process 1 of a container inherits every orphan."""
    with contextlib.suppress(ChildProcessError):
        while found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if found.si_pid in known:
                return
            os.waitpid(found.si_pid, 0)
