"""What client processes show while they work: a row of counters each in shared memory, so that nobody has to be asked."""

from __future__ import annotations

import mmap
from typing import TypeAlias

Row: TypeAlias = memoryview
"""Live connections, messages received, heartbeats: signed, eight bytes each. One process writes it."""

COLUMNS = 3
ROW_BYTES = 64  # a line of the processor's cache, so that writers do not slow each other


class Board:
    """An anonymous map that forked processes share with the one that made it."""

    def __init__(self, rows: int) -> None:
        self._memory = memoryview(mmap.mmap(-1, rows * ROW_BYTES))
        self._rows = [self.row(place) for place in range(rows)]

    def row(self, place: int) -> Row:
        """Return the row of process number `place`, to be written or read."""
        start = place * ROW_BYTES
        return self._memory[start : start + 8 * COLUMNS].cast("q")

    def total(self) -> tuple[int, int, int]:
        """Return the sums of the columns."""
        live, received, heartbeats = (sum(row[column] for row in self._rows) for column in range(COLUMNS))
        return live, received, heartbeats
