"""One pushed thing on its way to subscribers: a message, a join or leave, a gap. Encoded once per wire format."""

from __future__ import annotations

from typing import NamedTuple


class Message(NamedTuple):
    """What every subscriber of `channel` receives.

    `op` is the wire's name of it: "message", "join", "leave" or "gap" (ASCII).
    `channel` is the channel's name as it is on the bus (UTF-8, not JSON).
    `position` is the opaque position it carries (ASCII, no quotes or escapes needed).
    `members` is the rest of the JSON object, ready to follow the position: b',"from":"alice","at":1,"data":{}' or b"".
    """

    op: bytes
    channel: bytes
    position: bytes
    members: bytes

    @property
    def id(self) -> bytes:
        """The id below which the journal keeps it: its position without the epoch, which has eight letters."""
        return self.position[9:]
