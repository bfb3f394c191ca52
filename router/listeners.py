"""What the bus asks of a worker, and what it tells it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol


class Interest(Protocol):
    """The router's table as the bus sees it: the names that have subscribers here."""

    def __contains__(self, name: bytes, /) -> bool: ...
    def names(self) -> Iterable[bytes]:
        """Every such name."""


class Listeners(NamedTuple):
    """Who is told what happens on the bus."""

    message: Callable[[bytes, bytes], None]  # name, payload
    batch: Callable[[], None]  # behind each batch of messages
    answered: Callable[[], None]  # behind each batch of answers to what was published
    reply: Callable[[bytes], None]  # what another worker answers to a question of this one
    control: Callable[[bytes], None]  # what the admin process tells all workers
    lost: Callable[[], None]  # the bus is down
    restored: Callable[[bytes], None]  # the bus is back, at this position; messages have been missed on every name
    lapsed: Callable[[bytes], None]  # Redis has unsubscribed this name, unasked: from here on messages are missed
    rejoined: Callable[[bytes, bytes], None]  # it is subscribed again: name, position
    head: Callable[[], bytes]  # asked for the newest position seen
