"""Whether a connection, a channel or a subscriber costs the same however many there are: one curve for each.

Connections: bytes and CPU each, with a new server for every size, as `million` measures them. Channels of one worker: CPU
of a message to one of them, each with one subscriber. Subscribers of one channel: CPU of a delivery. Where the first
points are high, a worker's own base is shared by few.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from bench import latency, million, preflight
from bench.clients import Plan
from bench.cpus import aside
from bench.load import Crowd, processes_needed
from bench.million import MillionSettings
from bench.publisher import Publisher
from bench.report import Report
from bench.settings import Impossible, Settings, amount, at_least, flag, option
from bench.target import Target

EACH = 100  # channels of a connection, where there are many: a server allows 128
ROOM = "room:bench"
WAIT_SECONDS_MAX = 60.0
COPIED = {
    "user-space memory, all processes": "user space",
    "of it in workers": "user space, workers",
    "Redis memory": "Redis memory",
    "kernel slab, one end": "kernel slab",
    "opening, workers": "connecting, workers",
    "opening, Redis": "connecting, Redis",
    "broadcast, workers": "broadcast, workers",
    "held, CPU of workers": "idle, workers",
    "held, CPU of workers, of it in the kernel": "idle, workers, of it in the kernel",
    "held, workers, a heartbeat": "a heartbeat, workers",
}


def ascending(text: str) -> tuple[int, ...]:
    """Read ascending whole numbers, apart by commas: `1000,10000`. Raises: ArgumentTypeError."""
    try:
        found = tuple(int(word.replace("_", "")) for word in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1 or list(found) != sorted(set(found)):
        raise argparse.ArgumentTypeError(f"found {text!r}, want ascending whole numbers apart by commas")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthSettings(Settings):
    """Settings of `bench growth`."""

    sizes: tuple[int, ...] = option((1_000, 10_000, 100_000, 1_000_000), "numbers of connections", ascending)
    channels: tuple[int, ...] = option((100, 1_000, 10_000, 100_000), "numbers of channels of one worker", ascending)
    subscribers: tuple[int, ...] = option((1, 10, 100, 1_000, 10_000), "numbers of subscribers of a channel", ascending)
    rounds: int = option(3, "times to measure a message to a channel, and to its subscribers", at_least(1))
    messages: int = option(
        5_000, "messages to channels, and deliveries to subscribers at least, each round", at_least(1)
    )
    hold: float = option(30.0, "seconds to hold the connections, for idle CPU", amount)
    tune: bool = flag("set the kernel settings that are too low for the time of a run; takes root")


def run(settings: GrowthSettings, report: Report) -> None:
    """Measure. Raises: TargetError, Failed, Refused, Impossible, OSError."""
    latency.require()
    for count in settings.channels:
        _channels(settings, report, count)
    for count in settings.subscribers:
        _subscribers(settings, report, count)
    for count in settings.sizes:
        try:
            _connections(settings, report, count)
        except Impossible as error:
            report.notes.append(f"left out: {error}")


def _connections(settings: GrowthSettings, report: Report, count: int) -> None:
    """Open so many, hold, broadcast, close; take over what is of interest."""
    part = Report("million", MillionSettings(connections=count))
    report.say(f"{count:,} connections")
    million.run(
        MillionSettings(
            connections=count, transport=settings.transport, hold=settings.hold, resume=0, redis=settings.redis,
            rate=settings.rate, tune=settings.tune,
        ),
        part,
    )  # fmt: skip
    workers = preflight.workers_needed(count)
    point: dict[str, float] = {"connections": count, "workers": workers}
    for name, short in COPIED.items():
        if figure := part.figures.get(name):
            report.add(f"{count:,} connections, {short}", figure.values[0], figure.unit)
            point[short] = figure.values[0]
    report.curve.append(point)
    report.count(f"{count:,} connections, missing", count - part.counts.get("opened", 0), 0)
    for text, times in part.faults.items():
        report.fault(f"{count:,} connections: {text}", times)


def _channels(settings: GrowthSettings, report: Report, count: int) -> None:
    """Spread so many channels over connections to one worker, and publish to some of them."""
    each = min(EACH, count)
    connections = -(-count // each)
    names = tuple(f"room:{number}" for number in range(connections * each))
    report.say(f"{count:,} channels")
    with (
        Target(1, settings.redis) as target,
        aside(target.cpus()) as spare,
        Crowd(processes_needed(connections, settings.client_processes), spare) as crowd,
        Publisher(target.listens("tcp")) as publisher,
    ):
        target.quiet()
        before = target.memory_bytes(target.processes.worker)
        plan = Plan("tcp", target.listens("tcp"), 0, connections, rooms=names, rooms_each=each)
        crowd.open(plan, WAIT_SECONDS_MAX)
        target.quiet()
        held = target.memory_bytes(target.processes.worker) - before
        # By turns over all connections, and not twice to a connection in a window: a message is a write.
        chosen = [names[(turn % connections) * each + turn // connections % each] for turn in range(settings.messages)]
        found = []
        for _ in range(settings.rounds):
            target.quiet()
            spent = target.cpu_ns()
            publisher.flood(chosen, 0)
            target.quiet()
            found.append((target.cpu_ns() - spent) / 1000 / settings.messages)
            report.add(f"{count:,} channels, a message", found[-1], "CPU us/message")
        report.add(f"{count:,} channels, with their connections", held / count, "bytes/channel")
        report.curve.append({"channels": count, "us a message": min(found), "bytes each": held / count})
        received = settings.messages * settings.rounds
        report.count(f"messages received, {count:,} channels", crowd.tally().received, received)


def _subscribers(settings: GrowthSettings, report: Report, count: int) -> None:
    """Let one channel of one worker have so many subscribers, and publish one message after another."""
    report.say(f"{count:,} subscribers")
    with (
        Target(1, settings.redis) as target,
        aside(target.cpus()) as spare,
        Crowd(processes_needed(count, settings.client_processes), spare) as crowd,
        Publisher(target.listens("tcp")) as publisher,
    ):
        plan = Plan(settings.transport, target.listens(settings.transport), 0, count, rooms=(ROOM,))
        crowd.open(plan, WAIT_SECONDS_MAX)
        messages = max(1, settings.messages // count)
        done, found = 0, []
        for _ in range(settings.rounds):
            target.quiet()
            spent = target.cpu_ns()
            for number in range(done, done + messages):
                crowd.expect(number + 1, WAIT_SECONDS_MAX)
                publisher.publish(ROOM, number)
                crowd.arrived()  # one at a time: none shares a write with the next
            done += messages
            target.quiet()
            found.append((target.cpu_ns() - spent) / 1000 / messages)
            report.add(f"{count:,} subscribers, a delivery", found[-1] / count, "CPU us/delivery")
        report.curve.append({"subscribers": count, "us a message": min(found), "us a delivery": min(found) / count})
        tally = crowd.check(done)
        report.count("deliveries", tally.received, done * count)
        report.blame(tally.faults)
