"""What workers say to each other about who is where, as it goes over the bus: `?` and a JSON array."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import orjson

REPLIES = "$reply:"  # begins the name by which a worker is reached
UNANSWERED = b"!"  # to all workers, from the admin process: one of you does not answer


class Kind(IntEnum):
    """What is said. The last two arguments of a note are who has come and who is gone."""

    CHANGE = 0  # on the channel: these have come to me, those are gone from me
    HELLO = 1  # on the channel: I have these; who is with you?
    ASK = 2  # to one worker: who is with you?
    STATE = 3  # to one worker: I have these
    BEAT = 4  # to all workers: I am alive
    AGAIN = 5  # to one worker: I took you for dead


class Note(NamedTuple):
    """One thing said. `worker` is the name by which the speaker is reached, `life` that of its process."""

    kind: Kind
    worker: str
    life: int
    channel: str = ""
    number: int = 0
    came: Sequence[str] = ()
    gone: Sequence[str] = ()

    def encode(self) -> bytes:
        """Return the payload."""
        return b"?" + orjson.dumps([*self])

    @classmethod
    def decode(cls, payload: bytes) -> Note:
        """Read a payload. Raises: ValueError when it is none of ours."""
        found = orjson.loads(payload[1:])
        if not isinstance(found, list) or len(found) != len(cls._fields):
            raise ValueError("not a note")
        kind, worker, life, channel, number, came, gone = found
        names = set(map(type, [worker, channel])), set(map(type, [kind, life, number])), {type(came), type(gone)}
        if names != ({str}, {int}, {list}) or not set(map(type, came)) | set(map(type, gone)) <= {str}:
            raise ValueError("not a note")
        if not worker.startswith(REPLIES):
            raise ValueError("not from a worker")
        return cls(Kind(kind), worker, life, channel, number, came, gone)
