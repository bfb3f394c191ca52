"""Memory of connections that do nothing: bytes each, in the server's processes and in the kernel.

Opens a base, then the rest in steps, every connection with a user of its own and one room, and takes the slope between
the base and the end, each round with a new server. There is no warm-up of connections opened and closed before, because
tables and arenas that have grown once would hide the growth that is to be measured. Then it broadcasts one message to
all, and holds the connections of the last round for a while.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import NamedTuple

from bench import measure
from bench.clients import Plan
from bench.cpus import aside
from bench.load import Crowd, processes_needed
from bench.publisher import Publisher
from bench.report import Report
from bench.settings import Settings, amount, at_least, option
from bench.target import Target, room_for

STEPS = 4
USER_BYTES_GOAL = 350
ROOM = "room:bench"


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleSettings(Settings):
    """Settings of `bench idle`."""

    connections: int = option(15_000, "client connections at the end", at_least(2))
    base: int = option(1_000, "connections that are open before the slope begins", at_least(1))
    workers: int = option(2, "worker processes of the server", at_least(1))
    rounds: int = option(3, "times to measure, each with a new server", at_least(1))
    seconds: float = option(25.0, "time to hold them in the last round, for idle CPU with heartbeats", amount)


class Snapshot(NamedTuple):
    """Memory at a number of connections, bytes; `others` is the supervisor and the admin process."""

    round: int
    connections: int
    workers: int
    others: int
    redis: int
    slab: int
    buffers: int


def run(settings: IdleSettings, report: Report) -> None:
    """Measure. Raises: TargetError, Failed, Refused, Impossible, OSError."""
    room_for(settings.connections, settings.workers)
    processes = processes_needed(settings.connections, settings.client_processes)
    report.notes.append(
        f"kernel: {measure.slab().source}; both ends are on this machine, so half of the growth. "
        "User space: private memory and a share of what is shared, without the pages of files"
    )
    for place in range(settings.rounds):
        with (
            Target(settings.workers, settings.redis) as target,
            aside(target.cpus()) as spare,
            Crowd(processes, spare) as crowd,
            Publisher(target.listens("tcp")) as publisher,
        ):
            _grow(settings, report, target, crowd, place)
            crowd.expect(1, 60)
            publisher.publish(ROOM, 0)
            crowd.arrived()
            report.count("received of one broadcast", crowd.check(1).received, settings.connections)
            if place == settings.rounds - 1 and settings.seconds:
                _hold(settings, report, target, crowd)
            report.blame(crowd.tally().faults)


def _grow(settings: IdleSettings, report: Report, target: Target, crowd: Crowd, place: int) -> None:
    base = min(settings.base, settings.connections // 2)
    snapshots: list[Snapshot] = []
    done = 0
    try:
        for step in range(STEPS + 1):
            goal = base + (settings.connections - base) * step // STEPS
            plan = Plan(settings.transport, target.listens(settings.transport), done, goal - done, rooms=(ROOM,))
            done = goal
            live = crowd.open(replace(plan, rate=settings.rate)).live
            target.quiet()
            snapshots.append(_snapshot(target, live, place))
            report.curve.append(snapshots[-1]._asdict())
            report.say(f"round {place + 1} of {settings.rounds}: {live:,} connections")
        report.count("connections open", live, settings.connections)
    finally:
        if len(snapshots) > 1:
            _slope(report, snapshots[0], snapshots[-1])


def _snapshot(target: Target, connections: int, place: int) -> Snapshot:
    processes = target.processes
    return Snapshot(
        round=place,
        connections=connections,
        workers=target.memory_bytes(processes.worker),
        others=target.memory_bytes([*processes.supervisor, *processes.admin]),
        redis=target.memory_bytes(processes.redis),
        slab=measure.slab().bytes,
        buffers=measure.sockets().buffer_bytes,
    )


def _slope(report: Report, first: Snapshot, last: Snapshot) -> None:
    grown = last.connections - first.connections
    if grown <= 0:
        return
    user = last.workers + last.others - first.workers - first.others
    report.add("user-space memory, all processes", user / grown, "bytes/connection", USER_BYTES_GOAL)
    report.add("of it in workers", (last.workers - first.workers) / grown, "bytes/connection")
    if last.redis:
        report.add("Redis memory", (last.redis - first.redis) / grown, "bytes/connection")
    report.add("kernel slab, one end", (last.slab - first.slab) / grown / 2, "bytes/connection")
    report.add("kernel socket buffers, one end", (last.buffers - first.buffers) / grown / 2, "bytes/connection")


def _hold(settings: IdleSettings, report: Report, target: Target, crowd: Crowd) -> None:
    heartbeats = crowd.tally().heartbeats
    before, began = target.cpu_ns(), time.monotonic_ns()
    report.say(f"holding for {settings.seconds:g} s")
    time.sleep(settings.seconds)
    spent, held = target.cpu_ns() - before, time.monotonic_ns() - began
    report.add("idle CPU of all workers", 100 * spent / held, "% of a core")
    report.count(f"heartbeats in {settings.seconds:g} s", crowd.tally().heartbeats - heartbeats)
