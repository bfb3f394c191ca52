"""The client connections of one process: integers in one epoll set.

A connection costs an entry in three arrays indexed by descriptor: what it is waiting for, its user's number, and the
number of the next message it wants. There is no object, buffer or task for it, only an unfinished line while there is
one. Reads are level-triggered, one system call each; what is read is checked and forgotten.
"""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
import time
from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from bench.board import Row
from bench.latency import Latencies
from bench.wire import CONNECTED, MARK, NOTICES, NUMBER_DIGITS, RECOVERED, REFUSED, REQUESTS, Ruler, numbers

CLOSED, CONNECTING, ASKED, LIVE = range(4)
READ_BYTES = 64 * 1024
EVENTS_MAX = 512
CHECK_SECONDS = 0.3  # in which a message sent twice would have come
IP_BIND_ADDRESS_NO_PORT = 24  # ip(7): choose the port in connect(), where it need only be unique per destination
SPARE_DESCRIPTORS = 512  # of a client process: what it inherits from a conductor with a hundred others, too
EPOLLIN, EPOLLOUT = select.EPOLLIN, select.EPOLLOUT


@dataclass(frozen=True, slots=True)
class Plan:
    """Connections to open: `count` of them, the first being user `users` + `first`."""

    wire: str
    server: tuple[str, int]
    first: int
    count: int
    sources: tuple[tuple[str, int], ...] = ()
    """Source addresses, and how many connections each is for; `load.shares` fills it in."""
    servers: tuple[tuple[str, int], ...] = ()
    """Several addresses of the server, one for each process by turns, instead of `server`."""
    users: str = "u"
    rooms: tuple[str, ...] = ()
    """Connection number i subscribes to one of these, i modulo their count."""
    rooms_each: int = 0
    """If not 0, connection number i subscribes to the i-th so many of the rooms instead."""
    tokens: tuple[str, ...] = ()
    """One for each connection, or none: open mode."""
    number: int = 0
    """The first message they are to receive."""
    rate: float = 0.0
    """Connections a second, or 0: as fast as they are answered."""
    flight: int = 128
    """Connections under way at a time."""
    people: tuple[int, ...] = ()
    """The users' numbers, where they are not `first` and those that follow it."""
    position: str = ""
    """Where they resume; an answer that does not say `recovered` is a fault then."""
    timed: bool = False
    """Record how long each took until it was answered, from the time it was meant to be opened."""

    def user(self, index: int) -> int:
        """Return the number of the user of connection `index`."""
        return self.people[index] if self.people else self.first + index

    def request(self, index: int) -> bytes:
        """Return what connection `index` of the plan sends first."""
        number = self.user(index)
        rooms: tuple[str, ...] = (self.rooms[number % len(self.rooms)],) if self.rooms else ()
        if self.rooms_each:
            rooms = self.rooms[number * self.rooms_each : (number + 1) * self.rooms_each]
        token = self.tokens[number - self.first] if self.tokens else None
        return REQUESTS[self.wire](f"{self.users}{number}", rooms, token, self.position)


class Tally(NamedTuple):
    """What a process holds and has seen; `faults` is empty when everything came once and in order."""

    live: int
    received: int
    heartbeats: int
    faults: Counter[str]
    finished_ns: int
    """When the last byte that counted was read (monotonic)."""
    sample: bytes
    """The frame of one message, as it came, or b"" before the first."""


@dataclass(slots=True)
class _Opening:
    """A plan on its way."""

    plan: Plan
    started: int = 0
    settled: int = 0
    unsent: dict[int, bytes] = field(default_factory=dict)
    """Requests of connections whose connect() is not through, by descriptor."""
    began_ns: int = field(default_factory=time.monotonic_ns)
    due_ns: dict[int, int] = field(default_factory=dict)
    """When connections that are timed were meant to be opened, by descriptor."""

    def due(self, index: int) -> int:
        """Return when connection `index` is meant to be opened: all at once, unless there is a rate."""
        return self.began_ns + (int(1e9 * index / self.plan.rate) if self.plan.rate else 0)


class Clients:
    """An epoll set of connections. One thread; every method returns within its deadline, or when `interrupted` is."""

    def __init__(self, control: int | None = None) -> None:
        """Make an empty set; bytes to read on the descriptor `control` end whatever is being waited for."""
        size = raise_descriptor_limit()
        self.epoll = select.epoll()
        self.state = bytearray(size)
        self.next = array("I", bytes(array("I").itemsize * size))
        self.user = array("I", self.next)
        self.rest: dict[int, bytes] = {}
        self.faults: Counter[str] = Counter()
        self.live = self.received = self.heartbeats = self.finished_ns = 0
        self.sample = b""
        self.interrupted = False
        self.row: Row | None = None
        self.times = Latencies()
        self._ruler = Ruler()
        self._opening: _Opening | None = None
        self._control = control
        if control is not None:
            self.epoll.register(control, EPOLLIN)

    def open(self, plan: Plan, seconds_max: float = 60.0) -> Tally:
        """Open the connections of `plan` and wait until each is answered; those that are not become faults."""
        opening = self._opening = _Opening(plan)
        sources = (address for address, count in plan.sources for _ in range(count))
        began = time.monotonic()
        patience = began + seconds_max + (plan.count / plan.rate if plan.rate else 0.0)
        while opening.settled < plan.count and not self.interrupted:
            now = time.monotonic()
            if now > patience:
                self._give_up(plan.count - opening.settled, seconds_max)
                break
            due = plan.count if not plan.rate else min(plan.count, int((now - began) * plan.rate) + 1)
            while opening.started < due and opening.started - opening.settled < plan.flight:
                self._connect(opening, next(sources))
            self.pump(began + opening.started / plan.rate - now if opening.started == due < plan.count else 0.1)
        self._opening = None
        return self.tally()

    def await_number(self, number: int, seconds_max: float) -> Tally:
        """Wait until every connection has received all messages before `number`."""
        goal = self.received + sum(max(0, number - self.next[fd]) for fd in self.descriptors())
        deadline = time.monotonic() + seconds_max
        while self.received < goal and not self.interrupted and time.monotonic() < deadline:
            self.pump(0.1)
        return self.tally()

    def check(self, number: int) -> Tally:
        """Look for what came too much, and count every connection that wants another message than `number`."""
        deadline = time.monotonic() + CHECK_SECONDS
        while time.monotonic() < deadline and not self.interrupted:
            self.pump(0.05)
        for fd in self.descriptors():
            if self.next[fd] != number:
                self.faults[f"messages missing or doubled: wanted next is {self.next[fd]}, not {number}"] += 1
        return self.tally()

    def tally(self) -> Tally:
        """Return the counts."""
        return Tally(self.live, self.received, self.heartbeats, self.faults, self.finished_ns, self.sample)

    def latencies(self) -> bytes:
        """Return the times of connections that were timed, encoded, and forget them."""
        encoded, self.times = self.times.encode(), Latencies()
        return encoded

    def close(self) -> Tally:
        """Close every connection."""
        for fd, state in enumerate(self.state):
            if state != CLOSED:
                self._drop(fd)
        return self.tally()

    def descriptors(self) -> list[int]:
        """Return the live connections."""
        return [fd for fd, state in enumerate(self.state) if state == LIVE]

    def pump(self, timeout: float) -> int:
        """Handle what is ready, waiting at most `timeout` seconds for it; return how many events there were."""
        events = self.epoll.poll(timeout, EVENTS_MAX)
        state, read = self.state, os.read
        for fd, event in events:
            if state[fd] == LIVE:
                try:
                    chunk = read(fd, READ_BYTES)
                except OSError as error:
                    self._lose(fd, os.strerror(error.errno or 0))
                    continue
                if chunk:
                    self.feed(fd, chunk)
                else:
                    self._lose(fd, "closed by the server")
            elif fd == self._control:
                self.interrupted = True
            else:
                self._advance(fd, event)
        if self.row is not None:
            self.row[:] = array("q", (self.live, self.received, self.heartbeats))
        return len(events)

    def feed(self, fd: int, chunk: bytes) -> None:
        """Check the messages in `chunk`; an unfinished line waits for its end."""
        if fd in self.rest:
            chunk = self.rest.pop(fd) + chunk
        if chunk[-1] != 10:
            end = chunk.rfind(b"\n") + 1
            self.rest[fd] = chunk[end:]
            chunk = chunk[:end]
        if MARK in chunk:
            self.deliver(fd, chunk)
        elif chunk:
            self.hear_aside(fd, chunk)

    def deliver(self, fd: int, lines: bytes) -> None:
        """Check the numbers of the messages in `lines` against the ones this connection wants next."""
        digits = numbers(lines)
        count = len(digits) // NUMBER_DIGITS
        wanted = self.next[fd]
        if digits == self._ruler.run(wanted, count):
            self.next[fd] = wanted + count
        else:
            got = [int(digits[at : at + NUMBER_DIGITS]) for at in range(0, len(digits), NUMBER_DIGITS)]
            self.faults[f"messages {wanted}... were wanted, {got[0]}...{got[-1]} came"] += 1
            self.next[fd] = got[-1] + 1
        self.received += count
        self.finished_ns = time.monotonic_ns()
        if not self.sample and count == 1:
            self.sample = lines

    def hear_aside(self, fd: int, lines: bytes) -> None:
        """Take what is not a message: heartbeats are counted and not answered; a gap or close is a fault."""
        if not lines.strip(b":\n"):
            self.heartbeats += 1
        elif any(word in lines for word in NOTICES):  # otherwise the first lines of an SSE event, cut by a read
            self.faults[f"not a message: {lines[:200].decode(errors='replace')}"] += 1

    def _connect(self, opening: _Opening, source: str) -> None:
        plan, index = opening.plan, opening.started
        opening.started += 1
        try:
            fd = _connecting_socket(source, plan.server)
        except OSError as error:
            opening.settled += 1
            self.faults[f"connect: {error}"] += 1
            return
        self.state[fd] = CONNECTING
        self.next[fd] = plan.number
        self.user[fd] = plan.user(index)
        if plan.timed:
            opening.due_ns[fd] = opening.due(index)
        opening.unsent[fd] = plan.request(index)
        try:
            self.epoll.register(fd, EPOLLIN if self._ask(fd, opening) else EPOLLOUT)
        except OSError as error:
            self._refuse(fd, opening, os.strerror(error.errno or 0))

    def _advance(self, fd: int, event: int) -> None:
        """Move a connection that is not live yet: connected, asked, answered."""
        opening = self._opening
        if opening is None or self.state[fd] == CLOSED:
            return  # left over from an open() that gave up, or dropped earlier in this batch
        try:
            if self.state[fd] == CONNECTING:
                if self._ask(fd, opening):
                    self.epoll.modify(fd, EPOLLIN)
            else:
                self._hear(fd, os.read(fd, READ_BYTES), opening)
        except OSError as error:
            self._refuse(fd, opening, os.strerror(error.errno or 0))

    def _ask(self, fd: int, opening: _Opening) -> bool:
        """Send the request, if connect() is through: over loopback it is, most often, as soon as it returns."""
        request = opening.unsent[fd]
        try:
            sent = os.write(fd, request)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ENOTCONN):
                return False
            raise
        assert sent == len(request), "an empty socket buffer takes a whole request"
        del opening.unsent[fd]
        self.state[fd] = ASKED
        return True

    def _hear(self, fd: int, chunk: bytes, opening: _Opening) -> None:
        answer = self.rest.pop(fd, b"") + chunk
        at = answer.find(CONNECTED)
        end = answer.find(b"\n", at) + 1 if at >= 0 else 0
        if end:
            self._welcome(fd, opening)
            if opening.plan.position and RECOVERED not in answer[at:end]:
                self.faults["resumed, and was not told `recovered`"] += 1
            rest = answer[end:].lstrip(b"\n")
            if rest:
                self.feed(fd, rest)
        elif not chunk or any(word in answer for word in REFUSED):
            self._refuse(fd, opening, answer[-300:].decode(errors="replace") or "closed by the server")
        else:
            self.rest[fd] = answer

    def _welcome(self, fd: int, opening: _Opening) -> None:
        self.state[fd] = LIVE
        self.live += 1
        opening.settled += 1
        self.finished_ns = time.monotonic_ns()
        if fd in opening.due_ns:
            self.times.record(self.finished_ns - opening.due_ns.pop(fd))

    def _refuse(self, fd: int, opening: _Opening, reason: str) -> None:
        opening.settled += 1
        opening.unsent.pop(fd, None)
        opening.due_ns.pop(fd, None)
        self.faults[f"refused: {reason}"] += 1
        self._drop(fd)

    def _give_up(self, count: int, seconds: float) -> None:
        self.faults[f"not answered within {seconds:g} s"] += count
        for fd, state in enumerate(self.state):
            if state in (CONNECTING, ASKED):
                self._drop(fd)

    def _lose(self, fd: int, reason: str) -> None:
        self.faults[f"lost: {reason}"] += 1
        self._drop(fd)

    def _drop(self, fd: int) -> None:
        self.live -= self.state[fd] == LIVE
        self.state[fd] = CLOSED
        self.rest.pop(fd, None)
        os.close(fd)  # which takes it out of the epoll set as well: it was never duplicated


def _connecting_socket(source: str, server: tuple[str, int]) -> int:
    """Return the descriptor of a non-blocking socket whose connect() has begun."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((source, 0))
        code = sock.connect_ex(server)
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, f"{os.strerror(code)} from {source} to {server[0]}:{server[1]}")
    except OSError:
        sock.close()
        raise
    return sock.detach()


def raise_descriptor_limit() -> int:
    """Raise RLIMIT_NOFILE of this process as far as it goes without privilege, and return it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    hard = min(hard, 1 << 20) if hard != resource.RLIM_INFINITY else 1 << 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    return hard
