"""Resuming: a session is sent what it missed before anything that is new.

The session is subscribed first, and corked: what arrives for it meanwhile waits in its backlog. What it missed is read in pages and
sent past the cork, the next page when the kernel has taken the one before, so that a client far behind costs a page of
memory and holds up nobody. When all is sent the cork is drawn. The seam is exact, because the bus says at which position the
subscription began: the journal is read up to there, and everything behind it arrives live.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from router.message import Message
from router.outcome import BusDown, Busy, Refused, Unconfirmed
from router.trail import Replay
from server.close import Close
from server.pool import Pool
from server.session import CLOSED, Session

ACTIVE_MAX = 256  # sessions for which pages are read at the same time; the others wait for their turn

Greet = Callable[[bool], bytes]  # whether nothing is lacking -> the first frame
Place = Callable[[Message], Message]  # gives a message the position that is true for this session


class House(Protocol):
    """The worker."""

    pool: Pool

    def end(self, session: Session, code: Close, reason: str = "", field: str | None = None) -> None:
        """Say goodbye and close."""


class _Work:
    """One session's way back: where it is, and what it has been told."""

    __slots__ = ("done", "gaps_told", "greet", "missed", "place", "position", "session")

    def __init__(
        self, session: Session, missed: Replay, position: bytes, greet: Greet, place: Place, done: Callable[[], None]
    ) -> None:
        self.session = session
        self.missed = missed
        self.position = position
        self.greet: Greet | None = greet
        self.place = place
        self.done = done
        self.gaps_told = 0

    def frames(self, found: list[Message]) -> bytes:
        """Encode the next messages, behind the greeting and behind the gaps that have come to light."""
        new_gaps = self.missed.gaps[self.gaps_told :]
        self.gaps_told += len(new_gaps)
        pushed = [Message(b"gap", name, self.position, b"") for name in new_gaps]
        pushed += map(self.place, found)
        if found:
            self.position = pushed[-1].position
        frames = list(map(self.session.lane.encode, pushed))
        if self.greet is not None:
            frames.insert(0, self.greet(not new_gaps))
            self.greet = None
        return b"".join(frames)


class CatchUp:
    """The sessions of one worker that are being sent what they missed."""

    def __init__(self, house: House, later: Callable[..., object]) -> None:
        self._house = house
        self._later = later  # loop.call_soon: a page that is at hand must not recurse, nor hold up the loop
        self._waiting: deque[_Work] = deque()  # for their turn to read
        self._reading: dict[Session, _Work] = {}
        self._sending: dict[Session, _Work] = {}  # the kernel has not taken their page; they hold up nobody

    def __len__(self) -> int:
        return len(self._waiting) + len(self._reading) + len(self._sending)

    def start(
        self, session: Session, missed: Replay, position: bytes, greet: Greet, *,
        place: Place = lambda message: message, done: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Send `session`, which is subscribed already, what `greet` returns, then what it missed since `position`.

        `done` is called when all of that is on its way and nothing else is. One at a time for each session.
        """
        self._house.pool.cork(session)
        self._waiting.append(_Work(session, missed, position, greet, place, done))
        self._begin()

    def drained(self, session: Session) -> None:
        """The kernel has taken all that was sent past the cork: go on."""
        work = self._sending.pop(session, None)
        if work is not None:
            self._waiting.appendleft(work)  # those who have begun first: what arrives for them is piling up
            self._begin()

    def forget(self, session: Session) -> None:
        """A session has ended. One for which a page is read keeps its turn until that has come: Redis sends it all the same.

        Those still waiting are found out when their turn comes.
        """
        self._sending.pop(session, None)

    def _begin(self) -> None:
        while self._waiting and len(self._reading) < ACTIVE_MAX:
            work = self._waiting.popleft()
            if work.session.fd != CLOSED:
                self._reading[work.session] = work
                self._later(self._next, work)

    def _next(self, work: _Work) -> None:
        session = work.session
        if session.fd == CLOSED:
            self._leave(session)
            return
        if not work.missed.is_done:
            work.missed.step(lambda found: self._found(work, found))
            return
        del self._reading[session]
        work.done()
        if session.fd != CLOSED:
            self._house.pool.uncork(session)
        self._begin()

    def _found(self, work: _Work, found: list[Message] | Exception) -> None:
        session = work.session
        if session.fd == CLOSED:
            self._leave(session)
        elif isinstance(found, Exception):
            is_of_bus = isinstance(found, BusDown | Busy | Refused | Unconfirmed)
            self._house.end(session, Close.BUS_DOWN if is_of_bus else Close.OUR_FAULT)
            self._leave(session)
        elif self._house.pool.overtake(session, work.frames(found)):
            self._later(self._next, work)
        else:
            self._sending[session] = self._reading.pop(session)
            self._begin()

    def _leave(self, session: Session) -> None:
        """Give the turn of one that has gone to another."""
        del self._reading[session]
        self._begin()
