"""What a session asks for, and what it is answered.

Requests of one session are handled in order. Publishes go to Redis one behind the other without waiting for the answers; a
request that changes what the session receives is finished before the next line is read, so that a client may send a
`subscribe` and a `publish` in one packet and gets its own message.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from router import journal
from router.bus import Bus, BusDown, Busy, Unconfirmed
from router.carousel import Carousel
from router.namespaces import personal
from router.pipe import Reply
from router.table import Table
from server import limits, lines
from server.auth import Claims
from server.close import Close, PeerError
from server.pool import Pool
from server.session import CLOSED, Session


class House(Protocol):
    """The worker that holds the sessions."""

    @property
    def pool(self) -> Pool: ...
    @property
    def table(self) -> Table: ...
    @property
    def bus(self) -> Bus: ...
    @property
    def carousel(self) -> Carousel: ...

    def end(self, session: Session, code: Close, reason: str = "", field: str | None = None) -> None:
        """Say goodbye and close."""

    def claims(self, session: Session) -> Claims:
        """What the session may do."""


def bus_fault(reply: Reply) -> PeerError:
    """Return what a publisher is told when the bus has not taken a message."""
    if isinstance(reply, BusDown):
        return PeerError(Close.BUS_DOWN, str(reply))
    if isinstance(reply, Busy):
        return PeerError(Close.OVERLOADED, str(reply))
    if isinstance(reply, Unconfirmed):
        return PeerError(Close.UNCONFIRMED)
    return PeerError(Close.BUS_DOWN, f"Redis refused it: {reply}")


def retry_ms(code: Close) -> int | None:
    """Return when to try again, jittered; None when trying again is no use."""
    return random.randint(1000, 3000) if code.reconnect else None


class Requests:
    """The requests of all sessions of one worker."""

    def __init__(self, house: House, *, channels_max: int, message_bytes_max: int) -> None:
        self._house = house
        self._stats = house.pool.stats
        self._channels_max = channels_max
        self._message_bytes_max = message_bytes_max
        self._rests: dict[Session, bytes] = {}  # the unfinished lines of those who have one
        self._busy: dict[Session, list[bytes]] = {}  # lines that wait for the answer to the one before them
        self._answer: dict[type, Callable[[Session, lines.Request], None]] = {
            lines.Connect: self._connect,
            lines.Subscribe: self._subscribe,
            lines.Unsubscribe: self._unsubscribe,
            lines.Publish: self._publish,
            lines.Ping: self._ping,
        }

    def received(self, session: Session, data: bytes) -> None:
        """Handle what a session has sent."""
        if session in self._busy:
            self._rests[session] = self._rests.get(session, b"") + data
            return
        try:
            found, rest = lines.split_lines(self._rests.pop(session, b""), data, limits.LINE_BYTES_MAX)
        except PeerError as error:
            self._house.end(session, error.code, error.reason, error.field)
            return
        if rest:
            self._rests[session] = rest
        self._handle(session, found)

    def forget(self, session: Session) -> None:
        """Drop what is kept of a session that has ended."""
        self._rests.pop(session, None)
        self._busy.pop(session, None)

    def _handle(self, session: Session, found: list[bytes]) -> None:
        for index, line in enumerate(found):
            if not line:
                continue
            try:
                request = lines.parse(line, self._message_bytes_max)
                self._answer[type(request)](session, request)
            except PeerError as error:
                self._say(session, lines.error(error, retry_ms(error.code)))
            if session.fd == CLOSED:
                return
            if session in self._busy:
                self._busy[session] = found[index + 1 :]
                return

    def _say(self, session: Session, frame: bytes) -> None:
        if not session.offer(frame):
            self._house.end(session, Close.SLOW)

    def _hold(self, session: Session) -> None:
        """Read no more of `session` until `_release`."""
        self._busy[session] = []
        self._house.pool.mute(session)

    def _release(self, session: Session) -> None:
        found = self._busy.pop(session)
        self._house.pool.unmute(session)
        self._handle(session, found)
        if session.fd != CLOSED and session not in self._busy and session in self._rests:
            self.received(session, b"")

    def _connect(self, session: Session, request: lines.Request) -> None:
        raise PeerError(Close.ALREADY_CONNECTED, field="op")

    def _ping(self, session: Session, request: lines.Request) -> None:
        assert isinstance(request, lines.Ping)
        self._say(session, lines.answer({"op": "pong", "id": request.id}))

    def _subscribe(self, session: Session, request: lines.Request) -> None:
        assert isinstance(request, lines.Subscribe)
        if not self._house.claims(session).may_subscribe(request.channel):
            raise PeerError(Close.FORBIDDEN, f"not allowed to subscribe to {request.channel}", "channel", request.id)
        name = request.channel.encode()
        known = {channel.name for channel in session.channels} | {personal(session.user).encode()}
        if name not in known and len(known) >= self._channels_max:
            reason = f"{len(known)} already, want at most {self._channels_max}"
            raise PeerError(Close.TOO_MANY_CHANNELS, reason, "channel", request.id)
        self._hold(session)
        self._house.bus.join([name], partial(self._subscribed, session, request, name in known))

    def _subscribed(self, session: Session, request: lines.Subscribe, known: bool, began: bytes | None) -> None:
        if session.fd == CLOSED:
            return
        if not known:
            self._house.table.add(session, request.channel.encode())
        position = began.decode() if began else ""
        recovered = began is not None and (request.position is None or request.position == position)
        answer = {"op": "subscribed", "id": request.id, "channel": request.channel, "position": position}
        self._say(session, lines.answer({**answer, "recovered": recovered}))
        if session.fd != CLOSED:
            self._release(session)

    def _unsubscribe(self, session: Session, request: lines.Request) -> None:
        assert isinstance(request, lines.Unsubscribe)
        if request.channel == personal(session.user):
            raise PeerError(Close.FORBIDDEN, "the personal channel stays", "channel", request.id)
        house, name = self._house, request.channel.encode()
        if all(channel.name != name for channel in session.channels):
            raise PeerError(Close.NOT_FOUND, f"not subscribed to {request.channel}", "channel", request.id)
        house.carousel.flush(session)
        if session.fd == CLOSED:
            return
        if house.table.discard(session, name):
            house.bus.leave([name])
        self._say(session, lines.answer({"op": "unsubscribed", "id": request.id, "channel": request.channel}))

    def _publish(self, session: Session, request: lines.Request) -> None:
        assert isinstance(request, lines.Publish)
        if not self._house.claims(session).may_publish(request.channel):
            self._stats.publish_failures += 1
            raise PeerError(Close.FORBIDDEN, "not allowed to publish", "channel", request.id)
        members = journal.members(session.user, time.time_ns() // 1_000_000, request.data)
        done = partial(self._published, session, request.id, request.channel)
        self._house.bus.publish(request.channel.encode(), members, journal.Retention(), done)

    def _published(self, session: Session, id: lines.Id, channel: str, reply: Reply) -> None:
        if isinstance(reply, bytes):
            self._stats.published += 1
            frame = lines.answer({"op": "published", "id": id, "channel": channel, "position": reply.decode()})
        else:
            self._stats.publish_failures += 1
            fault = bus_fault(reply)
            fault.id = id
            frame = lines.error(fault, retry_ms(fault.code))
        if session.fd != CLOSED:
            self._say(session, frame)
