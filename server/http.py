"""HTTP in the shape of the contract, on both ports: JSON that is not cached, and an error that says what is wrong."""

from __future__ import annotations

import logging
from typing import Any

import orjson
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

from server.close import Close, PeerError

log = logging.getLogger("moorage.web")

_STATUS = {
    Close.UNAUTHORIZED: 401,
    Close.EXPIRED: 401,
    Close.FORBIDDEN: 403,
    Close.NOT_FOUND: 404,
    Close.HANDSHAKE_TIMEOUT: 408,
    Close.TOO_LARGE: 413,
    Close.PUBLISH_RATE: 429,
}


class Connection(RequestHandler):
    """aiohttp's connection, whose errors are the contract's."""

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Answer what aiohttp cannot read, or we cannot handle, in the shape of the contract."""
        if status >= 500:
            log.error("internal error", exc_info=exc)
            response = fault(PeerError(Close.OUR_FAULT), status)
        else:
            response = fault(PeerError(Close.BAD_REQUEST, message or "", "request"), status)
        response.force_close()
        return response

    def log_exception(self, *args: Any, **kw: Any) -> None:  # noqa: ANN401  # aiohttp's
        """Say nothing of a body that cannot be read: anybody can send one, and has been answered."""
        if not isinstance(kw.get("exc_info"), web.RequestPayloadError | HttpProcessingError):
            super().log_exception(*args, **kw)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send a response. The one that aiohttp has for an expectation comes past the middlewares."""
        if isinstance(resp, web.HTTPExpectationFailed):
            found = request.headers.get("Expect", "")
            resp = fault(PeerError(Close.BAD_REQUEST, f"found {found[:32]!r}, want 100-continue", "Expect"))
        return await super().finish_response(request, resp, start_time)


async def read_body(request: web.Request) -> bytes:
    """Return the body of a request. Raises: PeerError when it cannot be read, or nobody is there any more to send it."""
    try:
        return await request.read()
    except (web.RequestPayloadError, HttpProcessingError) as error:
        raise PeerError(Close.BAD_REQUEST, f"cannot be read: {error}", "body") from None
    except (ConnectionError, RuntimeError):  # the latter, where aiohttp begins to read of a connection that is gone
        if request.transport is not None:
            raise
        raise PeerError(Close.LEFT) from None


def fault(error: PeerError, status: int | None = None) -> web.Response:
    """Return the response that says what is wrong."""
    body: dict[str, object] = {"code": int(error.code), "reason": error.reason}
    if error.field is not None:
        body["field"] = error.field
    response = json({"error": body}, status or _STATUS.get(error.code, 503 if error.code.reconnect else 400))
    if response.status == 503:
        response.headers["Retry-After"] = "2"
    if response.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def http_fault(request: web.Request, error: web.HTTPException) -> web.Response:
    """Return the response that takes the place of aiohttp's own. Raises: `error` itself, where it is no fault."""
    if error.status < 400:
        raise error
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return fault(PeerError(Close.TOO_LARGE, error.text or "", "body"))
    if isinstance(error, web.HTTPMethodNotAllowed):
        wanted = ", ".join(sorted(error.allowed_methods))
        response = fault(PeerError(Close.BAD_REQUEST, f"found {request.method}, want {wanted}", "method"), 405)
        response.headers["Allow"] = wanted
        return response
    return fault(PeerError(Close.NOT_FOUND, f"{request.method} {request.path}: {error.reason}"), error.status)


def json(body: dict[str, Any], status: int = 200) -> web.Response:
    """Return `body` as a response."""
    return json_text(orjson.dumps(body), status)


def json_text(text: bytes, status: int = 200) -> web.Response:
    """Return what is JSON already as a response."""
    headers = {"Cache-Control": "no-store"}
    return web.Response(body=text, status=status, content_type="application/json", headers=headers)
