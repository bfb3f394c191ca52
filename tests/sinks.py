"""Subscribers that keep what they are offered: what the tests of the router share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from router.carousel import Carousel
from router.message import Message
from router.table import Channel, Table


class NamedLane:
    """A wire format that says in every frame whose it is, so that a write can be taken apart again."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.encoded = 0

    def encode(self, message: Message) -> bytes:
        self.encoded += 1
        return b"%b %b %b\n" % (self.name, message.channel, message.position)


LINES = NamedLane(b"lines")


class Keeper:
    """A sink that keeps every write, and has no room once it is told so."""

    def __init__(
        self, table: Table, user: str, rooms: Sequence[str] = (), lane: NamedLane = LINES, number: int = 0
    ) -> None:
        self.number = number
        self.user = user
        self.lane = lane
        self.writes: list[bytes] = []
        self.has_room = True
        self.on_offer: Callable[[], None] = lambda: None
        self.channels: tuple[Channel, ...] = table.gather([room.encode() for room in rooms]) if rooms else ()
        table.enter(self)

    def __hash__(self) -> int:
        return self.number  # so that sets are walked in the same order in every run

    def __repr__(self) -> str:
        return f"<{self.user}, {[channel.name.decode() for channel in self.channels]}>"

    def offer(self, frame: bytes) -> bool:
        self.on_offer()
        if self.has_room:
            self.writes.append(frame)
        return self.has_room

    def received(self) -> list[int]:
        """The positions of the messages in all writes; fails where a write is not made of whole frames of its lane."""
        return [position for write in self.writes for position in self._frames(write)]

    def _frames(self, write: bytes) -> Iterator[int]:
        assert write.endswith(b"\n")
        for frame in write[:-1].split(b"\n"):
            lane, _channel, position = frame.split(b" ")
            assert lane == self.lane.name
            yield int(position)


class Clock:
    """A clock that moves only when told to, by hand or by a step at every look."""

    def __init__(self, step: float = 0.0) -> None:
        self.now = 0.0
        self.step = step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


class Worker:
    """A table and a carousel whose slices last `slice_seconds` of a clock of their own; full sinks leave."""

    def __init__(self, slice_seconds: float = 1.0) -> None:
        self.clock = Clock()
        self.table = Table()
        self.full: list[Keeper] = []
        self.seconds: list[float] = []
        self.carousel = Carousel(
            self.table,
            slice_seconds_max=slice_seconds,
            on_full=self.on_full,
            on_done=self.seconds.append,
            clock=self.clock,
        )
        self.published = 0
        self.entered = 0

    def on_full(self, sink: object) -> None:
        assert isinstance(sink, Keeper)
        self.full.append(sink)
        self.table.leave(sink)

    def keeper(self, user: str, *rooms: str, lane: NamedLane = LINES) -> Keeper:
        self.entered += 1
        return Keeper(self.table, user, rooms, lane, self.entered)

    def publish(self, name: str, data: bytes = b',"data":1') -> int:
        """Publish a message to everybody subscribed to `name`; its position counts messages."""
        self.published += 1
        message = Message(b"message", name.encode(), b"%d" % self.published, data)
        if (sole := self.table.sole(name.encode())) is not None:
            self.carousel.post(sole, message)
        elif (channel := self.table.find(name.encode())) is not None:
            self.carousel.add(channel, message)
        return self.published

    def drain(self, turns_max: int = 100_000) -> int:
        """Take turns until nothing is left to do; return how many."""
        for turn in range(1, turns_max + 1):
            if not self.carousel.turn():
                return turn
        raise AssertionError(f"still at it after {turns_max} turns")
