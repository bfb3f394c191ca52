"""Client connections that do not just stay: some leave and come back where they were, and heartbeats are answered."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace

from bench.clients import EVENTS_MAX, Clients, Plan, Tally, _Opening

SETTLE_SECONDS_MAX = 30.0
NAP_SECONDS = 0.05  # each look of a hundred processes costs the server's cores something, too
HOLD_NAP_SECONDS = 0.5


class Visitors(Clients):
    """An epoll set of connections of which a part can be closed and opened again."""

    nap_seconds = 0.0

    def __init__(self, control: int | None = None) -> None:
        super().__init__(control)
        self.answering = False
        self.away: list[int] = []
        self._busy = False

    def answer_heartbeats(self, answering: bool) -> Tally:
        """Answer every heartbeat with one, or stop doing so; for raw TCP."""
        self.answering = answering
        return self.tally()

    def hear_aside(self, fd: int, lines: bytes) -> None:
        """Answer a heartbeat, if that is wanted."""
        super().hear_aside(fd, lines)
        if self.answering and not lines.strip(b"\n"):
            os.write(fd, b"\n")

    def pump(self, timeout: float) -> int:
        """Handle what is ready; those that nap look for it after a pause."""
        if self.nap_seconds and not self._busy:
            time.sleep(min(timeout, HOLD_NAP_SECONDS if timeout >= HOLD_NAP_SECONDS else self.nap_seconds))
            timeout = 0.0
        handled = super().pump(timeout)
        self._busy = handled == EVENTS_MAX
        return handled

    def leave(self, count: int) -> Tally:
        """Close `count` connections, and remember whose they were."""
        for fd in self.descriptors()[:count]:
            self.away.append(self.user[fd])
            self._drop(fd)
        return self.tally()

    def come_back(self, plan: Plan, seconds_max: float) -> Tally:
        """Open the connections of those who left, as `plan` says."""
        away, self.away = self.away, []
        return self.open(replace(plan, count=len(away), people=tuple(away)), seconds_max)

    def hold(self, seconds: float, plan: Plan | None = None) -> Tally:
        """Stay for so long; with a plan, close `plan.count` of them at `plan.rate` and open each again at once."""
        until = time.monotonic() + seconds
        leaving = self.descriptors()[: plan.count] if plan is not None else []
        opening = None
        sources: Iterator[str] = iter(())
        if plan is not None and leaving:
            plan = replace(plan, count=len(leaving), people=tuple(self.user[fd] for fd in leaving))
            opening = self._opening = _Opening(plan)
            sources = (address for address, count in plan.sources for _ in range(count))
        while (left := until - time.monotonic()) > 0 and not self.interrupted:
            if opening is not None:
                now = time.monotonic_ns()
                while opening.started < len(leaving) and opening.due(opening.started) <= now:
                    fd = leaving[opening.started]
                    if self.state[fd]:
                        self._drop(fd)
                    self._connect(opening, next(sources))
            self.pump(min(left, 0.02 if leaving else 0.5))
        self._settle(opening)
        return self.tally()

    def _settle(self, opening: _Opening | None) -> None:
        deadline = time.monotonic() + SETTLE_SECONDS_MAX
        while opening is not None and opening.settled < opening.started and not self.interrupted:
            if time.monotonic() > deadline:
                self._give_up(opening.started - opening.settled, SETTLE_SECONDS_MAX)
                break
            self.pump(0.1)
        self._opening = None


class Nappers(Visitors):
    """Visitors for very many processes on few cores, which look for what has come only now and then.

    A client that waits in epoll_wait(2) is woken by every write to it, at the expense of the one who writes, who then often
    has to yield the core: over a network that is not so. One that sleeps costs the server no more than the write.
    """

    nap_seconds = NAP_SECONDS
