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
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlencode

from router import vector
from router.vector import Vector

Json = dict[str, Any]
Address = tuple[str, int]

DEADLINE_SECONDS = 25.0
BYTES_MAX = 1 << 20  # of a line
CATCH_UP_SECONDS = 25.0


class Stamp(NamedTuple):
    """The id of a message, ordered by time first: over epochs, numbers are given out again."""

    ms: int
    number: int


GAP = Stamp(-1, -1)  # in the list of what a subscriber heard on a channel


class Sites(NamedTuple):
    """Where the servers are: as many TCP addresses as HTTP ones."""

    tcp: Sequence[Address]
    http: Sequence[Address]
    shards: int = 1  # of the cluster behind them

    def read(self, text: str) -> Vector:
        """Read a position that a server has sent."""
        found = vector.parse(text, self.shards)
        assert found is not None, f"no position: {text!r}"
        return found

    def stamp(self, text: str, channel: str) -> Stamp:
        """Return where a position is on one channel."""
        return Stamp(*self.read(text).of(channel.encode()))


class Answered(NamedTuple):
    """A message that a publisher was answered for."""

    channel: str
    publisher: str
    serial: int


class Publisher:
    """Publishes numbered messages, one after the other.

    One that is `persistent` sends again what was not confirmed, with the same key, until it is; another counts it as sent
    perhaps, and goes on.
    """

    def __init__(
        self, name: str, sites: Sites, channels: Sequence[str], rng: random.Random, *, persistent: bool
    ) -> None:
        self.name = name
        self.answered: dict[Answered, Stamp] = {}
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
                self.answered[message] = self._sites.stamp(answer["position"], message.channel)
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

    async def say_last(self, channel: str) -> Stamp:
        """Publish until one message is answered, and return its id."""
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
        self.heard: dict[str, list[Stamp]] = {channel: [] for channel in channels}  # ids, and GAPs among them
        self.messages: dict[tuple[str, Stamp], tuple[str, int]] = {}  # channel, id -> publisher, serial
        self.begins: dict[str, Stamp] = {}
        self.faults: list[str] = []
        self.connections = 0
        self.recovered = 0
        self.settled = False  # no more cuts
        self._sites, self._rng = sites, rng
        self._position: str | None = None
        self._reached: dict[str, Stamp] = {}
        self._late: str | None = None  # a channel that is subscribed to only after the greeting
        self._since: str | None = None  # and the position that it goes on from

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
        elif op == "subscribed":
            self._subscribed(event)
        elif op == "close" and not event["reconnect"]:
            self.faults.append(f"{self.name} was sent away for good: {event}")

    def _connected(self, event: Json) -> None:
        asked, self._position = self._position, None
        if event["recovered"]:
            self.recovered += asked is not None
        if not asked or event["position"] != asked:  # not a resume: it begins somewhere else
            if asked and event["recovered"]:
                self.faults.append(f"{self.name}: asked {asked}, greeted {event}")
            for channel in self._present():
                self.heard[channel].append(GAP)
        self._reached = {}
        self._keep(event["position"])
        if event["position"]:
            for channel in self._present():
                self.begins.setdefault(channel, self._of(event["position"], channel))

    def _subscribed(self, event: Json) -> None:
        channel, self._late = event["channel"], None
        if not event["recovered"] or self._since is None:
            self.heard[channel].append(GAP)
        if event["position"]:
            self.begins.setdefault(channel, self._of(event["position"], channel))
            self._keep(event["position"])

    def _present(self) -> list[str]:
        """The channels that it is subscribed to by now."""
        return [channel for channel in self.channels if channel != self._late]

    def _message(self, event: Json) -> None:
        channel = event["channel"]
        if channel not in self.heard:
            return  # its own
        id = self._of(event["position"], channel)
        if (channel, id) in self.messages:
            self.faults.append(f"{self.name}: twice: {event}")
        earlier = max(self.heard[channel], default=GAP)
        if id <= earlier:
            self.faults.append(f"{self.name}: {id} behind {earlier} on {channel}")
        self.heard[channel].append(id)
        self.messages[channel, id] = (event["data"]["publisher"], event["data"]["serial"])
        self._keep(event["position"])

    def _of(self, text: str, channel: str) -> Stamp:
        return self._sites.stamp(text, channel)

    def _keep(self, text: str) -> None:
        """Keep a position; on one connection none of its channels ever goes back."""
        for channel in self._present() if text else ():
            id = self._of(text, channel)
            reached = self._reached.get(channel, GAP)
            if (
                id < reached and id.number != reached.number
            ):  # the time in it is that of a message, or of a look at the clock
                self.faults.append(f"{self.name}: back on {channel} from {self._reached[channel]} to {text}")
            self._reached[channel] = id
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
            if self._late is None and len(self.channels) > 1 and self._rng.random() < 0.3:
                self._late, self._since = self.channels[-1], self._position
            writer.write(_line({"op": "connect", "user": self.name, "channels": self._present(), **resume}))
            since = {"position": self._since} if self._since else {}  # however far the others have come meanwhile
            subscribe = _line({"op": "subscribe", "id": 1, "channel": self._late, **since})
            if self._late is not None:
                writer.write(subscribe)
            while True:
                line = await reader.readline()
                if not line.endswith(b"\n"):
                    return
                if line == b"\n":
                    continue
                event: Json = json.loads(line)
                yield event
                if event["op"] == "error":  # nobody can say now what it missed there
                    assert event["code"] == 3005, event
                    await asyncio.sleep(min(event["after_ms"], 300) / 1000)
                    writer.write(subscribe)
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

    def __init__(
        self, publishers: Sequence[Publisher], subscribers: Sequence[Subscriber], lost: Collection[Answered] = ()
    ) -> None:
        self._lost = lost
        self.answered = {message: at for publisher in publishers for message, at in publisher.answered.items()}
        self._subscribers = subscribers
        self._by_id = {(message.channel, id): message for message, id in self.answered.items()}

    def faults(self, upto: dict[str, Stamp]) -> list[str]:
        """Return everything that is wrong, of the messages up to an id in each channel."""
        return [fault for each in self._subscribers for fault in (*each.faults, *self._faults_of(each, upto))]

    def _faults_of(self, subscriber: Subscriber, upto: dict[str, Stamp]) -> Iterator[str]:
        for at, (publisher, serial) in subscriber.messages.items():
            meant = self._by_id.get(at)
            if meant is not None and meant != (at[0], publisher, serial):
                yield f"{subscriber.name}: {at} is {publisher} {serial}, and was answered as {meant}"
        for message, id in self.answered.items():
            channel = message.channel
            is_due = channel in subscriber.begins and subscriber.begins[channel] < id <= upto[channel]
            if (
                is_due
                and (channel, id) not in subscriber.messages
                and not _is_told(subscriber.heard[channel], id, late=message in self._lost)
            ):
                yield f"{subscriber.name}: lost without a word: {message} at {id}"

    def summary(self) -> str:
        """Return what it was all about, in one line."""
        subscribers = self._subscribers
        heard = sum(len(each.messages) for each in subscribers)
        gaps = sum(heard.count(GAP) for each in subscribers for heard in each.heard.values())
        connections, recovered = sum(s.connections for s in subscribers), sum(s.recovered for s in subscribers)
        return (
            f"{len(self.answered)} answered, {heard} heard by {len(subscribers)} subscribers on {connections} connections, "
            f"{recovered} of them recovered, {gaps} gaps, {len(self._lost)} lost by Redis"
        )


def _is_told(heard: list[Stamp], id: Stamp, *, late: bool) -> bool:
    """True when a gap lies between what was heard before `id` and what was heard behind it; `late`: or later."""
    gap_since = False
    if late:
        return GAP in heard[next((index for index, each in enumerate(heard) if each > id), len(heard)) :] or _is_told(
            heard, id, late=False
        )
    for each in heard:
        if each == GAP:
            gap_since = True
        elif each > id:
            return gap_since
        else:
            gap_since = False
    return gap_since


class Chaos(Protocol):
    """What goes wrong."""

    done: list[str]

    async def run(self, seconds: float) -> None:
        """Let one thing after the other go wrong for about so long."""


async def account(
    sites: Sites, chaos: Chaos, channels: Sequence[str], seed: int, seconds: float, crowd: int
) -> Account:
    """Publish, subscribe and cut for `seconds` while `chaos` runs, then settle the account, in which nothing may be wrong."""

    def rng(name: str) -> random.Random:
        return random.Random(f"{seed} {name}")

    publishers = [Publisher(f"p{n}", sites, channels, rng(f"p{n}"), persistent=n % 2 == 0) for n in range(4)]
    subscribers: list[Subscriber] = []
    for number in range(crowd):
        kind = LineSubscriber if number % 2 else EventSubscriber
        some = rng(f"channels {number}").sample(channels, 1 + number % len(channels))
        subscribers.append(kind(f"s{number}", sites, some, rng(f"s{number}")))
    async with asyncio.TaskGroup() as group:
        listening = [group.create_task(subscriber.run(life_seconds=0.8)) for subscriber in subscribers]
        publishing = [group.create_task(publisher.run(pause_seconds=0.02)) for publisher in publishers]
        await chaos.run(seconds)
        for publisher in publishers:
            publisher.stopping = True
        await asyncio.wait(publishing)
        for subscriber in subscribers:
            subscriber.settled = True
        upto = {channel: await publishers[0].say_last(channel) for channel in channels}
        waiting = await _settle(subscribers, upto)
        for task in listening:
            task.cancel()
    lost = getattr(chaos, "lost", lambda _answered: ())
    found = Account(publishers, subscribers, lost({m: at for each in publishers for m, at in each.answered.items()}))
    print(found.summary(), chaos.done)
    faults = found.faults(upto) + waiting
    assert not faults, f"MOORAGE_TEST_SEED={seed}\n" + "\n".join(faults[:20])
    assert len(found.answered) > 100
    assert sum(subscriber.recovered for subscriber in subscribers) > 10
    return found


async def _settle(subscribers: list[Subscriber], upto: dict[str, Stamp]) -> list[str]:
    """Wait until everybody has heard the last message of each channel, or of a gap behind what it heard."""
    lacking: list[str] = []
    until = time.monotonic() + CATCH_UP_SECONDS
    while time.monotonic() < until:
        lacking = [
            f"{each.name} never heard {channel} up to {upto[channel]}, but {each.heard[channel][-3:]}"
            for each in subscribers
            for channel in each.channels
            if (channel, upto[channel]) not in each.messages and each.heard[channel][-1:] != [GAP]
        ]
        if not lacking:
            return []
        await asyncio.sleep(0.05)
    return lacking


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
