"""The bus of a cluster: one for each shard, on the node that has its slot.

A shard's slot may move: it is migrated, or its node dies and a replica takes over. Then Redis unsubscribes the shard's channels, or
answers MOVED, or the link breaks; the shard's bus goes down, asks who has the slot, subscribes everything there and is up again:
what was missed meanwhile is read from the journal, which has moved along. A publish that was answered MOVED was not executed, so
it waits a moment and is sent where the slot has gone; one that was not answered is `Unconfirmed`, and never sent twice.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from router import journal
from router.bus import PENDING_MAX, Bus
from router.link import Link, Strand, Subscriber
from router.listeners import Interest, Listeners
from router.node import Node
from router.nodes import Nodes, SharedLink
from router.outcome import BusDown, Busy, Refused
from router.pipe import Done, Reply
from router.vector import shard_of

MOVING_SECONDS_MAX = 3.0  # a publish waits so long for a slot that is on the move
# Answers of a node that has not executed a command, because the slot is not its own, or not to be used just now.
_ELSEWHERE = ("MOVED ", "ASK ", "TRYAGAIN", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "READONLY")


class Parked(NamedTuple):
    """A publish that waits for its slot to be found, until the deadline."""

    deadline: float
    name: bytes
    members: bytes
    retention: journal.Retention | None
    done: Done
    once: bytes


class _Berth(NamedTuple):
    """Where a shard is, for a person."""

    nodes: Nodes
    shard: int

    @property
    def address(self) -> str:
        return self.nodes.address(self.shard)

    async def locate(self) -> Node:
        raise Refused("it is the nodes that know")


class ShardBus(Bus):
    """The bus of one shard: `run()` keeps it up, wherever the slot is, until cancelled."""

    def __init__(
        self, nodes: Nodes, shard: int, keys: journal.Keys, interest: Interest, listeners: Listeners, *, worker: str,
        place: Callable[[bytes], bytes],
    ) -> None:  # fmt: skip
        super().__init__(_Berth(nodes, shard), keys, interest, listeners, worker=worker)
        self.shard = shard
        self._nodes = nodes
        self._place = place  # makes a position of this shard one of all
        self._strand: Strand | None = None
        self._shared: SharedLink | None = None
        self._parked: deque[Parked] = deque()
        self._moving_until = 0.0

    # What the worker asks for.

    def publish(
        self, name: bytes, members: bytes, retention: journal.Retention | None, done: Done, *, once: bytes = b""
    ) -> None:
        """Publish a message; see `Bus.publish`."""
        if self.connected and not self._parked:
            self._publish(name, members, retention, done, once)
        elif self._parked or self._loop.time() < self._moving_until:
            self._park(Parked(self._loop.time() + MOVING_SECONDS_MAX, name, members, retention, done, once))
        else:
            super().publish(name, members, retention, done, once=once)  # which says that it is down

    def ask(self, command: tuple[bytes, ...], done: Done) -> None:
        """Send a command that reads; `done` gets its reply, or an exception."""
        link = self._link

        def answered(reply: Reply) -> None:
            if is_elsewhere(reply):
                self._missed(link, str(reply))
                reply = BusDown(f"the slot is on the move: {reply}")
            done(reply)

        super().ask(command, answered)

    def _publish(
        self, name: bytes, members: bytes, retention: journal.Retention | None, done: Done, once: bytes,
        deadline: float = 0.0,
    ) -> None:  # fmt: skip
        link = self._link

        def answered(reply: Reply) -> None:
            if isinstance(reply, bytes):
                done(self._place(reply))
            elif is_elsewhere(reply):  # it was not executed
                self._missed(link, str(reply))
                until = deadline or self._loop.time() + MOVING_SECONDS_MAX
                self._park(Parked(until, name, members, retention, done, once))
            else:
                done(reply)

        super().publish(name, members, retention, answered, once=once)

    def _park(self, parked: Parked) -> None:
        if len(self._parked) >= PENDING_MAX:
            parked.done(Busy(f"{len(self._parked)} publishes are waiting for a slot that is on the move"))
            return
        if not self._parked:
            self._loop.call_at(parked.deadline, self._expire)
        self._parked.append(parked)

    def _expire(self) -> None:
        """Give up what has waited too long."""
        now = self._loop.time()
        while self._parked and self._parked[0].deadline <= now:
            self._parked.popleft().done(BusDown(f"nobody has had the slot for {MOVING_SECONDS_MAX:g} s"))
        if self._parked:
            self._loop.call_at(self._parked[0].deadline, self._expire)

    def _unpark(self) -> None:
        parked, self._parked = self._parked, deque()
        for each in parked:
            self._publish(each.name, each.members, each.retention, each.done, each.once, each.deadline)

    # Connecting, and staying connected.

    async def run(self) -> None:
        """Connect, and connect again whenever the connection is lost or the slot moves."""
        try:
            await super().run()
        finally:
            for parked in self._parked:
                parked.done(BusDown("stopped"))
            self._parked.clear()

    async def _connect(self) -> None:
        try:
            await super()._connect()
        except TimeoutError:
            self._give_up("no answer")
            raise
        self._unpark()

    async def _attach(self) -> Subscriber:
        link = await self._nodes.link(self.shard)
        link.attach(self._keys.prefix, self)
        self._link = self._shared = link
        self._publisher = link.publisher
        self._strand = Strand(link.subscriber, self._move)
        return self._strand

    def _detach(self, why: str) -> None:
        strand, shared = self._strand, self._shared
        self._link = self._shared = self._strand = self._subscriber = self._publisher = None
        if shared is not None:
            shared.detach(self._keys.prefix)
            self._nodes.release(shared)
        if strand is not None:
            strand.close(why)

    def cut(self, why: str) -> None:
        """The link is gone."""
        self._close(why)

    def _give_up(self, why: str) -> None:
        """The link is there, and nothing comes: it is of no use to the other shards either."""
        if self._shared is not None:
            self._shared.close(why)
        self._close(why)

    def _missed(self, link: Link | None, why: str) -> None:
        """The slot was not where something was sent to; by now we may have moved on."""
        if link is self._link:
            self._move(why)

    def _move(self, why: str) -> None:
        """The slot is not here any more: find out where it is."""
        self._moving_until = self._loop.time() + MOVING_SECONDS_MAX
        self._close(why)

    def _refuse(self, refusal: str) -> None:
        if refusal.startswith(_ELSEWHERE):
            self._move(refusal)
        else:
            super()._refuse(refusal)

    def _unsubscribed(self, name: bytes) -> None:
        if name in self._left:
            self._left.discard(name)
        else:  # Redis does so to all channels of a slot that it gives away
            self._move(f"unsubscribed from {name!r} without being asked")


class Cluster:
    """The buses of all shards of one worker. It has the methods of `Bus` that a server calls."""

    def __init__(self, nodes: Nodes, shards: Sequence[ShardBus]) -> None:
        self.shards = shards
        self._nodes = nodes

    @property
    def connected(self) -> bool:
        """True while all shards are."""
        return all(bus.connected for bus in self.shards)

    @property
    def paused(self) -> bool:
        """True while we do not want to receive."""
        return any(link.paused for link in self._nodes.links)

    def of(self, name: bytes) -> ShardBus:
        """Return the bus that a channel belongs to."""
        return self.shards[shard_of(name, len(self.shards))]

    def healthy(self) -> bool:
        """True while probes keep coming back from every shard."""
        return all(bus.healthy() for bus in self.shards)

    def fault(self) -> str:
        """Return what is wrong with which shards; "" when nothing is."""
        found = [(bus.shard, fault) for bus in self.shards if (fault := bus.fault())]
        if not found:
            return ""
        numbers = ", ".join(str(shard) for shard, _ in found)
        return f"{found[0][1]}: shard{'s' if len(found) > 1 else ''} {numbers} of {len(self.shards)}"

    def publish(
        self, name: bytes, members: bytes, retention: journal.Retention | None, done: Done, *, once: bytes = b""
    ) -> None:
        """Publish a message; see `Bus.publish`."""
        self.of(name).publish(name, members, retention, done, once=once)

    def leave(self, names: Iterable[bytes]) -> None:
        """Unsubscribe `names`; see `Bus.leave`."""
        for name in names:
            self.of(name).leave((name,))

    def pause(self, paused: bool) -> None:
        """Stop receiving, or go on."""
        for link in self._nodes.links:
            link.pause(paused)

    async def run(self) -> None:
        """Keep every shard up until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for bus in random.sample(list(self.shards), len(self.shards)):
                    group.create_task(bus.run())
        finally:
            self._nodes.close()


def is_elsewhere(reply: Reply) -> bool:
    """Tell whether a node has not executed a command because its slot is not there, or not to be used just now."""
    return isinstance(reply, Refused) and str(reply).startswith(_ELSEWHERE)
