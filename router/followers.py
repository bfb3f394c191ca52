"""Who follows a worker's feed: what has to know that something may have been missed, though no journal can tell."""

from __future__ import annotations

import asyncio
from typing import Protocol

from router.bus import Bus
from router.carousel import Carousel
from router.feed import Feed
from router.namespaces import Namespaces
from router.rosters import Counts, Rosters
from router.watchers import Watchers


class Follower(Protocol):
    """Who has to know when something may have been missed, though no journal can tell."""

    def lost(self) -> None:
        """The bus is down."""

    def restored(self) -> None:
        """It is back."""

    def rejoined(self, name: bytes, /) -> None:
        """Redis had unsubscribed `name`, which is subscribed again."""

    def tick(self) -> None:
        """Time has passed."""


def follow(
    feed: Feed, bus: Bus, carousel: Carousel, *, namespaces: Namespaces, counts: Counts,
    loop: asyncio.AbstractEventLoop, shards: int = 1,
) -> None:  # fmt: skip
    """Let joins and leaves, and gaps of live-only channels, follow `feed`, one of `shards`. `counts` is where they are counted."""
    feed.rosters = Rosters(bus, feed, namespaces, counts, clock=loop.time, later=loop.call_soon, shards=shards)
    feed.watchers = Watchers(feed, carousel, namespaces, loop.call_soon, comes_here=feed.has)
    feed.followers = (feed.watchers, feed.rosters)
    feed.is_durable = feed.watchers.is_durable
