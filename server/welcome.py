"""The first thing a session is told, and what it missed before."""

from __future__ import annotations

from functools import partial
from typing import Protocol

from router.namespaces import personal
from router.trail import Trail, leads
from router.vector import Vector
from router.wiring import AnyFeed
from server.catchup import CatchUp
from server.close import Close
from server.config import Config
from server.requests import Requests
from server.session import CLOSED, Session


class House(Protocol):
    """The worker."""

    config: Config
    feed: AnyFeed
    catchup: CatchUp
    requests: Requests

    def end(self, session: Session, code: Close, reason: str = "", field: str | None = None) -> None:
        """Say goodbye and close."""


class Welcome:
    """Greets the sessions of one worker, whose name begins theirs."""

    def __init__(self, house: House, worker: str) -> None:
        self._house = house
        self._worker = worker
        self._greeted = 0
        seconds = house.config.heartbeat_seconds
        self._heartbeat_s = int(seconds) if seconds.is_integer() else seconds  # some clients read an integer only
        self._of = house.config.namespaces.of

    def greet(self, session: Session, began: bytes | None, asked: str | None, head: bytes) -> None:
        """Send `head` and the greeting to a session whose stream began at `began` (None: the bus is down).

        It `asked` to go on from a position: then what it missed follows, or the greeting says that it cannot be had. While
        nobody can tell, it is sent away for a moment.
        """
        self._greeted += 1
        greeting: dict[str, object] = {
            "user": session.user,
            "session": f"{self._worker}-{self._greeted:x}",
            "heartbeat_s": self._heartbeat_s,
            "position": (began or self._house.feed.head).decode(),
            "recovered": began is not None,
            "channels": [personal(session.user), *(channel.name.decode() for channel in session.channels)],
        }
        if asked is None:
            self._send(session, head + session.lane.codec.connected(greeting))
            return
        feed = self._house.feed
        since, upto = feed.read(asked), feed.read(began)
        if since and not upto:  # nobody can say what it missed: it had better ask again
            self._send(session, head)
            if session.fd != CLOSED:
                self._house.end(session, Close.BUS_DOWN)
            return
        if since and upto and any(map(leads, since.parts, upto.parts)):
            self._send(session, head)  # at once: should it be closed before it is greeted, it has to understand that
            if session.fd != CLOSED:
                self._resume(session, since, upto, greeting)
            return
        greeting["recovered"] = False
        self._send(session, head + session.lane.codec.connected(greeting))

    def _resume(self, session: Session, since: Vector, upto: Vector, greeting: dict[str, object]) -> None:
        """Send what was missed behind `since`, before what comes behind `upto`, and handle no request until then."""
        names = [personal(session.user).encode(), *(channel.name for channel in session.channels)]
        durable = (name for name in names if self._of(name.decode()).durable)
        trail = Trail(self._house.feed.reader, since, upto, durable)
        greeting["position"] = str(trail.since)

        def greet(whole: bool) -> bytes:
            return session.lane.codec.connected({**greeting, "recovered": whole})

        if trail.is_done:
            self._send(session, greet(True))
            return
        requests = self._house.requests
        requests.hold(session)
        done = partial(requests.release, session)
        self._house.catchup.start(session, trail, bytes(trail.since), greet, done=done)

    def _send(self, session: Session, frame: bytes) -> None:
        if not session.offer(frame):
            self._house.end(session, Close.SLOW)
