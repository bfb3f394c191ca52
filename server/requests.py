"""What a session asks for, and what it is answered.

Requests of one session are handled in order. Publishes go to Redis one behind the other without waiting for the answers; a
request that changes what the session receives is finished before the next line is read, so that a client may send a
`subscribe` and a `publish` in one packet and gets its own message.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from router import journal, position
from router.bus import BusDown, Busy, Unconfirmed
from router.carousel import Carousel
from router.message import Message
from router.namespaces import Namespaces, personal
from router.pipe import Reply
from router.replay import Missed
from router.table import Table
from router.trail import leads
from router.wiring import AnyBus, AnyFeed
from server import limits, lines
from server.access import may_publish, may_subscribe
from server.admission import Admission
from server.auth import Claims
from server.catchup import CatchUp
from server.close import Close, PeerError
from server.lookups import Lookups
from server.pool import Pool
from server.session import CLOSED, Session

log = logging.getLogger("moorage.requests")


class House(Protocol):
    """The worker that holds the sessions."""

    pool: Pool
    table: Table
    bus: AnyBus
    feed: AnyFeed
    catchup: CatchUp
    carousel: Carousel
    admission: Admission

    def later(self, call: Callable[[], None]) -> object:
        """Call once this turn of the loop is through."""

    def end(self, session: Session, code: Close, reason: str = "", field: str | None = None) -> None:
        """Say goodbye and close."""

    def failed(self, session: Session) -> None:
        """A bug shows with this session: it ends, the others stay."""

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


def _is_subscribed(session: Session, name: bytes) -> bool:
    return any(channel.name == name for channel in session.channels) or name == personal(session.user).encode()


class Requests:
    """The requests of all sessions of one worker."""

    def __init__(self, house: House, namespaces: Namespaces, *, channels_max: int, message_bytes_max: int) -> None:
        self._house = house
        self._namespaces = namespaces
        self._lookups = Lookups(house.feed)
        self._stats = house.pool.stats
        self._channels_max = channels_max
        self._message_bytes_max = message_bytes_max
        self._rests: dict[Session, bytes] = {}  # the unfinished lines of those who have one
        self._busy: dict[Session, list[bytes]] = {}  # lines that wait for the answer to the one before them
        self._in_flight: dict[Session, int] = {}  # publishes that wait for Redis, of those who have any
        self._answers: dict[Session, list[bytes]] = {}  # to publishes: Redis answers many at a time
        self._sending: set[Session] = set()  # those of whose answer the kernel has not taken all
        self._told_at = -math.inf
        self._answer: dict[type, Callable[[Session, lines.Request], None]] = {
            lines.Connect: self._connect,
            lines.Subscribe: self._subscribe,
            lines.Unsubscribe: self._unsubscribe,
            lines.Publish: self._publish,
            lines.History: self._history,
            lines.Presence: self._presence,
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
        """Drop what is kept of a session that ends; what Redis has answered is told first."""
        if answers := self._answers.pop(session, None):
            session.offer(b"".join(answers))
        self._rests.pop(session, None)
        self._busy.pop(session, None)
        self._in_flight.pop(session, None)
        self._sending.discard(session)

    def _handle(self, session: Session, found: list[bytes]) -> None:
        """Answer lines, for at most 2 ms: who sends thousands in one packet is read on in the next turn."""
        until = self._house.pool.now() + limits.TURN_SECONDS_MAX
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
            if index & 7 == 7 and self._house.pool.now() >= until:
                self.hold(session)
                self._busy[session] = found[index + 1 :]
                self._house.later(partial(self._go_on, self._next_turn, session))
                return

    def _next_turn(self, session: Session) -> None:
        if session.fd != CLOSED:
            self.release(session)

    def tell_answers(self) -> None:
        """Tell what has become of publishes, in one write a session; call behind each batch of answers of the bus."""
        answers, self._answers = self._answers, {}
        for session, frames in answers.items():
            if session.fd != CLOSED and not session.offer(b"".join(frames)):
                self._house.end(session, Close.SLOW)

    def _say(self, session: Session, frame: bytes) -> None:
        if self._answers and (answers := self._answers.pop(session, None)):  # they come first
            frame = b"".join([*answers, frame])
        if not session.offer(frame):
            self._house.end(session, Close.SLOW)

    def hold(self, session: Session) -> None:
        """Read no more of `session` until `release`."""
        self._busy[session] = []
        self._house.pool.mute(session)

    def release(self, session: Session) -> None:
        """Go on reading."""
        found = self._busy.pop(session)
        self._house.pool.unmute(session)
        self._handle(session, found)
        if session.fd != CLOSED and session not in self._busy and session in self._rests:
            self.received(session, b"")

    def _go_on(self, handle: Callable[..., None], session: Session, *found: object) -> None:
        """Handle what a session that is held has waited for: with a bug in the way it would be held for ever."""
        try:
            handle(session, *found)
        except Exception:
            self._house.failed(session)

    def _connect(self, session: Session, request: lines.Request) -> None:
        raise PeerError(Close.ALREADY_CONNECTED, field="op")

    def _ping(self, session: Session, request: lines.Request) -> None:
        assert isinstance(request, lines.Ping)
        self._say(session, lines.answer({"op": "pong", "id": request.id}))

    def _subscribe(self, session: Session, request: lines.Request) -> None:
        assert isinstance(request, lines.Subscribe)
        if not may_subscribe(self._namespaces, self._house.claims(session), request.channel):
            raise PeerError(Close.FORBIDDEN, f"not allowed to subscribe to {request.channel}", "channel", request.id)
        name = request.channel.encode()
        known = {channel.name for channel in session.channels} | {personal(session.user).encode()}
        if name not in known and len(known) >= self._channels_max:
            reason = f"{len(known)} already, want at most {self._channels_max}"
            raise PeerError(Close.TOO_MANY_CHANNELS, reason, "channel", request.id)
        self.hold(session)
        self._house.feed.join([name], partial(self._go_on, self._subscribed, session, request, name in known))

    def _subscribed(self, session: Session, request: lines.Subscribe, known: bool, began: bytes | None) -> None:
        if session.fd == CLOSED:
            return
        house, name = self._house, request.channel.encode()
        asked, at = house.feed.read(request.position), house.feed.read(began)
        is_durable = self._namespaces.of(request.channel).durable
        if is_durable and asked and not at and not known:
            # Nobody can say what it missed. Were it let in, a repair would send what was published since this worker lost the
            # bus, and that may be what it has had elsewhere.
            self._say(session, lines.error(PeerError(Close.BUS_DOWN, id=request.id), retry_ms(Close.BUS_DOWN)))
            if session.fd != CLOSED:
                self.release(session)
            return
        house.carousel.flush(session)  # what it has had so far on its other channels is all before `began`
        if session.fd == CLOSED:
            return
        if not known:
            house.table.add(session, name)
        if request.gaps:
            house.feed.watchers.watch(session, name)
        answer = {"op": "subscribed", "id": request.id, "channel": request.channel}
        # Of another epoch, the same number is another message.
        since_id = asked.of(name) if asked and at and leads(asked.part(name), at.part(name)) else None
        if is_durable and at and since_id is not None and since_id < at.part(name).id and not known:
            upto = at.part(name)
            missed = Missed(house.feed.reader, upto.epoch, {name: since_id}, upto.id)

            # In its other channels the session is at `at` already: a position that says both makes a cut exact.
            since = str(at.but(name, since_id))

            def greet(whole: bool) -> bytes:
                return lines.answer({**answer, "position": since, "recovered": whole})

            def place(message: Message) -> Message:
                return message._replace(position=str(at.but(name, position.id_of(message.id))).encode())

            house.catchup.start(
                session, missed, since.encode(), greet, place=place, done=partial(self.release, session)
            )
            return
        recovered = at is not None and (
            request.position is None or (since_id is not None and since_id.number == at.part(name).id.number)
        )
        self._say(session, lines.answer({**answer, "position": str(at or ""), "recovered": recovered}))
        if session.fd != CLOSED:
            self.release(session)

    def _unsubscribe(self, session: Session, request: lines.Request) -> None:
        assert isinstance(request, lines.Unsubscribe)
        if request.channel == personal(session.user):
            raise PeerError(Close.FORBIDDEN, "the personal channel stays", "channel", request.id)
        house, name = self._house, request.channel.encode()
        if not _is_subscribed(session, name):
            raise PeerError(Close.NOT_FOUND, f"not subscribed to {request.channel}", "channel", request.id)
        house.carousel.flush(session)
        if session.fd == CLOSED:
            return
        if house.table.discard(session, name):
            house.bus.leave([name])
        house.feed.watchers.unwatch(session, name)
        self._say(session, lines.answer({"op": "unsubscribed", "id": request.id, "channel": request.channel}))

    def _publish(self, session: Session, request: lines.Request) -> None:
        assert isinstance(request, lines.Publish)
        if wait_ms := self._house.admission.publish_wait_ms(session, session.user):
            self._too_fast(session, request.id, wait_ms)
            return
        name = request.channel.encode()
        is_member = partial(_is_subscribed, session, name)
        if not may_publish(self._namespaces, self._house.claims(session), request.channel, is_member=is_member):
            self._stats.publish_failures += 1
            raise PeerError(Close.FORBIDDEN, "not allowed to publish", "channel", request.id)
        in_flight = self._in_flight.get(session, 0)
        if in_flight >= limits.PUBLISHES_IN_FLIGHT_MAX:
            raise self._too_many(session, request.id)
        self._in_flight[session] = in_flight + 1
        members = journal.members(session.user, time.time_ns() // 1_000_000, request.data)
        done = partial(self._published, session, request.id, request.channel)
        once = f"{session.user} {request.idempotency}".encode() if request.idempotency else b""
        self._house.bus.publish(name, members, self._namespaces.of(request.channel).kept, done, once=once)

    def _too_fast(self, session: Session, id: lines.Id, wait_ms: int) -> None:
        if self._house.admission.is_abuse(session):
            self._house.end(session, Close.PUBLISH_RATE)
            return
        fault = PeerError(Close.PUBLISH_RATE, id=id)
        self._say(session, lines.error(fault, wait_ms + random.randint(0, wait_ms // 4)))

    def _too_many(self, session: Session, id: lines.Id) -> PeerError:
        """Redis is slow, or she does not wait for it: what waits is bounded for each, so that one does not take all of it."""
        self._stats.publish_failures += 1
        now, reason = time.monotonic(), f"{limits.PUBLISHES_IN_FLIGHT_MAX} publishes of this connection wait for Redis"
        if now - self._told_at >= limits.REFUSALS_TOLD_SECONDS:
            self._told_at = now
            log.warning("publishes of %s are refused: %s", session.user, reason)
        return PeerError(Close.OVERLOADED, reason, id=id)

    def _published(self, session: Session, id: lines.Id, channel: str, reply: Reply) -> None:
        if session.fd != CLOSED:
            in_flight = self._in_flight[session] - 1
            if in_flight:
                self._in_flight[session] = in_flight
            else:
                del self._in_flight[session]
        if isinstance(reply, bytes):
            self._stats.published += 1
            frame = lines.published(id, channel, reply)
        elif isinstance(reply, int):  # live-only: nothing to come back to
            self._stats.published += 1
            frame = lines.published(id, channel, b"")
        else:
            self._stats.publish_failures += 1
            fault = bus_fault(reply)
            fault.id = id
            frame = lines.error(fault, retry_ms(fault.code))
        if session.fd != CLOSED:
            if not self._answers:  # most come in a batch, behind which they are told; some come alone
                self._house.later(self.tell_answers)
            self._answers.setdefault(session, []).append(frame)

    def _history(self, session: Session, request: lines.Request) -> None:
        assert isinstance(request, lines.History)
        self._check_readable(session, request.channel, request.id)
        if not self._namespaces.of(request.channel).durable:
            raise PeerError(Close.BAD_REQUEST, f"{request.channel} is live-only", "channel", request.id)
        self.hold(session)
        told = partial(self._go_on, self._told, session, request)
        self._lookups.history(request.channel, request.after, request.limit, told)

    def _presence(self, session: Session, request: lines.Request) -> None:
        assert isinstance(request, lines.Presence)
        if not request.channel.startswith("@"):  # whether a user is there, anyone may ask
            self._check_readable(session, request.channel, request.id)
        if not self._namespaces.of(request.channel).presence:
            raise PeerError(Close.BAD_REQUEST, f"{request.channel} has no presence", "channel", request.id)
        self.hold(session)
        self._lookups.presence(request.channel, partial(self._go_on, self._told, session, request))

    def _check_readable(self, session: Session, channel: str, id: lines.Id) -> None:
        """Raise PeerError unless the session may see what is in `channel`: whoever may subscribe to it may."""
        if not may_subscribe(self._namespaces, self._house.claims(session), channel):
            raise PeerError(Close.FORBIDDEN, f"not allowed to read {channel}", "channel", id)

    def _told(self, session: Session, request: lines.History | lines.Presence, found: bytes | Exception) -> None:
        """`found` is the rest of the answer, as JSON members."""
        if session.fd == CLOSED:
            return
        if isinstance(found, bytes):
            op = "history" if isinstance(request, lines.History) else "presence"
            frame = lines.answer({"op": op, "id": request.id, "channel": request.channel})[:-2] + found + b"}\n"
        else:
            fault = found if isinstance(found, PeerError) else bus_fault(found)
            fault.id = request.id
            frame = lines.error(fault, retry_ms(fault.code))
        self._house.pool.cork(session)
        if self._house.pool.overtake(session, frame):
            self._taken(session)
        else:  # what is asked for next comes when there is room for it: she may have asked for much
            self._sending.add(session)

    def drained(self, session: Session) -> None:
        """The kernel has taken all of a long answer."""
        if session in self._sending:
            self._sending.remove(session)
            self._house.later(partial(self._go_on, self._taken, session))

    def _taken(self, session: Session) -> None:
        if session.fd != CLOSED:
            self._house.pool.uncork(session)
            self.release(session)
