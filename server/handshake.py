"""A connection on its way from accept to session: who it is, what it may have, its subscriptions.

A guest is put into the pool only while its request is not complete, and armed one-shot: its next bytes disarm it. So it
costs no system call to leave it alone while the bus subscribes.
"""

from __future__ import annotations

import logging
import random
import select
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Protocol

from router.namespaces import personal
from router.table import Table
from router.wiring import AnyFeed
from server import limits, lines, proxy, reserve, sse
from server.access import may_subscribe
from server.admission import AFTER_MS, Admission
from server.auth import Claims, KeyUnknown
from server.close import Close, PeerError
from server.config import Config
from server.guest import Guest
from server.lane import Lane
from server.pool import Pool
from server.session import CLOSED, Session
from server.sources import Sources, of_socket

log = logging.getLogger("moorage.handshake")

UNWATCHED = "the kernel watches no more descriptors for us: fs.epoll.max_user_watches"
_UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\nRetry-After: 2\r\n\r\n"
GUEST = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLONESHOT


class House(Protocol):
    """The worker behind the doors."""

    config: Config
    sources: Sources
    admission: Admission

    @property
    def guests(self) -> dict[Guest, None]:
        """The guests at all doors, in order of their deadlines."""

    pool: Pool
    table: Table
    feed: AnyFeed

    def admit(self, fd: int) -> None:
        """Raise PeerError while nobody is let in, or none with that descriptor."""

    def identify(self, token: str | None, user: str | None) -> Claims:
        """Return who that is. Raises: PeerError, KeyUnknown."""

    def refresh_keys(self, then: Callable[[], None]) -> None:
        """Fetch the keys that verify tokens, then call back."""

    def opened(self, session: Session, claims: Claims, began: bytes | None, asked: str | None, head: bytes) -> None:
        """Greet a session, `head` first. Its stream began at position `began`; it `asked` to go on from another."""

    def received(self, session: Session, data: bytes) -> None:
        """Go on with what a session has sent."""

    def failed(self, session: Session) -> None:
        """A bug shows with this session: it ends, the others stay."""


class Application(Protocol):
    """What serves HTTP that is no stream."""

    @property
    def connections(self) -> int:
        """How many it serves."""

    def take(self, fd: int, first: bytes, address: str) -> None:
        """Serve the connection `fd`, of which `first` has been read; `address`: whose it is, where that is not its peer."""


class Door(ABC):
    """Where one transport comes in."""

    _part: str  # what a request to connect is called
    _serves_more: bool  # than sessions

    def __init__(self, house: House, lane: Lane) -> None:
        self.lane = lane
        self._house = house
        self._pool = house.pool
        self._stats = house.pool.stats
        self._guests = house.guests
        self._seconds_max = house.config.handshake_seconds
        self._channels_max = house.config.channels_per_connection_max
        self._namespaces = house.config.namespaces
        self._admission = house.admission
        self._sources = house.sources
        self._speaks_proxy = house.sources.speaks_proxy
        self._tells = log.isEnabledFor(logging.DEBUG)

    def accept(self, fd: int) -> None:
        """Take a new connection. Often its request is there already, and the pool need not be asked to wait for it."""
        guest = self._guest(fd)
        data = self._pool.read(fd)
        if data:
            self.heard(guest, data)
        elif data is None:
            self._wait(guest)
        else:
            self._drop(guest, Close.LEFT)

    def take_back(self, fd: int, data: bytes, address: str) -> None:
        """Take a connection that somebody else has served so far, whose it is, and `data`, its next request."""
        guest = self._guest(fd)
        guest.address = address
        self.heard(guest, data)

    def read(self, guest: Guest) -> None:
        """Read, and let the guest in when its request is complete."""
        data = self._pool.read(guest.fd)
        if data:
            self.heard(guest, data)
        elif data is not None and guest.rest:  # it has closed its half, and may still listen
            self.refuse(guest, PeerError(Close.BAD_REQUEST, "the connection was closed inside of it", self._part))
        else:
            self._drop(guest, Close.LEFT)

    def heard(self, guest: Guest, data: bytes) -> None:
        """Go on with what a guest has sent."""
        try:
            if guest.rest:
                data = guest.rest + data
            if self._speaks_proxy and not guest.address:
                if (arrival := self._sources.arrival(guest.fd, data)) is None:
                    guest.rest = data
                    self._wait(guest)
                    return
                guest.address, data = arrival
            request = self._request(guest, data)
            if request is not None:
                self._enter(guest, request)
            elif guest.fd != CLOSED:
                self._wait(guest)
        except PeerError as error:
            if self._speaks_proxy or not proxy.begins(data):
                self.refuse(guest, error)
            else:
                self.refuse(guest, PeerError(Close.PROXY_UNTRUSTED, "a PROXY header, and proxy_protocol is off"))
        except Exception:
            self._failed(guest)

    def _wait(self, guest: Guest) -> None:
        """Wait for more of what a guest sends, unless that can only be refused."""
        if self._serves_more or not self._pool.reserve.is_spent:
            with suppress(OSError):
                self._pool.put(guest, GUEST)
                return
        self.dismiss(guest, PeerError(Close.OVERLOADED, UNWATCHED))

    def refuse(self, guest: Guest, error: PeerError) -> None:
        """Send a guest away, saying why."""
        if guest.fd == CLOSED:
            return
        self._count_out(guest, error.code)
        self._admission.refused(error)
        after_ms = random.randint(*AFTER_MS.get(error.code, (1000, 5000))) if error.code.reconnect else None
        self._pool.farewell(guest, self._refusal(guest, error, after_ms))

    def dismiss(self, guest: Guest, error: PeerError) -> None:
        """Send a guest away for a reason of ours, whatever it was about to ask for."""
        self.refuse(guest, error)

    @abstractmethod
    def _request(self, guest: Guest, data: bytes) -> lines.Connect | None:
        """Return the request to connect in `data`; keep in `guest.rest` what is behind it, or all while incomplete."""

    @abstractmethod
    def _refusal(self, guest: Guest, error: PeerError, after_ms: int | None) -> bytes:
        """Encode a refusal."""

    @abstractmethod
    def _head(self, guest: Guest) -> bytes:
        """Encode what comes before the first frame."""

    def _admit(self, guest: Guest) -> None:
        """Count in a guest who asks for a session, before what it asks for is read: a refusal is to cost less than that.

        Raises: PeerError while there is no room.
        """
        guest.asks = True
        self._house.admit(guest.fd)
        self._admission.enter(guest.fd, partial(self._address, guest, guest.fd))

    def _enter(self, guest: Guest, request: lines.Connect, *, refreshed: bool = False) -> None:
        """Check what is asked for, and subscribe it."""
        try:
            claims = self._house.identify(request.token, request.user)
        except KeyUnknown:
            if refreshed:
                raise
            guest.late = Close.KEYS_UNAVAILABLE
            self._house.refresh_keys(partial(self._enter_again, guest, request))
            return
        names = [name.encode() for name in self._allowed(request.channels, claims)]
        self._admission.enter_user(guest.fd, claims.user)
        guest.late = Close.BUS_DOWN
        done = partial(self._joined, guest, claims, names, request)
        self._house.feed.join([personal(claims.user).encode(), *names], done)

    def _enter_again(self, guest: Guest, request: lines.Connect) -> None:
        if guest.fd == CLOSED:
            return
        try:
            self._enter(guest, request, refreshed=True)
        except PeerError as error:
            self.refuse(guest, error)
        except Exception:
            self._failed(guest)

    def _allowed(self, channels: tuple[str, ...], claims: Claims) -> list[str]:
        """Return `channels` without the user's own, which she has anyway. Raises: PeerError."""
        own = personal(claims.user)
        for channel in channels:
            if not may_subscribe(self._namespaces, claims, channel):
                raise PeerError(Close.FORBIDDEN, f"not allowed to subscribe to {channel}", "channels")
        names = [channel for channel in channels if channel != own]
        if len(names) >= self._channels_max:
            raise PeerError(
                Close.TOO_MANY_CHANNELS,
                f"{len(names)} and the personal one, want at most {self._channels_max}",
                "channels",
            )
        return names

    def _joined(
        self, guest: Guest, claims: Claims, names: list[bytes], request: lines.Connect, began: bytes | None
    ) -> None:
        """The bus has subscribed, from position `began`; None: it is down."""
        if guest.fd == CLOSED:
            return
        house, fd = self._house, guest.fd
        session = self.lane.session(fd, claims.user, ())
        try:
            self._pool.put(session, self.lane.armed)
        except OSError:
            self.refuse(guest, PeerError(Close.OVERLOADED, UNWATCHED))
            return
        del self._guests[guest]
        guest.fd = CLOSED
        if names:
            session.channels = house.table.gather(names)
        house.table.enter(session)
        if self._tells:
            log.debug("%s comes from %s by %s", claims.user, self._address(guest, fd), self.lane.transport)
        if request.gaps:
            house.feed.watchers.watch(session)
        try:
            house.opened(session, claims, began, request.position, self._head(guest))
            if guest.rest and session.fd != CLOSED:
                house.received(session, guest.rest)
        except Exception:
            house.failed(session)

    def _failed(self, guest: Guest) -> None:
        """A bug shows with this guest: it is sent away, the others stay. To be called from the `except`."""
        log.exception("internal error")
        self.refuse(guest, PeerError(Close.OUR_FAULT))

    def _address(self, guest: Guest, fd: int) -> str:
        guest.address = guest.address or of_socket(fd)
        return guest.address

    def _guest(self, fd: int) -> Guest:
        guest = Guest(fd, self, self._pool.now() + self._seconds_max)
        self._guests[guest] = None
        return guest

    def _drop(self, guest: Guest, code: Close) -> None:
        self._count_out(guest, code)
        self._pool.close(guest)

    def _count_out(self, guest: Guest, code: Close) -> None:
        self._guests.pop(guest, None)
        self._admission.leave(guest.fd)
        self._stats.handshake_failures[code] += 1


class LinesDoor(Door):
    """Raw TCP: the first line that is not empty connects."""

    _part = "line"
    _serves_more = False

    def _request(self, guest: Guest, data: bytes) -> lines.Connect | None:
        found, rest = lines.split_lines(b"", data, limits.LINE_BYTES_MAX)
        for index, line in enumerate(found):
            if line:
                self._admit(guest)
                request = lines.parse(line, limits.MESSAGE_BYTES_MAX)
                if not isinstance(request, lines.Connect):
                    raise PeerError(Close.NOT_CONNECTED, field="op")
                guest.rest = b"\n".join([*found[index + 1 :], rest])
                return request
        guest.rest = rest
        return None

    def _refusal(self, guest: Guest, error: PeerError, after_ms: int | None) -> bytes:
        return lines.close(error.code, error.reason, after_ms, error.field)

    def _head(self, guest: Guest) -> bytes:
        return b""


class StreamDoor(Door):
    """HTTP: `GET /events` becomes a session, everything else is handed on with the bytes already read."""

    _part = "head"
    _serves_more = True

    def __init__(self, house: House, lane: Lane, application: Application) -> None:
        super().__init__(house, lane)
        self._origins = house.config.origins
        self._application = application
        self._served: int | None = None  # by the application, when the reserve was spent, or fewer since

    def _request(self, guest: Guest, data: bytes) -> lines.Connect | None:
        head = sse.parse_head(data)
        if head is None:
            guest.rest = data
            return None
        if head.path != "/events" or head.method == "OPTIONS":
            if not self._has_room():
                guest.rest = data
                self.dismiss(guest, PeerError(Close.OVERLOADED, UNWATCHED))
                return None
            del self._guests[guest]
            self._application.take(self._pool.release(guest), data, guest.address)
            return None
        if self._sources.has_trusted:
            guest.address = self._sources.of_head(self._address(guest, guest.fd), data)
        guest.rest = b""  # a stream's client has nothing more to say
        origin = head.headers.get("origin")
        if origin is not None and (origin in self._origins or "*" in self._origins):
            guest.origin = origin
        self._admit(guest)
        return sse.connect_request(head)

    def dismiss(self, guest: Guest, error: PeerError) -> None:
        """As for lines, but nobody is answered before he asks, nor told 200 before we know what for."""
        if guest.asks or guest.rest.startswith(b"GET /events"):
            super().dismiss(guest, error)
        elif guest.fd != CLOSED:
            self._count_out(guest, error.code)
            self._admission.refused(error)
            self._pool.farewell(guest, _UNAVAILABLE if guest.rest else b"")

    def _has_room(self) -> bool:
        """Tell whether one more connection may go to the application: its loop needs a watch for it."""
        if not self._pool.reserve.is_spent:
            self._served = None
            return True
        now = self._application.connections
        self._served = now if self._served is None else min(self._served, now)
        return now - self._served < reserve.WATCHES // 2

    def _refusal(self, guest: Guest, error: PeerError, after_ms: int | None) -> bytes:
        if error.code.reconnect:
            return sse.refusal(error.code, error.reason, after_ms or sse.RETRY_MS, guest.origin)
        return sse.json_error(error, guest.origin)

    def _head(self, guest: Guest) -> bytes:
        return sse.response_head(guest.origin) + sse.FIRST
