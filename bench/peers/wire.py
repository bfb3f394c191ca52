"""What the clients of a peer say, in bytes, and how a message is known among what they hear.

The payload of every message is the same MESSAGE_BYTES of ASCII that no protocol here has to escape: a mark, its number,
the time it was meant to be sent, padding. A client looks for the mark and takes the number behind it, and so needs no
parser of any protocol; what has no mark is framing, answers and keep-alives.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

from bench.wire import MESSAGE_BYTES, NUMBER_DIGITS, STAMP_DIGITS

ROOM = "bench"
MARK = b"~~"
HEAD_BYTES = len(MARK) + NUMBER_DIGITS + STAMP_DIGITS
"""How much of a message must be there before it counts: its mark, number and time."""
_PADDING = b"x" * (MESSAGE_BYTES - HEAD_BYTES)


class Step(NamedTuple):
    """A part of a handshake: bytes to send (b"": none), and what must be heard before the next."""

    send: bytes
    until: bytes


class Wire(ABC):
    """A protocol as its clients speak it. Picklable, and the same for every connection."""

    answer: bytes = b""
    """What the sender of a message hears once for each of them, or b"" where the protocol has no such thing."""
    refusals: tuple[bytes, ...] = ()
    """What says, during a handshake, that there will be no other answer."""

    @abstractmethod
    def subscribe(self, user: str, room: str) -> tuple[Step, ...]:
        """Return the handshake of a client that is to receive what is for `user`, and for `room` unless that is ""."""

    @abstractmethod
    def speak(self, user: str, room: str) -> tuple[Step, ...]:
        """Return the handshake of a client that is to send: to `room` if that is not "", to users otherwise."""

    @abstractmethod
    def to_room(self, room: str, message: bytes) -> bytes:
        """Return what publishes `message` to everybody in `room`."""

    @abstractmethod
    def to_user(self, user: str, message: bytes) -> bytes:
        """Return what sends `message` to `user`."""


@dataclass(frozen=True, slots=True)
class Lane:
    """One kind of client of a wire: its handshake for a user."""

    wire: Wire
    room: str = ""
    speaks: bool = False

    def steps(self, user: str) -> tuple[Step, ...]:
        """Return the handshake of `user`."""
        return (self.wire.speak if self.speaks else self.wire.subscribe)(user, self.room)


def payload(number: int, intended_ns: int = 0) -> bytes:
    """Return message `number`, MESSAGE_BYTES long; `intended_ns` is when it was meant to be sent (monotonic clock)."""
    return b"%b%0*d%0*d%b" % (MARK, NUMBER_DIGITS, number, STAMP_DIGITS, intended_ns, _PADDING)


def heads(text: bytes) -> list[bytes]:
    """Return what follows each mark in `text`: a number, a time, and more."""
    return text.split(MARK)[1:]


def numbers(pieces: list[bytes]) -> bytes:
    """Return the numbers of messages, joined, NUMBER_DIGITS each."""
    return b"".join([piece[:NUMBER_DIGITS] for piece in pieces])


def stamps(pieces: list[bytes]) -> list[int]:
    """Return when each message was meant to be sent."""
    return [int(piece[NUMBER_DIGITS : NUMBER_DIGITS + STAMP_DIGITS]) for piece in pieces]


def http_get(target: str, *headers: str) -> bytes:
    """Return a request of HTTP/1.1 without a body (RFC 9112)."""
    return "\r\n".join([f"GET {target} HTTP/1.1", "Host: bench", *headers, "", ""]).encode()


def http_post(target: str, body: bytes) -> bytes:
    """Return a request of HTTP/1.1 with a body, on a connection that stays open."""
    head = f"POST {target} HTTP/1.1\r\nHost: bench\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body
