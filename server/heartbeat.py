"""Heartbeats: a wheel whose slots are the descriptors themselves.

Walking the pool's table once in every period sends each session a heartbeat at its own moment and spreads all of them
evenly, with one timer for a worker and no memory at all for a connection.
"""

from __future__ import annotations

from server.pool import Pool
from server.session import Session

_CHUNK = 128  # descriptors a tick: about a millisecond
TICK_SECONDS_MAX = 0.5


class Heartbeat:
    """Sends every session of `pool` its codec's heartbeat once in `period_s` seconds."""

    def __init__(self, pool: Pool, period_s: float) -> None:
        self._pool = pool
        self._period_s = period_s
        self._next = 0  # the descriptor whose turn it is
        self._lap_began_at = pool.now()

    def tick(self) -> float:
        """Send what is due, at most `_CHUNK`; return the seconds until the next tick."""
        peers = self._pool.peers
        elapsed_s = self._pool.now() - self._lap_began_at
        due = min(len(peers), int(len(peers) * elapsed_s / self._period_s))
        end = min(due, self._next + _CHUNK)
        for peer in peers[self._next : end]:
            if isinstance(peer, Session) and peer.backlog is None:
                peer.offer(peer.lane.codec.HEARTBEAT)
        self._next = end
        if end == len(peers):
            self._next = 0
            # Whole laps that a worker has missed while it stood still are not made up for: one is as good as many.
            self._lap_began_at += self._period_s * max(1, elapsed_s // self._period_s)
        if end < due:
            return 0.0
        return min(TICK_SECONDS_MAX, self._period_s * _CHUNK / len(peers) * 0.9)  # a full chunk, seldom more
