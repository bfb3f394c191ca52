"""Who on this worker is subscribed to what: channel -> sinks, and user -> her own connections.

A personal channel ("@alice") is an entry in the table of users, not a `Channel`: nearly every user has one connection,
and a reference is a tenth of an object with a set in it. It becomes a `Channel` while she has several connections
or while messages are being fanned out to her.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from router.carousel import Round
    from router.message import Message
    from router.roster import Roster


class Lane(Protocol):
    """One wire format: what a message looks like to every sink that shares it."""

    @property
    def encode(self) -> Callable[[Message], bytes]:
        """Turns a message into a frame; called once per message and lane."""


class Sink(Protocol):
    """Where frames go. The router never learns what it is."""

    channels: tuple[Channel, ...]

    @property
    def lane(self) -> Lane:
        """Its wire format."""

    @property
    def user(self) -> str:
        """Whose it is."""

    def offer(self, frame: bytes) -> bool:
        """Take `frame` whole and at once; False when it does not fit what this sink may still queue."""


class Channel:
    """A name with its local subscribers; `round` is the fan-out under way, if any."""

    __slots__ = ("alone", "last", "name", "roster", "round", "sinks")

    def __init__(self, name: bytes, roster: Roster | None = None) -> None:
        self.name = name
        self.roster = roster  # who is in it everywhere, where subscribers are told who comes and goes
        self.last = b""  # the id of its newest message that came, where it is known
        self.sinks: dict[Sink, None] = {}  # as a set, at two thirds of the memory, and in order of memory
        self.round: Round | None = None
        self.alone: tuple[Channel, ...] = ()  # itself, shared by all whose only channel this is

    def add(self, sink: Sink) -> None:
        """Subscribe `sink` from the next message on."""
        self.sinks[sink] = None
        if self.round is not None:
            self.round.add(sink)
        if self.roster is not None:
            self.roster.enter(sink.user)

    def discard(self, sink: Sink) -> None:
        """Unsubscribe `sink`, in the middle of a round too."""
        self.sinks.pop(sink, None)
        if self.round is not None:
            self.round.discard(sink)
        if self.roster is not None:
            self.roster.leave(sink.user)


class Table:
    """All subscriptions of one worker. `name` is a channel's name in UTF-8, without the prefix it has on the bus."""

    def __init__(self) -> None:
        self.roster_of: Callable[[bytes], Roster | None] = lambda _name: None  # asked once a channel
        self.channels: dict[bytes, Channel] = {}
        self.users: dict[str, Sink | Channel] = {}

    def __contains__(self, name: bytes) -> bool:
        if name[:1] == b"@":
            return name[1:].decode() in self.users
        return name in self.channels

    def __len__(self) -> int:
        return len(self.channels) + len(self.users)

    def names(self) -> Iterator[bytes]:
        """Every name that has a local subscriber: what the bus has to be subscribed to."""
        yield from list(self.channels)
        for user in list(self.users):
            yield b"@" + user.encode()

    def find(self, name: bytes) -> Channel | None:
        """Return the channel called `name`; None when nobody here is subscribed."""
        if name[:1] == b"@":
            entry = self.users.get(name[1:].decode())
            return entry if entry is None or isinstance(entry, Channel) else self._grow(name, entry)
        return self.channels.get(name)

    def is_sending(self, name: bytes) -> bool:
        """Tell whether messages of the channel called `name` are being fanned out."""
        entry = self.users.get(name[1:].decode()) if name[:1] == b"@" else self.channels.get(name)
        return isinstance(entry, Channel) and entry.round is not None

    def sole(self, name: bytes) -> Sink | None:
        """Return the only subscriber of a personal channel called `name`; None when it is another, or has more or none."""
        if name[:1] != b"@":
            return None
        entry = self.users.get(name[1:].decode())
        return None if isinstance(entry, Channel) else entry

    def holds(self, sink: Sink) -> bool:
        """Tell whether `sink` has entered and not left."""
        entry = self.users.get(sink.user)
        return entry is sink or (isinstance(entry, Channel) and sink in entry.sinks)

    def enter(self, sink: Sink) -> None:
        """Subscribe `sink` to its user's personal channel and to everything in `sink.channels`."""
        entry = self.users.get(sink.user)
        if entry is None:
            self.users[sink.user] = sink
        elif isinstance(entry, Channel):
            entry.add(sink)
        else:
            self._grow(b"@" + sink.user.encode(), entry).add(sink)
        for channel in sink.channels:
            channel.add(sink)

    def leave(self, sink: Sink) -> list[bytes]:
        """Unsubscribe `sink` from everything; return the names that have no subscriber left."""
        empty = []
        entry = self.users.get(sink.user)
        if entry is sink:
            del self.users[sink.user]
            empty.append(b"@" + sink.user.encode())
        elif isinstance(entry, Channel):
            entry.discard(sink)
            if not entry.sinks:
                del self.users[sink.user]
                empty.append(entry.name)
            else:
                self.settle(entry)
        for channel in sink.channels:
            channel.discard(sink)
            if not channel.sinks:
                self._remove(channel)
                empty.append(channel.name)
        sink.channels = ()
        return empty

    def channel(self, name: bytes) -> Channel:
        """Return the channel called `name`, made if it is not there; for a sink that is about to enter."""
        channel = self.channels.get(name)
        if channel is None:
            channel = self.channels[name] = Channel(name, self.roster_of(name))
            channel.alone = (channel,)
        return channel

    def gather(self, names: list[bytes]) -> tuple[Channel, ...]:
        """Return the channels called `names` as a tuple, shared where there is only one."""
        if len(names) == 1:
            return self.channel(names[0]).alone
        return tuple(map(self.channel, names))

    def add(self, sink: Sink, name: bytes) -> None:
        """Subscribe `sink` to one more channel."""
        channel = self.channel(name)
        if channel not in sink.channels:
            sink.channels = (*sink.channels, channel) if sink.channels else channel.alone
            channel.add(sink)

    def discard(self, sink: Sink, name: bytes) -> bool:
        """Unsubscribe `sink` from one channel; True when that channel has no subscriber left."""
        channel = self.channels.get(name)
        if channel is None or channel not in sink.channels:
            return False
        left = tuple(other for other in sink.channels if other is not channel)
        sink.channels = left[0].alone if len(left) == 1 else left
        channel.discard(sink)
        if channel.sinks:
            return False
        self._remove(channel)
        return True

    def settle(self, channel: Channel) -> None:
        """Turn a personal channel back into a bare reference once it has one sink and no round."""
        if channel.round is None and len(channel.sinks) == 1 and channel.name[:1] == b"@":
            (sink,) = channel.sinks
            self.users[sink.user] = sink

    def _grow(self, name: bytes, sink: Sink) -> Channel:
        """Turn the bare reference to `sink` into the personal channel called `name`."""
        channel = self.users[sink.user] = Channel(name)
        channel.sinks[sink] = None
        return channel

    def _remove(self, channel: Channel) -> None:
        del self.channels[channel.name]
        channel.alone = ()  # a cycle, and a worker leaves those to a collector that hardly ever runs
