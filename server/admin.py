"""The admin process: API for backends and operators, `/metrics`, the dashboard. It costs the workers nothing.

It reads their pages of shared memory, and speaks to them only over the bus.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.resources import files
from typing import Any

import orjson
from aiohttp import web

from router import clients
from server import limits, lines, metrics, options
from server.backend import BUS_SECONDS_MAX, Backend
from server.claims import shown
from server.close import Close, PeerError
from server.config import Config
from server.gate import CHALLENGE, Gate
from server.http import Connection, fault, http_fault, json, json_text, read_body
from server.meter import Meter
from server.overview import Overview
from server.stats import Pages

log = logging.getLogger("moorage.admin")

CHANNELS_PER_PUBLISH_MAX = 1000
SHUTDOWN_SECONDS_MAX = 1.0  # for requests that are being answered
BACKLOG = 128  # connections that wait to be accepted
NOTICE_SECONDS = 1.0  # between looks at workers that are new

_PAGE_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Judge = Callable[[dict[str, Any]], dict[str, Any]]
"""Says how much more fits, `ceilings` above all, by what `Meter.read` measured. May block."""


def _no_opinion(_measured: dict[str, Any]) -> dict[str, Any]:
    return {"ceilings": []}


def run(config: Config, pages: Pages, sockets: list[socket.socket], redis_url: str, judge: Judge = _no_opinion) -> None:
    """Serve the admin port on `sockets`, bound already, until SIGINT. The whole life of a child process.

    Raises: ValueError for a `redis_url` that `topology.parse` refuses.
    """
    asyncio.run(_run(config, pages, sockets, redis_url, judge))


async def _run(config: Config, pages: Pages, sockets: list[socket.socket], redis_url: str, judge: Judge) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGINT, stop.set)
    # A service manager may send TERM to every process of the service. That begins a drain, which is to be watched here;
    # the supervisor says INT when the workers are gone.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    redis = clients.client(redis_url, timeout_seconds=BUS_SECONDS_MAX)
    app = make_app(
        pages,
        Backend(redis, config.redis_prefix, config.namespaces, presence_max=config.presence_connections_max),
        gate=Gate(config.admin.host, config.admin_key),
        message_bytes_max=config.message_bytes_max,
        drain_seconds=config.drain_seconds,
        judge=judge,
    )
    runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=SHUTDOWN_SECONDS_MAX)
    listeners: list[asyncio.Server] = []
    try:
        await runner.setup()
        listeners += await listen(runner, sockets)
        await stop.wait()
    finally:
        for listener in listeners:
            listener.close()
        await runner.cleanup()
        await redis.aclose()


async def listen(runner: web.AppRunner, sockets: list[socket.socket]) -> list[asyncio.Server]:
    """Serve what `runner` has set up. Not by its sites: their connections answer what they cannot read in a form of their own."""
    server, loop = runner.server, asyncio.get_running_loop()
    assert server is not None

    def connect() -> Connection:
        return Connection(server, loop=loop, access_log=None)  # type: ignore[arg-type]  # None: there is none

    return [await loop.create_server(connect, sock=sock, backlog=BACKLOG) for sock in sockets]


def make_app(
    pages: Pages,
    backend: Backend,
    *,
    gate: Gate,
    message_bytes_max: int,
    drain_seconds: float = 0.0,
    judge: Judge = _no_opinion,
) -> web.Application:
    """Return the application."""
    admin = Admin(pages, backend, gate, message_bytes_max, judge)
    admin.app.add_routes([web.post("/api/drain", DrainOrder(pages, drain_seconds).take)])
    return admin.app


class Admin:
    """The endpoints."""

    def __init__(self, pages: Pages, backend: Backend, gate: Gate, message_bytes_max: int, judge: Judge) -> None:
        self._backend = backend
        self._gate = gate
        self._message_bytes_max = message_bytes_max
        self._overview = Overview(pages)
        self._meter = Meter(pages)
        self._judge = judge
        self._collector = metrics.WorkerCollector(pages, self._meter, self._ceilings)
        self._dashboard = (files("server") / "pages" / "dashboard.html").read_bytes()
        self.app = web.Application(client_max_size=limits.BODY_BYTES_MAX, middlewares=[self._guard])
        self.app.cleanup_ctx.append(self._noticing)
        self.app.add_routes(
            [
                web.get("/", self._start_page),
                web.get("/healthz", self._healthz),
                web.get("/metrics", self._metrics),
                web.get("/api/stats", self._stats),
                web.get("/api/capacity", self._capacity),
                web.get("/api/channels/{channel:[^/]+}/history", self._history),
                web.get("/api/channels/{channel:[^/]+}/presence", self._presence),
                web.post("/api/publish", self._publish),
                web.post("/api/users/{user:[^/]+}/disconnect", self._disconnect),
            ]
        )

    # What stands before and beside every request.

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let in who may, and turn every fault into the JSON that the contract promises."""
        try:
            if request.path != "/healthz":
                self._gate.check(request.method, request.headers)
            async with asyncio.timeout(limits.REQUEST_SECONDS_MAX):
                return await handler(request)
        except PeerError as error:
            return _refusal(error)
        except TimeoutError:
            return _refusal(PeerError(Close.BAD_REQUEST, "the request did not come in time", "body"), 408)
        except web.HTTPException as error:
            return http_fault(request, error)
        except Exception:
            log.exception("internal error: %s %s", request.method, request.path)
            return _refusal(PeerError(Close.OUR_FAULT), 500)

    async def _noticing(self, _app: web.Application) -> AsyncIterator[None]:
        async def notice() -> None:
            while True:
                try:
                    await asyncio.to_thread(self._meter.look)
                except Exception:  # a process that ends while it is looked at, in a way that psutil does not know
                    log.exception("the workers could not be measured")
                await asyncio.sleep(NOTICE_SECONDS)

        task = asyncio.create_task(notice())
        yield
        task.cancel()
        await asyncio.wait([task])

    # What is read.

    async def _start_page(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._dashboard, content_type="text/html", charset="utf-8", headers=_PAGE_HEADERS)

    async def _healthz(self, _request: web.Request) -> web.Response:
        return json({"status": "ok"})

    async def _metrics(self, request: web.Request) -> web.Response:
        accept = ",".join(request.headers.getall("Accept", []))
        body, content_type = await asyncio.to_thread(lambda: metrics.render(self._collector.collect(), accept))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _stats(self, _request: web.Request) -> web.Response:
        return json(self._overview.read(time.monotonic()))

    async def _capacity(self, _request: web.Request) -> web.Response:
        return json(await asyncio.to_thread(self._judged))

    def _judged(self) -> dict[str, Any]:
        """What was measured, and what follows from it. The windows are its raw material and stay here."""
        measured = self._meter.read()
        found = self._judge(measured)
        del measured["windows"]
        return {"at": int(time.time() * 1000), **measured, **found}

    def _ceilings(self) -> list[tuple[str, int]]:
        return [(one["limit"], one["connections"]) for one in self._judge(self._meter.read())["ceilings"]]

    async def _history(self, request: web.Request) -> web.Response:
        (channel,) = _channels([request.match_info["channel"]], "channel")
        after = lines.checked_position(_single(request, "after"), "after")
        found = await self._backend.history(channel, after, _limit(_single(request, "limit")))
        return json_text(b'{"channel":%b%b}' % (orjson.dumps(channel), found))

    async def _presence(self, request: web.Request) -> web.Response:
        (channel,) = _channels([request.match_info["channel"]], "channel")
        found = await self._backend.presence(channel)
        return json({"channel": channel, "users" if isinstance(found, dict) else "connections": found})

    # What is done.

    async def _publish(self, request: web.Request) -> web.Response:
        body = await _object(request)
        data, idempotency = self._data(body), lines.checked_idempotency(body)
        if "channels" not in body:
            names = _channels([body.get("channel")], "channel")
            positions = await self._backend.publish(names, data, idempotency, "channel")
            return json({"position": positions[names[0]]})
        if "channel" in body:
            raise PeerError(Close.BAD_REQUEST, "given beside channel, want one of them", "channels")
        names = _channels(body["channels"], "channels")
        return json({"positions": await self._backend.publish(names, data, idempotency, "channels")})

    def _data(self, body: dict[str, Any]) -> bytes:
        if "data" not in body:
            raise PeerError(Close.BAD_REQUEST, "missing, want any JSON value", "data")
        try:
            data = orjson.dumps(body["data"])
        except TypeError:  # orjson reads 1,024 levels and writes 254
            raise PeerError(Close.BAD_REQUEST, "nested too deep, want at most 254 levels", "data") from None
        if len(data) > self._message_bytes_max:
            reason = f"{len(data)} bytes, want at most {self._message_bytes_max}"
            raise PeerError(Close.TOO_LARGE, reason, "data")
        return data

    async def _disconnect(self, request: web.Request) -> web.Response:
        user = lines.checked_user(request.match_info["user"])
        body = await _object(request) if request.can_read_body else {}
        reconnect = body.get("reconnect", False)
        if type(reconnect) is not bool:
            raise PeerError(Close.BAD_REQUEST, f"found {shown(reconnect)!r}, want true or false", "reconnect")
        return json({"workers": await self._backend.disconnect(user, reconnect=reconnect)})


class DrainOrder:
    """`POST /api/drain`: `{"seconds": N}`, or the configured ones. The supervisor drains; asking again changes the window."""

    def __init__(self, pages: Pages, seconds: float) -> None:
        self._pages = pages
        self._seconds = seconds
        self._read = options.seconds(0, limits.DRAIN_SECONDS_MAX)

    async def take(self, request: web.Request) -> web.Response:
        """Hand it on; what comes of it is in `/api/stats`."""
        body = await _object(request) if request.can_read_body else {}
        if strays := sorted(body.keys() - {"seconds"}):
            raise PeerError(Close.BAD_REQUEST, "unknown, want seconds or nothing", ", ".join(strays)[:80])
        try:
            seconds = self._read(body.get("seconds", self._seconds))
        except ValueError as wanted:
            reason = f"found {shown(body['seconds'])!r}, want {wanted}"
            raise PeerError(Close.BAD_REQUEST, reason, "seconds") from None
        if not self._pages.supervisor_pid:
            raise PeerError(Close.OUR_FAULT, "the supervisor is not known")
        if "seconds" in body or self._pages.window is None:
            self._pages.asked_seconds = seconds
            os.kill(self._pages.supervisor_pid, signal.SIGUSR1)
        return json({"seconds": seconds})


async def _object(request: web.Request) -> dict[str, Any]:
    """Read a JSON object. The content type keeps out forms, which a page of any site can send without being asked."""
    if request.content_type != "application/json":
        reason = f"found {request.content_type[:80]!r}, want application/json"
        raise PeerError(Close.BAD_REQUEST, reason, "Content-Type")
    try:
        body = orjson.loads(await read_body(request))
    except orjson.JSONDecodeError as error:
        raise PeerError(Close.BAD_REQUEST, f"not JSON: {error}", "body") from None
    if not isinstance(body, dict):
        raise PeerError(Close.BAD_REQUEST, "want a JSON object", "body")
    return body


def _channels(names: object, field: str) -> tuple[str, ...]:
    """The names, each once. Raises: PeerError."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        wanted = "a string" if field == "channel" else "an array of strings"
        raise PeerError(Close.BAD_REQUEST, f"want {wanted}", field)
    if not 1 <= len(names) <= CHANNELS_PER_PUBLISH_MAX:
        raise PeerError(Close.BAD_REQUEST, f"{len(names)} names, want 1 to {CHANNELS_PER_PUBLISH_MAX}", field)
    for name in names:
        if name.startswith("$"):
            raise PeerError(Close.FORBIDDEN, f"{name[:80]}: names that begin with $ are the server's own", field)
    return lines.checked_channels(names, field)


def _single(request: web.Request, name: str) -> str:
    """A parameter of the query, "" when it is not there. Raises: PeerError."""
    found = request.query.getall(name, [])
    if len(found) > 1:
        raise PeerError(Close.BAD_REQUEST, "given twice", name)
    return found[0] if found else ""


def _limit(text: str) -> int:
    """How many messages are asked for. Raises: PeerError."""
    if not text:
        return lines.HISTORY_MESSAGES
    is_number = len(text) < 10 and text.isascii() and text.isdecimal()
    if not is_number or not 1 <= int(text) <= limits.HISTORY_PAGE_MESSAGES_MAX:
        wanted = f"a whole number from 1 to {limits.HISTORY_PAGE_MESSAGES_MAX}"
        raise PeerError(Close.BAD_REQUEST, f"found {text[:20]!r}, want {wanted}", "limit")
    return int(text)


def _refusal(error: PeerError, status: int | None = None) -> web.Response:
    response = fault(error, status)
    if response.status == 401:
        response.headers["WWW-Authenticate"] = CHALLENGE
    return response
