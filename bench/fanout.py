"""CPU of one delivery: a message to many subscribers of a room, alone and in a burst, beside a bare loop of writes.

The ratio to the bare loop is the figure. Both run in turn on the same CPU, round by round, and are drained by clients
of the same kind on another, because absolute times swing from minute to minute.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import mean

from bench.clients import Plan
from bench.cpus import aside
from bench.floor import Floor
from bench.load import Crowd, processes_needed
from bench.publisher import Publisher
from bench.report import Report
from bench.settings import Settings, at_least, option
from bench.target import Target, room_for

ROOM = "room:bench"
SINGLE_GOAL, BURST_GOAL = 1.15, 0.10
TURNS = 6  # in a round: single messages, each behind a pass of the bare loop
CALM_SECONDS = 0.02  # short, because the heartbeats of all subscribers go on meanwhile
FLOOR_SOCKETS_MAX = 15_000
WAIT_SECONDS_MAX = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FanoutSettings(Settings):
    """Settings of `bench fanout`."""

    connections: int = option(10_000, "subscribers", at_least(1))
    burst: int = option(20, "messages of a burst", at_least(2))


@dataclass(slots=True)
class Audience:
    """The subscribers of one room, and how many messages it has had."""

    target: Target
    crowd: Crowd
    publisher: Publisher
    size: int
    messages: int = 0

    def deliver(self, count: int) -> tuple[float, float]:
        """Publish `count` messages in one write.

        Return the workers' CPU microseconds per delivery, and the milliseconds until the last subscriber had the last.
        """
        self.target.quiet(CALM_SECONDS)
        before, began = self.target.cpu_ns(), time.monotonic_ns()
        self.crowd.expect(self.messages + count, WAIT_SECONDS_MAX)
        self.publisher.publish(ROOM, self.messages, count)
        self.messages += count
        arrived_ns = self.crowd.arrived().finished_ns
        self.target.quiet(CALM_SECONDS)
        return (self.target.cpu_ns() - before) / 1000 / (count * self.size), (arrived_ns - began) / 1e6


def run(settings: FanoutSettings, report: Report) -> None:
    """Measure. Raises: TargetError, Failed, Refused, Impossible, OSError."""
    size = settings.connections
    room_for(size, settings.workers)
    processes = processes_needed(size, settings.client_processes)
    with (
        Target(settings.workers, settings.redis) as target,
        aside(target.cpus()) as spare,
        Floor(min(size, FLOOR_SOCKETS_MAX), target.cpus(), spare) as floor,
        Crowd(processes, spare) as crowd,
        Publisher(target.listens("tcp")) as publisher,
    ):
        server = target.listens(settings.transport)
        opened = crowd.open(Plan(settings.transport, server, 0, size, rooms=(ROOM,), rate=settings.rate))
        report.count("subscribers", opened.live, size)
        audience = Audience(target, crowd, publisher, size)
        _compare(settings, report, audience, floor)
        tally = crowd.check(audience.messages)
        report.count("deliveries", tally.received, audience.messages * size)
        report.blame(tally.faults)


def _compare(settings: FanoutSettings, report: Report, audience: Audience, floor: Floor) -> None:
    """Measure single messages by turns with the bare loop, and bursts between two passes of it."""
    audience.deliver(1)  # warm-up, and the frame the bare loop is to write
    audience.deliver(settings.burst)
    frame = audience.crowd.tally().sample
    floor.us_per_write(frame)
    report.notes.append(f"the bare loop writes the same {len(frame)} bytes; a burst's ratio is a message's to a write")
    name = f"burst of {settings.burst}"
    for place in range(settings.rounds):
        report.say(f"round {place + 1} of {settings.rounds}")
        turns = [(floor.us_per_write(frame), *audience.deliver(1)) for _ in range(TURNS)]
        burst, burst_ms = audience.deliver(settings.burst)
        bares = [*(turn[0] for turn in turns), floor.us_per_write(frame)]
        bare, single, single_ms = mean(bares), mean(turn[1] for turn in turns), mean(turn[2] for turn in turns)
        report.add("single, ratio to the bare loop", single / bare, "x", SINGLE_GOAL)
        report.add(f"{name}, ratio to the bare loop", burst / bare, "x", BURST_GOAL)
        report.add("single", single, "CPU us/delivery")
        report.add(name, burst, "CPU us/delivery")
        report.add("bare loop", bare, "CPU us/write")
        report.add("single, until the last has it", single_ms, "ms")
        report.add(f"{name}, until the last has it", burst_ms, "ms")
