"""The descriptors of one worker in one private epoll set: watch, read, write, close.

The event loop watches a single descriptor, the set itself (epoll(7): it is readable while its set has events), so that a
connection costs the loop nothing. Three things to know:

- A turn handles at most 128 events or 2 ms. Streams are armed edge-triggered, so the events that a turn has fetched and not
  handled are kept for the next turn: the kernel would not report them again.
- A descriptor that is closed while a batch is handled is really closed after the batch. Otherwise an accept in the same
  batch could be given its number, and a stale event would hit the newcomer.
- The set itself is never removed from the loop and added again: that costs 70 ns a member under a kernel-wide mutex.
"""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Protocol

from router.message import Message
from server import limits
from server.close import Close
from server.session import CLOSED, Backlog, Session
from server.stats import Stats

# A stream never speaks after its request, so it is told of the peer's leaving only, and once. Lines are read
# level-triggered, one read a turn, so that nobody who talks a lot starves the others.
STREAM = select.EPOLLRDHUP | select.EPOLLET
LINES = select.EPOLLIN | select.EPOLLRDHUP
DEAF = select.EPOLLET  # nothing but EPOLLHUP and EPOLLERR, which are always reported
_GONE = select.EPOLLHUP | select.EPOLLERR
_FRAMES_PER_WRITE = 64


class Codec(Protocol):
    """A wire format: the modules `lines` and `sse` are two."""

    HEARTBEAT: bytes

    def message(self, m: Message, /) -> bytes:
        """Encode what is pushed."""

    def connected(self, c: dict[str, object], /) -> bytes:
        """Encode the answer to a connect."""

    def close(self, code: Close, reason: str, after_ms: int | None, /) -> bytes:
        """Encode the farewell."""


class Lane:
    """One transport of one worker: what its sessions share, so that none of them has to hold it."""

    __slots__ = ("armed", "codec", "encode", "end", "pool", "session", "sessions", "transport")

    def __init__(self, transport: str, codec: Codec, armed: int, pool: Pool) -> None:
        self.transport = transport
        self.codec = codec
        self.encode = codec.message
        self.end = codec.HEARTBEAT.lstrip(b":")  # of every frame: a heartbeat is an empty one, or a comment
        self.armed = armed
        self.pool = pool
        self.session: type[Session] = type(f"{transport}Session", (Session,), {"__slots__": (), "lane": self})
        self.sessions = 0  # how many are open


class Peer(Protocol):
    """What the pool holds for a descriptor."""

    fd: int

    def react(self, events: int) -> None:
        """Handle epoll `events`."""


class Events(Protocol):
    """Who is told what happens to sessions. Closing them is up to it."""

    def received(self, session: Session, data: bytes) -> None:
        """Bytes came."""

    def half_closed(self, session: Session) -> None:
        """The peer will not speak again; it may still listen, or be gone."""

    def lost(self, session: Session, code: Close) -> None:
        """The peer is gone."""

    def failed(self, session: Session) -> None:
        """Handling one of these has raised: to be called from the `except`."""


class Pool:
    """The epoll set, and the table from descriptor to peer."""

    def __init__(
        self,
        stats: Stats,
        events: Events,
        *,
        backlog_bytes_max: int = limits.BACKLOG_BYTES_MAX,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.epoll = select.epoll()
        self.peers: list[Peer | None] = [None] * 64
        self.stats = stats
        self._events = events
        self._backlog_bytes_max = backlog_bytes_max
        self._clock = clock
        self._batch: list[tuple[int, int]] = []
        self._handled = 0
        self._buried: list[int] = []
        self._armed: dict[Session, int] = {}  # those that are not armed as their lane is
        self._lingering: deque[Lingering] = deque()
        self._fd_max = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - limits.DESCRIPTORS_RESERVED
        self._buffer = memoryview(bytearray(limits.READ_BYTES))
        self._buffers = (self._buffer,)

    def fileno(self) -> int:
        """The one descriptor that the event loop watches."""
        return self.epoll.fileno()

    def now(self) -> float:
        """The pool's clock, in seconds."""
        return self._clock()

    def is_reserved(self, fd: int) -> bool:
        """True for the last descriptors, which no session gets. The kernel gives out the lowest number first."""
        return fd >= self._fd_max

    def put(self, peer: Peer, armed: int) -> None:
        """Watch `peer.fd`, which may have been watched for another peer."""
        fd, peers = peer.fd, self.peers
        if fd >= len(peers):
            peers.extend([None] * (fd + 1 - len(peers) + (fd >> 3)))
        if peers[fd] is None:
            self.epoll.register(fd, armed)
        else:
            self.epoll.modify(fd, armed)
        peers[fd] = peer

    def arm(self, fd: int, armed: int) -> None:
        """Change what `fd` is watched for."""
        self.epoll.modify(fd, armed)

    def release(self, peer: Peer) -> int:
        """Stop watching `peer.fd` and return it, open: somebody else owns it now."""
        fd = peer.fd
        if self._is_watched(fd):
            self.epoll.unregister(fd)
            self.peers[fd] = None
        peer.fd = CLOSED
        return fd

    def close(self, peer: Peer) -> None:
        """Close `peer.fd`, behind the batch under way."""
        fd = self._forget(peer)
        if self._is_watched(fd):
            self.peers[fd] = None
        self._buried.append(fd)
        if not self._batch:
            self._bury()

    def farewell(self, peer: Peer, frame: bytes) -> None:
        """Send `frame` as the last thing and close, in a way that lets the peer read it.

        Closing a socket with unread bytes resets the connection and destroys what is under way to the peer (RFC 1122,
        4.2.2.13). So only our half is closed, and what still comes is read and thrown away for a bounded while. Of a
        backlog, the frame whose beginning may have been sent is finished, and the rest dropped: the peer resumes.
        """
        if isinstance(peer, Session) and peer.backlog:
            frame = peer.backlog.frames[0] + frame
        lingering = Lingering(self._forget(peer), self, frame, self._clock() + limits.LINGER_SECONDS_MAX)
        self.put(lingering, LINES)
        self._lingering.append(lingering)
        lingering.send()

    def turn(self) -> bool:
        """Handle one batch of events, for at most 2 ms; True when a part of it is left for the next turn."""
        if not self._batch:
            self._batch = self.epoll.poll(0, limits.TURN_EVENTS_MAX)
            self._handled = 0
        deadline = self._clock() + limits.TURN_SECONDS_MAX
        batch, peers = self._batch, self.peers
        for index in range(self._handled, len(batch)):
            fd, events = batch[index]
            peer = peers[fd]
            if peer is not None:
                try:
                    peer.react(events)
                except Exception:
                    if not isinstance(peer, Session):
                        raise
                    self._events.failed(peer)
            if index & 7 == 7 and index + 1 < len(batch) and self._clock() >= deadline:
                self._handled = index + 1
                return True
        self._batch = []
        self._bury()
        return False

    def expire(self) -> None:
        """Close those that have lingered long enough; call now and then."""
        now = self._clock()
        lingering = self._lingering
        while lingering and (lingering[0].until <= now or lingering[0].fd == CLOSED):
            peer = lingering.popleft()
            if peer.fd != CLOSED:
                self.close(peer)

    def read(self, fd: int) -> bytes | None:
        """Return what there is to read, b"" at the end of the stream, None when there is nothing."""
        try:
            count = os.readv(fd, self._buffers)
        except OSError:
            return None  # nothing there, or the peer is gone: then epoll says so as well
        return bytes(self._buffer[:count])

    def react(self, session: Session, events: int) -> None:
        """Handle `events` of a session."""
        if events & _GONE:
            code = error_code(session.fd) if events & select.EPOLLERR else 0
            self._events.lost(session, Close.LOST if code in _VANISHED else Close.LEFT)
            return
        if events & select.EPOLLOUT:
            self._drain(session)
        if events & select.EPOLLIN:
            data = self.read(session.fd)
            if data:
                self._events.received(session, data)
                return  # the rest of the stream, and its end, are reported again
            if data is None:
                return
        if events & (select.EPOLLRDHUP | select.EPOLLIN):
            self._set_armed(session, DEAF)
            self._events.half_closed(session)

    def hold(self, session: Session, rest: bytes) -> bool:
        """Queue `rest`, which the kernel did not take; False when that is more than may wait for one session."""
        if session.fd == CLOSED:
            return True
        backlog = session.backlog
        if backlog is None:
            backlog = session.backlog = Backlog()
            self.stats.backlogged_connections += 1
            self._set_armed(session, self._armed.get(session, session.lane.armed))
        if backlog.bytes + len(rest) > self._backlog_bytes_max:
            if backlog.frames:
                return False
            # Of several messages in one write: the one under way is finished, or the farewell behind it could not be read.
            end = session.lane.end
            rest = rest[: rest.index(end) + len(end)]
            backlog.append(rest)
            self.stats.backlog_bytes += len(rest)
            return False
        backlog.append(rest)
        self.stats.backlog_bytes += len(rest)
        return True

    def mute(self, session: Session) -> None:
        """Stop reading from `session`: it has asked for something that must be answered first."""
        self._set_armed(session, DEAF)

    def unmute(self, session: Session) -> None:
        """Read again."""
        self._set_armed(session, session.lane.armed)

    def _set_armed(self, session: Session, armed: int) -> None:
        if armed == session.lane.armed:
            self._armed.pop(session, None)
        else:
            self._armed[session] = armed
        self.epoll.modify(session.fd, armed | select.EPOLLOUT if session.backlog is not None else armed)

    def _drain(self, session: Session) -> None:
        """Send what waits, now that the kernel has room."""
        backlog = session.backlog
        if backlog is None:
            return
        try:
            sent = os.writev(session.fd, list(islice(backlog.frames, _FRAMES_PER_WRITE)))
        except OSError:
            return
        backlog.drop(sent)
        self.stats.backlog_bytes -= sent
        if not backlog.frames:
            self._drop_backlog(session)
            self._set_armed(session, self._armed.get(session, session.lane.armed))

    def _drop_backlog(self, session: Session) -> None:
        if session.backlog is not None:
            self.stats.backlogged_connections -= 1
            self.stats.backlog_bytes -= session.backlog.bytes
            session.backlog = None

    def _is_watched(self, fd: int) -> bool:
        return fd < len(self.peers) and self.peers[fd] is not None

    def _forget(self, peer: Peer) -> int:
        """Take the descriptor from `peer`."""
        if isinstance(peer, Session):
            self._drop_backlog(peer)
            self._armed.pop(peer, None)
        fd, peer.fd = peer.fd, CLOSED
        return fd

    def _bury(self) -> None:
        for fd in self._buried:
            os.close(fd)
        self._buried.clear()


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
            self.pool.arm(self.fd, LINES | select.EPOLLOUT)
            return
        sock = socket.socket(fileno=self.fd)
        try:
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the peer was faster: EPOLLHUP follows
        finally:
            sock.detach()

    def react(self, events: int) -> None:
        """Throw away what still comes; close at its end."""
        if events & _GONE:
            self.pool.close(self)
        elif events & select.EPOLLOUT:
            self.pool.arm(self.fd, LINES)
            self.send()
        elif self.pool.read(self.fd) == b"":
            if self.rest:  # it still listens
                self.pool.arm(self.fd, select.EPOLLOUT)
            else:
                self.pool.close(self)


_VANISHED = frozenset({errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH})  # tcp(7): keepalive, TCP_USER_TIMEOUT


def error_code(fd: int) -> int:
    """Return the pending error of a socket, SO_ERROR of socket(7)."""
    sock = socket.socket(fileno=fd)
    try:
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    finally:
        sock.detach()
