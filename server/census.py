"""How many connections an address, a user and all together have on this host: a table a worker, which it alone writes.

SO_REUSEPORT spreads one address over all workers, so that none of them knows how many connections it has. Each
counts its own in its part of a map that all share, and adds up the parts when it has to know. There is no lock: an
entry is one aligned store of eight bytes, and a reader sees it before or after. So a count may be off by those who come to
other workers in the same few microseconds, and by nothing else.

A key is 40 bits of a hash with a secret of the supervisor (siphash, PYTHONHASHSEED), which all its children share. Two
of a million keys are one with a probability of one in a million, and a table of 20,000 connections takes half a megabyte.
"""

from __future__ import annotations

import mmap

_COUNT_BITS = 24
_COUNT_MASK = (1 << _COUNT_BITS) - 1
_KEY_MASK = (1 << 40) - 1
SLOTS_MAX = 1 << 23  # 64 MiB a worker: 3.6 million connections of it

ALL = 1  # the key of all connections together


def key_of(name: str) -> int:
    """Return the key of a name; names of different kinds begin differently."""
    return hash(name) & _KEY_MASK or ALL


class Census:
    """A hash table a worker with linear probing; a slot holds key and count, or is 0. `claim` says which is ours."""

    def __init__(self, workers: int, keys_max: int) -> None:
        """Make room for `keys_max` keys of each worker. To be called before the first fork."""
        slots = min(SLOTS_MAX, 1 << max(9, (2 * keys_max - 1).bit_length()))  # a page at least, and half of it empty
        self._mask = slots - 1
        self._used = 0
        self._used_max = slots * 7 // 8
        self._maps = [mmap.mmap(-1, slots * 8) for _ in range(workers)]
        self._parts = [memoryview(each).cast("Q") for each in self._maps]
        self._own = self._parts[0]

    def claim(self, worker: int) -> None:
        """Write the part of `worker` from here on. It begins empty: the connections of one that died are gone."""
        self._maps[worker].madvise(mmap.MADV_REMOVE)
        self._own, self._used = self._parts[worker], 0

    def count(self, key: int) -> int:
        """Return how many have been added and not discarded, by all workers."""
        mask, total = self._mask, 0
        for part in self._parts:
            at = key & mask
            while entry := part[at]:
                if entry >> _COUNT_BITS == key:
                    total += entry & _COUNT_MASK
                    break
                at = (at + 1) & mask
        return total

    def add(self, key: int) -> bool:
        """Count one more; False when there is no room, and it is not counted."""
        at = self._find(key)
        entry = self._own[at]
        if not entry:
            if self._used >= self._used_max:
                return False
            self._used += 1
            entry = key << _COUNT_BITS
        self._own[at] = entry + 1
        return True

    def discard(self, key: int) -> None:
        """Count one less."""
        at = self._find(key)
        entry = self._own[at]
        if entry & _COUNT_MASK > 1:
            self._own[at] = entry - 1
        elif entry:
            self._used -= 1
            self._remove(at)

    def _find(self, key: int) -> int:
        """Return the slot of `key`, or the empty one where it would be."""
        own, mask = self._own, self._mask
        at = key & mask
        while (entry := own[at]) and entry >> _COUNT_BITS != key:
            at = (at + 1) & mask
        return at

    def _remove(self, hole: int) -> None:
        """Empty a slot, and move up those behind it that could not have their own place (Knuth, 6.4, algorithm R)."""
        own, mask = self._own, self._mask
        at = (hole + 1) & mask
        while entry := own[at]:
            home = (entry >> _COUNT_BITS) & mask
            if (at - home) & mask >= (at - hole) & mask:
                own[hole] = entry
                hole = at
            at = (at + 1) & mask
        own[hole] = 0
