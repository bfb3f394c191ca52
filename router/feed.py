"""From the bus to the carousel: in order, and without a hole that nobody is told of.

A message goes straight on while all is well. When something has been missed (the bus was down, Redis unsubscribed a name, the one
before a message never came) everything that arrives is held until the journal has filled the hole, on all channels: one
position covers all channels of a connection, so what was missed on one goes out before what is new on another.

A hole that shows late, after other channels have gone on, is filled with positions that say so: see `router.position`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from router import journal, position, vector
from router.bus import Bus
from router.carousel import Carousel
from router.hold import LATER, Hold, Item, Join, Payload
from router.holes import Holes
from router.message import Message
from router.notice import Notice
from router.position import Id, Position
from router.presence import Presence
from router.repair import Found, Repair
from router.replay import Reader
from router.rosters import Rosters
from router.table import Channel, Table
from router.turns import Turns
from router.vector import Vector
from router.watchers import Watchers

if TYPE_CHECKING:
    from router.followers import Follower

log = logging.getLogger("moorage.feed")

Joined = Callable[[bytes | None], None]  # gets the position where a subscription begins, None when the bus is down


class Feed:
    """What reaches one worker's subscribers, and since when.

    `on_lag(message)` is shown one message of every batch; `on_waiting(bytes)` is told how much is waiting here.
    It is also what the bus takes an interest in: every name with a subscriber, or with one that is about to be.
    """

    def __init__(
        self, table: Table, carousel: Carousel, *, later: Callable[..., object], on_lag: Callable[[Message], None],
        on_waiting: Callable[[int], None],
    ) -> None:  # fmt: skip
        self.head = b""  # the newest position: all up to it has been delivered here, but for what is in a hole
        self.received = self.repairs = 0
        self.gaps = 0  # told, one a subscriber
        self.reader: Reader  # these are set once there is a bus
        self.bus: Bus
        self.presence: Presence
        self.rosters: Rosters
        self.watchers: Watchers
        self.followers: Sequence[Follower] = ()
        self.is_durable: Callable[[bytes], bool] = lambda _name: True  # of a channel: otherwise no gap is told here
        self._table, self._carousel = table, carousel
        self._out, self._post = carousel.add, carousel.post  # the way on, of messages and gaps; for one sink alone
        self._later, self._on_lag = later, on_lag
        self._turns = Turns(carousel, later, on_waiting, self.held_bytes)
        self._lag_shown = False
        self._whole = False  # the bus is up, and what was missed while it was down is being repaired or has been
        self._passed = b""  # the newest message that came while it was not
        self._entering: Counter[bytes] = Counter()  # names of the joins that are held
        self._began = b""  # the id of the newest beginning
        self._epoch = b""  # of the head
        self._notice: Notice | None = None  # of a newer one, until all have been told
        self._heal()

    def _heal(self) -> None:
        """Forget about holes."""
        self._hold: Hold | None = None  # what arrives behind a hole, while there is one
        self._holes = Holes()
        self._repair: Repair | None = None

    def read(self, text: vector.Text) -> Vector | None:
        """Read a position of a client; None when it is none."""
        return vector.parse(text, 1)

    # Who is subscribed.

    def has(self, _name: bytes) -> bool:
        """Tell whether a channel comes this way."""
        return True

    def _mine(self) -> Iterable[bytes]:
        """Every name in the table that comes this way."""
        return self._table.names()

    def __contains__(self, name: bytes) -> bool:
        return name in self._table or name in self._entering

    def names(self) -> Iterable[bytes]:
        """Every name that the bus has to be subscribed to."""
        yield from self._mine()
        yield from list(self._entering)

    def join(self, names: Sequence[bytes], done: Joined) -> None:
        """Subscribe `names`; what arrives behind `done` is behind the position that it gets, what came before is not.

        Those of `names` that have no subscriber in the table behind `done` are unsubscribed again.
        """
        self.bus.join(names, partial(self._joined, names, done))

    def _joined(self, names: Sequence[bytes], done: Joined, began: bytes | None) -> None:
        if self._hold is None and began is not None and began[:8] != self._epoch:
            self._begin_epoch(position.read(began))
        if self._hold is None:
            self._enter(names, done, began)
            return
        self._entering.update(names)

        def enter(in_order: bool) -> None:
            self._joined(names, done, began if in_order else None)
            self._left_off(names)

        at = position.parse(began)
        is_in_epoch = at is None or at.epoch == self._place().epoch
        self._hold.append(Join((at.id.number if at else 0) if is_in_epoch else LATER, names, enter))

    def _enter(self, names: Sequence[bytes], done: Joined, began: bytes | None) -> None:
        # Everything up to `began` has come, on the same pipe. What is delivered from here on may not go back behind it:
        # somebody who resumes is sent all up to there, also of channels that nobody here has been subscribed to.
        if began is not None and began is not self.head:
            self.head, self._began = began, began[9:]  # one id for all who came in the same turn
        done(began)
        for name in names:
            channel = self._table.channels.get(name)
            if channel is not None and not channel.last:  # it is new: so much of it is known
                channel.last = self._began if began is not None else self.head[9:]

    def _left_off(self, names: Sequence[bytes]) -> None:
        """Somebody who was entering `names` has entered, or has gone."""
        for name in names:
            self._entering[name] -= 1
            if not self._entering[name]:
                del self._entering[name]
        self.bus.leave(names)

    def tick(self) -> None:
        """Let time pass for those who follow; call a few times a second."""
        self.reader.tick()
        for follower in self.followers:
            follower.tick()

    # What the bus tells.

    def message(self, name: bytes, payload: bytes) -> None:
        """A message arrived. Raises: ValueError when it is none of ours."""
        if payload[:1] == b"?":  # what the workers with subscribers have to say to each other
            (self.presence.asked if payload[1:2] == b"$" else self.rosters.heard)(name, payload)
        elif not self._whole:  # it is in the journal
            if journal.number_of(payload) is not None:
                self._passed = payload
        elif self._hold is not None:
            self._hold.append(Payload(name, payload))
        else:
            self._deliver(name, payload)

    def reply(self, payload: bytes) -> None:
        """Another worker says something to this one. Raises: ValueError when it is none of ours."""
        if payload[:1] == b"?":
            self.rosters.heard(b"", payload)
        else:
            self.presence.answered(payload)

    def batch(self) -> None:
        """A batch of messages is complete."""
        self._lag_shown = False
        self._turns.go()

    def lost(self) -> None:
        """The bus is down."""
        self._whole = False
        if self._notice is not None:
            self._notice.stop()  # all are told again when it is back
        hold, holes = self._hold, self._holes
        self._heal()
        if holes:
            self._holes = holes.before(self._place().id)
        for join in hold.joins() if hold is not None else ():
            join.enter(False)
        for follower in self.followers:
            follower.lost()
        self._later(self.batch)  # what was held waits no longer: in a cluster, the links of others may be paused for it

    def restored(self, at: bytes) -> None:
        """The bus is back, everything is subscribed, and `at` is where that began."""
        self._whole = True
        after, upto = position.parse(self.head), position.read(at)
        passed = position.parse(self._passed.partition(b" ")[0])
        if passed is not None and passed.epoch == upto.epoch and passed.id > upto.id and passed.id.ms >= upto.id.ms:
            upto = passed  # came behind `at`, and before we were called
        if after is None or self._notice is not None or str(upto).encode()[:8] != self._epoch:
            self._holes = Holes()
            self._begin_epoch(upto)
        elif after.id < upto.id or self._holes:
            self._holes.everywhere = True
            self._begin_hold(upto.id)
            self._mend()
        self._passed = b""
        for follower in self.followers:
            follower.restored()
        self.batch()

    def lapsed(self, name: bytes) -> None:
        """Redis has unsubscribed `name`: from here on something may be missed on it."""
        if self._whole:  # otherwise everything is being subscribed again, and that is told when it is back
            head = self._place()
            self._repair = None  # one that is under way is begun anew when the name is back
            self._holes.lapse(name, head.id)
            self._begin_hold(head.id)

    def rejoined(self, name: bytes, at: bytes) -> None:
        """`name` is subscribed again from `at` on."""
        upto = position.parse(at)
        if not self._whole:
            return
        had_lapsed = self._holes.returned(name)
        if not had_lapsed or upto is None or upto.epoch != self._place().epoch:
            self._holes.drop(name)
            self.tell_gaps([name])
        else:
            self._holes.reach(upto.id)
        for follower in self.followers:
            follower.rejoined(name)
        if self._hold is not None and (self._repair or self._notice) is None and self._holes.have_ends:
            self._mend()

    # A new epoch, and holes.

    def _begin_epoch(self, at: Position) -> None:
        """Redis has lost data: tell everybody, a few at a time. What arrives meanwhile is held."""
        self.head = self.head or str(at).encode()  # until all know: who is cut off between two gaps comes back with it
        self._begin_hold(at.id)
        self._notice = Notice(at, iter(self._mine()), self, self._table, self._all_told, later=self._later)
        self._notice.go_on()

    def _all_told(self) -> None:
        self.head, self._notice = self.newest, None
        self._epoch = self.head[:8]
        if not self._holes:
            self._let_go(Found([], []), self._head().epoch)
        elif self._holes.have_ends:  # otherwise it is mended when they are back
            self._mend()

    def _begin_hold(self, upto: Id) -> Hold:
        self._holes.reach(upto)
        self._hold = self._hold or Hold()
        return self._hold

    def _mend(self) -> None:
        """Read what was missed."""
        head = self._head()
        self.repairs += 1
        done = partial(self._repaired, self.repairs, head)
        behind = self._holes.behind(self._mine(), head.id)
        self._repair = Repair(self.reader, head.epoch, behind, self._holes.upto, done, later=self._later)
        self._repair.start()

    def _repaired(self, number: int, head: Position, found: Found | None) -> None:
        if found is None or self._repair is None or number != self.repairs:
            return  # the bus has failed, and all is repaired when it is back; or something more has been missed
        holes = self._holes
        for name in found.gaps:
            self._tell_gap(name, head, holes.begun(name, head.id))
        self._let_go(found, head.epoch)
        reached = self._head()
        if holes.everywhere and self._hold is None and reached.epoch == head.epoch and reached.id < holes.upto:
            self.head = str(head._replace(id=holes.upto)).encode()

    def _let_go(self, found: Found, epoch: str) -> None:
        """Deliver what was found, and what has come meanwhile."""
        hold, upto = self._hold, self._holes.upto
        assert hold is not None
        self._heal()
        for item in hold.merge(found, epoch, upto.number):
            self._release(item)
        self.batch()

    def _release(self, item: Item) -> None:
        if self._hold is not None:  # another hole: the rest waits behind it
            self._hold.append(item)
        elif isinstance(item, Join):
            item.enter(True)
        elif isinstance(item, Message):
            if item.position:
                self._deliver_found(item)
            else:
                self.tell_gaps([item.channel])
        else:
            try:
                self._deliver(*item)
            except ValueError:
                log.error("a message on the bus that is not of ours: %.200r", item.payload)

    def _head(self) -> Position:
        return position.read(self.head)  # there is one as soon as the bus has been up

    def _place(self) -> Position:
        return position.read(self.newest)

    @property
    def newest(self) -> bytes:
        """The newest position that is known: not the head while all are told of a new epoch."""
        return self.head if self._notice is None else str(self._notice.at).encode()

    # To the carousel.

    def _deliver(self, name: bytes, payload: bytes) -> None:
        message, before = journal.decode(name, payload, self.head)
        if message.position[8:9] != b"-" or message.members[:1] != b",":  # enough of a look: our scripts wrote the rest
            raise ValueError("neither a position nor members")
        sole = self._table.sole(name)  # most are: what is for one alone needs no round
        channel = self._table.find(name) if sole is None else None
        if before and message.position[:8] != self._epoch and position.id_of(before):
            self._begin_epoch(position.before(message.position))  # a gap before it, and not instead of it
            self._release(Payload(name, payload))
            return
        if channel is not None and before:
            if channel.last and channel.last != before and position.id_of(channel.last) < position.id_of(before):
                self._fill(channel, payload, before)
                return
            channel.last = message.id
        self.received += 1
        self.head = message.position
        if not self._lag_shown:  # one of a batch stands for all
            self._lag_shown = True
            self._on_lag(message)
        if sole is not None:
            self._post(sole, message)
        elif channel is not None:
            self._out(channel, message)

    def _fill(self, channel: Channel, payload: bytes, before: bytes) -> None:
        """The message before this one never came: get it first."""
        log.warning("a hole in %r: %r never came", channel.name, before)
        self._holes.begin(channel.name, position.id_of(channel.last))
        channel.last = b""
        self._begin_hold(position.id_of(before)).append(Payload(channel.name, payload))
        self._mend()

    def _deliver_found(self, message: Message) -> None:
        channel = self._table.find(message.channel)
        head, id = self._head(), position.id_of(message.id)
        if channel is not None:
            channel.last = message.id
        if id < head.id:  # the others have gone on
            message = message._replace(position=str(head.but(message.channel, id)).encode())
        else:
            self.head = message.position
        if channel is not None:
            self._out(channel, message)

    def _tell_gap(self, name: bytes, head: Position, after: Id) -> None:
        """Tell the subscribers of `name`, where the stream is at `head`, that something is lacking behind `after`."""
        channel = self._table.find(name) if self.is_durable(name) else None
        if channel is not None:
            at = head if after >= head.id else head.but(name, after)
            channel.last = b""
            self.gaps += len(channel.sinks)
            self._out(channel, Message(b"gap", name, str(at).encode(), b""))

    def tell_gaps(self, names: Iterable[bytes], dawn: Position | None = None) -> None:
        """Tell the subscribers of `names` that something is lacking, here and now, or that an epoch begins at `dawn`."""
        head = self._head()
        for name in names:  # those that are everybody's own are the last in the table: who hears that has heard all
            at = dawn if dawn is not None and name[:1] == b"@" else head
            self._tell_gap(name, at, at.id)

    @property
    def here(self) -> bytes:
        """The head, as a client is told it."""
        return self.head

    @property
    def is_steady(self) -> bool:
        """True while a frame with the head's position may go out: no channel lacks something from before it."""
        return self._notice is None and not self._holes.any_before(self._head().id)

    def announce(self, name: bytes, op: bytes, members: Iterable[bytes]) -> None:
        """Push an `op` with each of `members` to the subscribers of a channel; only while the feed is steady."""
        if (channel := self._table.find(name)) is not None:
            for each in members:
                self._out(channel, Message(op, name, self.head, each))
            self.batch()

    def held_bytes(self) -> int:
        """How much waits here for a repair; nothing for a name that is not back, because reading must go on for it."""
        return self._hold.bytes if self._hold is not None and (self._repair or self._notice) is not None else 0
