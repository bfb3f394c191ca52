"""The SSE codec: the head of an HTTP request in, an event stream out. Sans-I/O.

Head: RFC 9110 and 9112. Events: the HTML standard, "Server-sent events". The stream ends when the connection does.
httptools checks the syntax of the headers and nothing else (FACTS 3): sizes, versions and counts are bounded here, and
it never sees a byte behind the head.
"""

from __future__ import annotations

import re
from string import hexdigits
from typing import Any, NamedTuple

import httptools
import orjson

from router.message import Message
from server import lines
from server.close import Close, PeerError
from server.limits import HEAD_BYTES_MAX, HEADERS_MAX, URL_BYTES_MAX

HEARTBEAT = b":\n\n"
RETRY_MS = 3_000
# What every stream begins with: a part of the first event, because some clients take a block of its own for a message.
FIRST = b"retry: %d\n" % RETRY_MS

_LF, _CR = b"\n\r"  # as numbers: `10 in data` takes a fifth of the time of `b"\n" in data`

# What a request's first bytes have to look like, and how long its first line may get.
_START = re.compile(rb"[A-Z][A-Z-]{0,15}(?: |\Z)")
# Possessive: a line that does not match must not be tried in quadratically many ways.
_REQUEST_LINE = re.compile(r"([A-Z-]++) (([^ ?#\r\n]++)(?:\?([^ #\r\n]*+))?) HTTP/1\.([01])\r\n")
_REQUEST_LINE_BYTES_MAX = 16 + 1 + URL_BYTES_MAX + len(" HTTP/1.1\r\n")

# The headers somebody reads, in a head whose syntax has been checked. One pass in C costs half of a callback each.
_NAMES = ("Authorization", "Host", "Last-Event-ID", "Origin")
_HEADERS = re.compile(rf"\n({'|'.join(_NAMES)}):([^\r]*)", re.ASCII | re.IGNORECASE)

_SINGLE = frozenset(("token", "user", "position", "gaps"))  # parameters that do not repeat, unlike `channel`
_ESCAPES = {high + low: bytes.fromhex(high + low) for high in hexdigits for low in hexdigits}


class Head(NamedTuple):
    """The head of a request: `path` and `query` as they came, percent-encoding and all.

    `headers` has authorization, host, last-event-id and origin, if given: nobody here reads another.
    """

    method: str
    path: str
    query: str
    headers: dict[str, str]
    http11: bool


class _Silent:
    """A protocol without callbacks, so that httptools only checks."""


_SILENT = _Silent()


# What comes in


def parse_head(buffer: bytes) -> Head | None:
    """Read the head a connection begins with; None while it is incomplete. What is behind the head is not looked at.

    Raises: PeerError, also for an incomplete one that cannot become a request any more.
    """
    end = buffer.find(b"\r\n\r\n") + 4
    if end == 3:
        _check_incomplete(buffer)
        return None
    if end > HEAD_BYTES_MAX:
        raise PeerError(Close.TOO_LARGE, f"{end} bytes, want at most {HEAD_BYTES_MAX}", "head")
    head = buffer if end == len(buffer) else buffer[:end]
    text = head.decode("latin-1")  # one character a byte: headers may be anything, the rest is ASCII
    if (line := _REQUEST_LINE.match(text)) is None:
        raise _request_line_fault(text)
    method, url, path, query, minor = line.groups("")
    if len(url) > URL_BYTES_MAX:
        raise PeerError(Close.TOO_LARGE, f"{len(url)} bytes, want at most {URL_BYTES_MAX}", "url")
    if text.count("\n") > HEADERS_MAX + 2:
        raise PeerError(Close.TOO_LARGE, f"want at most {HEADERS_MAX} headers", "headers")
    _check_syntax(head)
    headers = _headers(text)
    if minor == "1" and "host" not in headers:
        raise PeerError(Close.BAD_REQUEST, "missing, HTTP/1.1 wants one", "Host")
    if not path.startswith("/"):
        path = _path(path)
    return Head(method, path, query, headers, minor == "1")


def _check_incomplete(buffer: bytes) -> None:
    if len(buffer) > HEAD_BYTES_MAX:
        raise PeerError(Close.TOO_LARGE, f"over {HEAD_BYTES_MAX} bytes", "head")
    if buffer and not _START.match(buffer):
        raise PeerError(Close.BAD_REQUEST, f"not HTTP: it begins with {buffer[:16]!r}", "head")
    if len(buffer) > _REQUEST_LINE_BYTES_MAX and b"\r\n" not in buffer[:_REQUEST_LINE_BYTES_MAX]:
        raise PeerError(Close.TOO_LARGE, f"over {URL_BYTES_MAX} bytes", "url")


def _request_line_fault(text: str) -> PeerError:
    words = text[: text.find("\r\n")].split(" ")
    if len(words) != 3:
        return PeerError(Close.BAD_REQUEST, f"{len(words)} words in the request line, want 3", "head")
    method, url, version = words
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        return PeerError(Close.BAD_REQUEST, f"found {version[:16]!r}, want HTTP/1.1 or HTTP/1.0", "version")
    if "#" in url:
        return PeerError(Close.BAD_REQUEST, "a fragment (#) is not part of a request", "url")
    if not _START.fullmatch(method.encode() + b" "):
        return PeerError(Close.BAD_REQUEST, f"found {method[:16]!r}, want a method in capitals", "method")
    return PeerError(Close.BAD_REQUEST, f"found {url[:32]!r}, want a path", "url")


def _check_syntax(head: bytes) -> None:
    try:
        httptools.HttpRequestParser(_SILENT).feed_data(head)
    except httptools.HttpParserUpgrade:
        pass  # how it says that the head is whole and offers to change the protocol
    except httptools.HttpParserInvalidMethodError as error:
        raise PeerError(Close.BAD_REQUEST, str(error), "method") from None
    except httptools.HttpParserInvalidURLError as error:
        raise PeerError(Close.BAD_REQUEST, str(error), "url") from None
    except httptools.HttpParserError as error:
        raise PeerError(Close.BAD_REQUEST, str(error), "headers") from None


def _headers(text: str) -> dict[str, str]:
    found = _HEADERS.findall(text)
    headers = {name.lower(): value.strip(" \t") for name, value in found}
    if len(headers) < len(found):
        names = [name.lower() for name, _ in found]
        twice = next(name for name in _NAMES if names.count(name.lower()) > 1)
        raise PeerError(Close.BAD_REQUEST, "given twice", twice)
    return headers


def _path(target: str) -> str:
    """Return the path of a target in absolute form, valid too (RFC 9112, 3.2.2); the other forms stay as they are."""
    _, scheme_ends, rest = target.partition("://")
    return "/" + rest.partition("/")[2] if scheme_ends else target


def connect_request(head: Head) -> lines.Connect:
    """Read what `GET /events` asks for.

    A header wins over its query parameter; unknown parameters are ignored.
    Raises: PeerError with the field at fault, named as the peer names it.
    """
    if head.method != "GET":
        raise PeerError(Close.BAD_REQUEST, f"found {head.method}, want GET", "method")
    channels, single = _parameters(head.query)
    user = single.get("user")
    return lines.Connect(
        _token(head, single),
        None if user is None else lines.checked_user(user),
        lines.checked_channels(channels, "channel"),
        _position(head, single),
        _gaps(single.get("gaps", "0")),
    )


def _token(head: Head, single: dict[str, str]) -> str | None:
    if (authorization := head.headers.get("authorization")) is not None:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not (token := token.lstrip(" ")):
            raise PeerError(Close.UNAUTHORIZED, f"found {scheme[:16]!r}, want Bearer and a token", "Authorization")
        return lines.checked_token(token, "Authorization")
    token_parameter = single.get("token")
    return None if token_parameter is None else lines.checked_token(token_parameter, "token")


def _position(head: Head, single: dict[str, str]) -> str | None:
    if last := head.headers.get("last-event-id"):  # a browser sets it when it comes back: it is the newer one
        return lines.checked_position(last, "Last-Event-ID")
    return lines.checked_position(single.get("position", ""), "position")


def _gaps(text: str) -> bool:
    if text not in ("0", "1"):
        raise PeerError(Close.BAD_REQUEST, f"found {text[:16]!r}, want 1 or 0", "gaps")
    return text == "1"


def _parameters(query: str) -> tuple[list[str], dict[str, str]]:
    """Return the channels in order, and the parameters that come once."""
    channels: list[str] = []
    single: dict[str, str] = {}
    query = query.replace("%3A", ":")  # which means nothing to a query; most have no other escape
    coded = "%" in query or "+" in query
    for pair in query.split("&"):
        key, _, value = pair.partition("=")
        if coded:
            key = _decoded(key, "query")
        if key == "channel":
            channels.append(_decoded(value, key) if coded else value)
        elif key in _SINGLE:
            if key in single:
                raise PeerError(Close.BAD_REQUEST, "given twice", key)
            single[key] = _decoded(value, key) if coded else value
    return channels, single


def _decoded(text: str, field: str) -> str:
    """Undo the percent-encoding of a form, more strictly than urllib does: no bad escapes, no bad UTF-8."""
    if "%" not in text and "+" not in text:
        return text
    first, *rest = text.replace("+", " ").split("%")
    try:
        return b"".join([first.encode(), *(_ESCAPES[part[:2]] + part[2:].encode() for part in rest)]).decode()
    except KeyError as error:
        raise PeerError(Close.BAD_REQUEST, f"found %{error.args[0]}, want two hexadecimal digits", field) from None
    except UnicodeDecodeError:
        raise PeerError(Close.BAD_REQUEST, "percent-encoding that is not UTF-8", field) from None


# What goes out


def message(m: Message) -> bytes:
    """Encode a pushed thing, once for all who read events. A message has no `event:` line: `onmessage` gets it."""
    op, channel, position, members = m
    name = orjson.dumps(channel.decode())
    if _LF in members or _CR in members:
        members = lines.on_one_line(members)
    if not position:  # live-only: an empty `id:` would make the browser forget the last one
        event = b"" if op == b"message" else b"event: %b\n" % op
        return b'%bdata: {"channel":%b%b}\n\n' % (event, name, members)
    if op == b"message":
        return b'id: %b\ndata: {"channel":%b,"position":"%b"%b}\n\n' % (position, name, position, members)
    return b'id: %b\nevent: %b\ndata: {"channel":%b,"position":"%b"%b}\n\n' % (position, op, name, position, members)


def connected(c: dict[str, Any]) -> bytes:
    """Encode the answer to a connect: the same object as over TCP, and its position as the event's id."""
    position = str(c.get("position") or "")
    id = b"id: %b\n" % position.encode() if position.isprintable() and position else b""
    return b"%bevent: connected\ndata: %b\n" % (id, lines.connected(c))


def close(code: Close, reason: str, after_ms: int | None, field: str | None = None) -> bytes:
    """Encode the last event of a stream, and when to come back."""
    retry = b"" if after_ms is None else b"retry: %d\n" % after_ms
    return b"%bevent: close\ndata: %b\n" % (retry, lines.close(code, reason, after_ms, field))


_OK = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n"
    b"X-Accel-Buffering: no\r\nConnection: close\r\n%b\r\n"  # nginx withholds the first event without the third
)
_OK_ANYWHERE = _OK % b""


def response_head(origin: str | None) -> bytes:
    """Encode the head of a stream; `FIRST` follows. `origin`: the request's, when it is one of those allowed."""
    return _OK_ANYWHERE if origin is None else _OK % _cors(origin)


def refusal(code: Close, reason: str, after_ms: int, origin: str | None) -> bytes:
    """Encode a whole response that sends a browser away for `after_ms`: it gives up for good on 503, 429 and 204."""
    return response_head(origin) + close(code, reason, after_ms)


_STATUS = {
    Close.UNAUTHORIZED: b"401 Unauthorized\r\nWWW-Authenticate: Bearer",
    Close.FORBIDDEN: b"403 Forbidden",
    Close.DISCONNECTED: b"403 Forbidden",
    Close.NOT_FOUND: b"404 Not Found",
    Close.HANDSHAKE_TIMEOUT: b"408 Request Timeout",
    Close.TOO_LARGE: b"413 Content Too Large",
}
_STATUS_OF_FIELD = {
    (Close.BAD_REQUEST, "method"): b"405 Method Not Allowed\r\nAllow: GET",
    (Close.TOO_LARGE, "url"): b"414 URI Too Long",
    (Close.TOO_LARGE, "head"): b"431 Request Header Fields Too Large",
    (Close.TOO_LARGE, "headers"): b"431 Request Header Fields Too Large",
    (Close.TOO_LARGE, "Authorization"): b"431 Request Header Fields Too Large",
}


def json_error(e: PeerError, origin: str | None = None) -> bytes:
    """Encode a whole response that refuses a request for good."""
    fault: dict[str, Any] = {"code": int(e.code), "reason": e.reason}
    if e.field is not None:
        fault["field"] = e.field
    body = orjson.dumps({"error": fault})
    status = _STATUS_OF_FIELD.get((e.code, e.field or "")) or _STATUS.get(e.code)
    if status is None:
        status = b"503 Service Unavailable" if e.code.reconnect else b"400 Bad Request"
    return (
        b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\nCache-Control: no-store\r\n"
        b"Connection: close\r\n%b\r\n%b"
    ) % (status, len(body), b"" if origin is None else _cors(origin), body)


def _cors(origin: str) -> bytes:
    return b"Access-Control-Allow-Origin: %b\r\nVary: Origin\r\n" % origin.encode("latin-1")
