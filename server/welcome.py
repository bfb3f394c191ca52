"""The first thing a session is told, and what it missed before."""

from __future__ import annotations

from typing import Protocol

from router import position
from router.feed import Feed
from router.namespaces import personal
from router.position import Position
from router.replay import Missed
from server.catchup import CatchUp
from server.close import Close
from server.config import Config
from server.session import Session


class House(Protocol):
    """The worker."""

    config: Config
    feed: Feed
    catchup: CatchUp

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

        It `asked` to go on from a position: then what it missed follows, or the greeting says that it cannot be had.
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
        if asked is not None:
            since, upto = position.parse(asked), position.parse(began)
            if since and upto and since.epoch == upto.epoch and since.id.number <= upto.id.number:
                self._resume(session, since, upto, head, {**greeting, "position": asked})
                return
            greeting["recovered"] = False
        self._send(session, head + session.lane.codec.connected(greeting))

    def _resume(
        self, session: Session, since: Position, upto: Position, head: bytes, greeting: dict[str, object]
    ) -> None:
        """Send what was missed behind `since`, before what comes behind `upto`."""
        names = [personal(session.user).encode(), *(channel.name for channel in session.channels)]
        ids = {name: since.of(name) for name in names if self._of(name.decode()).durable}
        starts = {name: id for name, id in ids.items() if id.number < upto.id.number}

        def greet(whole: bool) -> bytes:
            return head + session.lane.codec.connected({**greeting, "recovered": whole})

        if starts:
            missed = Missed(self._house.feed.reader, upto.epoch, starts, upto.id)
            self._house.catchup.start(session, missed, str(since).encode(), greet)
        else:
            self._send(session, greet(True))

    def _send(self, session: Session, frame: bytes) -> None:
        if not session.offer(frame):
            self._house.end(session, Close.SLOW)
