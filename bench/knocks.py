"""Newcomers, of whom some are refused, and sessions that ping while they come."""

from __future__ import annotations

import os
import re
import select
import time
from array import array
from dataclasses import dataclass, field
from typing import NamedTuple

from bench.clients import CLOSED, READ_BYTES, Clients, Plan, _Opening

ANSWER_SECONDS_MAX = 30.0
LEAVE_SECONDS_MAX = 10.0
NICENESS = 10
_POLITE = re.compile(rb'"code":3012,.*"reconnect":true,"after_ms":[1-9]')
_PONG = re.compile(rb'"op":"pong","id":(\d+)')


class Refusals(NamedTuple):
    """How many of a plan were sent away, and how long the plan took."""

    refused: int
    seconds: float


class Knockers(Clients):
    """Connections that may be sent away: politely, or it is a fault.

    Real ones would be on machines of their own. Here they stand back for those whose latency is measured.
    """

    def __init__(self, control: int | None = None) -> None:
        super().__init__(control)
        os.nice(NICENESS)
        self._leaving: set[int] = set()  # refused, and not yet closed by the server
        self._refused = 0

    def knock(self, plan: Plan) -> Refusals:
        """Open the connections of `plan`; wait until each is answered, and those refused are closed by the server."""
        before, began = self._refused, time.monotonic()
        self.open(plan)
        seconds = time.monotonic() - began
        deadline = time.monotonic() + LEAVE_SECONDS_MAX
        while self._leaving and not self.interrupted and time.monotonic() < deadline:
            self.pump(0.1)
        if self._leaving and not self.interrupted:
            self.faults["refused, and not closed"] += len(self._leaving)
        return Refusals(self._refused - before, seconds)

    def _advance(self, fd: int, event: int) -> None:
        if fd not in self._leaving:
            super()._advance(fd, event)
            return
        try:
            if os.read(fd, READ_BYTES):
                return
        except OSError as error:  # a reset
            self.faults[f"refused, and then: {os.strerror(error.errno or 0)}"] += 1
        self._leaving.discard(fd)
        self._drop(fd)

    def _refuse(self, fd: int, opening: _Opening, reason: str) -> None:
        if not _POLITE.search(reason.encode()):
            super()._refuse(fd, opening, reason)
            return
        self._refused += 1
        opening.settled += 1
        self._leaving.add(fd)

    def _drop(self, fd: int) -> None:
        if self.state[fd] != CLOSED:
            super()._drop(fd)


@dataclass(slots=True)
class Pings:
    """Latencies of pings, from when each was meant to be sent until its answer was read."""

    sent: int = 0
    latencies_ns: array[int] = field(default_factory=lambda: array("Q"))

    @property
    def answered(self) -> int:
        """Return how many have come back."""
        return len(self.latencies_ns)

    def quantile(self, share: float) -> int:
        """Return the nanoseconds that `share` of the pings did not exceed; 0 without any."""
        ordered = sorted(self.latencies_ns)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0


class Pingers(Clients):
    """Sessions that ping in turn, at a fixed rate."""

    def __init__(self, control: int | None = None) -> None:
        super().__init__(control)
        self._pings = Pings()

    def ping(self, seconds: float, rate: int) -> Pings:
        """Send `rate` pings a second for some time, each when it is due, and wait for the answers."""
        self._pings = pings = Pings()
        fds, began = self.descriptors(), time.monotonic_ns()
        for number in range(max(1, int(seconds * rate))):
            due = began + number * 1_000_000_000 // rate
            while (left := due - time.monotonic_ns()) > 0 and not self.interrupted:
                if select.select([self.epoll], [], [], left / 1e9)[0]:  # it waits by the microsecond
                    self.pump(0)
            os.write(fds[number % len(fds)], b'{"op":"ping","id":%d}\n' % due)
            pings.sent += 1
        deadline = time.monotonic() + ANSWER_SECONDS_MAX
        while pings.answered < pings.sent and not self.interrupted and time.monotonic() < deadline:
            self.pump(0.1)
        return pings

    def hear_aside(self, fd: int, lines: bytes) -> None:
        """Take the answers."""
        now = time.monotonic_ns()
        found = _PONG.findall(lines)
        if not found:
            super().hear_aside(fd, lines)
        self._pings.latencies_ns.extend([now - int(due) for due in found])
