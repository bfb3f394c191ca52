"""Leaving politely: every session is told to go at its own moment, spread evenly over a window."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from typing import NamedTuple

from server.session import CLOSED, Session

SAID_SECONDS = 5.0  # between two lines about the progress of a drain
SAID_SHARE = 0.1  # or sooner, when so much of it is done,
SAID_SECONDS_MIN = 2.0  # but not more often


class Window(NamedTuple):
    """When a server is left, by as many `sessions` as it had: from `began_at`, in seconds of CLOCK_MONOTONIC, for `seconds`."""

    began_at: float
    seconds: float
    sessions: int = 0

    def share(self, now: float) -> float:
        """How much of it has passed, 0.0 to 1.0."""
        return 1.0 if self.seconds <= 0 else min(1.0, max(0.0, (now - self.began_at) / self.seconds))

    def seconds_left(self, now: float) -> float:
        """Until its end; 0.0 behind it."""
        return max(0.0, self.began_at + self.seconds - now)


class Drain:
    """The order in which the sessions of one worker leave. Times are seconds on the caller's clock."""

    def __init__(self, sessions: Iterable[Session], window: Window) -> None:
        self._leaving = list(sessions)
        random.shuffle(self._leaving)  # neighbours in the table came together; they should not come back together
        self._count = len(self._leaving)
        self._window = window
        # The one session of each of a hundred workers has a moment of its own, too: without it all would be told at the end.
        self._phase = random.random()

    def due(self, now: float, most: int) -> list[Session]:
        """Return at most `most` sessions whose moment has come."""
        share = self._window.share(now)
        stay = 0 if share >= 1.0 else self._count - math.floor(self._count * share + self._phase)
        due: list[Session] = []
        while len(self._leaving) > stay and len(due) < most:
            session = self._leaving.pop()
            if session.fd != CLOSED:
                due.append(session)
        return due

    def __len__(self) -> int:
        """How many have not been told yet; some of them may have left by themselves."""
        return len(self._leaving)


class Progress:
    """What the drain of all workers has come to, and when that is worth a line in the log."""

    def __init__(self, window: Window) -> None:
        self.window = window
        self._said_at = window.began_at
        self._said_left = window.sessions

    def is_worth_saying(self, now: float, left: int) -> bool:
        """True every 5 s, and sooner when a tenth of all have left since; then it counts as said."""
        is_news = self._said_left - left >= max(1.0, SAID_SHARE * self.window.sessions)
        if now - self._said_at < (SAID_SECONDS_MIN if is_news else SAID_SECONDS):
            return False
        self._said_at, self._said_left = now, left
        return True
