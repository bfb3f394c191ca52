"""Filling a hole: what a worker has missed is read from the journal before anything later is delivered.

While a repair is under way every message that arrives is held, on all channels: one position covers all channels of a
connection, so what was missed on one must go out before what is new on another. It ends with everything in order, or,
for a channel that no longer holds what was missed, with a gap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from router.message import Message
from router.position import Id, Position
from router.replay import Missed, Reader

NAMES_PER_READ = 500
BYTES_MAX = 64 * 1024 * 1024  # of missed messages; past it, the channels left are told of a gap


class Repair:
    """One repair: of `names`, from the position `after` on, up to `upto`.

    `done(messages)` gets what was missed, in order, gaps first, or None when the bus failed again; then it is over.
    """

    def __init__(
        self, reader: Reader, names: Iterable[bytes], after: Position, upto: Position,
        done: Callable[[list[Message] | None], None],
    ) -> None:  # fmt: skip
        self._reader = reader
        self._names = iter(names)
        self._after = after
        self._upto = upto
        self._done = done
        self._found: list[Message] = []
        self._bytes = 0
        self._gaps: list[bytes] = []
        self._starts: dict[bytes, Id] = {}  # of channels that had a message since
        self._missed: Missed | None = None

    def start(self) -> None:
        """Begin: find out which channels had a message at all, a bounded number of names at a time."""
        names = list(islice(self._names, NAMES_PER_READ))
        if names:
            self._reader.lasts(names, lambda lasts: self._lasts(names, lasts))
        else:
            self._missed = Missed(self._reader, self._after.epoch, self._starts, self._upto.id)
            self._read()

    def _lasts(self, names: Sequence[bytes], lasts: list[Id | None] | Exception) -> None:
        if isinstance(lasts, Exception):
            self._done(None)
            return
        for name, last in zip(names, lasts, strict=True):
            if last is not None and last.number > self._after.id.number:
                self._starts[name] = self._after.id
        self.start()

    def _read(self) -> None:
        assert self._missed is not None
        if self._missed.is_done:
            self._finish()
        else:
            self._missed.step(self._step)

    def _step(self, found: list[Message] | Exception) -> None:
        assert self._missed is not None
        if isinstance(found, Exception):
            self._done(None)
            return
        self._found += found
        self._bytes += sum(len(message.members) for message in found)
        if self._bytes > BYTES_MAX:
            self._gaps = self._missed.abandon()
            self._finish()
        else:
            self._read()

    def _finish(self) -> None:
        assert self._missed is not None
        names = dict.fromkeys([*self._missed.gaps, *self._gaps])
        gaps = [Message(b"gap", name, str(self._after).encode(), b"") for name in names]
        self._done(gaps + self._found)
