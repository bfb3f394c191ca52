"""The pause before the next try to connect."""

from __future__ import annotations

SECONDS_MIN, SECONDS_MAX = 0.1, 2.0


def backoff(attempt: int, chance: float) -> float:
    """Return the pause in seconds before try `attempt` (from 0); `chance`, 0 to 1, spreads a fleet."""
    return min(SECONDS_MAX, SECONDS_MIN * 2.0 ** min(attempt, 16)) * (0.5 + chance / 2)
