"""Bookkeeping of every message: publishers that number theirs, subscribers that are cut and come back, and the final account.

A subscriber does what a client has to: it keeps the position of the last message, gap or greeting, comes back with it, and
believes the server when it says that something is lacking. `Account.faults` then finds what was lost without a word, what came
twice, what came out of order, and every position that went back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlencode

from router import position
from router.position import Position

Json = dict[str, Any]
Address = tuple[str, int]

DEADLINE_SECONDS = 25.0
BYTES_MAX = 1 << 20  # of a line
GAP = -1  # in the list of what a subscriber heard on a channel


class Sites(NamedTuple):
    """Where the servers are: as many TCP addresses as HTTP ones."""

    tcp: Sequence[Address]
    http: Sequence[Address]


class Answered(NamedTuple):
    """A message that a publisher was answered for."""

    channel: str
    publisher: str
    serial: int


def read(text: str) -> Position:
    """Read a position that the server has sent."""
    found = position.parse(text)
    assert found is not None, f"no position: {text!r}"
    return found


class Publisher:
    """Publishes numbered messages, one after the other.

    One that is `persistent` sends again what was not confirmed, with the same key, until it is; another counts it as sent
    perhaps, and goes on.
    """

    def __init__(
        self, name: str, sites: Sites, channels: Sequence[str], rng: random.Random, *, persistent: bool
    ) -> None:
        self.name = name
        self.answered: dict[Answered, Position] = {}
        self.perhaps: set[Answered] = set()
        self.stopping = False
        self._sites, self._channels, self._rng, self._persistent = sites, channels, rng, persistent
        self._serial = 0

    async def run(self, pause_seconds: float) -> None:
        """Publish until told to stop."""
        while not self.stopping:
            with contextlib.suppress(OSError, EOFError, TimeoutError):
                await self._session(pause_seconds)
            await asyncio.sleep(0.05)

    async def _session(self, pause_seconds: float) -> None:
        address = self._rng.choice(self._sites.tcp)
        reader, writer = await asyncio.open_connection(*address, limit=BYTES_MAX)
        try:
            writer.write(_line({"op": "connect", "user": self.name}))
            await _until(reader, lambda answer: answer["op"] == "connected")
            while not self.stopping:
                channel = self._rng.choice(self._channels)
                size = 20_000 if self._rng.random() < 0.03 else self._rng.randrange(100)
                await self._publish(reader, writer, channel, "x" * size)
                await asyncio.sleep(self._rng.random() * pause_seconds)
        finally:
            writer.transport.abort()

    async def _publish(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, channel: str, text: str
    ) -> None:
        self._serial += 1
        message = Answered(channel, self.name, self._serial)
        self.perhaps.add(message)
        data = {"publisher": self.name, "serial": self._serial, "text": text}
        request: Json = {"op": "publish", "id": self._serial, "channel": channel, "data": data}
        if self._persistent:
            request["idempotency"] = f"{self.name}-{self._serial}"
        try:
            await self._try(reader, writer, request, message)
        except (OSError, EOFError, TimeoutError):
            while self._persistent and message not in self.answered:
                await asyncio.sleep(0.1)
                with contextlib.suppress(OSError, EOFError, TimeoutError):
                    reader, other = await asyncio.open_connection(*self._rng.choice(self._sites.tcp), limit=BYTES_MAX)
                    try:
                        other.write(_line({"op": "connect", "user": self.name}))
                        await self._try(reader, other, request, message)
                    finally:
                        other.transport.abort()
            raise

    async def _try(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: Json, message: Answered
    ) -> None:
        while True:
            writer.write(_line(request))
            answer = await _until(reader, lambda answer: answer.get("id") == request["id"])
            if answer["op"] == "published":
                self.answered[message] = read(answer["position"])
                self.perhaps.discard(message)
                return
            assert answer["code"] in (3005, 3006), answer
            if answer["code"] == 3005:
                self.perhaps.discard(message)  # it was not sent
            if answer["code"] == 3006 and not self._persistent:
                return
            await asyncio.sleep(0.1)
            if self.stopping and not self._persistent:
                return
            self.perhaps.add(message)

    async def say_last(self, channel: str) -> Position:
        """Publish until one message is answered, and return its position."""
        before = len(self.answered)
        while len(self.answered) == before:
            with contextlib.suppress(OSError, EOFError, TimeoutError):
                reader, writer = await asyncio.open_connection(*self._rng.choice(self._sites.tcp), limit=BYTES_MAX)
                try:
                    writer.write(_line({"op": "connect", "user": self.name}))
                    await self._publish(reader, writer, channel, "last")
                finally:
                    writer.transport.abort()
        return list(self.answered.values())[-1]


class Subscriber:
    """Listens to some channels, is cut at random, and comes back with the last position it saw."""

    def __init__(self, name: str, sites: Sites, channels: Sequence[str], rng: random.Random) -> None:
        self.name = name
        self.channels = channels
        self.heard: dict[str, list[int]] = {channel: [] for channel in channels}  # numbers, and GAPs among them
        self.messages: dict[int, tuple[str, str, int]] = {}  # number -> channel, publisher, serial
        self.begins: dict[str, int] = {}
        self.faults: list[str] = []
        self.connections = 0
        self.recovered = 0
        self.settled = False  # no more cuts
        self._sites, self._rng = sites, rng
        self._position: str | None = None
        self._reached: dict[str, int] = {}

    # What comes.

    def took(self, event: Json) -> None:
        """Book one thing that the server has sent."""
        op = event["op"]
        if op == "connected":
            self._connected(event)
        elif op == "gap":
            if event["channel"] in self.heard:
                self.heard[event["channel"]].append(GAP)
            self._keep(event["position"])
        elif op == "message":
            self._message(event)
        elif op == "close" and not event["reconnect"]:
            self.faults.append(f"{self.name} was sent away for good: {event}")

    def _connected(self, event: Json) -> None:
        asked, self._position = self._position, None
        if event["recovered"]:
            self.recovered += asked is not None
        if not asked or event["position"] != asked:  # not a resume: it begins somewhere else
            if asked and event["recovered"]:
                self.faults.append(f"{self.name}: asked {asked}, greeted {event}")
            for channel in self.channels:
                self.heard[channel].append(GAP)
        self._reached = {}
        self._keep(event["position"])
        if event["position"]:
            for channel in self.channels:
                self.begins.setdefault(channel, read(event["position"]).id.number)

    def _message(self, event: Json) -> None:
        at, channel = read(event["position"]), event["channel"]
        if channel not in self.heard:
            return  # its own
        number = at.of(channel.encode()).number
        if number in self.messages:
            self.faults.append(f"{self.name}: twice: {event}")
        earlier = max((heard for heard in self.heard[channel] if heard != GAP), default=GAP)
        if number <= earlier:
            self.faults.append(f"{self.name}: {number} behind {earlier} on {channel}")
        self.heard[channel].append(number)
        self.messages[number] = (channel, event["data"]["publisher"], event["data"]["serial"])
        self._keep(event["position"])

    def _keep(self, text: str) -> None:
        """Keep a position; on one connection none of its channels ever goes back."""
        for channel in self.channels if text else ():
            number = read(text).of(channel.encode()).number
            if number < self._reached.get(channel, 0):
                self.faults.append(f"{self.name}: back on {channel} from {self._reached[channel]} to {text}")
            self._reached[channel] = number
        self._position = text

    # The connections.

    async def run(self, life_seconds: float) -> None:
        """Connect, listen for a random while, be cut, and again, until cancelled."""
        while True:
            life = None if self.settled else self._rng.expovariate(1 / life_seconds)
            with contextlib.suppress(OSError, EOFError, TimeoutError):
                async with asyncio.timeout(life):
                    async for event in self._events():
                        self.took(event)
                        if event["op"] == "close":
                            await asyncio.sleep(min(event.get("after_ms") or 0, 300) / 1000)
                            break
            await asyncio.sleep(self._rng.random() * 0.1)

    def _events(self) -> AsyncIterator[Json]:
        raise NotImplementedError


class LineSubscriber(Subscriber):
    """Over raw TCP."""

    async def _events(self) -> AsyncIterator[Json]:
        reader, writer = await asyncio.open_connection(*self._rng.choice(self._sites.tcp), limit=BYTES_MAX)
        try:
            self.connections += 1
            resume = {"position": self._position} if self._position else {}
            writer.write(_line({"op": "connect", "user": self.name, "channels": [*self.channels], **resume}))
            while True:
                line = await reader.readline()
                if not line.endswith(b"\n"):
                    return
                if line != b"\n":
                    yield json.loads(line)
        finally:
            writer.transport.abort()


class EventSubscriber(Subscriber):
    """Over SSE."""

    async def _events(self) -> AsyncIterator[Json]:
        reader, writer = await asyncio.open_connection(*self._rng.choice(self._sites.http), limit=BYTES_MAX)
        try:
            self.connections += 1
            query = urlencode([("user", self.name), *(("channel", channel) for channel in self.channels)])
            resume = f"Last-Event-ID: {self._position}\r\n" if self._position else ""
            writer.write(f"GET /events?{query} HTTP/1.1\r\nHost: test\r\n{resume}\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200 "):
                self.faults.append(f"{self.name}: {head!r}")
                return
            fields: dict[str, str] = {}
            while (line := await reader.readline()).endswith(b"\n"):
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name:
                    fields[name] = value
                elif "data" in fields:
                    event: Json = {"op": fields.get("event", "message"), **json.loads(fields["data"])}
                    if fields.get("id", event.get("position")) != event.get("position"):
                        self.faults.append(f"{self.name}: the id is not the position: {fields}")
                    yield event
                    fields = {}
                else:
                    fields = {}
        finally:
            writer.transport.abort()


class Account:
    """Everything that was answered, against what each subscriber has heard."""

    def __init__(self, publishers: Sequence[Publisher], subscribers: Sequence[Subscriber]) -> None:
        self.answered = {message: at for publisher in publishers for message, at in publisher.answered.items()}
        self._subscribers = subscribers
        self._by_number = {at.id.number: message for message, at in self.answered.items()}

    def faults(self, upto: dict[str, int]) -> list[str]:
        """Return everything that is wrong, of the messages up to a number in each channel."""
        return [fault for each in self._subscribers for fault in (*each.faults, *self._faults_of(each, upto))]

    def _faults_of(self, subscriber: Subscriber, upto: dict[str, int]) -> Iterator[str]:
        for number, (channel, publisher, serial) in subscriber.messages.items():
            meant = self._by_number.get(number)
            if meant is not None and meant != (channel, publisher, serial):
                yield f"{subscriber.name}: {number} is {channel} {publisher} {serial}, and was answered as {meant}"
        for message, at in self.answered.items():
            number, channel = at.id.number, message.channel
            is_due = channel in subscriber.begins and subscriber.begins[channel] < number <= upto[channel]
            if is_due and number not in subscriber.messages and not _is_told(subscriber.heard[channel], number):
                yield f"{subscriber.name}: lost without a word: {message} at {number}"

    def summary(self) -> str:
        """Return what it was all about, in one line."""
        subscribers = self._subscribers
        heard = sum(len(each.messages) for each in subscribers)
        gaps = sum(heard.count(GAP) for each in subscribers for heard in each.heard.values())
        connections, recovered = sum(s.connections for s in subscribers), sum(s.recovered for s in subscribers)
        return (
            f"{len(self.answered)} answered, {heard} heard by {len(subscribers)} subscribers on {connections} connections, "
            f"{recovered} of them recovered, {gaps} gaps"
        )


def _is_told(heard: list[int], number: int) -> bool:
    """True when a gap lies between what was heard before `number` and what was heard behind it."""
    gap_since = False
    for each in heard:
        if each == GAP:
            gap_since = True
        elif each > number:
            return gap_since
        else:
            gap_since = False
    return gap_since


def _line(message: Json) -> bytes:
    return json.dumps(message).encode() + b"\n"


async def _until(reader: asyncio.StreamReader, wanted: Callable[[Json], bool]) -> Json:
    """Return the first message that is wanted. Raises: EOFError, TimeoutError."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while line := await reader.readline():
            if line != b"\n" and wanted(found := json.loads(line)):
                result: Json = found
                return result
    raise EOFError
