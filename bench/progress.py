"""How far a long step is: a bar with rate and remaining time on a terminal, a plain line now and then otherwise."""

from __future__ import annotations

import sys
import time
from typing import TextIO

TERMINAL_SECONDS, PLAIN_SECONDS = 0.2, 10.0
BAR = 30


class Progress:
    """One step of so many; `show` may be called as often as one likes."""

    def __init__(self, label: str, goal: int, stream: TextIO | None = None) -> None:
        self._label, self._goal = label, max(1, goal)
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._began = self._said = time.monotonic()

    def show(self, done: int, note: str = "") -> None:
        """Say that `done` of the goal is there."""
        now = time.monotonic()
        if now - self._said < (TERMINAL_SECONDS if self._terminal else PLAIN_SECONDS):
            return
        self._said = now
        text = progress_line(self._label, done, self._goal, now - self._began) + note
        if self._terminal:
            filled = BAR * min(done, self._goal) // self._goal
            self._stream.write(f"\r\x1b[K[{'#' * filled}{'.' * (BAR - filled)}] {text}")
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def end(self) -> None:
        """Leave the terminal's line empty for what comes next."""
        if self._terminal:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def progress_line(label: str, done: int, goal: int, seconds: float) -> str:
    """Return what a person reads: how many, how fast, and how long it will take at that rate."""
    rate = done / seconds if seconds > 0 else 0.0
    left = f", {(goal - done) / rate:,.0f} s left" if rate and done < goal else ""
    return f"{label}: {done:,} of {goal:,} ({100 * done // goal} %), {rate:,.0f}/s{left}"
