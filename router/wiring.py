"""What is between a worker and its Redis: feed and bus of one server, or those of every shard of a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeAlias

from router import journal, reaper, rosters, topology
from router.bus import Bus, Listeners
from router.carousel import Carousel
from router.cluster import Cluster, ShardBus
from router.feed import Feed
from router.feeds import Feeds
from router.followers import follow
from router.message import Message
from router.namespaces import Namespaces
from router.nodes import Nodes
from router.note import UNANSWERED
from router.presence import Presence
from router.replay import Reader
from router.site import Site
from router.table import Table

AnyFeed: TypeAlias = Feed | Feeds
AnyBus: TypeAlias = Bus | Cluster


class Counts(rosters.Counts, reaper.Counts, Protocol):
    """Where a worker counts what it did."""


class Worker(NamedTuple):
    """What a worker brings along. `name` is its own among all on the Redis, `prefix` begins every key and channel there."""

    name: str
    prefix: str
    table: Table
    carousel: Carousel
    namespaces: Namespaces
    counts: Counts
    presence_max: int


class Outlets(NamedTuple):
    """What a worker wants to be told: `connected(count)` is how often a bus has been connected by now.

    `answered()` is called behind each batch of answers to what it has published.
    """

    control: Callable[[bytes], None]
    connected: Callable[[int], None]
    lag: Callable[[Message], None]
    waiting: Callable[[int], None]
    answered: Callable[[], None]


def wire(place: topology.Place, worker: Worker, outlets: Outlets) -> tuple[AnyFeed, AnyBus]:
    """Make what brings the messages in Redis to `worker`. Raises: ValueError for TLS options that cannot be."""
    tls = topology.ssl_context(place) if place.tls else None
    later = asyncio.get_running_loop().call_soon
    table, carousel = worker.table, worker.carousel
    if not isinstance(place, Site):
        feed = Feed(table, carousel, later=later, on_lag=outlets.lag, on_waiting=outlets.waiting)
        keys = journal.Keys(worker.prefix)
        bus = Bus(place, keys, feed, _listeners(feed, outlets), worker=worker.name, tls=tls)
        _connect(feed, bus, keys, worker)
        table.roster_of = feed.rosters.of
        return feed, bus
    feeds = Feeds(place.shards, table, carousel, later=later, on_lag=outlets.lag, on_waiting=outlets.waiting)
    nodes = Nodes(place, worker.prefix, tls, f"moorage:{worker.name}", feeds.batch, outlets.answered)
    buses = [_shard(nodes, shard, keys, feeds, worker, outlets) for shard, keys in enumerate(place.keys(worker.prefix))]
    table.roster_of = feeds.rosters.of
    return feeds, Cluster(nodes, buses)


def _shard(
    nodes: Nodes, shard: int, keys: journal.Keys, feeds: Feeds, worker: Worker, outlets: Outlets
) -> ShardBus:  # fmt: skip
    feed = feeds.shards[shard]
    bus = ShardBus(nodes, shard, keys, feed, _listeners(feed, outlets), worker=worker.name, place=feed.place)
    _connect(feed, bus, keys, worker, len(feeds.shards))
    return bus


def _listeners(feed: Feed, outlets: Outlets) -> Listeners:
    def restored(at: bytes) -> None:
        outlets.connected(feed.bus.connects)
        feed.restored(at)

    def control(payload: bytes) -> None:
        if payload[:1] == b"?":  # what the workers have to say to each other
            feed.rosters.heard(b"", payload)
        elif payload == UNANSWERED:
            feed.presence.suspect()
        else:
            outlets.control(payload)

    return Listeners(
        message=feed.message,
        batch=feed.batch,
        answered=outlets.answered,
        reply=feed.reply,
        control=control,
        lost=feed.lost,
        restored=restored,
        lapsed=feed.lapsed,
        rejoined=feed.rejoined,
        head=lambda: feed.newest,
    )


def _connect(feed: Feed, bus: Bus, keys: journal.Keys, worker: Worker, shards: int = 1) -> None:
    loop = asyncio.get_running_loop()
    feed.bus = bus
    feed.reader = Reader(bus, keys)
    feed.presence = Presence(bus, worker.table, loop, worker.counts, most=worker.presence_max)
    follow(
        feed, bus, worker.carousel, namespaces=worker.namespaces, counts=worker.counts, loop=loop, shards=shards
    )  # fmt: skip
