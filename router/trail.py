"""What a connection has missed, over all shards: page by page, with positions that are true on the way.

Shards are gone through one after the other: between them there is no order. While one is, a position says of those before it where
the live stream goes on, and of those behind it where the connection was. The first pages of all are read before anything is handed
out, so that it is known from the start whether something is lacking.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

from router import vector
from router.message import Message
from router.position import Id, Position, id_of
from router.replay import PAGE_BYTES_MAX, Missed, Pages
from router.vector import Vector, shard_of

log = logging.getLogger("moorage.trail")

Done = Callable[[list[Message] | Exception], None]


class Replay(Protocol):
    """What was missed, in bounded steps: `Missed` in one shard, `Trail` over all."""

    gaps: list[bytes]

    @property
    def is_done(self) -> bool:
        """True when everything has been handed out."""

    def step(self, done: Done) -> None:
        """Give `done` the messages that come next, in order, or an exception; and note the `gaps` that were found."""


class _Leg:
    """One shard's part."""

    def __init__(self, shard: int, since: Position, upto: Position, missed: Missed) -> None:
        self.shard, self.since, self.upto, self.missed = shard, since, upto, missed
        self.ready: list[Message] | None = None
        self.gaps_noted = 0


class Trail:
    """The way from `since` to `upto`, where the subscription of `names` begins, all of them durable.

    What cannot be gone on from, because it is of another epoch or ahead, is a gap from the start.
    """

    def __init__(self, pages: Pages, since: Vector, upto: Vector, names: Iterable[bytes]) -> None:
        self.gaps: list[bytes] = []
        behind: dict[int, dict[bytes, Id]] = {}
        count = len(upto.parts)
        stale = {shard for shard, part in enumerate(since.parts) if not leads(part, upto.parts[shard])}
        for name in names:
            shard = shard_of(name, count)
            if shard in stale:
                self.gaps.append(name)
            elif since.of(name) < upto.parts[shard].id:
                behind.setdefault(shard, {})[name] = since.of(name)
        for shard in {shard_of(name, count) for name in self.gaps}:
            since = since.having(shard, upto.parts[shard])
        self.since = since  # where the connection really goes on
        self._is_new = True
        self._reached = since
        bytes_max = PAGE_BYTES_MAX // max(1, len(behind))
        # The one that says of a channel that it is behind goes first: then no other has to say so.
        shards = sorted(behind, key=lambda shard: (since.parts[shard].behind is None, shard))
        self._legs = [
            _Leg(
                shard,
                since.parts[shard],
                upto.parts[shard],
                Missed(pages, upto.parts[shard].epoch, behind[shard], upto.parts[shard].id, bytes_max=bytes_max),
            )
            for shard in shards
        ]

    @property
    def is_done(self) -> bool:
        """True when everything has been handed out."""
        return not self._legs and not (self._is_new and self.gaps)

    def step(self, done: Done) -> None:
        """See `Replay.step`."""
        asked = list(self._legs) if self._is_new else [leg for leg in self._legs[:1] if leg.ready is None]
        self._is_new = False
        left = len(asked)
        failed: list[Exception] = []

        def stepped(leg: _Leg, found: list[Message] | Exception) -> None:
            nonlocal left
            left -= 1
            if isinstance(found, Exception):
                failed.append(found)
            else:
                leg.ready = found
                self.gaps += leg.missed.gaps[leg.gaps_noted :]
                leg.gaps_noted = len(leg.missed.gaps)
            if not left:
                done(failed[0] if failed else self._next())

        for leg in asked:
            leg.missed.step(partial(stepped, leg))
        if not asked:
            done(self._next())

    def _next(self) -> list[Message] | Exception:
        """Hand out what comes next, or the bug that was in its way: whoever waits has to be told."""
        try:
            return self._take()
        except Exception as bug:
            log.exception("internal error: what was missed cannot be handed out")
            return bug

    def _take(self) -> list[Message]:
        """Hand out what is ready of the leg that we are on."""
        if not self._legs:
            return []
        leg = self._legs[0]
        found, leg.ready = leg.ready or [], None
        found = self._placed(leg, found)
        if leg.missed.is_done:
            self._reached = self._reached.having(leg.shard, leg.upto)
            del self._legs[0]
        return found

    def _placed(self, leg: _Leg, found: list[Message]) -> list[Message]:
        """Give messages the positions that are true for this connection."""
        if len(self._reached.parts) == 1 and leg.since.behind is None:
            return found  # they have them, and a storm has a hundred for each connection
        placed = []
        reached = self._reached.having(leg.shard, leg.since._replace(behind=None))
        # A channel of another shard that is behind has nothing to come here: it is not subscribed to now, or has all.
        texts = [str(part._replace(behind=None)).encode() for part in reached.parts]
        packed = None if len(texts) == 1 else list(map(vector.pack, texts))
        for message in found:
            id, behind = id_of(message.id), b""
            at = message.position
            if id < leg.since.id:  # of the one channel that is behind: the others are not
                at, _, behind = str(leg.since.but(message.channel, id)).encode().partition(b"~")
            if packed is not None:
                packed[leg.shard] = vector.pack(at)
                at = b"".join(packed)
            placed.append(message._replace(position=at + b"~" + behind if behind else at))
        return placed


def leads(since: Position, upto: Position) -> bool:
    """Tell whether one can go on from `since`, where the stream is at `upto`."""
    return since.epoch == upto.epoch and since.id <= upto.id
