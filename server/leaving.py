"""How one worker is left: its sessions are told over the window of a drain; at the very end, nobody is reset who can be told.

The supervisor says when: SIGTERM begins a drain, SIGINT is the end. In between the worker stays, even when its sessions have
gone: who comes is refused politely and a health check is told why, until all workers can end together.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable
from typing import Protocol

from server import limits
from server.close import Close, PeerError
from server.drain import Drain, Window
from server.guest import Guest
from server.lingering import Lingering
from server.listener import Listener
from server.pool import Pool
from server.session import CLOSED, Session
from server.web import Web

log = logging.getLogger("moorage.leaving")

_TICK_SECONDS = 0.05
_ENDS_PER_TICK = 256  # sessions that are told to leave in one
_POLL_SECONDS = 0.01


class House(Protocol):
    """The worker."""

    pool: Pool
    web: Web
    listeners: list[Listener]

    @property
    def connections(self) -> int:
        """How many sessions there are."""

    @property
    def guests(self) -> Collection[Guest]:
        """Those who are not sessions yet."""

    def sessions(self) -> Iterable[Session]:
        """Those who are."""

    def end(self, session: Session, code: Close, reason: str = "", field: str | None = None) -> None:
        """Say goodbye and close."""

    def stop(self) -> None:
        """Stop now."""


class Leaving:
    """A drain of one worker, and its end. `has_begun` says that nobody is let in any more."""

    def __init__(self, house: House, told: Callable[[], Window | None], seconds: float) -> None:
        """`told` returns when the whole server is left, if it is; else this worker alone is, within `seconds`, and is replaced."""
        self._house = house
        self._told = told
        self._seconds = seconds
        self._window: Window | None = None
        self._last: list[Lingering] | None = None  # when nobody is left: those who have still to read our farewell
        self.code = Close.DRAINING  # why newcomers are refused
        self.has_begun = False
        self.has_ended = False  # nobody is left; false again if somebody still comes out of a handshake

    def begin(self) -> None:
        """Ask every session to leave, spread over the window. Once more: over the rest of another window."""
        told = self._told()
        if self._window is not None and told in (None, self._window):
            return
        self._window = told or Window(time.monotonic(), self._seconds)
        self._drain = Drain(self._house.sessions(), self._window)
        if not self.has_begun:
            self.has_begun = True
            self._tick()

    def _tick(self) -> None:
        house, now = self._house, time.monotonic()
        assert self._window is not None
        due = self._drain.due(now, _ENDS_PER_TICK)
        for session in due:
            house.end(session, Close.DRAINING)
        if not self._drain and house.connections:  # those who were on their way in when it began
            self._drain = Drain(house.sessions(), self._window)
        if house.connections:
            self._last = None
        elif self._last is None:
            self._last = list(house.pool.lingering)
        self.has_ended = self._last is not None and not _any_open(self._last)
        if self.has_ended and self._told() is None:
            house.stop()
        asyncio.get_running_loop().call_later(_TICK_SECONDS if len(due) < _ENDS_PER_TICK else 0.0, self._tick)

    async def finish(self) -> None:
        """End all who are here, and all who wait in queues that nobody will empty; return when they have read it.

        At the latest after a short while.
        """
        self.has_begun, self.code = True, Close.STOPPED
        house, until = self._house, time.monotonic() + limits.FAREWELL_SECONDS_MAX
        for listener in house.listeners:
            if self._told() is not None:
                listener.sweep(until)
            listener.close()
        for guest in list(house.guests):
            guest.door.dismiss(guest, PeerError(Close.STOPPED))
        for session in house.sessions():
            house.end(session, Close.STOPPED)
        await house.web.stop()
        while _any_open(house.pool.lingering) and time.monotonic() < until:  # noqa: ASYNC110  # the pool knows no tasks
            await asyncio.sleep(_POLL_SECONDS)


def _any_open(lingering: Iterable[Lingering]) -> bool:
    """True while one of them has been told goodbye and has not closed."""
    return any(peer.fd != CLOSED for peer in lingering)
