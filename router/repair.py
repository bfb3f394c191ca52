"""Filling a hole: what a worker has missed is read from the journal before anything later is delivered.

While a repair is under way every message that arrives is held, on all channels: one position covers all channels of a
connection, so what was missed on one must go out before what is new on another. It ends with everything in order, or,
for a channel that no longer holds what was missed, with a gap.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from itertools import islice
from typing import NamedTuple

from router.bus import BusDown
from router.message import Message
from router.outcome import Unconfirmed
from router.position import Id
from router.replay import Missed, Reader

log = logging.getLogger("moorage.feed")

NAMES_PER_READ = 500
PAGES_PER_READ = 500  # the probes of the bus go between two reads, and so does everybody else
BYTES_MAX = 64 * 1024 * 1024  # that missed messages take here; past it, the channels left are told of a gap


class Found(NamedTuple):
    """What a repair has found: messages in order, and the channels of which something could not be had."""

    messages: list[Message]
    gaps: list[bytes]


class Repair:
    """One repair: of channels, each behind an id, up to the number of `upto`.

    `done` gets what was found, or None when the bus has failed, which is told by others; then it is over. `later` is
    loop.call_soon: what is at hand must not recurse, nor hold up the loop.
    """

    def __init__(
        self, reader: Reader, epoch: str, behind: Iterable[tuple[bytes, Id]], upto: Id,
        done: Callable[[Found | None], None], *, later: Callable[..., object],
    ) -> None:  # fmt: skip
        self._reader = reader
        self._epoch = epoch
        self._behind = iter(behind)
        self._upto = upto
        self._done = done
        self._later = later
        self._messages: list[Message] = []
        self._gaps: list[bytes] = []
        self._starts: dict[bytes, Id] = {}  # of channels that had a message since
        self._missed: Missed

    def start(self) -> None:
        """Begin: find out which channels had a message at all, a bounded number of names at a time."""
        chunk = dict(islice(self._behind, NAMES_PER_READ))
        if chunk:
            self._reader.lasts(list(chunk), lambda lasts: self._lasts(chunk, lasts))
        else:
            self._missed = Missed(self._reader, self._epoch, self._starts, self._upto, pages_max=PAGES_PER_READ)
            self._read()

    def _lasts(self, chunk: dict[bytes, Id], lasts: list[Id | None] | Exception) -> None:
        if not isinstance(lasts, Exception):
            for (name, after), last in zip(chunk.items(), lasts, strict=True):
                if last is not None and last > after:
                    self._starts[name] = after
        elif self._is_lost(lasts):
            return
        else:
            self._give_up(list(chunk), f"Redis does not say what was missed: {lasts}")
        self.start()

    def _read(self) -> None:
        if self._missed.is_done:
            self._finish()
        else:
            self._missed.step(self._step)

    def _step(self, found: list[Message] | Exception) -> None:
        if not isinstance(found, Exception):
            self._messages += found
            if self._missed.bytes > BYTES_MAX:
                self._give_up(self._missed.abandon(), f"over {BYTES_MAX} bytes were missed")
        elif self._is_lost(found):
            return
        else:
            self._give_up(self._missed.abandon(), f"Redis does not say what was missed: {found}")
        self._later(self._read)

    def _give_up(self, names: list[bytes], why: str) -> None:
        if names:
            log.error("a gap is told on %d channels: %s", len(names), why)
        self._gaps += names

    def _is_lost(self, error: Exception) -> bool:
        """Tell whether the bus has failed; otherwise Redis has refused to say, and may for long."""
        if isinstance(error, BusDown | Unconfirmed):
            self._done(None)
            return True
        return False

    def _finish(self) -> None:
        self._done(Found(self._messages, list(dict.fromkeys([*self._missed.gaps, *self._gaps]))))
