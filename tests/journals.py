"""A journal in a real Valkey, asked without a bus: answers come at once, or one by one when a test says so."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import redis

from router import journal
from router.embedded import Embedded
from router.journal import Keys, Retention
from router.message import Message
from router.outcome import Refused
from router.pipe import Done
from router.position import Position, parse
from router.table import Channel, Table

Command = tuple[bytes, ...]

KEPT = Retention()


def publish_args(
    keys: Keys, name: bytes, members: bytes, retention: Retention = KEPT, once: bytes = b""
) -> tuple[bytes, ...]:
    """What follows the script PUBLISH for one message."""
    return keys.publish_args(retention, once != b"", keys.publish_keys(name, once), (keys.channel(name), members))


class Desk:
    """Answers what a reader asks of the bus: with what Valkey says, when `is_prompt`, or when told to."""

    def __init__(self, server: Embedded) -> None:
        self.client: Any = redis.Redis.from_url(server.url, protocol=3)  # its annotations lack execute_command
        self.client.flushall()
        self.keys = Keys("test:")
        self.is_prompt = True
        self.asked: deque[tuple[Command, Done]] = deque()
        self.lasts: dict[bytes, bytes] = {}  # id of the last message by channel

    def ask(self, command: Command, done: Done) -> None:
        self.asked.append((command, done))
        if self.is_prompt:
            self.answer()

    def answer(self, count: int | None = None) -> None:
        """Answer what was asked, in order: `count` of it, or all, what is asked meanwhile included."""
        while self.asked and count != 0:
            command, done = self.asked.popleft()
            done(self._run(command))
            count = None if count is None else count - 1

    def fail(self, error: Exception) -> None:
        """Answer all that was asked with `error`."""
        while self.asked:
            self.asked.popleft()[1](error)

    def _run(self, command: Command) -> object:
        if command[0] == b"EVALSHA":
            command = (b"EVAL", journal.SCRIPTS[command[1]], *command[2:])
        try:
            return self.client.execute_command(*command)
        except redis.ResponseError as error:
            return Refused(str(error))

    def publish(self, name: bytes, data: bytes = b"1", retention: Retention = KEPT) -> bytes:
        """Publish, and return what goes over the bus."""
        members = b',"from":"alice","at":1700000000000,"data":' + data
        args = publish_args(self.keys, name, members, retention)
        (position,) = self.client.execute_command(b"EVAL", journal.PUBLISH, *args)
        before = self.lasts.get(name, b"0-0")
        self.lasts[name] = position[9:]
        return b"%b %b %b" % (position, before, members)

    def now(self) -> bytes:
        """The position where a subscription would begin."""
        found: bytes = self.client.execute_command(b"EVAL", journal.NOW, *self.keys.now_args(None))
        return found

    def place(self) -> Position:
        """The same, read."""
        found = parse(self.now())
        assert found is not None
        return found

    def close(self) -> None:
        self.client.close()


class TextLane:
    """A wire format that a test can read: op, channel, position."""

    def encode(self, message: Message) -> bytes:
        return b"%b %b %b\n" % (message.op, message.channel, message.position)


TEXT = TextLane()


class Ear:
    """A subscriber that keeps what it hears."""

    lane = TEXT

    def __init__(self, user: str) -> None:
        self.user = user
        self.channels: tuple[Channel, ...] = ()
        self.heard: list[tuple[str, bytes, Position]] = []  # op, channel, position
        self.on_offer: Callable[[], None] = lambda: None

    def enter(self, table: Table, *rooms: bytes) -> Ear:
        """Subscribe."""
        self.channels = table.gather(list(rooms)) if rooms else ()
        table.enter(self)
        return self

    def offer(self, frame: bytes) -> bool:
        for line in frame.splitlines():
            op, channel, position = line.split(b" ")
            found = parse(position)
            assert found is not None, line
            self.heard.append((op.decode(), channel, found))
        return True

    def numbers(self, channel: bytes | None = None) -> list[int]:
        """The numbers of the messages, each in its own channel."""
        return [
            position.of(name).number for op, name, position in self.heard if op == "message" and channel in (None, name)
        ]

    def gaps(self) -> list[bytes]:
        """The channels of the gaps."""
        return [name for op, name, _ in self.heard if op == "gap"]


def number(payload: bytes) -> int:
    """The number of a message on the bus."""
    found = journal.number_of(payload)
    assert found is not None
    return found
