"""A position: which message of the whole stream a connection has got to. Opaque to clients, `parse` is the only reader.

    epoch-milliseconds-number                               everything up to that message
    epoch-milliseconds-number~channel-milliseconds-number   the same, but of one channel less: its past is being sent

The number is one sequence over all channels of a Redis. Milliseconds go with it and never run backwards, so that
"ms-number" is an id by which streams are kept and trimmed. The epoch names the life of the sequence: it changes when Redis
has lost data. The second form makes a late subscription with a past exact: in its other channels the connection is further.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import NamedTuple

from router.outcome import Refused

_FORM = re.compile(r"([0-9a-f]{8})-(\d{1,15})-(\d{1,18})(?:~([A-Za-z0-9_-]{2,340})-(\d{1,15})-(\d{1,18}))?", re.ASCII)


class Id(NamedTuple):
    """The id of a message in the streams of Redis.

    `number` alone gives the order of an epoch: the time in an id may be that of a look at the clock, and a master that takes over
    may have a clock that is behind.
    """

    ms: int
    number: int

    def __lt__(self, other: tuple[int, ...]) -> bool:
        return self.number < other[1]

    def __gt__(self, other: tuple[int, ...]) -> bool:
        return self.number > other[1]

    def __le__(self, other: tuple[int, ...]) -> bool:
        return self.number <= other[1]

    def __ge__(self, other: tuple[int, ...]) -> bool:
        return self.number >= other[1]

    def __bytes__(self) -> bytes:
        return b"%d-%d" % self


START = Id(0, 0)


class Behind(NamedTuple):
    """The one channel that is behind the others, and where it is."""

    channel: bytes
    id: Id


class Position(NamedTuple):
    """Where a connection's stream is."""

    epoch: str
    id: Id
    behind: Behind | None = None

    def __str__(self) -> str:
        text = f"{self.epoch}-{self.id.ms}-{self.id.number}"
        if self.behind is None:
            return text
        channel, id = self.behind
        return f"{text}~{urlsafe_b64encode(channel).decode().rstrip('=')}-{id.ms}-{id.number}"

    def but(self, channel: bytes, id: Id) -> Position:
        """Return this position with `channel` only at `id`."""
        return self._replace(behind=Behind(channel, id))

    def of(self, channel: bytes) -> Id:
        """Return where the stream of one channel is."""
        return self.behind.id if self.behind is not None and self.behind.channel == channel else self.id


def parse(text: str | bytes | None) -> Position | None:
    """Read a position; None when it is none, or none of ours."""
    found = _FORM.fullmatch(text.decode("ascii", "replace") if isinstance(text, bytes) else text or "")
    if found is None:
        return None
    epoch, ms, number, channel, behind_ms, behind_number = found.groups()
    id = Id(int(ms), int(number))
    if channel is None:
        return Position(epoch, id)
    behind = Id(int(behind_ms), int(behind_number))
    try:
        name = urlsafe_b64decode(channel + "=" * (-len(channel) % 4))
    except ValueError:
        return None
    return Position(epoch, id, Behind(name, behind)) if behind.number <= id.number else None


def later(one: bytes, other: bytes) -> bytes:
    """Return the position that was given out later: of one epoch that with the higher number, of two that with the later time.

    What is no position is the earlier one.
    """
    first, second = parse(one), parse(other)
    if first is None or second is None:
        return other if first is None else one
    if first.epoch == second.epoch:
        return other if second.id > first.id else one
    return other if second.id.ms > first.id.ms else one


def read(text: bytes) -> Position:
    """Read a position that Redis has sent. Raises: Refused when it is none: somebody else has written below our prefix."""
    found = parse(text)
    if found is None:
        raise Refused(f"its $clock holds no position of ours: {text!r:.100}")
    return found


def before(text: bytes) -> Position:
    """Return the position just before that of a message. Raises: ValueError."""
    found = parse(text)
    if found is None:
        raise ValueError(f"no position: {text!r:.100}")
    return found._replace(id=Id(found.id.ms, found.id.number - 1))


def id_of(text: bytes) -> Id:
    """Read an id that Redis has sent. Raises: ValueError when it is none."""
    ms, _, number = text.partition(b"-")
    return Id(int(ms), int(number))
