"""What a service manager is told of the server: sd_notify(3), one datagram a message."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import MutableMapping

log = logging.getLogger("moorage.notify")


class Manager:
    """The service manager that started this process; one that is not there is told nothing.

    It hears of the supervisor only: workers come and go, and the supervisor watches them itself.
    """

    def __init__(self, address: str = "", watchdog_s: float = 0.0) -> None:
        """`address` is a path, or a name in the abstract namespace behind `@`; `watchdog_s` the silence it bears, 0 for any."""
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        # Kept open: where the last descriptor of the machine is gone, it is still to be told that we live.
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) if address else None
        self._every_s = watchdog_s / 2  # as sd_watchdog_enabled(3) asks for
        self._due = 0.0

    def __del__(self) -> None:
        """Close its socket."""
        if self._sock is not None:
            self._sock.close()

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str]) -> Manager:
        """Take its variables out of `environ`: no child is to speak for us."""
        address = environ.pop("NOTIFY_SOCKET", "")
        watched, microseconds = environ.pop("WATCHDOG_PID", ""), environ.pop("WATCHDOG_USEC", "")
        is_watched = microseconds.isdecimal() and watched in ("", str(os.getpid()))
        return cls(address, int(microseconds) / 1e6 if is_watched else 0.0)

    def tell(self, *assignments: str) -> None:
        """Send `NAME=value` lines."""
        if self._sock is None:
            return
        try:
            self._sock.sendto("\n".join(assignments).encode(), self._address)
        except BlockingIOError:
            pass  # a manager that is stuck is no reason to get stuck
        except OSError as error:  # whatever is wrong with it, the server goes on
            log.warning("the service manager is not told any more: %s", error)
            self._sock.close()
            self._sock = None

    def ready(self, status: str) -> None:
        """All workers serve."""
        self.tell("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """What can be read again is read; both messages at once, because the workers do it in their own time."""
        self.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        self.tell("READY=1")

    def stopping(self, status: str, seconds_max: float) -> None:
        """The end has begun, and takes at most so long: the manager is to wait for it."""
        self.tell("STOPPING=1", f"STATUS={status}", f"EXTEND_TIMEOUT_USEC={round(seconds_max * 1e6)}")

    def status(self, status: str) -> None:
        """What it does at the moment, in one line."""
        self.tell(f"STATUS={status}")

    def beat(self, now: float) -> None:
        """Show that we live; call often."""
        if self._every_s and now >= self._due:
            self._due = now + self._every_s
            self.tell("WATCHDOG=1")
