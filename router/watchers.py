"""Who is told that something on a live-only channel may have been missed: those who asked for it.

Nothing numbers the messages of such a channel, so nobody can tell whether one was missed; only that one may have been, while
the bus was down or Redis had unsubscribed the name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Protocol

from router.carousel import Carousel
from router.message import Message
from router.namespaces import Namespaces
from router.table import Sink

TURN_SINKS = 200  # told in one turn of the loop

Names = set[bytes] | None  # None: all of its channels


class Stage(Protocol):
    """The feed: where the stream is."""

    gaps: int  # told

    @property
    def here(self) -> bytes:
        """The head, as a client is told it."""

    @property
    def is_steady(self) -> bool:
        """True while a frame with the head's position may go out."""


class Watchers:
    """The watchers of one worker. `later` is loop.call_soon."""

    def __init__(
        self, stage: Stage, carousel: Carousel, namespaces: Namespaces, later: Callable[..., object], *,
        comes_here: Callable[[bytes], bool] = lambda _name: True,
    ) -> None:  # fmt: skip
        self._stage, self._carousel, self._namespaces, self._later = stage, carousel, namespaces, later
        self._comes_here = comes_here  # whether a channel is in the shard of this feed
        self._watched: dict[Sink, Names] = {}
        self._untold: dict[Sink, Names] = {}  # those who have to be told, and of what

    def watch(self, sink: Sink, name: bytes | None = None) -> None:
        """Tell `sink` from now on of gaps in the channel `name`; None: in any that it has, or will have."""
        names = self._watched.setdefault(sink, set() if name is not None else None)
        if name is None:
            self._watched[sink] = None
        elif names is not None:
            names.add(name)

    def unwatch(self, sink: Sink, name: bytes) -> None:
        """Forget that `sink` asked about this channel: it has unsubscribed."""
        names = self._watched.get(sink)
        if names is not None:
            names.discard(name)

    def forget(self, sink: Sink) -> None:
        """Forget a sink that has left."""
        if self._watched.pop(sink, ...) is not ...:
            self._untold.pop(sink, None)

    def is_durable(self, name: bytes) -> bool:
        """Tell whether the messages of a channel are kept."""
        return self._namespaces.of(name.decode()).durable

    # What happens to the bus.

    def lost(self) -> None:
        """The bus is down: what that costs is told when it is back."""

    def restored(self) -> None:
        """The bus is back."""
        self._untold = dict(self._watched)
        self.tick()

    def rejoined(self, name: bytes) -> None:
        """Redis had unsubscribed `name`, which is subscribed again."""
        if not self.is_durable(name):
            for sink, names in self._watched.items():
                known = self._untold.setdefault(sink, set())
                if known is not None and (names is None or name in names):
                    known.add(name)
            self.tick()

    def tick(self) -> None:
        """Tell those who have to be told, unless that has to wait."""
        if self._untold and self._stage.is_steady:
            for sink in list(islice(self._untold, TURN_SINKS)):
                if sink in self._untold:  # telling another may have ended it
                    names = list(self._lacking(sink, self._untold.pop(sink)))
                    self._stage.gaps += len(names)
                    self._carousel.tell(sink, [Message(b"gap", name, self._stage.here, b"") for name in names])
            self._later(self.tick)

    def _lacking(self, sink: Sink, names: Names) -> Iterator[bytes]:
        """Yield the live-only channels of `sink`, those of `names` only."""
        for name in (b"@" + sink.user.encode(), *(channel.name for channel in sink.channels)):
            if (names is None or name in names) and self._comes_here(name) and not self.is_durable(name):
                yield name
