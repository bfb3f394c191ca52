"""The feeds of a cluster: one a shard, which share the table and the carousel, and together are what one feed is.

Each shard has its own order, its own holes and its own head; a hole in one holds up no other. What a subscriber is sent carries the
heads of all shards, of which its own has just advanced.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial

from router import vector
from router.carousel import Carousel
from router.feed import Feed, Joined
from router.message import Message
from router.namespaces import personal
from router.position import Id, Position
from router.presence import Done as Counted
from router.replay import PAGE_BYTES_MAX, Entry, Page
from router.roster import Roster
from router.table import Channel, Sink, Table
from router.turns import Turns
from router.vector import NOWHERE, Vector, shard_of


class ShardFeed(Feed):
    """What reaches one worker's subscribers of the channels of one shard."""

    def __init__(
        self, feeds: Feeds, shard: int, table: Table, carousel: Carousel, **told: Callable[..., object]
    ) -> None:
        self._feeds, self._shard = feeds, shard
        super().__init__(table, carousel, **told)  # type: ignore[arg-type]
        self._out = self._stamp
        self._post = self._stamp_letter
        self._began_at = b""

    @property
    def head(self) -> bytes:
        """The newest position in this shard."""
        return self._head_text

    @head.setter
    def head(self, text: bytes) -> None:
        self._head_text = text
        self._feeds.heads[self._shard] = vector.pack(text) if text else NOWHERE

    @property
    def flows(self) -> bool:
        """True while messages go straight on."""
        return self._whole and self._hold is None

    def batch(self) -> None:
        """A batch of messages is complete."""
        self._feeds.batch()

    def next_batch(self) -> None:
        """Another batch begins."""
        self._lag_shown = False

    def expect(self, names: Sequence[bytes]) -> None:
        """Keep `names`, which somebody is about to enter, subscribed until `entered`."""
        self._entering.update(names)

    def entered(self, names: Sequence[bytes]) -> None:
        """Somebody has entered `names`, now, or has gone."""
        if self._began_at is not self.head:
            self._began_at, self._began = self.head, self.head[9:]
        for name in names:
            channel = self._table.channels.get(name)
            if channel is not None and not channel.last:
                channel.last = self._began
        self._left_off(names)

    @property
    def here(self) -> bytes:
        """The head, as a client is told it."""
        return self._feeds.head

    def tell_gaps(self, names: Iterable[bytes], dawn: Position | None = None) -> None:
        """See `Feed.tell_gaps`. What the other shards send says meanwhile that this one is where it was, so nothing else does."""
        super().tell_gaps(names)

    def has(self, name: bytes) -> bool:
        """Tell whether a channel is in this shard."""
        return shard_of(name, len(self._feeds.heads)) == self._shard

    def _mine(self) -> Iterable[bytes]:
        return filter(self.has, self._table.names())

    def _stamp(self, channel: Channel, message: Message) -> None:
        """Send a message on with the position of all shards."""
        self._carousel.add(channel, self._stamped(message))

    def _stamp_letter(self, sink: Sink, message: Message) -> None:
        self._carousel.post(sink, self._stamped(message))

    def _stamped(self, message: Message) -> Message:
        at, tilde, behind = message.position.partition(b"~")
        return message._replace(position=self.place(at) + tilde + behind)

    def place(self, at: bytes) -> bytes:
        """Return the position of all shards, of which this one is at `at`, and the others at their heads."""
        heads, shard = self._feeds.heads, self._shard
        packed = vector.pack(at) if at else NOWHERE
        if packed != heads[shard]:
            heads = [*heads[:shard], packed, *heads[shard + 1 :]]
        return b"".join(heads)


class Feeds:
    """All shards of one worker. It has the methods of `Feed` that a server calls."""

    def __init__(
        self, shards: int, table: Table, carousel: Carousel, *, later: Callable[..., object],
        on_lag: Callable[[Message], None], on_waiting: Callable[[int], None],
    ) -> None:  # fmt: skip
        self.heads = [NOWHERE] * shards  # packed
        self._later = later
        self._turns = Turns(carousel, later, on_waiting, lambda: sum(feed.held_bytes() for feed in self.shards))
        self._tide: _Tide | None = None
        told = {"later": later, "on_lag": on_lag, "on_waiting": on_waiting}
        self.shards = [ShardFeed(self, shard, table, carousel, **told) for shard in range(shards)]
        self.reader = Readers(self)
        self.presence = Presences(self)
        self.rosters = RosterGroup(self)
        self.watchers = WatcherGroup(self)

    @property
    def head(self) -> bytes:
        """The newest position; b"" where no shard has been reached yet."""
        return b"".join(self.heads) if any(head != NOWHERE for head in self.heads) else b""

    @property
    def newest(self) -> bytes:
        """The newest position that is known; b"" as above."""
        parts = [vector.pack(feed.newest) if feed.newest else NOWHERE for feed in self.shards]
        return b"".join(parts) if self.head else b""

    @property
    def received(self) -> int:
        """How many messages have come."""
        return sum(feed.received for feed in self.shards)

    @received.setter
    def received(self, count: int) -> None:
        self.shards[0].received += count - self.received  # only their sum means anything

    @property
    def gaps(self) -> int:
        """How many were told, one a subscriber."""
        return sum(feed.gaps for feed in self.shards)

    @gaps.setter
    def gaps(self, count: int) -> None:
        self.shards[0].gaps += count - self.gaps  # only their sum means anything

    @property
    def repairs(self) -> int:
        """How many holes there were."""
        return sum(feed.repairs for feed in self.shards)

    def of(self, name: bytes) -> ShardFeed:
        """Return the feed that a channel belongs to."""
        return self.shards[shard_of(name, len(self.shards))]

    def read(self, text: vector.Text) -> Vector | None:
        """Read a position of a client; None when it is none."""
        return vector.parse(text, len(self.shards))

    def join(self, names: Sequence[bytes], done: Joined) -> None:
        """Subscribe `names`; see `Feed.join`."""
        if self._tide is None:
            self._tide = _Tide([feed for feed in self.shards if feed.flows])
            self._later(self._turn_tide)
        _Entry(self, names, done).start(self._tide)

    def _turn_tide(self) -> None:
        self._tide = None

    def tick(self) -> None:
        """Let time pass for those who follow; call a few times a second."""
        for feed in self.shards:
            feed.tick()

    def batch(self) -> None:
        """A batch of messages is complete."""
        for feed in self.shards:
            feed.next_batch()
        self._turns.go()


class _Tide:
    """Where all shards are, asked once for all joins of a turn of the loop.

    So a position is up to date in those too in which a connection has nothing now.
    """

    def __init__(self, feeds: list[ShardFeed]) -> None:
        self.waiting: list[Callable[[], None]] | None = []  # None: all have answered
        self._awaited = len(feeds)
        for feed in feeds:
            feed.join((), self._answered)
        if not feeds:
            self.waiting = None

    def _answered(self, _began: bytes | None) -> None:
        self._awaited -= 1
        if not self._awaited:
            waiting, self.waiting = self.waiting, None
            for each in waiting or ():
                each()


class _Entry:
    """A join over several shards. It is done at an instant at which all of them flow: then their heads are where it begins."""

    def __init__(self, feeds: Feeds, names: Sequence[bytes], done: Joined) -> None:
        self._feeds, self._done = feeds, done
        self._names: dict[ShardFeed, list[bytes]] = {}
        for name in names:
            self._names.setdefault(feeds.of(name), []).append(name)
        self._expected: set[ShardFeed] = set()
        self._failed = False
        self._awaited = 0

    def start(self, tide: _Tide) -> None:
        """Subscribe everywhere."""
        self._ask(self._names)
        if tide.waiting is not None:
            self._awaited += 1
            tide.waiting.append(self._answered)

    def _ask(self, feeds: Collection[ShardFeed]) -> None:
        self._awaited += len(feeds)
        for feed in feeds:
            feed.join(self._names[feed], partial(self._joined, feed))

    def _joined(self, feed: ShardFeed, began: bytes | None) -> None:
        self._failed |= began is None
        if feed not in self._expected:
            self._expected.add(feed)
            feed.expect(self._names[feed])
        self._answered()

    def _answered(self) -> None:
        self._awaited -= 1
        if not self._awaited:
            self._settle()

    def _settle(self) -> None:
        held = [feed for feed in self._names if not feed.flows]
        if held and not self._failed:  # it has been cut, or a hole has shown, while others were answering
            self._ask(held)
            return
        self._done(None if self._failed else self._feeds.head)
        for feed, names in self._names.items():
            feed.entered(names)


class Readers:
    """The journal of all shards. It has the methods of `Reader` that a server calls."""

    def __init__(self, feeds: Feeds) -> None:
        self._feeds = feeds

    @property
    def reads(self) -> int:
        """Commands sent to Redis for pages."""
        return sum(feed.reader.reads for feed in self._feeds.shards)

    def page(
        self, name: bytes, epoch: str, after: Id, upto: Id, done: Callable[[Page | Exception], None], *,
        bytes_max: int = PAGE_BYTES_MAX,
    ) -> None:  # fmt: skip
        """See `Reader.page`."""
        self._feeds.of(name).reader.page(name, epoch, after, upto, done, bytes_max=bytes_max)

    def newest(
        self, name: bytes, epoch: str, after: Id | None, limit: int, done: Callable[[list[Entry] | Exception], None]
    ) -> None:
        """See `Reader.newest`."""
        self._feeds.of(name).reader.newest(name, epoch, after, limit, done)


class Presences:
    """Who is there, asked in the shard of the channel."""

    def __init__(self, feeds: Feeds) -> None:
        self._feeds = feeds

    def ask(self, name: bytes, done: Counted) -> None:
        """See `Presence.ask`."""
        self._feeds.of(name).presence.ask(name, done)

    def ask_member(self, user: str, channel: str, done: Callable[[bool | Exception], None]) -> None:
        """See `Presence.ask_member`."""
        self._feeds.of(personal(user).encode()).presence.ask_member(user, channel, done)

    def write(self, users: dict[str, int], done: Callable[[bytes], None]) -> None:
        """See `Presence.write`."""
        self._feeds.shards[0].presence.write(users, done)


class RosterGroup:
    """Who is in the channels of all shards."""

    def __init__(self, feeds: Feeds) -> None:
        self._feeds = feeds

    def of(self, name: bytes) -> Roster | None:
        """See `Rosters.of`."""
        return self._feeds.of(name).rosters.of(name)

    def farewell(self) -> None:
        """See `Rosters.farewell`."""
        for feed in self._feeds.shards:
            feed.rosters.farewell()


class WatcherGroup:
    """Those who are told of gaps in live-only channels, in all shards."""

    def __init__(self, feeds: Feeds) -> None:
        self._feeds = feeds

    def watch(self, sink: Sink, name: bytes | None = None) -> None:
        """See `Watchers.watch`."""
        for feed in self._feeds.shards if name is None else (self._feeds.of(name),):
            feed.watchers.watch(sink, name)

    def unwatch(self, sink: Sink, name: bytes) -> None:
        """See `Watchers.unwatch`."""
        self._feeds.of(name).watchers.unwatch(sink, name)

    def forget(self, sink: Sink) -> None:
        """See `Watchers.forget`."""
        for feed in self._feeds.shards:
            feed.watchers.forget(sink)
