"""Durable channels: every message has a position, and is kept for a while.

A position is `epoch-milliseconds-number`. The number is one sequence for the whole Redis, so one position covers all
channels of a connection; milliseconds, which never run backwards, let a stream be trimmed by age; the epoch is drawn
when Redis has no clock, which is when it has lost its data. On the bus a message is

    b'<position> <id of the one before it in its channel> <members>'      durable
    b'<members>'                                                          live-only: members begin with a comma

where members are the JSON members that follow the position in every wire format. Nobody parses JSON to deliver.
"""

from __future__ import annotations

import hashlib
import random
from importlib.resources import files
from typing import NamedTuple

import orjson

from router.message import Message

PUBLISH = (files("router") / "publish.lua").read_bytes()
NOW = (files("router") / "now.lua").read_bytes()
PUBLISH_SHA = hashlib.sha1(PUBLISH).hexdigest().encode()  # as Redis names scripts: EVALSHA

RESUME_SECONDS_MAX = 7 * 24 * 3600  # how long it is remembered that a channel had a last message


class Retention(NamedTuple):
    """What a durable channel keeps."""

    messages_max: int = 1000
    seconds_max: int = 3600


class Keys:
    """Where the journal is kept in Redis, below a prefix."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix.encode()
        self.clock = self.prefix + b"$clock"
        self._stream = self.prefix + b"$stream:"
        self._last = self.prefix + b"$last:"

    def channel(self, name: bytes) -> bytes:
        """Return what the channel `name` is called on the bus."""
        return self.prefix + name

    def publish_args(self, name: bytes, members: bytes, retention: Retention) -> tuple[bytes, ...]:
        """Return what follows the script in EVAL or EVALSHA: the count of keys, keys, arguments."""
        return (
            b"3",
            self.clock,
            self._stream + name,
            self._last + name,
            self.prefix + name,
            members,
            b"%d" % retention.messages_max,
            b"%d" % retention.seconds_max,
            b"%d" % RESUME_SECONDS_MAX,
            fresh_epoch(),
        )

    def now_args(self) -> tuple[bytes, ...]:
        """Return what follows the script NOW in EVAL."""
        return (b"1", self.clock, fresh_epoch())


def fresh_epoch() -> bytes:
    """Draw the name of an epoch, used only where Redis has none."""
    return b"%08x" % random.getrandbits(32)  # reseeded in every forked worker


def members(sender: str | None, at_ms: int, data: bytes) -> bytes:
    """Return the members of a message: who sent it (None: a backend), when, and its data as compact JSON."""
    return b',"from":%b,"at":%d,"data":%b' % (b"null" if sender is None else orjson.dumps(sender), at_ms, data)


def decode(name: bytes, payload: bytes, head: bytes) -> Message:
    """Return the message that came for channel `name`; a live-only one carries `head`, the newest position seen here.

    Raises: ValueError when it is not one of ours.
    """
    if payload[:1] == b",":
        return Message(b"message", name, head, payload)
    position, _before, rest = payload.split(b" ", 2)
    return Message(b"message", name, position, rest)


def published_at(message: Message) -> float:
    """Return when a message was published, in seconds since the epoch; 0.0 when its members do not say."""
    # A quote inside a user's name is escaped, so the first `"at":` is the member.
    start = message.members.find(b'"at":') + 5
    if start < 5:
        return 0.0
    return int(message.members[start : message.members.index(b",", start)]) / 1000
