"""When tokens expire: four bytes a descriptor, looked through a slice a second."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

_NEVER = 0xFFFF_FFFF
_SLICE = 65_536  # descriptors a tick: about a millisecond


class Expiry:
    """The second at which each descriptor's token expires. Times are seconds since the epoch."""

    def __init__(self) -> None:
        self._at = array("I")
        self._next = 0

    def set(self, fd: int, at: float | None) -> None:
        """Note that the session on `fd` ends at `at`; None: never. To be called for every new session."""
        if at is None and fd >= len(self._at):
            return
        if fd >= len(self._at):
            self._at.extend([_NEVER] * (fd + 1 - len(self._at)))
        self._at[fd] = _NEVER if at is None else min(int(at), _NEVER)

    def due(self, now: float) -> Iterator[int]:
        """Yield the descriptors of the next slice that are over their time, each once."""
        start, self._next = self._next, self._next + _SLICE
        if self._next >= len(self._at):
            self._next = 0
        part = self._at[start : start + _SLICE]
        if part and min(part) <= now:
            for offset, at in enumerate(part):
                if at <= now:
                    self._at[start + offset] = _NEVER
                    yield start + offset
