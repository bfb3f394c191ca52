"""Telling very many channels that something is lacking: a few at a time, the next when those have been sent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Protocol

from router.position import Position
from router.table import Table

GAPS_PER_TURN = 200  # each is a round of the carousel while it is being sent


class Crier(Protocol):
    """The feed, as a notice sees it."""

    def tell_gaps(self, names: Iterable[bytes], dawn: Position, /) -> None:
        """Tell the subscribers of `names` that an epoch begins at `dawn`."""

    def batch(self) -> None:
        """Begin to send."""


class Notice:
    """One notice, that an epoch begins at `at`, to all of `names`, through `crier`; then `done` is called.

    It waits for what it has told to be sent, and for nothing else: there may be no moment in which nothing is being sent, because
    in a cluster the other shards go on. `later` is loop.call_soon.
    """

    def __init__(
        self, at: Position, names: Iterator[bytes], crier: Crier, table: Table, done: Callable[[], None], *,
        later: Callable[..., object],
    ) -> None:  # fmt: skip
        self.at = at
        self._names: Iterator[bytes] | None = names
        self._told: list[bytes] = []  # the last few
        self._crier, self._table, self._done, self._later = crier, table, done, later

    def stop(self) -> None:
        """Tell nobody else, and do not call `done`."""
        self._names = None

    def go_on(self) -> None:
        """Begin, or tell some more."""
        if self._names is None:
            return
        if not any(map(self._table.is_sending, self._told)):
            self._told = list(islice(self._names, GAPS_PER_TURN))
            self._crier.tell_gaps(self._told, self.at)
            self._crier.batch()
            if len(self._told) < GAPS_PER_TURN:
                self._done()
                return
        self._later(self.go_on)
