"""Leaving politely: every session is told to go at its own moment, spread evenly over a window."""

from __future__ import annotations

import random
from collections.abc import Iterable

from server.session import CLOSED, Session


class Drain:
    """The order in which sessions leave. Times are seconds on the caller's clock."""

    def __init__(self, sessions: Iterable[Session], now: float, window_s: float) -> None:
        self._leaving = list(sessions)
        random.shuffle(self._leaving)  # neighbours in the table came together; they should not come back together
        self._count = len(self._leaving)
        self._began_at = now
        self._window_s = window_s

    def due(self, now: float, most: int) -> list[Session]:
        """Return at most `most` sessions whose moment has come."""
        elapsed = 1.0 if self._window_s <= 0 else min(1.0, (now - self._began_at) / self._window_s)
        stay = self._count - int(self._count * elapsed)
        due: list[Session] = []
        while len(self._leaving) > stay and len(due) < most:
            session = self._leaving.pop()
            if session.fd != CLOSED:
                due.append(session)
        return due

    def __len__(self) -> int:
        """How many have not been told yet; some of them may have left by themselves."""
        return len(self._leaving)
