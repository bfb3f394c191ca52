"""A pool with sessions over real sockets and a journal in a real Valkey: what a worker is, without its loop and its bus."""

from __future__ import annotations

import contextlib
import json
import socket
from collections import deque
from collections.abc import Callable
from types import ModuleType
from typing import Any

from journals import Desk

from router.replay import Reader
from router.table import Table
from router.vector import Vector, parse
from server import lines, sse
from server.catchup import CatchUp
from server.close import Close
from server.config import Config
from server.lane import LINES, STREAM, Lane
from server.pool import Pool
from server.session import CLOSED, Session
from server.stats import Stats

Json = dict[str, Any]


class Guest:
    """A session and the other end of its socket."""

    def __init__(self, session: Session, sock: socket.socket) -> None:
        self.session, self.sock = session, sock
        self.data = b""

    def read(self, bytes_max: int = 1 << 22) -> None:
        """Read what is there, at most about `bytes_max`."""
        with contextlib.suppress(BlockingIOError):
            while bytes_max > 0 and (data := self.sock.recv(min(65536, bytes_max))):
                self.data += data
                bytes_max -= len(data)

    def heard(self) -> list[Json]:
        """What has come so far, of lines."""
        self.read()
        return [json.loads(line) for line in self.data.split(b"\n")[:-1] if line]

    def numbers(self) -> list[int]:
        """The numbers of the messages so far."""
        return [int(each["position"].split("-")[2]) for each in self.heard() if each["op"] == "message"]


class Feed:
    """As much of a feed as a greeting needs."""

    def __init__(self, desk: Desk) -> None:
        self.reader = Reader(desk, desk.keys)
        self.head = b""

    def read(self, text: str | bytes | None) -> Vector | None:
        return parse(text, 1)


class Asking:
    """As much of the requests as a greeting needs: who is not read meanwhile."""

    def __init__(self) -> None:
        self.held: set[Session] = set()

    def hold(self, session: Session) -> None:
        assert session not in self.held
        self.held.add(session)

    def release(self, session: Session) -> None:
        self.held.remove(session)


class Hall:
    """The worker."""

    def __init__(self, desk: Desk, config: Config) -> None:
        self.desk, self.config = desk, config
        self.stats = Stats()
        self.pool = Pool(self.stats, self)
        self.table = Table()
        self.feed: Any = Feed(desk)
        self.requests: Any = Asking()
        self.later: deque[Callable[[], object]] = deque()
        self.catchup = CatchUp(self, lambda call, *args: self.later.append(lambda: call(*args)))
        self.ended: list[tuple[Session, Close]] = []
        self.guests: list[Guest] = []

    def open(self, user: str, *rooms: bytes, codec: ModuleType = lines) -> Guest:
        """Let somebody in."""
        ours, theirs = socket.socketpair()
        for sock in (ours, theirs):
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        armed = LINES if codec is lines else STREAM
        lane = Lane("tcp" if codec is lines else "sse", codec, armed, self.pool)
        session = lane.session(ours.detach(), user, self.table.gather(list(rooms)) if rooms else ())
        self.table.enter(session)
        self.pool.put(session, armed)
        self.guests.append(Guest(session, theirs))
        return self.guests[-1]

    def work(self) -> None:
        """Do what is to be done now."""
        while self.later:
            self.later.popleft()()
        while self.pool.turn():
            pass

    def settle(self, *readers: Guest) -> None:
        """Go on, with `readers` reading, until nobody is being caught up or nothing moves any more."""
        for _ in range(2000):
            self.work()
            for guest in readers:
                guest.read()
            if not self.catchup and not self.later:
                break
        self.work()

    def close(self) -> None:
        for guest in self.guests:
            guest.sock.close()
            if guest.session.fd != CLOSED:
                self.pool.close(guest.session)
        self.pool.turn()
        for peer in [peer for peer in self.pool.peers if peer is not None]:
            self.pool.close(peer)
        self.pool.epoll.close()

    # What others call.

    def end(self, session: Session, code: Close, reason: str = "", field: str | None = None) -> None:
        self.ended.append((session, code))
        self.table.leave(session)
        self.catchup.forget(session)
        self.pool.farewell(session, session.lane.codec.close(code, reason or code.reason, 1))

    def received(self, session: Session, data: bytes) -> None:
        raise AssertionError(data)

    def half_closed(self, session: Session) -> None:
        self.lost(session, Close.LEFT)

    def lost(self, session: Session, code: Close) -> None:
        self.table.leave(session)
        self.catchup.forget(session)
        self.pool.close(session)

    def drained(self, session: Session) -> None:
        self.catchup.drained(session)

    def failed(self, session: Session) -> None:
        raise  # noqa: PLE0704  # called from an `except`


__all__ = ["Guest", "Hall", "sse"]
