"""A connection that we have ended, on its way out: our last frame is still to be read."""

from __future__ import annotations

import ctypes
import errno
import select
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.pool import Pool

# A socket object would cost three more system calls. MSG_MORE lets the kernel hold what is sent until shutdown(2) puts its FIN
# behind it: one segment instead of two, a tenth of what it costs to send somebody away.
_libc = ctypes.CDLL(None, use_errno=True)
_shutdown, _send = _libc.shutdown, _libc.send
_send.argtypes = ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int
_send.restype = ctypes.c_ssize_t
_MORE = socket.MSG_MORE | socket.MSG_NOSIGNAL
SPEAKING = select.EPOLLIN | select.EPOLLRDHUP
_GONE = select.EPOLLHUP | select.EPOLLERR


class Lingering:
    """A connection that we have ended, until the peer has read our last frame and ended it too."""

    __slots__ = ("fd", "is_watched", "pool", "rest", "until")

    def __init__(self, fd: int, pool: Pool, rest: bytes, until: float) -> None:
        self.fd = fd
        self.is_watched = True
        self.pool = pool
        self.rest = rest
        self.until = until

    def send(self) -> None:
        """Send what is left of the last frame; behind it, close our half."""
        sent = _send(self.fd, self.rest, len(self.rest), _MORE)
        if sent < 0 and ctypes.get_errno() != errno.EAGAIN:
            self.pool.close(self)
            return
        self.rest = self.rest[max(0, sent) :]
        if self.rest:
            if self.is_watched:
                self.pool.arm(self.fd, SPEAKING | select.EPOLLOUT)
            return
        _shutdown(self.fd, socket.SHUT_WR)  # fails where the peer was faster: EPOLLHUP follows

    def look(self) -> None:
        """Go on, where nothing tells of events; call now and then."""
        if self.rest:
            self.send()
        elif self.pool.read(self.fd) == b"":
            self.pool.close(self)

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
