"""Listening sockets: made before the fork; accepting in batches; pausing when descriptors or memory run out."""

from __future__ import annotations

import ctypes
import errno
import logging
import math
import os
import resource
import select
import socket
from collections.abc import Callable, Iterable

from server import limits
from server.config import Address, Config
from server.pool import Pool

log = logging.getLogger("moorage.listener")

ACCEPTING = select.EPOLLIN
_SAY_SECONDS = 60.0  # between two lines in the log about one limit

# accept(2): errors of this one peer, and errors of our capacity. Everything else is a bug and propagates.
PEER_ERRNOS = frozenset(
    {errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.ENOPROTOOPT, errno.EHOSTDOWN, errno.ENONET}
    | {errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH, errno.EPERM, errno.EINTR}
)
CAPACITY_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


# accept4(2) makes the descriptor non-blocking in the same call, and the peer's address is nobody's business yet. The
# socket module's accept() makes an object and three more system calls: 5 of the 40 us that a connection costs.
_accept4 = ctypes.CDLL(None, use_errno=True).accept4
_FLAGS = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC


def listen(address: Address, count: int, config: Config) -> list[socket.socket]:
    """Return `count` sockets that listen on `address` and share its connections. Raises: OSError."""
    sockets: list[socket.socket] = []
    try:
        family, _, _, _, where = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # Without SO_REUSEPORT: a second server on this address must fail, not take half of the connections.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _only_v6(probe)
            probe.bind(where)
        for _ in range(count):
            sock = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            configure(sock, config)
            _only_v6(sock)
            sock.bind(sockets[0].getsockname() if len(sockets) > 1 else where)
        for sock in sockets:
            sock.listen(config.listen_backlog)
            sock.setblocking(False)
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise OSError(error.errno, f"cannot listen on {address}: {error.strerror or error}") from None
    return sockets


def _only_v6(sock: socket.socket) -> None:
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)


def configure(sock: socket.socket, config: Config) -> None:
    """Set what accepted sockets inherit from their listener, so that setting it costs a connection nothing: tcp(7)."""
    # Heartbeats find out who is gone, and are sent again where they get lost. A keepalive is not: under TCP_USER_TIMEOUT the
    # kernel gives up at the first one that is not answered. So none is sent while heartbeats are.
    idle = max(limits.KEEPALIVE_IDLE_SECONDS, math.ceil(2 * config.heartbeat_seconds))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, limits.KEEPALIVE_INTERVAL_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, limits.KEEPALIVE_PROBES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(config.user_timeout_seconds * 1000))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if config.send_buffer_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, config.send_buffer_bytes)
    if config.receive_buffer_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, config.receive_buffer_bytes)


def address_of(sock: socket.socket) -> Address:
    """Return where `sock` listens, with the port that the kernel picked."""
    host, port, *_ = sock.getsockname()
    return Address(host, port)


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
        self._said_at = -math.inf
        # The last descriptors are for the bus, for health checks and for refusing politely.
        self._fd_max = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - limits.DESCRIPTORS_RESERVED // 2

    def open(self) -> None:
        """Begin to accept."""
        self._pool.put(self, ACCEPTING)

    def react(self, events: int) -> None:
        """Accept a batch, for at most 2 ms: those who are there do not wait for those who come, however dear these are.

        Not fewer than that allows: those who are let in in one turn share a round trip to Redis.
        """
        welcome, fd_max, flags = self._welcome, self._fd_max, _FLAGS
        until = self._pool.now() + limits.TURN_SECONDS_MAX
        for number in range(limits.TURN_ACCEPTS_MAX):
            if number & 7 == 7 and self._pool.now() >= until:
                return  # the kernel reports the others again
            fd = _accept4(self.fd, None, None, flags)
            if fd < 0:
                error = ctypes.get_errno()
                if error in PEER_ERRNOS:
                    continue
                if error in CAPACITY_ERRNOS:
                    self._pause(os.strerror(error))
                elif error != errno.EAGAIN:
                    raise OSError(error, os.strerror(error))
                return
            self._pool.stats.accepted += 1
            welcome(fd)
            if fd >= fd_max:
                self._pause(f"descriptor {fd} reached, RLIMIT_NOFILE is near")
                return

    def close(self) -> None:
        """Accept no more; the socket stays open."""
        self._paused_until = 0.0
        self._pool.release(self)

    def sweep(self, until: float) -> None:
        """Accept all who wait in the queue, until then at the latest."""
        while (fd := _accept4(self.fd, None, None, _FLAGS)) >= 0 or ctypes.get_errno() in PEER_ERRNOS:
            if fd >= 0:
                self._pool.stats.accepted += 1
                self._welcome(fd)
            if self._pool.now() >= until:
                return

    def resume(self, now: float) -> None:
        """Accept again when the pause is over and there is room; call now and then."""
        if self._paused_until and now >= self._paused_until and _next_descriptor() < self._fd_max:
            self._paused_until = 0.0
            self._pool.arm(self.fd, ACCEPTING)

    def _pause(self, why: str) -> None:
        """Those who are here are served on; those who come wait in the kernel's queue."""
        now = self._pool.now()
        if now - self._said_at >= _SAY_SECONDS:
            self._said_at = now
            log.warning("accepting pauses at a limit of this process: %s", why)
        self._pool.stats.accept_pauses += 1
        self._paused_until = now + limits.ACCEPT_PAUSE_SECONDS
        self._pool.arm(self.fd, 0)


def _next_descriptor() -> float:
    """Return the number of the next descriptor, which is the lowest free one, open(2); infinity when there is none."""
    try:
        fd = os.eventfd(0)
    except OSError:
        return math.inf
    os.close(fd)
    return fd


def resume_all(listeners: Iterable[Listener], now: float) -> None:
    """Let every listener whose pause is over accept again."""
    for listener in listeners:
        listener.resume(now)
