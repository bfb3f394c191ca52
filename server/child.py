"""A process that is to be kept running: how to signal it, and how to tell that it is stuck."""

from __future__ import annotations

import contextlib
import logging
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
    started_at: float = 0.0
    _suspected: tuple[float, float] = (0.0, 0.0)  # when its clock stood still, and how long it had waited by then

    @property
    def is_running(self) -> bool:
        """True until it has been reaped."""
        return self.pidfd >= 0

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
        waited = waited_seconds(self.pid)
        if self._suspected[0] != shown:
            self._suspected = shown, waited
        starved = waited - self._suspected[1]
        if now - shown > limits.SILENT_SECONDS_MAX >= now - shown - starved:
            log.warning(
                "%s (pid %d) has waited %.0f s for a processor: this machine is overloaded",
                self.name,
                self.pid,
                starved,
            )
        return now - shown - starved > limits.SILENT_SECONDS_MAX


def waited_seconds(pid: int) -> float:
    """Return how long a process has been ready to run and has not run; 0.0 where the kernel does not say.

    The second number of /proc/PID/schedstat: https://docs.kernel.org/scheduler/sched-stats.html.
    """
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_bytes().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def reap_strangers(known: Collection[int]) -> None:
    """Reap the dead that are not among `known`, up to the first that is: process 1 of a container inherits every orphan."""
    with contextlib.suppress(ChildProcessError):
        while found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if found.si_pid in known:
                return
            os.waitpid(found.si_pid, 0)
