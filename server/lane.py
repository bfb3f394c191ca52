"""One transport of one worker: its wire format, what its sessions are watched for, and what they share."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Protocol

from router.message import Message
from server.close import Close
from server.session import Session

if TYPE_CHECKING:
    from server.pool import Pool

# A stream never speaks after its request, so it is told of the peer's leaving only, and once. Lines are read
# level-triggered, one read a turn, so that nobody who talks a lot starves the others.
STREAM = select.EPOLLRDHUP | select.EPOLLET
LINES = select.EPOLLIN | select.EPOLLRDHUP


class Codec(Protocol):
    """A wire format: the modules `lines` and `sse` are two."""

    HEARTBEAT: bytes

    def message(self, m: Message, /) -> bytes:
        """Encode what is pushed."""

    def connected(self, c: dict[str, object], /) -> bytes:
        """Encode the answer to a connect."""

    def close(self, code: Close, reason: str, after_ms: int | None, field: str | None = None, /) -> bytes:
        """Encode the farewell."""


class Lane:
    """One transport of one worker: what its sessions share, so that none of them has to hold it."""

    __slots__ = ("armed", "codec", "encode", "end", "pool", "session", "sessions", "transport")

    def __init__(self, transport: str, codec: Codec, armed: int, pool: Pool) -> None:
        self.transport = transport
        self.codec = codec
        self.encode = codec.message
        self.end = codec.HEARTBEAT.lstrip(b":")  # of every frame: a heartbeat is an empty one, or a comment
        self.armed = armed
        self.pool = pool
        self.session: type[Session] = type(f"{transport}Session", (Session,), {"__slots__": (), "lane": self})
        self.sessions = 0  # how many are open
