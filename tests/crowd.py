"""A crowd of clients that do what a client has to: keep their position, leave when asked, come back when told to.

Each is one user with one connection over TLS, raw TCP or SSE, through a balancer. They all listen to one channel whose
messages are numbered from 0, so each knows which one it wants next.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import orjson

CHANNEL = "room:crowd"
DRAINING = 3001
STOPPED = 3009
Address = tuple[str, int]


class Way(NamedTuple):
    """How the crowd gets in: TLS to `name` at the two addresses."""

    lines: Address
    web: Address
    tls: ssl.SSLContext
    name: str


class Member:
    """One client."""

    __slots__ = ("after_seconds", "crowd", "is_events", "is_in", "name", "position", "wanted")

    def __init__(self, crowd: Crowd, name: str, *, is_events: bool) -> None:
        self.crowd = crowd
        self.name = name
        self.is_events = is_events
        self.is_in = False
        self.position = ""
        self.wanted = 0  # the number of the next message
        self.after_seconds = 0.0

    def request(self) -> bytes:
        """What it sends first."""
        if self.is_events:
            query = f"user={self.name}&channel={CHANNEL}"
            resume = f"Last-Event-ID: {self.position}\r\n" if self.position else ""
            return f"GET /events?{query} HTTP/1.0\r\nHost: {self.crowd.way.name}\r\n{resume}\r\n".encode()
        connect = {"op": "connect", "user": self.name, "channels": [CHANNEL]}
        return orjson.dumps(connect | ({"position": self.position} if self.position else {})) + b"\n"

    async def come(self) -> None:
        """Connect."""
        way = self.crowd.way
        loop = asyncio.get_running_loop()
        host, port = way.web if self.is_events else way.lines
        try:
            await loop.create_connection(
                lambda: Connection(self), host, port, ssl=way.tls, server_hostname=way.name, ssl_handshake_timeout=60
            )
        except OSError as error:
            self.crowd.faults[f"connect: {error!r}"] += 1

    def heard(self, message: dict[str, Any]) -> None:
        """Take one thing from the server."""
        crowd = self.crowd
        op = message["op"]
        if op == "message":
            number = message["data"]
            if number != self.wanted:
                crowd.faults[f"message {number} came where {self.wanted} was wanted"] += 1
            self.wanted = number + 1
            self.position = message["position"]
        elif op == "connected":
            if not message["recovered"]:
                crowd.faults["not recovered"] += 1
            self.is_in = True
            self.position = message["position"]
            crowd.came.append(time.monotonic())
        elif op == "close":
            self.after_seconds = (message["after_ms"] or 0) / 1000
            if not message["reconnect"]:
                crowd.faults[f"sent away for good: {message}"] += 1
            elif self.is_in:
                crowd.told[message["code"]] += 1
                crowd.left.append(time.monotonic())
            else:
                crowd.refused[message["code"]] += 1
        else:
            crowd.faults[f"unexpected: {message}"] += 1

    def ended(self, said: bool, error: BaseException | None) -> None:
        """The connection is gone; `said`: it was told so before."""
        crowd = self.crowd
        if crowd.closing:
            return
        if error is not None:
            crowd.faults[f"cut: {error!r}"] += 1
        elif not said:
            crowd.faults[f"ended without a word, {'inside' if self.is_in else 'at the door'}"] += 1
        self.is_in = False
        asyncio.get_running_loop().call_later(self.after_seconds or 0.5, crowd.send, self)
        self.after_seconds = 0.0


class Connection(asyncio.Protocol):
    """One connection of a member: lines of JSON, or of an event stream."""

    __slots__ = ("event", "in_body", "member", "rest", "said", "transport")

    def __init__(self, member: Member) -> None:
        self.member = member
        self.rest = b""
        self.said = False
        self.event = "message"
        self.in_body = not member.is_events

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.WriteTransport, transport)  # uvloop's is none by name
        self.transport.write(self.member.request())
        self.member.crowd.connections.add(self)

    def data_received(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            if not self.in_body:
                self._head(line)
            elif self.member.is_events:
                self._event(line)
            elif line:
                self._take(orjson.loads(line))

    def connection_lost(self, error: Exception | None) -> None:
        self.member.crowd.connections.discard(self)
        self.member.ended(self.said, error)

    def _head(self, line: bytes) -> None:
        if line.startswith(b"HTTP/") and b" 200 " not in line:
            self.member.crowd.faults[f"answered {line!r}"] += 1
        self.in_body = line in (b"", b"\r")

    def _event(self, line: bytes) -> None:
        field, _, value = line.partition(b": ")
        if field == b"event":
            self.event = value.decode()
        elif field == b"retry":
            self.member.after_seconds = int(value) / 1000
            if not self.member.is_in:  # the balancer says no more than this when it has nobody to send us to
                self.said = True
        elif field == b"data":
            self._take({"op": self.event} | orjson.loads(value))
            self.event = "message"

    def _take(self, message: dict[str, Any]) -> None:
        self.said = message["op"] == "close"
        self.member.heard(message)


class Crowd:
    """Many members, and what all of them have seen. `faults` is empty when each got every message once and in order."""

    def __init__(self, way: Way, size: int) -> None:
        self.way = way
        self.faults: Counter[str] = Counter()
        self.told: Counter[int] = Counter()  # why those inside were asked to leave, by code
        self.refused: Counter[int] = Counter()  # why those at the door were sent away
        self.came: list[float] = []  # when somebody was let in
        self.left: list[float] = []  # when somebody inside was asked to leave
        self.closing = False
        self.connections: set[Connection] = set()
        self.members = [Member(self, f"m{number}", is_events=number % 2 == 1) for number in range(size)]
        self._coming: set[asyncio.Task[None]] = set()

    def send(self, member: Member) -> None:
        """Let a member connect."""
        if not self.closing:
            task = asyncio.get_running_loop().create_task(member.come())
            self._coming.add(task)
            task.add_done_callback(self._coming.discard)

    async def gather(self, at_once: int = 50, seconds: float = 30.0) -> None:
        """Let everybody in, `at_once` at a time."""
        waiting = list(self.members)
        while waiting:
            some, waiting = waiting[:at_once], waiting[at_once:]
            for member in some:
                self.send(member)
            await self.until(lambda: all(member.is_in for member in some), seconds)  # noqa: B023  # called here

    async def until(self, condition: Callable[[], object], seconds: float = 60.0) -> None:
        """Wait for `condition`. Raises: AssertionError with what everybody has seen, after `seconds`."""
        until = time.monotonic() + seconds
        while not condition():
            assert not self.faults, self.summary()
            assert time.monotonic() < until, f"not within {seconds:.0f} s: {self.summary()}"
            await asyncio.sleep(0.02)

    def lacking(self, number: int) -> int:
        """How many are not inside, or want another message than `number` next."""
        return sum(not member.is_in or member.wanted != number for member in self.members)

    async def close(self) -> None:
        """Hang up, all of them."""
        self.closing = True
        for task in self._coming:
            task.cancel()
        for connection in list(self.connections):
            connection.transport.abort()
        async with asyncio.timeout(20):
            while self.connections or self._coming:
                await asyncio.sleep(0.01)

    def summary(self) -> str:
        """Return what has happened, in a few lines."""
        inside = sum(member.is_in for member in self.members)
        return (
            f"{inside} of {len(self.members)} inside, {len(self.came)} times let in,"
            f" told to leave: {dict(self.told)}, refused: {dict(self.refused)}, faults: {dict(self.faults)}"
        )


def histogram(times: Sequence[float], begin: float, end: float, slices: int) -> list[int]:
    """Return how many of `times` fall into each of the slices between `begin` and `end`."""
    counts = [0] * slices
    for at in times:
        if begin <= at < end:
            counts[int((at - begin) / (end - begin) * slices)] += 1
    return counts


def chart(title: str, counts: Sequence[int], slice_seconds: float) -> str:
    """Return a histogram as text, a line a slice."""
    most = max(counts, default=0) or 1
    bars = (f"{n * slice_seconds:6.1f} s {c:5} {'#' * (c * 50 // most)}" for n, c in enumerate(counts))
    return "\n".join([title, *bars])
