"""From the bus to the carousel: in order, and without a hole that nobody is told of.

A message goes straight on while all is well. When something has been missed (the bus was down, Redis unsubscribed a name, the one
before a message never came) everything that arrives is held until the journal has filled the hole, on all channels: one
position covers all channels of a connection, so what was missed on one goes out before what is new on another.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence

from router import journal, position
from router.bus import Bus
from router.carousel import Carousel
from router.message import Message
from router.position import Position
from router.presence import Presence
from router.repair import Repair
from router.replay import Reader
from router.table import Channel, Table

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
        self.head = b""  # the newest position that has been seen
        self.received = 0
        self.gaps = 0  # told, one a subscriber
        self.repairs = 0
        self.reader: Reader  # these are set once there is a bus
        self.bus: Bus
        self.presence: Presence
        self._table, self._carousel = table, carousel
        self._later, self._on_lag, self._on_waiting = later, on_lag, on_waiting
        self._lag_shown = False
        self._spinning = False
        self._whole = False  # the bus is up, and what was missed while it was down is being repaired or has been
        # What arrives behind a hole, while there is one: messages, and joins in their places among them.
        self._held: deque[tuple[bytes, bytes] | Callable[[bool], None]] | None = None
        self._entering: Counter[bytes] = Counter()  # names of the joins that are held
        self._held_bytes = 0
        self._lapsed: dict[bytes, Position | None] = {}  # names that Redis has unsubscribed, since when
        self._repair: Repair | None = None

    # Who is subscribed.

    def __contains__(self, name: bytes) -> bool:
        return name in self._table or name in self._entering

    def names(self) -> Iterable[bytes]:
        """Every name that the bus has to be subscribed to."""
        yield from self._table.names()
        yield from list(self._entering)

    def join(self, names: Sequence[bytes], done: Joined) -> None:
        """Subscribe `names`; what arrives behind `done` is behind the position that it gets, what came before is not.

        Those of `names` that have no subscriber in the table behind `done` are unsubscribed again.
        """
        self.bus.join(names, lambda began: self._joined(names, done, began))

    def _joined(self, names: Sequence[bytes], done: Joined, began: bytes | None) -> None:
        if self._held is None:
            done(began)
            return
        self._entering.update(names)

        def enter(in_order: bool) -> None:
            done(began if in_order else None)
            self._entering.subtract(names)
            self._entering += Counter()  # drops what is zero
            self.bus.leave(names)

        self._held.append(enter)

    # What the bus tells.

    def message(self, name: bytes, payload: bytes) -> None:
        """A message arrived. Raises: ValueError when it is none of ours."""
        if payload[:1] == b"?":
            self.presence.asked(name, payload)
        elif self._held is not None:
            self._held.append((name, payload))
            self._held_bytes += len(payload)
        elif self._whole:
            self._deliver(name, payload)
        # while everything is being subscribed again, it is in the journal

    def batch(self) -> None:
        """A batch of messages is complete."""
        self._lag_shown = False
        if self._carousel and not self._spinning:
            self._spin()
        self._on_waiting(self._carousel.bytes_waiting + self._held_bytes)

    def lost(self) -> None:
        """The bus is down."""
        self._whole = False
        held, self._held, self._repair = self._held or (), None, None
        self._held_bytes = 0
        self._lapsed.clear()
        for each in held:
            if callable(each):
                each(False)

    def restored(self, at: bytes) -> None:
        """The bus is back, everything is subscribed, and `at` is where that began."""
        self.lost()
        self._whole = True
        after, upto = position.parse(self.head), position.parse(at)
        if after is None or upto is None or after.epoch != upto.epoch:
            self.head = at
            self._tell_gaps(self._table.names())
        elif after.id.number < upto.id.number:
            self._begin(self._table.names(), after, upto)
        self.batch()

    def lapsed(self, name: bytes) -> None:
        """Redis has unsubscribed `name`: from here on something may be missed on it."""
        if not self._lapsed and self._repair is None:
            self._held = self._held or deque()
        self._lapsed[name] = position.parse(self.head)

    def rejoined(self, name: bytes, at: bytes) -> None:
        """`name` is subscribed again from `at` on."""
        after, upto = self._lapsed.pop(name, None), position.parse(at)
        if after is None or upto is None or after.epoch != upto.epoch:
            self._tell_gaps([name])
            self._release([])
        elif self._repair is None:
            self._begin([name], after, upto)

    # Repair.

    def _begin(self, names: Iterable[bytes], after: Position, upto: Position) -> None:
        """Hold what arrives, and read what was missed."""
        self._held = self._held or deque()
        self.repairs += 1
        repair = Repair(self.reader, names, after, upto, lambda found: self._repaired(repair, upto, found))
        self._repair = repair
        repair.start()

    def _repaired(self, repair: Repair, upto: Position, found: list[Message] | None) -> None:
        if repair is not self._repair:
            return  # the bus has failed again, and is repaired anew
        self._repair = None
        if found is None:
            return  # likewise: the loss of the bus is about to be told
        self.head = str(upto).encode()
        self._release(found, upto.id.number)

    def _release(self, found: list[Message], upto: int = 0) -> None:
        """Deliver what was missed, then what was held and is not among it."""
        for message in found:
            self._add(message)
        if self._lapsed or self._repair is not None:
            return
        held, self._held = self._held or deque(), None
        self._held_bytes = 0
        while held:
            if self._held is not None:  # another hole: the rest waits behind it
                self._held += held
                return
            each = held.popleft()
            if callable(each):
                each(True)
            else:
                self._deliver_held(*each, upto)
        self.batch()

    # To the carousel.

    def _deliver_held(self, name: bytes, payload: bytes, upto: int) -> None:
        try:
            number = journal.number_of(payload)
            if number is None or number > upto:
                self._deliver(name, payload)
        except ValueError:
            log.error("a message on the bus that is not of ours: %.200r", payload)

    def _deliver(self, name: bytes, payload: bytes) -> None:
        self.received += 1
        message, before = journal.decode(name, payload, self.head)
        channel = self._table.find(name)
        if channel is not None and before:
            if channel.last and channel.last != before:
                self._fill(channel, name, payload, message)
                return
            channel.last = message.id
        self.head = message.position
        if not self._lag_shown:  # one of a batch stands for all
            self._lag_shown = True
            self._on_lag(message)
        if channel is not None:
            self._carousel.add(channel, message)

    def _fill(self, channel: Channel, name: bytes, payload: bytes, message: Message) -> None:
        """The message before this one never came: get it first."""
        log.warning("a hole in %r before %r", name, message.position)
        upto = position.parse(message.position)
        assert upto is not None
        after = Position(upto.epoch, position.id_of(channel.last))
        channel.last = b""
        self._held = deque([(name, payload)])
        self._begin([name], after, upto)

    def _add(self, message: Message) -> None:
        channel = self._table.find(message.channel)
        if channel is not None:
            if message.op == b"gap":
                self.gaps += len(channel.sinks)
                channel.last = b""
            else:
                channel.last = message.id
            self._carousel.add(channel, message)

    def _tell_gaps(self, names: Iterable[bytes]) -> None:
        for name in names:
            self._add(Message(b"gap", name, self.head, b""))

    def _spin(self) -> None:
        """Give the carousel a turn, and come back while it has more to do."""
        self._spinning = self._carousel.turn()
        if self._spinning:
            self._later(self._spin)
        else:
            self._on_waiting(self._held_bytes)
