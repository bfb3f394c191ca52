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
from contextlib import suppress
from itertools import islice
from typing import Protocol

from server import limits
from server.close import Close
from server.lingering import SPEAKING, Lingering
from server.reserve import Reserve
from server.session import CLOSED, Backlog, Session
from server.stats import Stats

DEAF = select.EPOLLET  # nothing but EPOLLHUP and EPOLLERR, which are always reported
_GONE = select.EPOLLHUP | select.EPOLLERR
_FRAMES_PER_WRITE = 64


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

    def drained(self, session: Session) -> None:
        """The kernel has taken all that was to overtake the cork."""

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
        self._corked: dict[Session, Backlog] = {}  # what overtakes the backlog of those whose backlog is corked
        self._uncorked: set[Session] = set()  # those who are being sent what waited behind the cork
        self.lingering: deque[Lingering] = deque()
        self._unwatched: list[Lingering] = []  # those of them that nothing tells of
        self.reserve = Reserve()
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
        """Watch `peer.fd`, which may have been watched for another peer.

        Raises: OSError when it was not, and the kernel watches no more.
        """
        fd, peers = peer.fd, self.peers
        if fd >= len(peers):
            peers.extend([None] * (fd + 1 - len(peers) + (fd >> 3)))
        if peers[fd] is None:
            try:
                self.epoll.register(fd, armed)
            except OSError as error:
                if not self.reserve.spend(error):
                    raise
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
        self._unwatch(fd)
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
        waiting = self._corked.get(peer, peer.backlog) if isinstance(peer, Session) else None
        if waiting is not None and waiting.frames:
            frame = waiting.frames[0] + frame
        fd, until = self._forget(peer), self._clock() + limits.LINGER_SECONDS_MAX
        lingering = Lingering(fd, self, frame, until)
        lingering.is_watched = self._watch(lingering)
        self.lingering.append(lingering)
        if not lingering.is_watched:
            self._unwatched.append(lingering)
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
            if self._clock() >= deadline and index + 1 < len(batch):  # one event may be many requests
                self._handled = index + 1
                return True
        self._batch = []
        self._bury()
        return False

    def expire(self) -> None:
        """Close those that have lingered long enough, and fill the reserve; call now and then."""
        now = self._clock()
        self.reserve.restore(now)
        lingering = self.lingering
        self._unwatched = [peer for peer in self._unwatched if peer.fd != CLOSED]
        for peer in self._unwatched:
            peer.look()
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
            backlog = self._begin_backlog(session)
            self._set_armed(session, self._armed.get(session, session.lane.armed))
        has_room = session in self._corked or session in self._uncorked
        bytes_max = limits.CORKED_BYTES_MAX if has_room else self._backlog_bytes_max
        if backlog.bytes + len(rest) > bytes_max:
            if not backlog.frames:
                # Of several messages in one write, the one under way is finished, so that the farewell can be read.
                end = session.lane.end
                self._append(backlog, rest[: rest.index(end) + len(end)])
            return False
        self._append(backlog, rest)
        return True

    def cork(self, session: Session) -> None:
        """Let everything that is offered wait, until `uncork`; what waits already goes first."""
        waiting = session.backlog
        if waiting is None:
            self._begin_backlog(session)
            waiting = Backlog()
        else:
            session.backlog = Backlog()
        self._corked[session] = waiting

    def overtake(self, session: Session, frame: bytes) -> bool:
        """Send `frame` past the cork; False when the kernel has not taken all of it yet: `drained` will be told."""
        ahead = self._corked[session]
        if not ahead.frames:
            try:
                frame = frame[os.write(session.fd, frame) :]
            except BlockingIOError:
                pass
            except OSError:
                return True  # the peer is gone: epoll will say so
            if not frame:
                return True
        self._append(ahead, frame)
        self._set_armed(session, self._armed.get(session, session.lane.armed))
        return False

    def uncork(self, session: Session) -> None:
        """Let the backlog go."""
        ahead = self._corked.pop(session)
        backlog = session.backlog
        assert backlog is not None
        backlog.frames.extendleft(reversed(ahead.frames))
        backlog.bytes += ahead.bytes
        self._uncorked.add(session)
        self._drain(session)

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
        waiting = self._corked.get(session, session.backlog)
        waits = waiting is not None and (waiting.frames or session not in self._corked)
        self.epoll.modify(session.fd, armed | select.EPOLLOUT if waits else armed)

    def _begin_backlog(self, session: Session) -> Backlog:
        self.stats.backlogged_connections += 1
        session.backlog = Backlog()
        return session.backlog

    def _append(self, backlog: Backlog, frame: bytes) -> None:
        backlog.append(frame)
        self.stats.backlog_bytes += len(frame)

    def _drain(self, session: Session) -> None:
        """Send what waits, now that the kernel has room."""
        backlog = self._corked.get(session, session.backlog)
        if backlog is None:
            return
        if backlog.frames:
            try:
                sent = os.writev(session.fd, list(islice(backlog.frames, _FRAMES_PER_WRITE)))
            except BlockingIOError:
                sent = 0
            except OSError:
                return
            backlog.drop(sent)
            self.stats.backlog_bytes -= sent
        corked = session in self._corked
        if not backlog.frames and not corked:
            self._drop_backlog(session)
        self._set_armed(session, self._armed.get(session, session.lane.armed))
        if corked and not backlog.frames:
            self._events.drained(session)

    def _drop_backlog(self, session: Session) -> None:
        if session.backlog is not None:
            self.stats.backlogged_connections -= 1
            self.stats.backlog_bytes -= session.backlog.bytes
            session.backlog = None
            self._uncorked.discard(session)
        if (ahead := self._corked.pop(session, None)) is not None:
            self.stats.backlog_bytes -= ahead.bytes

    def _watch(self, lingering: Lingering) -> bool:
        """Watch one that is on its way out, unless others need the watch more."""
        if not self.reserve.is_spent:
            with suppress(OSError):
                self.put(lingering, SPEAKING)
                return True
        self._unwatch(lingering.fd)
        return False

    def _unwatch(self, fd: int) -> None:
        if self._is_watched(fd):
            self.epoll.unregister(fd)
            self.peers[fd] = None

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


_VANISHED = frozenset({errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH})  # tcp(7): keepalive, TCP_USER_TIMEOUT


def error_code(fd: int) -> int:
    """Return the pending error of a socket, SO_ERROR of socket(7)."""
    sock = socket.socket(fileno=fd)
    try:
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    finally:
        sock.detach()
