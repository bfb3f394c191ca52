"""How often somebody may do something: a token bucket that is one number (GCRA, ITU-T I.371).

The number is the time at which the bucket will be full. When it has passed the entry says nothing any more, and
is forgotten: who is idle costs nothing.
"""

from __future__ import annotations

from collections.abc import Hashable


class Pace:
    """A bucket a key, of `burst` tokens, into which `per_second` come. Times are seconds on the caller's clock."""

    def __init__(self, per_second: float, burst: float) -> None:
        self._interval = 1 / per_second
        self._slack = (max(1.0, burst) - 1) * self._interval
        self._full_at: dict[Hashable, float] = {}  # in order of use

    def __len__(self) -> int:
        """How many keys have an entry."""
        return len(self._full_at)

    def take(self, key: Hashable, now: float) -> float:
        """Take a token and return 0, or return the seconds until there is one."""
        full_at = max(self._full_at.pop(key, now), now)
        wait = full_at - now - self._slack
        if wait > 1e-9:  # sums of floats
            self._full_at[key] = full_at
            return wait
        self._full_at[key] = full_at + self._interval
        return 0.0

    def sweep(self, now: float) -> None:
        """Forget the full ones among those not used for longest; call now and then."""
        while self._full_at:
            key = next(iter(self._full_at))
            if self._full_at[key] > now:
                return
            del self._full_at[key]
