"""What a bench client says and hears: the requests of both transports, and messages that can be counted exactly.

Every message of a bench carries `"~` and a number of eight digits, each one more than the last of its channel, and the
time it was meant to be sent. A client that keeps nothing but the next number it wants sees whatever is missing, doubled
or out of order, and the numbers of a whole chunk are compared in one `bytes.join`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

MARK = b'"~'
NUMBER_DIGITS = 8
STAMP_DIGITS = 20  # nanoseconds of the monotonic clock, which all processes of a machine share
MESSAGE_BYTES = 100
CONNECTED = b'"op":"connected"'
PUBLISHED = b'"op":"published"'
ERROR = b'"op":"error"'
RECOVERED = b'"recovered":true'
REFUSED = (ERROR, b'"op":"close"', b"HTTP/1.1 4", b"HTTP/1.1 5")
_PUBLISH = b'{"op":"publish","id":%d,"channel":"%b","data":"~%08d%020d'
_PUBLISH += b"x" * (MESSAGE_BYTES - 1 - NUMBER_DIGITS - STAMP_DIGITS) + b'"}\n'
NOTICES = (b'"op":', b"event:")  # in what is neither a message nor a heartbeat


def connect_line(user: str, channels: Iterable[str], token: str | None = None, position: str = "") -> bytes:
    """Return the first line of a raw TCP connection; with a token, the server takes the user from that."""
    who = {"token": token} if token else {"user": user}
    resume = {"position": position} if position else {}
    return _line({"op": "connect", **who, "channels": list(channels), **resume})


def events_request(user: str, channels: Iterable[str], token: str | None = None, position: str = "") -> bytes:
    """Return the request of an SSE connection. Names are the bench's own, so nothing needs percent-encoding."""
    query = "&".join([*(f"channel={name}" for name in channels), *([] if token else [f"user={user}"])])
    bearer = f"Authorization: Bearer {token}\r\n" if token else ""
    resume = f"Last-Event-ID: {position}\r\n" if position else ""
    head = f"GET /events?{query} HTTP/1.1\r\nHost: bench\r\nAccept: text/event-stream\r\n{bearer}{resume}\r\n"
    return head.encode()


REQUESTS = {"tcp": connect_line, "sse": events_request}


def publish_line(request: int, channel: str, number: int, intended_ns: int = 0) -> bytes:
    """Return the line that publishes message `number` of `channel`, MESSAGE_BYTES long, and asks for an answer.

    `intended_ns` is when it was meant to be sent, on the monotonic clock. None of it needs an escape in JSON.
    """
    return _PUBLISH % (request, channel.encode(), number, intended_ns)


def stamps(lines: bytes) -> list[int]:
    """Return when each message in `lines` was meant to be sent, nanoseconds of the monotonic clock."""
    return [int(piece[NUMBER_DIGITS : NUMBER_DIGITS + STAMP_DIGITS]) for piece in lines.split(MARK)[1:]]


def numbers(chunk: bytes) -> bytes:
    """Return the numbers of all messages in `chunk` (whole lines), joined, eight digits each."""
    return b"".join([piece[:NUMBER_DIGITS] for piece in chunk.split(MARK)[1:]])


def renumbered(frame: bytes, number: int) -> bytes:
    """Return the frame of one message, as it was received, with another number: what the bare loop writes."""
    at = frame.index(MARK) + len(MARK)
    return frame[:at] + b"%0*d" % (NUMBER_DIGITS, number) + frame[at + NUMBER_DIGITS :]


class Ruler:
    """The numbers 0, 1, 2 ... joined: any run of them is one slice to compare with."""

    __slots__ = ("_count", "_digits")

    def __init__(self) -> None:
        self._digits = b""
        self._count = 0

    def run(self, first: int, count: int) -> bytes:
        """Return the digits of `count` numbers from `first` on."""
        if first + count > self._count:
            self._count = 2 * (first + count)
            self._digits = b"".join([b"%0*d" % (NUMBER_DIGITS, number) for number in range(self._count)])
        return self._digits[NUMBER_DIGITS * first : NUMBER_DIGITS * (first + count)]


def _line(obj: dict[str, object]) -> bytes:
    return json.dumps(obj, separators=(",", ":")).encode() + b"\n"
