"""The raw TCP codec: one JSON object a line, UTF-8, newline. Sans-I/O: bytes in, requests out, and the other way round.

An empty line is a heartbeat, either way. The caller keeps the leftover between reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar

import orjson

from router.message import Message
from router.namespaces import channel_fault, user_fault
from server.close import Close, PeerError
from server.limits import CHANNEL_BYTES_MAX, HISTORY_PAGE_MESSAGES_MAX, POSITION_BYTES_MAX, TOKEN_BYTES_MAX

HEARTBEAT = b"\n"
HISTORY_MESSAGES = 50  # a page, when the request names no limit

_LF, _CR = b"\n\r"  # as numbers: `10 in data` takes a fifth of the time of `b"\n" in data`

_UNSAFE = frozenset(' "\\')  # in a position

Id: TypeAlias = int | str | None
_T = TypeVar("_T")


class Connect(NamedTuple):
    """Who wants to connect, to which channels, and what of the stream it has already; None: not said.

    With `gaps` it is told of gaps on live-only channels too.
    """

    token: str | None
    user: str | None
    channels: tuple[str, ...]
    position: str | None
    gaps: bool = False


class Subscribe(NamedTuple):
    """Add one channel, from `position` on or from now; `gaps` as in `Connect`, for this one."""

    id: Id
    channel: str
    position: str | None
    gaps: bool = False


class Unsubscribe(NamedTuple):
    """Take one channel away."""

    id: Id
    channel: str


class Publish(NamedTuple):
    """Send `data`, compact JSON, to a channel; one `idempotency` is one message, however often it is sent."""

    id: Id
    channel: str
    data: bytes
    idempotency: str | None


class History(NamedTuple):
    """Read at most `limit` messages of a channel, those after a position or the newest."""

    id: Id
    channel: str
    after: str | None
    limit: int


class Presence(NamedTuple):
    """Ask who is there."""

    id: Id
    channel: str


class Ping(NamedTuple):
    """Ask for a pong."""

    id: Id


Request: TypeAlias = Connect | Subscribe | Unsubscribe | Publish | History | Presence | Ping


# What comes in


def split_lines(rest: bytes, data: bytes, line_bytes_max: int) -> tuple[list[bytes], bytes]:
    r"""Return the whole lines in `rest + data` without their `\n` or `\r\n`, and the bytes left over.

    Raises: PeerError(TOO_LARGE) as soon as a line, finished or not, is over `line_bytes_max` bytes (a `\r` counts).
    """
    data = rest + data
    lines = data.split(b"\n")
    if len(data) > line_bytes_max and max(map(len, lines)) > line_bytes_max:
        raise PeerError(Close.TOO_LARGE, f"a line of more than {line_bytes_max} bytes", "line")
    rest = lines.pop()
    if _CR in data:
        lines = [line[:-1] if line.endswith(b"\r") else line for line in lines]
    return lines, rest


def parse(line: bytes, message_bytes_max: int) -> Request:
    """Read one line that is not a heartbeat. Unknown keys are ignored; null is absent, but for `data`.

    `message_bytes_max` bounds the compact JSON of a publish's `data`.
    Raises: PeerError, with the field at fault and the request's id once that was read.
    """
    request = _object(line, "line")
    id = request.get("id")
    # orjson makes a float of an integer beyond 64 bits, and a bool is an int only to isinstance().
    if id is not None and type(id) is not int and type(id) is not str:
        raise PeerError(Close.BAD_REQUEST, f"found {_kind(id)}, want a 64-bit integer or a string", "id")
    try:
        return _reader(request)(request, id, message_bytes_max)
    except PeerError as error:
        error.id = id
        raise


def parse_publish(body: bytes, message_bytes_max: int) -> Publish:
    """Read the body of a `POST /publish`: a publish without `op` and `id`. Raises: PeerError."""
    return _publish(_object(body, "body"), None, message_bytes_max)


def _object(text: bytes, field: str) -> dict[str, Any]:
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise PeerError(Close.BAD_REQUEST, f"not JSON: {error}", field) from None
    if type(found) is not dict:
        raise PeerError(Close.BAD_REQUEST, f"found {_kind(found)}, want an object", field)
    return found


def _reader(request: dict[str, Any]) -> Callable[[dict[str, Any], Id, int], Request]:
    op = _required(request, "op", str)
    if (reader := _READERS.get(op)) is None:
        raise PeerError(Close.UNKNOWN_OP, f"found {op[:32]!r}, want one of {', '.join(_READERS)}", "op")
    return reader


def _connect(request: dict[str, Any], _id: Id, _message_bytes_max: int) -> Connect:
    token, user = _optional(request, "token", str), _optional(request, "user", str)
    names: list[object] = _optional(request, "channels", list) or []
    for name in names:
        if type(name) is not str:
            raise PeerError(Close.BAD_REQUEST, f"found {_kind(name)} in it, want strings only", "channels")
    return Connect(
        None if token is None else checked_token(token, "token"),
        None if user is None else checked_user(user),
        checked_channels(names, "channels"),  # type: ignore[arg-type]  # the loop above
        _position(request, "position"),
        _optional(request, "gaps", bool) or False,
    )


def _subscribe(request: dict[str, Any], id: Id, _message_bytes_max: int) -> Subscribe:
    gaps = _optional(request, "gaps", bool) or False
    return Subscribe(id, _channel(request), _position(request, "position"), gaps)


def _unsubscribe(request: dict[str, Any], id: Id, _message_bytes_max: int) -> Unsubscribe:
    return Unsubscribe(id, _channel(request))


def _publish(request: dict[str, Any], id: Id, message_bytes_max: int) -> Publish:
    channel = _channel(request)
    if "data" not in request:
        raise PeerError(Close.BAD_REQUEST, "missing, want any JSON value", "data")
    try:
        data = orjson.dumps(request["data"])
    except TypeError:  # orjson reads 1,024 levels and writes 254
        raise PeerError(Close.BAD_REQUEST, "nested too deep, want at most 254 levels", "data") from None
    if len(data) > message_bytes_max:
        raise PeerError(Close.TOO_LARGE, f"{len(data)} bytes, want at most {message_bytes_max}", "data")
    return Publish(id, channel, data, checked_idempotency(request) if "idempotency" in request else None)


def _history(request: dict[str, Any], id: Id, _message_bytes_max: int) -> History:
    limit = _optional(request, "limit", int)
    if limit is None:
        limit = HISTORY_MESSAGES
    elif not 1 <= limit <= HISTORY_PAGE_MESSAGES_MAX:
        raise PeerError(Close.BAD_REQUEST, f"{limit}, want 1 to {HISTORY_PAGE_MESSAGES_MAX}", "limit")
    return History(id, _channel(request), _position(request, "after"), limit)


def _presence(request: dict[str, Any], id: Id, _message_bytes_max: int) -> Presence:
    return Presence(id, _channel(request))


def _ping(_request: dict[str, Any], id: Id, _message_bytes_max: int) -> Ping:
    return Ping(id)


_READERS: dict[str, Callable[[dict[str, Any], Id, int], Request]] = {
    "connect": _connect,
    "subscribe": _subscribe,
    "unsubscribe": _unsubscribe,
    "publish": _publish,
    "history": _history,
    "presence": _presence,
    "ping": _ping,
}


# Fields. Those without an underscore serve every transport: `field` is what the peer calls the value.


def checked_token(token: str, field: str) -> str:
    """Return a token that is worth verifying. Raises: PeerError(TOO_LARGE)."""
    if len(token) > TOKEN_BYTES_MAX:
        raise PeerError(Close.TOO_LARGE, f"{len(token)} characters, want at most {TOKEN_BYTES_MAX}", field)
    return token


def checked_user(user: str) -> str:
    """Return a user's name whose personal channel is a channel. Raises: PeerError(BAD_REQUEST)."""
    if fault := user_fault(user):
        raise PeerError(Close.BAD_REQUEST, fault, "user")
    return user


def checked_channels(names: list[str], field: str) -> tuple[str, ...]:
    """Return every name once, in the order of first mention. Raises: PeerError(BAD_REQUEST)."""
    for name in names:
        if fault := channel_fault(name):
            raise PeerError(Close.BAD_REQUEST, fault, field)
    return tuple(dict.fromkeys(names) if len(names) > 1 else names)


def checked_position(position: str, field: str) -> str | None:
    """Return a position that needs no escape in an `id:` line or in JSON; None for the empty one, which is nowhere.

    Raises: PeerError(BAD_REQUEST).
    """
    if not position:
        return None
    if len(position) > POSITION_BYTES_MAX:
        raise PeerError(Close.BAD_REQUEST, f"{len(position)} characters, want at most {POSITION_BYTES_MAX}", field)
    if not position.isascii() or not position.isprintable() or not _UNSAFE.isdisjoint(position):
        raise PeerError(Close.BAD_REQUEST, "not a position: want one as the server sent it", field)
    return position


def checked_idempotency(request: dict[str, Any]) -> str | None:
    """Return the key that makes a publish one message, however often it is sent. Raises: PeerError(BAD_REQUEST)."""
    key = _optional(request, "idempotency", str)
    if key is not None and not 1 <= len(key.encode()) <= CHANNEL_BYTES_MAX:
        raise PeerError(Close.BAD_REQUEST, f"{len(key)} characters, want 1 to {CHANNEL_BYTES_MAX} bytes", "idempotency")
    return key


def _channel(request: dict[str, Any]) -> str:
    name = _required(request, "channel", str)
    if fault := channel_fault(name):
        raise PeerError(Close.BAD_REQUEST, fault, "channel")
    return name


def _position(request: dict[str, Any], field: str) -> str | None:
    return checked_position(_optional(request, field, str) or "", field)


def _required(request: dict[str, Any], field: str, kind: type[_T]) -> _T:
    value = request.get(field)
    if type(value) is not kind:
        raise PeerError(Close.BAD_REQUEST, f"found {_kind(value)}, want {_KINDS[kind]}", field)
    return value


def _optional(request: dict[str, Any], field: str, kind: type[_T]) -> _T | None:
    return None if request.get(field) is None else _required(request, field, kind)


_KINDS: dict[type, str] = {
    str: "a string",
    int: "an integer",
    float: "a number that is no 64-bit integer",
    bool: "a boolean",
    list: "an array",
    dict: "an object",
    type(None): "nothing",
}


def _kind(value: object) -> str:
    return _KINDS[type(value)]


# What goes out


def message(m: Message) -> bytes:
    """Encode a pushed thing, once for all who read lines."""
    op, channel, position, members = m
    name = orjson.dumps(channel.decode())
    if _LF in members or _CR in members:
        members = on_one_line(members)
    if not position:  # live-only: an empty one would take the place of the last that the client keeps
        return b'{"op":"%b","channel":%b%b}\n' % (op, name, members)
    return b'{"op":"%b","channel":%b,"position":"%b"%b}\n' % (op, name, position, members)


def kept(m: Message) -> bytes:
    """Encode one message of an answer to `history`."""
    return b'{"channel":%b,"position":"%b"%b}' % (orjson.dumps(m.channel.decode()), m.position, on_one_line(m.members))


def on_one_line(members: bytes) -> bytes:
    """Return the same JSON without line ends: outside strings they are white space, inside they are not JSON."""
    return members.replace(b"\n", b" ").replace(b"\r", b" ")


def answer(obj: dict[str, Any]) -> bytes:
    """Encode the answer to a request."""
    return orjson.dumps(obj, option=orjson.OPT_APPEND_NEWLINE)


def published(id: Id, channel: str, position: bytes) -> bytes:
    """Encode the answer to a publish; `position` is b"" where nothing is kept."""
    if not position:
        return b'{"op":"published","id":%b,"channel":%b}\n' % (orjson.dumps(id), orjson.dumps(channel))
    found = (orjson.dumps(id), orjson.dumps(channel), position)
    return b'{"op":"published","id":%b,"channel":%b,"position":"%b"}\n' % found


def connected(c: dict[str, Any]) -> bytes:
    """Encode the answer to a connect: the members behind `op`."""
    return answer({"op": "connected", **c})


def error(e: PeerError, after_ms: int | None = None) -> bytes:
    """Encode a refusal of one request; the connection stays. `after_ms`: when to try again."""
    obj: dict[str, Any] = {"op": "error", "id": e.id, "code": int(e.code), "reason": e.reason}
    if e.field is not None:
        obj["field"] = e.field
    if after_ms is not None:
        obj["after_ms"] = after_ms
    return answer(obj)


def close(code: Close, reason: str, after_ms: int | None, field: str | None = None) -> bytes:
    """Encode the last thing a connection is told. `after_ms`: when to come back; `field`: what was wrong."""
    obj: dict[str, Any] = {"op": "close", "code": int(code), "reason": reason, "reconnect": code.reconnect}
    if field is not None:
        obj["field"] = field
    if after_ms is not None:
        obj["after_ms"] = after_ms
    return answer(obj)
