"""One peer's turn: what is done to a server that runs, and the figures that come of it."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from statistics import mean
from typing import NamedTuple

from bench import measure
from bench.direct import FIRST_RECEIVER, apart, quantile
from bench.load import Crowd
from bench.pairs import Outcome, Work
from bench.peers.clients import PeerPlan, conversations
from bench.peers.findings import Findings
from bench.peers.peer import Peer, Running
from bench.peers.speaker import Speaker
from bench.peers.wire import ROOM, Lane

BURSTS = 2
CALM_SECONDS_MAX = 0.02  # between messages; short, because keep-alives of all subscribers go on meanwhile
WAIT_SECONDS_MAX = 30.0
STORM_SECONDS_MAX = 90.0
WARM_UP_MESSAGES = 200
WARM_UP_SINGLES = 3


class Lost(Exception):
    """A message did not reach everybody, so that what would follow counts for nothing."""


class Spent(NamedTuple):
    """CPU nanoseconds of all processes, and those of them that helpers (Redis) took."""

    all: int
    helpers: int

    def since(self, before: Spent, count: int) -> Cost:
        """Return what one of `count` things done since `before` cost."""
        return Cost((self.all - before.all) / 1000 / count, (self.helpers - before.helpers) / 1000 / count)


class Cost(NamedTuple):
    """CPU microseconds of one thing done, in all processes, and in helpers."""

    all: float
    helpers: float


@dataclass(slots=True)
class Bout:
    """A server, its subscribers, the one who publishes to them, and how many messages that were."""

    peer: Peer
    running: Running
    crowd: Crowd
    speaker: Speaker
    report: Findings
    rate: float = 0.0
    calm: float = 0.1
    """Seconds without work, twice in a row, that a server has before and after it is measured."""
    size: int = 0
    messages: int = 0
    _opened: int = field(default=0)

    def warm_up(self, connections: int, burst: int) -> None:
        """Open the first connections, and have the server do once what it is to be measured at."""
        self._open(connections)
        for count in (1, burst):
            self._deliver(count)

    def grow(self, connections: int, scenarios: Collection[str]) -> None:
        """Open the rest: memory and CPU of each."""
        grown = connections - self.size
        memory, before = self._memory(), self._spent()
        began = time.monotonic_ns()
        seconds = (self._open(grown) - began) / 1e9
        cost = self._spent().since(before, grown)
        user, helper, kernel = (after - at for after, at in zip(self._memory(), memory, strict=True))
        if "idle" in scenarios:
            self._record("idle", "user-space memory", user / grown)
            if self.running.helpers():
                self._record("idle", "user-space memory, of it in Redis", helper / grown)
            self._record("idle", "kernel, one end", kernel / grown / 2)
        if "connect" in scenarios:
            self._record_cost("connect", "CPU", cost)
            self._record("connect", "arrival", grown / seconds)

    def fan_out(self, singles: int, burst: int) -> None:
        """Publish to all: one by one, then in bursts."""
        for _ in range(WARM_UP_SINGLES):
            self._deliver(1)
        for name, turns in (("single", [1] * singles), ("burst", [burst] * BURSTS)):
            found = [self._deliver(count) for count in turns]
            costs = [each[0] for each in found]
            cost = Cost(mean(each.all for each in costs), mean(each.helpers for each in costs))
            self._record_cost("fanout", f"{name}, CPU", cost)
            self._record("fanout", f"{name}, until the last has it", mean(each[1] for each in found))

    def talk(self, pairs: int, *, steady: tuple[int, int], stream: tuple[int, int]) -> None:
        """Have pairs talk, on different processes of the server if it has several.

        `steady` is messages and messages a second, `stream` messages and how many a pair has under way.
        """
        wire = self.peer.wire
        with Crowd(1, kind=conversations(wire)) as crowd:
            for first, lane, address in (
                (FIRST_RECEIVER - pairs, Lane(wire, speaks=True), self.running.speakers),
                (FIRST_RECEIVER, Lane(wire), self.running.address),
            ):
                tally = crowd.open(PeerPlan("", address, first, pairs, lane=lane))
                if tally.faults:
                    raise Lost(f"1:1: {dict(tally.faults.most_common(3))}")
            members = crowd.ask(list, "members")
            pids = self.running.pids()
            owners = measure.owners(pids) if len(pids) > 1 else {}
            crowd.ask(int, "pair_up", apart(members, owners) or apart(members, {}))
            self._exchange(crowd, Work(WARM_UP_MESSAGES, steady[1], 0))
            cost, outcome = self._exchange(crowd, Work(steady[0], steady[1], 0))
            self._record_cost("direct", "fixed rate, CPU", cost)
            ordered = sorted(outcome.latencies_ns)
            for name, share in (("p50", 0.50), ("p99", 0.99)):
                self._record("direct", f"fixed rate, latency {name}", quantile(ordered, share) / 1000)
            cost, outcome = self._exchange(crowd, Work(stream[0], 0.0, stream[1]))
            self._record_cost("direct", "pipelined, CPU", cost)
            self._record("direct", "pipelined, throughput", outcome.received / outcome.seconds)
        self.running.quiet(self.calm)

    def storm(self) -> None:
        """Have everybody leave, and come back at once."""
        size = self.size
        self.crowd.close()
        self.size = 0
        self.running.quiet(self.calm)
        before, began = self._spent(), time.monotonic_ns()
        seconds = (self._open(size, flight=size) - began) / 1e9
        self._record("storm", "until all are back", seconds)
        self._record_cost("storm", "CPU", self._spent().since(before, size))
        self._deliver(1)

    def finish(self) -> None:
        """Count what came too much or too little, in all scenarios together."""
        tally = self.crowd.check(self.messages)
        for text, times in tally.faults.most_common(5):
            self.report.fault(f"{self.peer.name}: {text}", times)

    def _open(self, count: int, flight: int = 128) -> int:
        """Open connections, every one a new user in the room, and return when the last was through (monotonic ns)."""
        plan = PeerPlan(
            "", self.running.address, self._opened, count,
            lane=Lane(self.peer.wire, ROOM), number=self.messages, rate=self.rate, flight=flight,
        )  # fmt: skip
        tally = self.crowd.open(plan, STORM_SECONDS_MAX)
        self._opened += count
        self.size += count
        if tally.live != self.size:
            raise Lost(f"{tally.live:,} of {self.size:,} connections are open: {dict(tally.faults.most_common(3))}")
        self.running.quiet(self.calm)
        return tally.finished_ns

    def _deliver(self, count: int) -> tuple[Cost, float]:
        """Publish messages in one write; return the cost of a delivery, and milliseconds until the last was read."""
        self.running.quiet(min(self.calm, CALM_SECONDS_MAX))
        before, began = self._spent(), time.monotonic_ns()
        already = self.crowd.tally().received
        self.crowd.expect(self.messages + count, WAIT_SECONDS_MAX)
        self.speaker.publish(self.messages, count)
        self.messages += count
        tally = self.crowd.arrived()
        if tally.received - already != count * self.size:
            came, faults = tally.received - already, dict(tally.faults.most_common(3))
            raise Lost(f"{came:,} of {count * self.size:,} messages of a fan-out came: {faults}")
        self.running.quiet(min(self.calm, CALM_SECONDS_MAX))
        return self._spent().since(before, count * self.size), (tally.finished_ns - began) / 1e6

    def _exchange(self, crowd: Crowd, work: Work) -> tuple[Cost, Outcome]:
        """Have the pairs talk; return the cost of a message, and what came of it."""
        self.running.quiet(self.calm)
        before = self._spent()
        outcome = crowd.ask(Outcome, "talk", work)
        self.running.quiet(self.calm)
        if min(outcome.received, outcome.answered) != work.messages:
            faults = dict(crowd.tally().faults.most_common(3))
            raise Lost(f"1:1: {outcome.received:,} of {work.messages:,} messages came: {faults}")
        return self._spent().since(before, work.messages), outcome

    def _memory(self) -> tuple[int, int, int]:
        """Return bytes in all processes, those of them in helpers, and those in the kernel, of both ends."""
        kernel = measure.slab().bytes + measure.sockets().buffer_bytes
        return self.running.memory_bytes(), self.running.helper_bytes(), kernel

    def _spent(self) -> Spent:
        return Spent(self.running.cpu_ns(), self.running.helper_ns())

    def _record_cost(self, scenario: str, figure: str, cost: Cost) -> None:
        self._record(scenario, figure, cost.all)
        if self.running.helpers():
            self._record(scenario, f"{figure}, of it in Redis", cost.helpers)

    def _record(self, scenario: str, figure: str, value: float) -> None:
        self.report.record(self.peer.name, scenario, figure, value)
