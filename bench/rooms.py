"""Many rooms of ten at once, a few of them busy: deliveries a second, and latency at a fixed rate.

One of each room speaks, and all ten of it hear. Half of the messages go to a tenth of the rooms. At the fixed rate a
latency counts from the time the message was meant to be sent until each of the ten has read it; the pipelined stream
shows what the server delivers when it is asked for as much as it can.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench import latency
from bench.clients import Plan
from bench.cpus import aside
from bench.latency import Latencies
from bench.load import Crowd, processes_needed
from bench.pairs import Member, Outcome, Pair, Pairs, Work
from bench.report import Report
from bench.settings import Impossible, Settings, amount, at_least, option
from bench.target import Target, room_for
from bench.wire import PUBLISHED

BUSY_ROOMS, BUSY_SHARE = 0.1, 0.5
OPEN_SECONDS_MAX = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomsSettings(Settings):
    """Settings of `bench rooms`."""

    connections: int = option(10_000, "client connections", at_least(2))
    workers: int = option(2, "worker processes of the server", at_least(1))
    rounds: int = option(3, "times to measure", at_least(1))
    room_size: int = option(10, "connections of a room", at_least(1))
    seconds: float = option(5.0, "time to send at the fixed rate, each round", amount)
    message_rate: int = option(1_000, "messages a second at the fixed rate, in all rooms together", at_least(1))
    messages: int = option(20_000, "messages of the pipelined stream, each round", at_least(1))
    window: int = option(4, "unanswered messages of a speaker in the pipelined stream", at_least(1))


class Members(Pairs):
    """Connections of which one in each room speaks, and hears itself."""

    def deliver(self, fd: int, lines: bytes) -> None:
        """Check and time the messages; a speaker's answers may come among them."""
        pair = self._by_sender.get(fd)
        if pair is not None and (answers := lines.count(PUBLISHED)):
            pair.answered += answers
            pair.waiting -= answers
            self._outcome.answered += answers
        super().deliver(fd, lines)


def run(settings: RoomsSettings, report: Report) -> None:
    """Measure. Raises: TargetError, Failed, Refused, Impossible, OSError."""
    latency.require()
    if settings.client_processes not in (None, 1):
        raise Impossible(f"--client-processes: found {settings.client_processes}, want 1: it takes the times of all")
    if settings.transport != "tcp":
        raise Impossible(f"--transport: found {settings.transport}, want tcp: one of every room speaks")
    processes_needed(settings.connections, 1)
    room_for(settings.connections, settings.workers)
    count = max(1, settings.connections // settings.room_size)
    size = count * settings.room_size
    with (
        Target(settings.workers, settings.redis) as target,
        aside(target.cpus()) as spare,
        Crowd(1, spare, Members) as crowd,
    ):
        rooms = tuple(f"room:{number}" for number in range(count))
        plan = Plan("tcp", target.listens("tcp"), 0, size, rooms=rooms, rate=settings.rate)
        report.count("connections open", crowd.open(plan, OPEN_SECONDS_MAX).live, size)
        speakers = [member for member in crowd.ask(list, "members") if member.user < count]
        crowd.ask(int, "pair_up", by_turns(speakers))
        for place in range(settings.rounds):
            report.say(f"round {place + 1} of {settings.rounds}")
            steady = Work(max(1, int(settings.seconds * settings.message_rate)), settings.message_rate, 0)
            _measure(settings, report, target, crowd, "fixed rate", steady)
            _measure(settings, report, target, crowd, "pipelined", Work(settings.messages, 0.0, settings.window))
        report.blame(crowd.tally().faults)


def by_turns(speakers: list[Member]) -> list[Pair]:
    """Return whose turn it is to speak, again and again: half of the turns are for a tenth of the rooms."""
    pairs = [Pair(member.fd, member.fd, f"room:{member.user}") for member in speakers]
    busy = max(1, int(len(pairs) * BUSY_ROOMS))
    quiet = pairs[busy:]
    extra = round(len(quiet) * BUSY_SHARE / (1 - BUSY_SHARE))
    turns: list[Pair] = []
    for index in range(max(len(quiet), extra)):
        turns += [*quiet[index : index + 1], pairs[index % busy]]
    return turns or pairs


def _measure(settings: RoomsSettings, report: Report, target: Target, crowd: Crowd, name: str, work: Work) -> None:
    work = work._replace(copies=settings.room_size)
    target.quiet()
    workers, redis = target.cpu_ns(), target.cpu_ns("redis")
    outcome = crowd.ask(Outcome, "talk", work)
    target.quiet()
    workers, redis = target.cpu_ns() - workers, target.cpu_ns("redis") - redis
    deliveries = work.messages * settings.room_size
    report.count("messages answered", outcome.answered, work.messages)
    report.count("deliveries", outcome.received, deliveries)
    report.add(f"{name}, deliveries", outcome.received / outcome.seconds, "1/s")
    report.add(f"{name}, workers", workers / 1000 / work.messages, "CPU us/message")
    report.add(f"{name}, workers, a delivery", workers / 1000 / deliveries, "CPU us/delivery")
    report.add(f"{name}, Redis", redis / 1000 / work.messages, "CPU us/message")
    if work.rate:
        times = Latencies()
        times.extend(outcome.latencies_ns)
        report.latencies(f"{name}, latency", times)
