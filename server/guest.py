"""Who is at the door: a connection without a session yet, and what is known of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.close import Close, PeerError

if TYPE_CHECKING:
    from server.handshake import Door


class Guest:
    """A connection without a session yet."""

    __slots__ = ("address", "asks", "deadline", "door", "fd", "late", "origin", "rest")

    def __init__(self, fd: int, door: Door, deadline: float) -> None:
        self.fd = fd
        self.door = door
        self.deadline = deadline
        self.rest = b""  # what it has sent of its request, or behind it
        self.origin: str | None = None  # of a web page that may use us
        self.asks = False  # its request is complete
        self.address = ""  # whose it is, once something has asked for that
        self.late = Close.HANDSHAKE_TIMEOUT  # who is to blame when the deadline passes

    def react(self, _events: int) -> None:
        """Read on."""
        self.door.read(self)


def expire(guests: dict[Guest, None], now: float) -> None:
    """Refuse the guests that are over their deadline; `guests` are in that order.

    Who has said what it wants and waits for the bus, or for keys, did its part: it may come again.
    """
    while guests and (guest := next(iter(guests))).deadline <= now:
        guest.door.refuse(guest, PeerError(guest.late))
