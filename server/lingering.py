"""A connection that we have ended, on its way out: our last frame is still to be read."""

from __future__ import annotations

import ctypes
import os
import select
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.pool import Pool

_shutdown = ctypes.CDLL(None).shutdown  # shutdown(2); a socket object would cost three more system calls
SPEAKING = select.EPOLLIN | select.EPOLLRDHUP
_GONE = select.EPOLLHUP | select.EPOLLERR


class Lingering:
    """A connection that we have ended, until the peer has read our last frame and ended it too."""

    __slots__ = ("fd", "pool", "rest", "until")

    def __init__(self, fd: int, pool: Pool, rest: bytes, until: float) -> None:
        self.fd = fd
        self.pool = pool
        self.rest = rest
        self.until = until

    def send(self) -> None:
        """Send what is left of the last frame; behind it, close our half."""
        try:
            self.rest = self.rest[os.write(self.fd, self.rest) :]
        except BlockingIOError:
            pass
        except OSError:
            self.pool.close(self)
            return
        if self.rest:
            self.pool.arm(self.fd, SPEAKING | select.EPOLLOUT)
            return
        _shutdown(self.fd, socket.SHUT_WR)  # fails where the peer was faster: EPOLLHUP follows

    def react(self, events: int) -> None:
        """Throw away what still comes; close at its end."""
        if events & _GONE:
            self.pool.close(self)
        elif events & select.EPOLLOUT:
            self.pool.arm(self.fd, SPEAKING)
            self.send()
        elif self.pool.read(self.fd) == b"":
            if self.rest:  # it still listens
                self.pool.arm(self.fd, select.EPOLLOUT)
            else:
                self.pool.close(self)
