"""The hash slots of a cluster: which tag leads to which, and which node has them.

https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/ : of a key that holds `{tag}` only the tag is hashed.
"""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from itertools import product
from string import ascii_lowercase, digits
from typing import NamedTuple
from urllib.parse import urlsplit

SLOTS = 16384
SHARDS_MAX = 64
TAG_CHARS = 2


class Address(NamedTuple):
    """A node of the cluster: where clients reach it."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, port: int) -> Address:
        """Read `host[:port]` of a URL; `port` is that of who names none. Raises: ValueError, without what was found."""
        try:
            parts = urlsplit(f"//{text}")
            host, found = parts.hostname, parts.port
        except ValueError:  # its text may be the rest of a password
            host, found = None, 0
        if not host or found == 0 or parts.path or parts.query:
            raise ValueError("found no host, or a port out of range or not a number, want host:port[,host:port...]")
        return cls(host, found or port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def slot_of(tag: bytes) -> int:
    """Return the slot of every key that has `tag` in its first braces."""
    return crc_hqx(tag, 0) % SLOTS  # CRC-16/XMODEM


def slot_of_key(key: bytes) -> int:
    """Return the slot of any key or sharded channel."""
    start = key.find(b"{")
    end = key.find(b"}", start + 1)
    return slot_of(key[start + 1 : end] if -1 < start < end - 1 else key)


@lru_cache(maxsize=SHARDS_MAX)
def tags(shards: int) -> tuple[bytes, ...]:
    """Return a tag for each shard, such that their slots are spread evenly: the same in every process, for ever.

    A cluster deals out its slots in ranges; the slot of each shard is next to the middle of its share of them.
    """
    words = ("".join(letters).encode() for letters in product(digits + ascii_lowercase, repeat=TAG_CHARS))
    slots = {slot_of(tag): tag for tag in words}
    wanted = [(2 * shard + 1) * SLOTS // (2 * shards) for shard in range(shards)]
    return tuple(slots[min(slots, key=partial(_distance, want))] for want in wanted)


def _distance(want: int, slot: int) -> tuple[int, int]:
    return abs(slot - want), slot


def owners(reply: object, slots: Sequence[int], asked: Address) -> list[Address | None]:
    """Return who has each of `slots`, from the reply to CLUSTER SLOTS of the node that was `asked`; None: nobody.

    Raises: ValueError for a reply that is none.
    """
    if not isinstance(reply, list):
        raise ValueError(f"found {reply!r:.100}, want an answer to CLUSTER SLOTS")
    ranges = list(_ranges(reply, asked))
    return [next((at for first, last, at in ranges if first <= slot <= last), None) for slot in slots]


def _ranges(reply: Iterable[object], asked: Address) -> Iterable[tuple[int, int, Address]]:
    for each in reply:
        match each:
            case [int() as first, int() as last, [host, int() as port, *_], *_]:
                known = host.decode() if isinstance(host, bytes) else ""
                # Empty: the same as that we have asked. "?": it does not know its own name yet.
                yield first, last, Address(asked.host if known in ("", "?") else known, port)
            case _:
                raise ValueError(f"found {each!r:.100}, want a range of slots and its nodes")
