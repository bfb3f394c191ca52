"""Why a connection or a request was ended: one closed enum whose number carries the retry policy.

3000-3999: reconnect. 4000-4999: do not, the same again would end the same way.
The number is on the wire (`close.code`, `error.code`), and labels `moorage_closed_total`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum


class Close(IntEnum):
    """A reason with its number; `reason` is the text a person reads, `reconnect` the policy."""

    reason: str

    def __new__(cls, number: int, reason: str) -> Close:
        """Keep the text beside the number."""
        member = int.__new__(cls, number)
        member._value_ = number
        member.reason = reason
        return member

    LEFT = 3000, "the client left"
    DRAINING = 3001, "draining"
    SLOW = 3002, "too slow: what was waiting to be sent went over the limit"
    EXPIRED = 3003, "the token has expired"
    OVERLOADED = 3004, "at a limit of this server"
    BUS_DOWN = 3005, "the message bus is down"
    UNCONFIRMED = 3006, "the message bus did not confirm in time: it may or may not have been delivered"
    LOST = 3007, "the peer vanished"
    OUR_FAULT = 3008, "internal error"
    STOPPED = 3009, "the server stopped"
    KEYS_UNAVAILABLE = 3010, "the keys that verify tokens could not be fetched"
    MOVED = 3011, "asked to reconnect by the operator"
    ACCEPT_RATE = 3012, "too many newcomers at the moment"
    FULL = 3013, "as many connections as there may be"
    ADDRESS_FULL = 3014, "too many connections from this address"
    USER_FULL = 3015, "too many connections of this user"
    PUBLISH_RATE = 3016, "publishing too fast"
    AGED = 3017, "as old as a connection gets here: the next one may be elsewhere"

    BAD_REQUEST = 4000, "bad request"
    UNAUTHORIZED = 4001, "not signed in"
    HANDSHAKE_TIMEOUT = 4002, "no connect within the handshake deadline"
    FORBIDDEN = 4003, "not allowed"
    NOT_FOUND = 4004, "no such thing"
    TOO_LARGE = 4005, "over the size limit"
    TOO_MANY_CHANNELS = 4006, "too many channels"
    UNKNOWN_OP = 4007, "unknown op"
    ALREADY_CONNECTED = 4008, "already connected"
    DISCONNECTED = 4009, "disconnected by the operator"
    NOT_CONNECTED = 4010, "connect first"
    PROXY_UNTRUSTED = 4011, "a PROXY header from a peer that is not trusted"
    PROXY_MISSING = 4012, "no PROXY header from a trusted peer"
    PROXY_MALFORMED = 4013, "not a PROXY header"

    @property
    def reconnect(self) -> bool:
        """True when the same client may come back and succeed."""
        return self < 4000


class PeerError(Exception):
    """The peer broke the protocol or asked for what it may not have; nobody else is at fault.

    `field` names the part of the input that is wrong; the message says what was found and what is wanted;
    `id` is the request's own, where it got as far as having one.
    """

    def __init__(self, code: Close, reason: str = "", field: str | None = None, id: int | str | None = None) -> None:
        super().__init__(reason or code.reason)
        self.code = code
        self.reason = reason or code.reason
        self.field = field
        self.id = id


def said(refusal: Mapping[str, object]) -> str:
    """Return what a person reads of an `error` or `close`: its code, the field at fault where it names one, the reason."""
    field = f"{refusal['field']}: " if "field" in refusal else ""
    return f"{refusal['code']} {field}{refusal['reason']}"
