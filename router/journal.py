"""Durable channels: every message has a position, and is kept for a while.

A position is `epoch-milliseconds-number`. The number is one sequence for the whole Redis, so one position covers all
channels of a connection; milliseconds, which never run backwards, let a stream be trimmed by age; the epoch is drawn
when Redis has no clock, or is found out to have lost numbers that it had given out (now.lua). In a cluster all of this is per
shard. On the bus a message is

    b'<position> <id of the one before it in its channel> <members>'      durable
    b'<members>'                                                          live-only: members begin with a comma

where members are the JSON members that follow the position in every wire format. Nobody parses JSON to deliver.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from typing import NamedTuple

import orjson

from router.message import Message
from router.position import Position

PUBLISH = (files("router") / "publish.lua").read_bytes()
_NOW = (files("router") / "now.lua").read_bytes()
_RUN = (files("router") / "run.lua").read_bytes()
_EPOCH = (files("router") / "epoch.lua").read_bytes()
NOW = _RUN + _EPOCH + _NOW
MISSED = (files("router") / "missed.lua").read_bytes()
NEWEST = (files("router") / "newest.lua").read_bytes()
_HOME = _EPOCH + (files("router") / "home.lua").read_bytes()


def _sha(script: bytes) -> bytes:
    """Return what EVALSHA calls a script."""
    return hashlib.sha1(script).hexdigest().encode()


class Dialect(NamedTuple):
    """What the bus is called by the server: its commands, the pushes that they bring, and the scripts that use them."""

    subscribe: bytes
    unsubscribe: bytes
    publish: bytes
    message: bytes
    publishing: bytes  # the script PUBLISH
    publishing_sha: bytes
    now: bytes  # the script NOW


PLAIN = Dialect(b"SUBSCRIBE", b"UNSUBSCRIBE", b"PUBLISH", b"message", PUBLISH, _sha(PUBLISH), NOW)
_COMMENT = re.compile(rb"^--.*\n|[ ]--[ ].*$", re.MULTILINE)
_SPUBLISH = b"local run\n" + _HOME + PUBLISH.replace(b"call('PUBLISH'", b"call('SPUBLISH'")
SHARDED = Dialect(
    b"SSUBSCRIBE",
    b"SUNSUBSCRIBE",
    b"SPUBLISH",
    b"smessage",
    _SPUBLISH,
    _sha(_SPUBLISH),
    _COMMENT.sub(b"", _RUN + _HOME + _NOW),
)
SCRIPTS = {_sha(script): script for script in (PUBLISH, _SPUBLISH, MISSED, NEWEST)}  # as EVALSHA names them
PUBLISH_SHA, MISSED_SHA, NEWEST_SHA = map(_sha, (PUBLISH, MISSED, NEWEST))

RESUME_SECONDS_MAX = 7 * 24 * 3600  # how long it is remembered that a channel had a last message
ONCE_SECONDS_MAX = 300  # how long an idempotency key keeps a message from being published again


class Retention(NamedTuple):
    """What a durable channel keeps."""

    messages_max: int = 1000
    seconds_max: int = 3600


class Keys:
    """Where the journal is kept in Redis, below a prefix; that of a shard ends with its tag in braces."""

    def __init__(self, prefix: str, dialect: Dialect = PLAIN) -> None:
        self.dialect = dialect
        self.prefix = prefix.encode()
        self.clock = self.prefix + b"$clock"
        self._stream = self.prefix + b"$stream:"
        self._last = self.prefix + b"$last:"
        self._once = self.prefix + b"$once:"

    def stream(self, name: bytes) -> bytes:
        """Return the key of the stream that holds the messages of channel `name`."""
        return self._stream + name

    def last(self, name: bytes) -> bytes:
        """Return the key of the id of the last message of channel `name`."""
        return self._last + name

    def channel(self, name: bytes) -> bytes:
        """Return what the channel `name` is called on the bus."""
        return self.prefix + name

    def publish_keys(self, name: bytes, once: bytes = b"") -> tuple[bytes, ...]:
        """Return the keys of one message of channel `name`.

        `once` is its idempotency key, with its sender in front; b"" for none.
        """
        if once:  # a name has no space in it
            return (self._stream + name, self._last + name, b"%b%b %b" % (self._once, name, once))
        return (self._stream + name, self._last + name)

    def publish_args(
        self, retention: Retention, is_once: bool, names: Sequence[bytes], messages: Sequence[bytes]
    ) -> tuple[bytes, ...]:
        """Return what follows the script PUBLISH: the count of keys, keys, arguments.

        `names` are the `publish_keys` of the messages, one behind the other, and `messages` the bus channel and the members of
        each. All are kept alike: `is_once` tells whether they have idempotency keys.
        """
        return (
            b"%d" % (1 + len(names)),
            self.clock,
            *names,
            *_settings(retention, ONCE_SECONDS_MAX if is_once else 0),
            fresh_epoch(),
            *messages,
        )

    def now_args(self, known: Position | None) -> tuple[bytes, ...]:
        """Return what follows the script NOW; `known` is the newest position that was ever seen."""
        epoch, number = (known.epoch.encode(), b"%d" % known.id.number) if known else (b"", b"0")
        return (b"1", self.clock, fresh_epoch(), epoch, number)

    def missed_args(self, name: bytes, after: bytes, messages_max: int, bytes_max: int) -> tuple[bytes, ...]:
        """Return what follows the script MISSED; `after` is a position."""
        keys = (b"3", self._stream + name, self._last + name, self.clock)
        return (*keys, after, b"%d" % messages_max, b"%d" % bytes_max)

    def newest_args(self, name: bytes, after: bytes, messages_max: int, bytes_max: int) -> tuple[bytes, ...]:
        """Return what follows the script NEWEST; `after` is an id, or b""."""
        return (b"1", self._stream + name, after, b"%d" % messages_max, b"%d" % bytes_max)


@lru_cache(maxsize=1024)
def _settings(retention: Retention, once_seconds: int) -> tuple[bytes, ...]:
    """Return the arguments of PUBLISH that are the same for many messages."""
    messages_max, seconds_max = retention
    numbers = (messages_max, seconds_max, max(RESUME_SECONDS_MAX, seconds_max), once_seconds)
    return tuple(b"%d" % number for number in numbers)


def fresh_epoch() -> bytes:
    """Draw the name of an epoch, used only where Redis has none."""
    return b"%08x" % random.getrandbits(32)  # reseeded in every forked worker


def members(sender: str | None, at_ms: int, data: bytes) -> bytes:
    """Return the members of a message: who sent it (None: a backend), when, and its data as compact JSON."""
    return b',"from":%b,"at":%d,"data":%b' % (b"null" if sender is None else orjson.dumps(sender), at_ms, data)


def decode(name: bytes, payload: bytes, head: bytes) -> tuple[Message, bytes]:
    """Return the message that came for channel `name`, and the id of the one before it in the channel.

    A live-only message has no one before it, b"", and carries `head`, the newest position seen here.
    Raises: ValueError when it is not one of ours.
    """
    if payload[:1] == b",":
        return Message(b"message", name, head, payload), b""
    position, before, members = payload.split(b" ", 2)
    if members[:1] != b",":
        raise ValueError("no members")
    return Message(b"message", name, position, members), before


def published_at(message: Message) -> float:
    """Return when a message was published, in seconds since the epoch; 0.0 when its members do not say."""
    # A quote inside a user's name is escaped, so the first `"at":` is the member.
    start = message.members.find(b'"at":') + 5
    if start < 5:
        return 0.0
    return int(message.members[start : message.members.index(b",", start)]) / 1000


def number_of(payload: bytes) -> int | None:
    """Return the number of the message in a payload of the bus; None for a live-only one. Raises: ValueError."""
    if payload[:1] == b",":
        return None
    return int(payload[: payload.index(b" ")].rpartition(b"-")[2])
