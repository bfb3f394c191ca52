"""A process that is to be kept running: how to signal it, and how to tell that it is stuck."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass

from server import limits
from server.stats import Page


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
        """True when its loop has not shown its clock for too long."""
        if self.page is None or not self.is_running:
            return False
        return now - max(self.page.clock(), self.started_at) > limits.SILENT_SECONDS_MAX


def reap_strangers(known: Collection[int]) -> None:
    """Reap the dead that are not among `known`, up to the first that is: process 1 of a container inherits every orphan."""
    with contextlib.suppress(ChildProcessError):
        while found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if found.si_pid in known:
                return
            os.waitpid(found.si_pid, 0)
