"""Whatever happens while messages are fanned out: every sink gets each of its messages once, in order of arrival."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sinks import Keeper, NamedLane, Worker

from router import carousel
from router.table import Channel

ROOMS = ["room:a", "room:b", "room:c"]
USERS = ["alice", "bob", "carol", "dave"]
LANES = [NamedLane(b"lines"), NamedLane(b"sse")]
SECONDS = [0.0, 0.0, 0.01, 0.2, 0.5, 1.0, 3.0]  # that a write takes; a slice is 1 s

room = st.sampled_from(ROOMS)


class Newcomer(NamedTuple):
    user: str
    rooms: list[str]
    lane: NamedLane
    seconds: float


class Step(NamedTuple):
    """What happens next: to a room, or to whoever is at `place` among those present."""

    what: str
    name: str
    place: int
    newcomer: Newcomer


newcomers = st.builds(
    Newcomer,
    st.sampled_from(USERS),
    st.lists(room, unique=True),
    st.sampled_from(LANES),
    st.sampled_from(SECONDS),
)
steps = st.builds(
    Step,
    st.sampled_from(
        ["publish"] * 6 + ["turn"] * 5 + ["enter", "subscribe", "subscribe"] + ["leave", "unsubscribe", "flush", "fill"]
    ),
    room | st.sampled_from(USERS).map("@".__add__),
    st.integers(0, 11),
    newcomers,
)


class FanOut:
    """A worker beside a model: what each sink should have been sent, by number and name."""

    def __init__(self, takes_friends: bool, is_told: bool) -> None:
        self.worker = Worker()
        self.worker.carousel._on_full = self.on_full
        self.owed: dict[Keeper, list[tuple[int, str]]] = {}
        self.gone: list[Keeper] = []
        self.takes_friends = takes_friends  # when one connection of a user is full, all of hers are closed
        self.is_told = is_told  # the rooms of one that was full are told that it left

    def names_of(self, keeper: Keeper) -> set[bytes]:
        return {b"@" + keeper.user.encode(), *(channel.name for channel in keeper.channels)}

    def names(self) -> set[bytes]:
        return set().union(*map(self.names_of, self.owed))

    def on_full(self, sink: object) -> None:
        assert isinstance(sink, Keeper)
        if sink not in self.owed:
            return
        friends = [other for other in self.owed if self.takes_friends and other.user == sink.user]
        for keeper in {sink: None, **dict.fromkeys(friends)}:
            rooms = [channel.name.decode() for channel in keeper.channels if self.is_told]
            self.leave(keeper)
            for name in rooms:
                self.publish(name)

    def enter(self, newcomer: Newcomer) -> None:
        keeper = self.worker.keeper(newcomer.user, *newcomer.rooms, lane=newcomer.lane)
        self.owed[keeper] = []

        def pass_time() -> None:
            self.worker.clock.now += newcomer.seconds

        keeper.on_offer = pass_time

    def leave(self, keeper: Keeper) -> None:
        before = self.names_of(keeper)
        emptied = self.worker.table.leave(keeper)
        self.check(keeper)
        del self.owed[keeper]
        self.gone.append(keeper)
        assert sorted(emptied) == sorted(before - self.names())

    def unsubscribe(self, keeper: Keeper, name: str) -> None:
        was = name.encode() in self.names_of(keeper)
        emptied = self.worker.table.discard(keeper, name.encode())
        assert emptied == (was and name.encode() not in self.names())
        had = len(keeper.received())
        self.owed[keeper][had:] = [owed for owed in self.owed[keeper][had:] if owed[1] != name]

    def flush(self, keeper: Keeper) -> None:
        self.worker.carousel.flush(keeper)
        if keeper in self.owed:
            assert len(keeper.received()) == len(self.owed[keeper])

    def publish(self, name: str) -> None:
        number = self.worker.publish(name)
        for keeper, owed in self.owed.items():
            if name.encode() in self.names_of(keeper):
                owed.append((number, name))

    def take(self, step: Step) -> None:
        present = list(self.owed)
        keeper = present[step.place % len(present)] if present else None
        if step.what == "publish":
            self.publish(step.name)
        elif step.what == "turn":
            self.worker.carousel.turn()
        elif step.what == "enter" or keeper is None:
            self.enter(step.newcomer)
        elif step.what == "leave":
            self.leave(keeper)
        elif step.what == "flush":
            self.flush(keeper)
        elif step.what == "fill":
            keeper.has_room = False
        elif step.name in ROOMS and step.what == "subscribe":
            self.worker.table.add(keeper, step.name.encode())
        elif step.name in ROOMS:
            self.unsubscribe(keeper, step.name)

    def check(self, keeper: Keeper) -> None:
        """Nothing is missing, nothing comes twice, nothing is out of order."""
        received = keeper.received()
        assert received == [number for number, _ in self.owed[keeper][: len(received)]]

    def check_all(self) -> None:
        for keeper in self.owed:
            self.check(keeper)
        assert set(self.worker.table.names()) == self.names()
        for current in self.worker.carousel._rounds:
            places = [current.fresh, *current.cohorts]
            assert set().union(*places) == set(current.channel.sinks)
            assert sum(map(len, places)) == len(current.channel.sinks), "a sink is in two places"
            starts = [cohort.number for cohort in current.cohorts]
            assert starts == sorted(set(starts))
        waiting = {number: message for each in self.worker.carousel._rounds for number, message, _ in each.log}
        mail = [message for each in self.worker.carousel._letters.values() for _, message, _ in each.log]
        messages = [*waiting.values(), *mail]
        assert self.worker.carousel.bytes_waiting == sum(len(message.members) for message in messages)

    def finish(self) -> None:
        self.worker.drain()
        self.check_all()
        for keeper, owed in self.owed.items():
            assert len(keeper.received()) == len(owed)
        assert self.worker.carousel.bytes_waiting == 0
        assert not self.worker.carousel
        assert not self.worker.carousel._addressees
        self._check_counters([*self.owed, *self.gone])
        self._check_table()

    def _check_counters(self, keepers: Iterable[Keeper]) -> None:
        counted = self.worker.carousel
        writes = sum(len(keeper.writes) for keeper in keepers)
        deliveries = sum(len(keeper.received()) for keeper in keepers)
        refused = sum(not keeper.has_room for keeper in self.gone)  # these are counted as well
        assert writes <= counted.writes <= writes + refused
        assert counted.deliveries == deliveries if counted.writes == writes else counted.deliveries > deliveries

    def _check_table(self) -> None:
        table = self.worker.table
        assert all(channel.round is None for channel in table.channels.values())
        for user, entry in table.users.items():
            hers = {keeper for keeper in self.owed if keeper.user == user}
            assert set(entry.sinks) == hers if isinstance(entry, Channel) else {entry} == hers
            assert isinstance(entry, Channel) == (len(hers) > 1), "a personal channel has not settled"


@given(
    st.lists(newcomers, min_size=1, max_size=8),
    st.lists(steps, min_size=5, max_size=60),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_every_sink_gets_its_messages_once_and_in_order(
    crowd: list[Newcomer], todo: list[Step], takes_friends: bool, is_told: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(carousel, "_SINKS_PER_CLOCK", 1)  # so that a few sinks are a crowd
        patch.setattr(carousel, "_SINKS_PER_TURN", 2)
        fan_out = FanOut(takes_friends, is_told)
        for newcomer in crowd:
            fan_out.enter(newcomer)
        for step in todo:
            fan_out.take(step)
            fan_out.check_all()
        fan_out.finish()
