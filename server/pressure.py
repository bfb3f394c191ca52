"""Back-pressure: while more waits for the subscribers of a worker than it wants to hold, Redis is made to wait.

Redis queues for us then, up to its client-output-buffer-limit. Past that it cuts us off, and what was missed is read from the
journal.
"""

from __future__ import annotations

import logging
from typing import Protocol

from server import limits
from server.stats import Stats

log = logging.getLogger("moorage.pressure")


class Bus(Protocol):
    """What can be told to wait."""

    @property
    def paused(self) -> bool:
        """True while it does."""

    def pause(self, paused: bool) -> None:
        """Stop receiving, or go on."""


class Pressure:
    """Pauses the bus of one worker, and says so."""

    def __init__(self, bus: Bus, stats: Stats) -> None:
        self._bus = bus
        self._stats = stats

    def waiting(self, count: int) -> None:
        """So many bytes wait now; called for every batch of messages."""
        if count > limits.WAITING_BYTES_MAX:
            if not self._bus.paused:
                self._stats.bus_pauses += 1
                log.warning("receiving pauses: %d bytes wait for subscribers, %d may", count, limits.WAITING_BYTES_MAX)
            self._bus.pause(True)  # also what has been connected since
        elif self._bus.paused and count < limits.WAITING_BYTES_MAX // 2:
            self._bus.pause(False)
