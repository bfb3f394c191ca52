"""One worker: its loop, pool, doors, sessions and router, from the first accept to the drain."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import orjson
import uvloop

from router import journal, topology
from router.carousel import Carousel
from router.message import Message
from router.namespaces import personal
from router.table import Sink, Table
from router.wiring import Outlets, Worker, wire
from server import limits, lines, sse
from server.admission import Admission
from server.auth import Claims, Verifier
from server.catchup import CatchUp
from server.census import Census
from server.close import Close, PeerError
from server.config import Config
from server.drain import Window
from server.expiry import Expiry
from server.guest import Guest, expire
from server.handshake import UNWATCHED, LinesDoor, StreamDoor
from server.heartbeat import Heartbeat
from server.lane import LINES, STREAM, Lane
from server.leaving import Leaving
from server.listener import Listener, resume_all
from server.pool import Pool
from server.pressure import Pressure
from server.requests import Requests
from server.session import CLOSED, Session
from server.sources import Sources
from server.stats import Page
from server.tasks import Tasks
from server.web import Web
from server.welcome import Welcome

log = logging.getLogger("moorage.shard")

_HOUSEKEEPING_SECONDS = 0.5  # a hundred workers of a machine are woken that often


class CannotStart(Exception):
    """What it needs cannot be had; the text says why."""


class Place(NamedTuple):
    """Where a worker stands: its number, its sockets by transport, and what it shares with its supervisor."""

    number: int
    node: str  # names this supervisor among those that share a Redis
    tcp: list[socket.socket]
    http: list[socket.socket]
    page: Page
    window: Callable[[], Window | None]  # in which the whole server is left
    workers: int = 1  # how many there are
    census: Census | None = None  # of them all, where there is a limit on connections


class Shard:
    """A worker. Nothing in it is shared with another but its page, which it alone writes."""

    def __init__(self, config: Config, place: Place, redis_url: str, verifier: Verifier | None) -> None:
        self.config = config
        self.place = place
        self.loop = asyncio.get_running_loop()
        self.stats = place.page.restore()
        self.pool = Pool(self.stats, self, backlog_bytes_max=config.backlog_bytes_max, clock=time.monotonic)
        self.table = Table()
        self.carousel = Carousel(
            self.table,
            slice_seconds_max=limits.TURN_SECONDS_MAX,
            on_full=partial(self._end_sink, code=Close.SLOW),
            on_done=self.stats.fanout.observe,
            clock=time.monotonic,
        )
        self.carousel.deliveries, self.carousel.writes = self.stats.deliveries, self.stats.writes
        worker = Worker(
            f"{place.node}-{place.number}", config.redis_prefix, self.table, self.carousel,
            config.namespaces, self.stats, config.presence_connections_max,
        )  # fmt: skip
        outlets = Outlets(self._control, self._connected, self._saw_lag, self._saw_waiting, self._answered)
        self.feed, self.bus = wire(topology.parse(redis_url), worker, outlets)
        self._pressure = Pressure(self.bus, self.stats)
        self.feed.received, self.feed.gaps = self.stats.received_messages, self.stats.gaps_sent
        self.catchup = CatchUp(self, self.loop.call_soon)
        self.verifier = verifier
        self.admission = Admission(config, self.stats, place.census, place.number, place.workers, time.monotonic)
        self._welcome = Welcome(self, f"{place.node}-{place.number}")
        self.requests = Requests(
            self,
            config.namespaces,
            channels_max=config.channels_per_connection_max,
            message_bytes_max=config.message_bytes_max,
        )
        self.heartbeat = Heartbeat(self.pool, config.heartbeat_seconds)
        self.expiry, self._ages = Expiry(), Expiry()
        self.sources = Sources(config.proxy_protocol, config.proxy_trusted)
        self.web = Web(self, config)
        self._tcp = Lane("tcp", lines, LINES, self.pool)
        self._sse = Lane("sse", sse, STREAM, self.pool)
        self.guests: dict[Guest, None] = {}
        self._grants: dict[Session, Claims] = {}  # of those whose token narrows what they may do
        self.leaving = Leaving(self, place.window, config.drain_seconds)
        self._tasks = Tasks(self.loop)
        self._goes_on = False  # a part of the pool's batch is left for the next pass of the loop
        self._bus_came: asyncio.Future[None] = self.loop.create_future()
        self._tcp_door = LinesDoor(self, self._tcp)
        self.http_door = StreamDoor(self, self._sse, self.web)
        self.listeners = [Listener(sock, self.pool, self._tcp_door.accept) for sock in place.tcp]
        self.listeners += [Listener(sock, self.pool, self.http_door.accept) for sock in place.http]

    # Life of the worker.

    async def run(self) -> None:
        """Serve until stopped."""
        self.loop.add_signal_handler(signal.SIGTERM, self.leaving.begin)
        self.loop.add_signal_handler(signal.SIGINT, self.stop)
        self.loop.add_signal_handler(signal.SIGHUP, self.reread)
        await self.web.start()
        self._tasks.start(self.bus.run())
        if self.verifier is not None:
            self.reread()  # this may be a replacement, forked from a supervisor that still has the key it began with
            self._tasks.start(self.verifier.keep_fresh())
        # Who is let in before the bus is there cannot be told what it has missed. Its first moments are waited for in the
        # queue, where it costs nobody anything; no longer, because health checks are answered without a bus, too.
        await asyncio.wait(
            [self._bus_came, self._tasks.ended],
            timeout=limits.BUS_PATIENCE_SECONDS,
            return_when=asyncio.FIRST_COMPLETED,
        )
        self.loop.add_reader(self.pool.fileno(), self._ready)
        for listener in self.listeners:
            listener.open()
        self._keep_house(time.monotonic())
        self._beat()
        if self.place.window() is not None:  # a replacement of one that ended while it was left
            self.leaving.begin()
        await self._tasks.ended
        await self.leaving.finish()
        self.feed.rosters.farewell()
        await asyncio.sleep(0)  # in which it is sent
        self._write_page()

    def ready(self) -> str:
        """Return why no new connections should come here; "" when they may."""
        if self.leaving.has_begun:
            return "draining"
        return self.bus.fault()

    @property
    def connections(self) -> int:
        """How many sessions there are."""
        return self._tcp.sessions + self._sse.sessions

    def stop(self) -> None:
        """Stop now."""
        self._tasks.end()

    def reread(self) -> None:
        """Read the key that verifies tokens again; what is at hand stays in use when that fails."""
        if self.verifier is None:
            return
        if "://" in (self.config.auth_key or ""):
            self._tasks.start(self.verifier.refresh())
            return
        try:
            self.verifier = verifier(self.config)
        except (OSError, ValueError) as error:
            log.error("worker %d: the key stays as it was: %s", self.place.number, error)

    # What the doors ask for.

    def admit(self, fd: int) -> None:
        """Raise PeerError while nobody is let in, or none with that descriptor."""
        if self.leaving.has_begun:
            self.stats.sessions_refused += 1
            raise PeerError(self.leaving.code)
        if self.pool.is_reserved(fd):
            self.stats.sessions_refused += 1
            raise PeerError(Close.OVERLOADED, "out of descriptors")
        if self.pool.reserve.is_spent:
            self.stats.sessions_refused += 1
            raise PeerError(Close.OVERLOADED, UNWATCHED)

    def identify(self, token: str | None, user: str | None) -> Claims:
        """Return who that is. Raises: PeerError, KeyUnknown."""
        if self.verifier is not None:
            if token is None:
                raise PeerError(Close.UNAUTHORIZED, "missing, want a signed token", "token")
            return self.verifier.verify(token, time.time())
        if user is None:
            raise PeerError(Close.UNAUTHORIZED, "missing, want a name (this server has no secret: open mode)", "user")
        return Claims(user)

    def later(self, call: Callable[[], None]) -> object:
        """Call once this turn of the loop is through."""
        return self.loop.call_soon(call)

    def refresh_keys(self, then: Callable[[], None]) -> None:
        """Fetch the keys that verify tokens, then call back."""
        assert self.verifier is not None
        self._tasks.start(self.verifier.refresh()).add_done_callback(lambda _task: then())

    def opened(self, session: Session, claims: Claims, began: bytes | None, asked: str | None, head: bytes) -> None:
        """Greet a session, `head` first. Its stream began at position `began`; it `asked` to go on from another."""
        session.lane.sessions += 1
        if claims.subscribe is not None or claims.publish is not None:
            self._grants[session] = claims
        self.expiry.set(session.fd, claims.expires_at)
        if age := self.config.connection_seconds_max:
            self._ages.set(session.fd, time.monotonic() + age * random.uniform(0.9, 1.1) + 1)  # whole seconds are kept
        self._welcome.greet(session, began, asked, head)

    def claims(self, session: Session) -> Claims:
        """What the session may do."""
        return self._grants.get(session) or Claims(session.user)

    def end(self, session: Session, code: Close, reason: str = "", field: str | None = None) -> None:
        """Say goodbye and close."""
        after_ms = random.randint(500, 5000) if code.reconnect else None
        frame = session.lane.codec.close(code, reason or code.reason, after_ms, field)
        self._forget(session, code)
        self.pool.farewell(session, frame)

    # What the pool tells.

    def received(self, session: Session, data: bytes) -> None:
        """Bytes came."""
        self.requests.received(session, data)

    def half_closed(self, session: Session) -> None:
        """Find out whether the peer still listens: if it is gone, its kernel answers this write with a reset."""
        session.offer(session.lane.codec.HEARTBEAT)

    def lost(self, session: Session, code: Close) -> None:
        """The peer is gone."""
        self._forget(session, code)
        self.pool.close(session)

    def failed(self, session: Session) -> None:
        """A bug shows with this session: it ends, the others stay."""
        log.exception("worker %d: internal error", self.place.number)
        if session.fd != CLOSED:
            self.end(session, Close.OUR_FAULT)

    def drained(self, session: Session) -> None:
        """The kernel has taken all that was to overtake the cork."""
        self.catchup.drained(session)
        self.requests.drained(session)

    # What the bus tells.

    def _connected(self, count: int) -> None:
        self.stats.bus_reconnects += count > 1
        if self.bus.connected and not self._bus_came.done():  # in a cluster: of the last shard
            self._bus_came.set_result(None)

    def _saw_lag(self, message: Message) -> None:
        self.stats.bus_lag.observe(max(0.0, time.time() - journal.published_at(message)))

    def _answered(self) -> None:
        self.requests.tell_answers()

    def _saw_waiting(self, count: int) -> None:
        self._pressure.waiting(count)

    def _control(self, payload: bytes) -> None:
        """Do what the admin process tells all workers to do."""
        try:
            order = orjson.loads(payload)
            name, code = personal(order["user"]), Close.MOVED if order.get("reconnect") else Close.DISCONNECTED
        except (ValueError, KeyError, TypeError):
            log.error("an order on the bus that nobody understands: %.200r", payload)
            return
        channel = self.table.find(name.encode())
        for sink in list(channel.sinks) if channel is not None else ():
            self._end_sink(sink, code)

    def _end_sink(self, sink: Sink, code: Close) -> None:
        assert isinstance(sink, Session)
        if sink.fd != CLOSED:
            self.end(sink, code)

    # The loop.

    def _ready(self) -> None:
        """The pool has events. What is left of its last batch has a turn of its own, and one a pass of the loop is enough."""
        if not self._goes_on:
            self._turn()

    def _turn(self) -> None:
        self._goes_on = self.pool.turn()
        if self._goes_on:
            self.loop.call_soon(self._turn)

    def _beat(self) -> None:
        self.loop.call_later(self.heartbeat.tick(), self._beat)

    def _keep_house(self, due: float) -> None:
        now = time.monotonic()
        self.stats.loop_lag.observe(max(0.0, now - due))
        expire(self.guests, now)
        self.pool.expire()
        resume_all(self.listeners, now)
        self.admission.keep(now)
        for table, at, code in ((self.expiry, time.time(), Close.EXPIRED), (self._ages, now, Close.AGED)):
            for fd in table.due(at):
                session = self.pool.peers[fd]
                if isinstance(session, Session):
                    self.end(session, code)
        self.feed.tick()
        self._write_page()
        self.loop.call_later(_HOUSEKEEPING_SECONDS, self._keep_house, now + _HOUSEKEEPING_SECONDS)

    def _write_page(self) -> None:
        stats = self.stats
        stats.connections_tcp, stats.connections_sse = self._tcp.sessions, self._sse.sessions
        stats.handshaking = len(self.guests)
        stats.received_messages, stats.gaps_sent = self.feed.received, self.feed.gaps
        stats.deliveries, stats.writes = self.carousel.deliveries, self.carousel.writes
        stats.subscriptions = len(self.table)
        stats.bus_connected = int(self.bus.connected)
        stats.draining = int(self.leaving.has_begun)
        stats.drained = int(self.leaving.has_ended)
        stats.ready = int(not self.ready())
        self.place.page.write(stats, time.monotonic(), os.getpid())

    def sessions(self) -> Iterable[Session]:
        """Those who have finished their handshake."""
        return (peer for peer in list(self.pool.peers) if isinstance(peer, Session))

    def _forget(self, session: Session, code: Close) -> None:
        session.lane.sessions -= 1
        self.stats.closed[code] += 1
        self.requests.forget(session)
        self.catchup.forget(session)
        self._grants.pop(session, None)
        self.feed.watchers.forget(session)
        self.expiry.set(session.fd, None)
        self._ages.set(session.fd, None)
        self.admission.leave(session.fd)
        self.bus.leave(self.table.leave(session))


def verifier(config: Config) -> Verifier:
    """Return what checks tokens. Raises: OSError, ValueError when its key cannot be used."""
    return Verifier.from_config(
        config.auth_secret, config.auth_key, config.auth_audience, config.auth_issuer, time.monotonic
    )


def run(config: Config, place: Place, redis_url: str, verifier: Verifier | None) -> None:
    """Be a worker until told to stop: what a forked child does. Raises: CannotStart."""
    # Sessions are freed by their reference counts. A full collection would walk every one of them to find nothing.
    gc.set_threshold(20_000, 50, 1_000_000)

    async def main() -> None:
        try:
            shard = Shard(config, place, redis_url, verifier)
        except (OSError, ValueError) as error:
            raise CannotStart(str(error)) from error
        await shard.run()

    uvloop.run(main())
