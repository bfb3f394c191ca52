"""A listening socket in the pool: accepts in batches, and waits when descriptors or memory run out."""

from __future__ import annotations

import errno
import logging
import os
import resource
import select
import socket
from collections.abc import Callable, Iterable

from server import limits
from server.pool import Pool

log = logging.getLogger("moorage.listener")

ACCEPTING = select.EPOLLIN

# accept(2): errors of this one peer, and errors of our capacity. Everything else is a bug and propagates.
PEER_ERRNOS = frozenset(
    {errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.ENOPROTOOPT, errno.EHOSTDOWN, errno.ENONET}
    | {errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH, errno.EPERM, errno.EINTR}
)
CAPACITY_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Listener:
    """One listening socket; `welcome(fd)` gets every accepted descriptor, non-blocking.

    It belongs to the supervisor, which holds it open: closing it here resets nobody who waits in its queue.
    """

    def __init__(self, sock: socket.socket, pool: Pool, welcome: Callable[[int], None]) -> None:
        self.fd = sock.fileno()
        self._sock = sock
        self._pool = pool
        self._welcome = welcome
        self._paused_until = 0.0
        # The last descriptors are for the bus, for health checks and for refusing politely.
        self._fd_max = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - limits.DESCRIPTORS_RESERVED // 2

    def open(self) -> None:
        """Begin to accept."""
        self._pool.add(self, ACCEPTING)

    def close(self) -> None:
        """Accept no more. The socket stays open, and its queue with it."""
        if self.fd >= 0:
            self._pool.release(self)

    def react(self, events: int) -> None:
        """Accept a batch."""
        accept, welcome, fd_max = self._sock.accept, self._welcome, self._fd_max
        for _ in range(limits.TURN_ACCEPTS_MAX):
            try:
                fd = accept()[0].detach()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in CAPACITY_ERRNOS:
                    self._pause(os.strerror(error.errno or 0))
                    return
                if error.errno not in PEER_ERRNOS:
                    raise
                continue
            os.set_blocking(fd, False)
            self._pool.stats.accepted += 1
            welcome(fd)
            if fd >= fd_max:
                self._pause(f"descriptor {fd} reached, RLIMIT_NOFILE is near")
                return

    def resume(self, now: float) -> None:
        """Accept again when the pause is over; call now and then."""
        if self._paused_until and now >= self._paused_until and self.fd >= 0:
            self._paused_until = 0.0
            self._pool.arm(self.fd, ACCEPTING)

    def _pause(self, why: str) -> None:
        """Those who are here are served on; those who come wait in the kernel's queue."""
        if not self._paused_until:
            log.warning("accepting paused for %.1f s at a limit of this process: %s", limits.ACCEPT_PAUSE_SECONDS, why)
        self._pool.stats.accept_pauses += 1
        self._paused_until = self._pool.now() + limits.ACCEPT_PAUSE_SECONDS
        self._pool.arm(self.fd, 0)


def resume_all(listeners: Iterable[Listener], now: float) -> None:
    """Let every listener whose pause is over accept again."""
    for listener in listeners:
        listener.resume(now)
