"""The first thing a session is told, and what it missed before."""

from __future__ import annotations

from functools import partial
from typing import Protocol

from router import position
from router.feed import Feed
from router.message import Message
from router.namespaces import personal
from router.position import Position
from router.replay import Missed
from server.catchup import CatchUp
from server.close import Close
from server.config import Config
from server.requests import Requests
from server.session import CLOSED, Session


class House(Protocol):
    """The worker."""

    config: Config
    feed: Feed
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
        since, upto = position.parse(asked), position.parse(began)
        if since and not upto:  # nobody can say what it missed: it had better ask again
            self._send(session, head)
            if session.fd != CLOSED:
                self._house.end(session, Close.BUS_DOWN)
            return
        if since and upto and since.epoch == upto.epoch and since.id.number <= upto.id.number:
            self._send(session, head)  # at once: should it be closed before it is greeted, it has to understand that
            if session.fd != CLOSED:
                self._resume(session, since, upto, {**greeting, "position": str(since)})
            return
        if asked is not None:
            greeting["recovered"] = False
        self._send(session, head + session.lane.codec.connected(greeting))

    def _resume(self, session: Session, since: Position, upto: Position, greeting: dict[str, object]) -> None:
        """Send what was missed behind `since`, before what comes behind `upto`, and handle no request until then."""
        names = [personal(session.user).encode(), *(channel.name for channel in session.channels)]
        ids = {name: since.of(name) for name in names if self._of(name.decode()).durable}
        starts = {name: id for name, id in ids.items() if id.number < upto.id.number}

        def greet(whole: bool) -> bytes:
            return session.lane.codec.connected({**greeting, "recovered": whole})

        def place(message: Message) -> Message:
            """While one channel is behind the others, its messages are behind what the session has had of those."""
            id = position.id_of(message.id)
            if id.number >= since.id.number:
                return message
            return message._replace(position=str(since.but(message.channel, id)).encode())

        if starts:
            missed = Missed(self._house.feed.reader, upto.epoch, starts, upto.id)
            requests = self._house.requests
            requests.hold(session)
            self._house.catchup.start(
                session, missed, str(since).encode(), greet, place=place, done=partial(requests.release, session)
            )
        else:
            self._send(session, greet(True))

    def _send(self, session: Session, frame: bytes) -> None:
        if not session.offer(frame):
            self._house.end(session, Close.SLOW)
