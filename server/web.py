"""Everything on the public HTTP port that is not a stream, served by aiohttp: publish, health, CORS, the start page.

Connections come from the pool with the bytes already read. `connect_accepted_socket` followed by `data_received` would deliver
those bytes out of order; an entry protocol hands them over at the moment the transport is made.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import TYPE_CHECKING, Protocol

from aiohttp import web

from router import journal
from router.namespaces import Policy
from router.outcome import Unconfirmed
from router.pipe import Reply
from router.wiring import AnyBus, AnyFeed
from server import limits, lines, sse
from server.access import may_publish
from server.admission import Admission, site_of
from server.auth import Claims, KeyUnknown
from server.close import Close, PeerError
from server.config import Config
from server.handshake import StreamDoor
from server.http import Connection, fault, http_fault, json, read_body
from server.pool import Pool
from server.requests import bus_fault
from server.sources import UNKNOWN, Sources, of_socket
from server.stats import Stats

if TYPE_CHECKING:
    from server.leaving import Leaving

log = logging.getLogger("moorage.web")

Handle = Callable[[web.Request], Awaitable[web.StreamResponse]]

_STREAM_STARTS = (b"GET /events?", b"GET /events ")
_COME_AGAIN = b"retry: 100\n\n"
_PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'",
}


class House(Protocol):
    """The worker."""

    bus: AnyBus
    feed: AnyFeed
    pool: Pool
    stats: Stats
    http_door: StreamDoor
    leaving: Leaving
    sources: Sources
    admission: Admission

    def identify(self, token: str | None, user: str | None) -> Claims:
        """Return who that is. Raises: PeerError, KeyUnknown."""

    def refresh_keys(self, then: Callable[[], None]) -> None:
        """Fetch the keys that verify tokens, then call back."""

    def ready(self) -> str:
        """Return why no new connections should come here; "" when they may."""


class Handler(Connection):
    """One of the public port, with two more things that aiohttp's does not do."""

    house: House
    address = ""  # whose the connection is, if a PROXY header said so
    _in_a_head = False  # bytes have come that are not a whole head, nor the body of a request that is handled

    @property
    def _is_idle(self) -> bool:
        """True while it waits for the next request: everything before has been answered, bodies are read."""
        return self._waiter is not None and not self._waiter.done()

    def hold_off(self) -> None:
        """Have the transport not read, if it was not to."""
        if self._buffer_paused or self._reading_paused:
            self._pause_transport_reading()

    def data_received(self, data: bytes) -> None:
        """Take back a connection that was kept alive and now asks for a stream.

        Only where a request begins: a proxy may share the connection among users, and nothing in the body or in the
        headers of one must look like the request of another.
        """
        transport, count = self.transport, self._request_count
        if self._is_idle and not self._in_a_head and data.startswith(_STREAM_STARTS):
            assert transport is not None
            sock = transport.get_extra_info("socket")
            # The transport closes its own descriptor and takes it out of the loop; the connection lives in the other.
            fd = os.dup(sock.fileno())
            transport.abort()
            self.house.http_door.take_back(fd, data, self.address)
            return
        super().data_received(data)
        self._in_a_head = self._request_count == count and not self._request_in_progress

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio: True keeps the transport open
        """Answer a client that has closed its half: it may still be listening (aiohttp issue 3659)."""
        bodies = [body for _, body in self._messages]
        if self._current_request is not None:
            bodies.append(self._current_request.content)
        if self._is_idle or not all(body.is_eof() for body in bodies):
            return False  # nothing to answer, or nothing that could be answered any more
        self.close()  # behind the answer
        return True


class Web:
    """The aiohttp application of one worker."""

    def __init__(self, house: House, config: Config) -> None:
        self._house = house
        self._origins = config.origins
        self._message_bytes_max = config.message_bytes_max
        self._namespaces = config.namespaces
        self._page = (files("server") / "pages" / "chat.html").read_bytes()
        self._app = web.Application(client_max_size=limits.BODY_BYTES_MAX, middlewares=[self._guard])
        self._app.add_routes(
            [
                web.get("/", self._start_page),
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.post("/publish", self._publish),
                web.get("/events", self._come_again, allow_head=False),
            ]
        )
        self._runner = web.AppRunner(
            self._app,
            access_log=None,
            handle_signals=False,
            keepalive_timeout=75,
            shutdown_timeout=limits.FAREWELL_SECONDS_MAX,
        )
        self._server: Callable[[], Handler]
        self._taken: set[asyncio.Task[None]] = set()  # on their way to the application

    async def start(self) -> None:
        """Make the application ready to take connections."""
        await self._runner.setup()
        server = self._runner.server
        assert server is not None
        loop = asyncio.get_running_loop()
        Handler.house = self._house
        self._server = lambda: Handler(server, loop=loop, access_log=None, keepalive_timeout=75)  # type: ignore[arg-type]

    def take(self, fd: int, first: bytes, address: str) -> None:
        """Serve the connection `fd`, of which `first` has been read; `address`: whose it is, where that is not its peer."""
        sock = socket.socket(fileno=fd)
        task = asyncio.get_running_loop().create_task(self._take(sock, first, address))
        self._taken.add(task)
        task.add_done_callback(self._taken.discard)

    @property
    def connections(self) -> int:
        """How many are served."""
        server = self._runner.server
        return len(self._taken) + (len(server.connections) if server is not None else 0)

    async def stop(self) -> None:
        """Answer what has been asked, in a bounded while, and close."""
        if self._taken:
            await asyncio.wait(self._taken, timeout=limits.FAREWELL_SECONDS_MAX)
        await self._runner.cleanup()

    async def _take(self, sock: socket.socket, first: bytes, address: str) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: _Entry(self._server, first, address), sock)
        except OSError:
            sock.close()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handle) -> web.StreamResponse:
        """Turn every fault into the JSON that the contract promises, and say which web pages may read the answer."""
        try:
            async with asyncio.timeout(limits.REQUEST_SECONDS_MAX):
                response = _preflight() if request.method == "OPTIONS" else await handler(request)
        except PeerError as error:
            response = fault(error)
        except TimeoutError:
            response = fault(PeerError(Close.HANDSHAKE_TIMEOUT, "the request did not come in time"))
        except web.HTTPException as error:
            response = http_fault(request, error)
        origin = request.headers.get("Origin")
        if origin is not None and (origin in self._origins or "*" in self._origins):
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Vary"] = "Origin"
        sock = request.transport and request.transport.get_extra_info("socket")
        pool = self._house.pool
        if self._house.leaving.has_begun or pool.reserve.is_spent or (sock and pool.is_reserved(sock.fileno())):
            response.force_close()  # the next request is for another server; or others need it, to be told that there is no room
        return response

    async def _start_page(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._page, content_type="text/html", charset="utf-8", headers=_PAGE_HEADERS)

    async def _come_again(self, request: web.Request) -> web.Response:
        """A stream asked for behind another request and not taken back: it can have a connection of its own."""
        if not request.raw_path.startswith("/events"):  # other spellings are not taken there either
            raise web.HTTPNotFound
        response = web.Response(
            body=_COME_AGAIN, content_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )
        response.force_close()
        return response

    async def _healthz(self, _request: web.Request) -> web.Response:
        """Alive: the loop runs. A bus that is down does not make the fleet restart."""
        return json({"status": "ok"})

    async def _readyz(self, _request: web.Request) -> web.Response:
        why = self._house.ready()
        return json({"status": "not ready", "reason": why}, 503) if why else json({"status": "ready"})

    async def _publish(self, request: web.Request) -> web.Response:
        address = self._address(request)
        claims = await self._identify(request)
        log.debug("%s publishes from %s", claims.user, address)
        if wait_ms := self._house.admission.publish_wait_ms((site_of(address), claims.user), claims.user):
            response = fault(PeerError(Close.PUBLISH_RATE))
            response.headers["Retry-After"] = str(-(-wait_ms // 1000))
            return response
        publish = lines.parse_publish(await read_body(request), self._message_bytes_max)
        await self._check_publish(claims, publish.channel)
        members = journal.members(claims.user, time.time_ns() // 1_000_000, publish.data)
        once = f"{claims.user} {publish.idempotency}".encode() if publish.idempotency else b""
        kept = self._namespaces.of(publish.channel).kept
        answered: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

        def done(reply: Reply) -> None:
            if not answered.done():
                answered.set_result(reply)

        self._house.bus.publish(publish.channel.encode(), members, kept, done, once=once)
        reply = await answered
        if not isinstance(reply, bytes | int):
            self._house.stats.publish_failures += 1
            raise bus_fault(reply)
        self._house.stats.published += 1
        return json({"position": reply.decode()} if isinstance(reply, bytes) else {})

    def _address(self, request: web.Request) -> str:
        """Return whose a request is. Raises: PeerError."""
        handler, headers = request.protocol, request.headers
        assert isinstance(handler, Handler)
        sock = request.get_extra_info("socket")
        peer = handler.address or (of_socket(sock.fileno()) if sock else UNKNOWN)
        values = headers.getall("Forwarded", ()), headers.getall("X-Forwarded-For", ())
        return self._house.sources.of_headers(peer, *values)

    async def _check_publish(self, claims: Claims, channel: str) -> None:
        """Raise PeerError unless this user may publish; for a member, one of her connections is subscribed to the channel."""
        if not may_publish(self._namespaces, claims, channel, is_member=lambda: True):
            raise PeerError(Close.FORBIDDEN, "not allowed to publish", "channel")
        if self._namespaces.of(channel).publish is not Policy.MEMBERS:
            return
        answered: asyncio.Future[bool | Exception] = asyncio.get_running_loop().create_future()

        def done(found: bool | Exception) -> None:
            if not answered.done():
                answered.set_result(found)

        self._house.feed.presence.ask_member(claims.user, channel, done)
        found = await answered
        if isinstance(found, Unconfirmed):
            raise PeerError(Close.OVERLOADED, f"nothing was published: {found}")
        if isinstance(found, Exception):
            raise bus_fault(found)
        if not found:
            reason = "not allowed to publish: none of your connections is subscribed"
            raise PeerError(Close.FORBIDDEN, reason, "channel")

    async def _identify(self, request: web.Request) -> Claims:
        """Who says so and how is read as for a stream, so that nobody is two users."""
        headers = {name.lower(): request.headers[name] for name in ("Authorization",) if name in request.headers}
        head = sse.Head("GET", "/events", request.rel_url.raw_query_string, headers, http11=True)
        token, user, *_ = sse.connect_request(head)
        try:
            return self._house.identify(token, user)
        except KeyUnknown:
            fetched: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._house.refresh_keys(lambda: None if fetched.done() else fetched.set_result(None))
            await fetched
            return self._house.identify(token, user)


class _Entry(asyncio.Protocol):
    """Hands a transport to aiohttp in the moment it is made, with what has been read already."""

    def __init__(self, server: Callable[[], Handler], first: bytes, address: str) -> None:
        self._server = server
        self._first = first
        self._address = address

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        handler = self._server()
        handler.address = self._address
        transport.set_protocol(handler)
        handler.connection_made(transport)
        handler.data_received(self._first)
        # The transport begins to read behind this, even if it was told not to: `first` may hold more than is handled at once.
        asyncio.get_running_loop().call_soon(handler.hold_off)


def _preflight() -> web.Response:
    """Return what a browser asks for before a page of another origin may do more than read."""
    headers = {
        "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
        "Access-Control-Allow-Headers": "Authorization, Content-Type, Last-Event-ID",
        "Access-Control-Max-Age": "7200",
    }
    return web.Response(status=204, headers=headers)
