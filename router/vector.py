"""A position over several shards: how far a connection has got in each. Opaque to clients, `parse` is the only reader.

A Redis that is one server has one shard, and a position there is that of `router.position`, unchanged. In a cluster the channels
are dealt out to shards by a hash of their names, and each shard numbers its own messages. A position names them all: 20
characters a shard, in order, of the base64 alphabet for URLs. So it is made by concatenation, once a message.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from functools import lru_cache
from typing import NamedTuple
from zlib import crc32

from router import position
from router.position import START, Id, Position

PART_CHARS = 20
_MS_BITS, _NUMBER_BITS = 43, 45  # until the year 2248; 12 years of 90,000 messages a second
_PART_BYTES = 15
_ALPHABET = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)

Text = str | bytes | None


def shard_of(channel: bytes, shards: int) -> int:
    """Return the shard that `channel` is in, of so many; the same for ever, in every process."""
    return crc32(channel) % shards


class Vector(NamedTuple):
    """Where a connection's stream is, shard by shard. At most one part is behind in one channel."""

    parts: tuple[Position, ...]

    def __str__(self) -> str:
        return bytes(self).decode()

    def __bytes__(self) -> bytes:
        if len(self.parts) == 1:
            return str(self.parts[0]).encode()
        return join([pack(str(part._replace(behind=None)).encode()) for part in self.parts], self.suffix)

    @property
    def suffix(self) -> bytes:
        """What its text says of the one channel that is behind; b"" when there is none."""
        return b"".join(b"~" + str(part).partition("~")[2].encode() for part in self.parts if part.behind is not None)

    def part(self, channel: bytes) -> Position:
        """Return the position in the shard of `channel`."""
        return self.parts[shard_of(channel, len(self.parts))]

    def of(self, channel: bytes) -> Id:
        """Return where the stream of one channel is."""
        return self.part(channel).of(channel)

    def but(self, channel: bytes, id: Id) -> Vector:
        """Return this position with `channel` only at `id`."""
        return self.at(channel, self.part(channel).but(channel, id))

    def at(self, channel: bytes, part: Position) -> Vector:
        """Return this position with another in the shard of `channel`."""
        return self.having(shard_of(channel, len(self.parts)), part)

    def having(self, shard: int, part: Position) -> Vector:
        """Return this position with another in one shard."""
        return Vector((*self.parts[:shard], part, *self.parts[shard + 1 :]))


def parse(text: Text, shards: int) -> Vector | None:
    """Read a position over so many shards; None when it is none, or none of ours."""
    if shards == 1:
        alone = position.parse(text)
        return None if alone is None else Vector((alone,))
    found = text.decode("ascii", "replace") if isinstance(text, bytes) else text or ""
    packed, tilde, behind = found.partition("~")
    if len(packed) != shards * PART_CHARS:
        return None
    try:
        parts = [unpack(packed[start : start + PART_CHARS]) for start in range(0, len(packed), PART_CHARS)]
    except ValueError:
        return None
    return _with_behind(parts, behind) if tilde else Vector(tuple(parts))


def _with_behind(parts: list[Position], behind: str) -> Vector | None:
    # The highest number there can be: whether it is behind is looked at where it is known to what.
    probe = position.parse(f"00000000-0-{10**18 - 1}~{behind}")
    if probe is None or probe.behind is None:
        return None
    channel, id = probe.behind
    shard = shard_of(channel, len(parts))
    if id > parts[shard].id:
        return None
    parts[shard] = parts[shard].but(channel, id)
    return Vector(tuple(parts))


def join(packed: list[bytes], suffix: bytes = b"") -> bytes:
    """Return the text of a position that has these parts."""
    return b"".join(packed) + suffix


@lru_cache(maxsize=4096)
def pack(text: bytes) -> bytes:
    """Return a position in one shard, `epoch-milliseconds-number`, in 20 characters."""
    epoch, ms, number = text.split(b"-")
    place = (int(epoch, 16) << _MS_BITS | int(ms)) << _NUMBER_BITS | int(number)
    return urlsafe_b64encode(place.to_bytes(_PART_BYTES, "big"))


def unpack(packed: str) -> Position:
    """Read what `pack` has made. Raises: ValueError."""
    if not _ALPHABET.fullmatch(packed):  # the decoder skips what it does not know
        raise ValueError("not of the alphabet")
    place = int.from_bytes(urlsafe_b64decode(packed), "big")
    ms, number = place >> _NUMBER_BITS & ((1 << _MS_BITS) - 1), place & ((1 << _NUMBER_BITS) - 1)
    return Position(f"{place >> _MS_BITS + _NUMBER_BITS:08x}", Id(ms, number))


def nowhere(shards: int) -> Vector:
    """Return the position of somebody who has never been in any shard."""
    return Vector((Position("00000000", START),) * shards)


NOWHERE = pack(b"00000000-0-0")  # in a shard that has never been reached
