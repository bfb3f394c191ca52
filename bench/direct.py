"""1:1 messages between users on different workers: CPU of all workers each, and latency, at a fixed rate and pipelined.

A sender publishes to the receiver's personal channel and has an answer to every message. Which worker holds a
connection is asked of the kernel, and only pairs on different workers are used. The latency counts from the time a
message was meant to be sent, so that a stall of the server (or of the client) is seen by every message it delays.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from bench import latency, measure
from bench.clients import Plan
from bench.cpus import aside
from bench.floor import Floor
from bench.latency import Latencies
from bench.load import Crowd, processes_needed
from bench.pairs import Member, Outcome, Pair, Pairs, Work
from bench.publisher import Refused
from bench.report import Report
from bench.settings import Impossible, Settings, amount, at_least, option
from bench.target import Target, room_for

GOAL = 4.0
FLOOR_SOCKETS, FLOOR_PASSES = 10_000, 3  # the loop that fan-out is compared to
WARM_UP = 500
FIRST_RECEIVER = 1_000_000  # users below it send


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectSettings(Settings):
    """Settings of `bench direct`."""

    connections: int = option(400, "connections, one half of them senders (TCP), the other receivers", at_least(2))
    workers: int = option(2, "worker processes of the server", at_least(1))
    seconds: float = option(5.0, "time to send at the fixed rate, each round", amount)
    message_rate: int = option(2_000, "messages a second at the fixed rate", at_least(1))
    messages: int = option(40_000, "messages of the pipelined stream, each round", at_least(1))
    window: int = option(16, "unanswered messages of a pair in the pipelined stream", at_least(1))


def run(settings: DirectSettings, report: Report) -> None:
    """Measure. Raises: TargetError, Failed, Refused, Impossible, OSError."""
    latency.require()
    if settings.client_processes not in (None, 1):
        raise Impossible(f"--client-processes: found {settings.client_processes}, want 1: pairs talk in one process")
    processes_needed(settings.connections, 1)
    room_for(settings.connections, settings.workers)
    with Target(settings.workers, settings.redis) as target, aside(target.cpus()) as spare:
        first = {min(target.cpus())}
        with Floor(FLOOR_SOCKETS, first, spare - first or spare) as floor, Crowd(1, spare, Pairs) as crowd:
            _pair_up(settings, report, target, crowd)
            crowd.ask(Outcome, "talk", Work(WARM_UP, settings.message_rate, 0))
            frame = crowd.tally().sample
            if not frame:
                raise Refused(f"no message reached a receiver: {dict(crowd.tally().faults)}")
            floor.us_per_write(frame)
            report.notes.append(f"the bare loop writes the same {len(frame)} bytes to {FLOOR_SOCKETS:,} sockets")
            for place in range(settings.rounds):
                report.say(f"round {place + 1} of {settings.rounds}")
                steady = _talk(report, target, crowd, _steady(settings))
                before = floor.us_per_write(frame, FLOOR_PASSES)
                stream = _talk(report, target, crowd, Work(settings.messages, 0.0, settings.window))
                _record(report, steady, stream, (before + floor.us_per_write(frame, FLOOR_PASSES)) / 2)
            report.blame(crowd.tally().faults)


def _pair_up(settings: DirectSettings, report: Report, target: Target, crowd: Crowd) -> None:
    """Open both halves and make pairs of a sender and a receiver on different workers."""
    half = settings.connections // 2
    crowd.open(Plan("tcp", target.listens("tcp"), 0, half, rate=settings.rate))
    receivers = Plan(settings.transport, target.listens(settings.transport), FIRST_RECEIVER, half, rate=settings.rate)
    opened = crowd.open(receivers)
    report.count("connections open", opened.live, 2 * half)
    members = crowd.ask(list, "members")
    pairs = apart(members, measure.owners(target.processes.worker))
    if not pairs:
        report.notes.append("one worker holds them all: the pairs are within it")
        pairs = apart(members, {})
    report.count("pairs", len(pairs))
    crowd.ask(int, "pair_up", pairs)


def apart(members: Iterable[Member], owners: dict[measure.Peer, int]) -> list[Pair]:
    """Return pairs of a sender and a receiver whose owners differ; without owners, any pairs."""
    members = list(members)
    senders = [member for member in members if member.user < FIRST_RECEIVER]
    waiting: dict[int | None, list[Member]] = defaultdict(list)
    for member in members:
        if member.user >= FIRST_RECEIVER:
            waiting[owners.get(member.local)].append(member)
    pairs = []
    for sender in senders:
        home = owners.get(sender.local)
        choices = [those for owner, those in waiting.items() if those and (owner != home or not owners)]
        if choices:
            receiver = max(choices, key=len).pop()
            pairs.append(Pair(sender.fd, receiver.fd, f"@u{receiver.user}"))
    return pairs


def _record(report: Report, steady: Talk, stream: Talk, bare: float) -> None:
    """Add a round: the stream at the fixed rate, the pipelined one, and the bare loop's CPU microseconds a write."""
    report.add("pipelined, ratio to a bare write", stream.us / bare, "x", GOAL)
    report.add("fixed rate, ratio to a bare write", steady.us / bare, "x")
    report.add("pipelined", stream.us, "CPU us/message")
    report.add("fixed rate", steady.us, "CPU us/message")
    report.add("bare loop", bare, "CPU us/write")
    if stream.redis_us:  # its process is not ours to measure when --redis is given
        report.add("pipelined, Redis", stream.redis_us, "CPU us/message")
        report.add("fixed rate, Redis", steady.redis_us, "CPU us/message")
    report.add("pipelined, throughput", stream.outcome.received / stream.outcome.seconds, "messages/s")
    times = Latencies()
    times.extend(steady.outcome.latencies_ns)
    for name, us in times.quantiles() if len(times) else ():
        report.add(f"fixed rate, latency {name}", us, "us")


def quantile(ordered: list[int], share: float) -> int:
    """Return the value that `share` of the ordered values do not exceed."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _steady(settings: DirectSettings) -> Work:
    return Work(max(1, int(settings.seconds * settings.message_rate)), settings.message_rate, 0)


@dataclass(slots=True)
class Talk:
    """A stream's outcome, and the CPU microseconds of a message."""

    outcome: Outcome
    us: float
    redis_us: float


def _talk(report: Report, target: Target, crowd: Crowd, work: Work) -> Talk:
    target.quiet()
    workers, redis = target.cpu_ns(), target.cpu_ns("redis")
    outcome = crowd.ask(Outcome, "talk", work)
    target.quiet()
    workers, redis = target.cpu_ns() - workers, target.cpu_ns("redis") - redis
    report.count("messages answered", outcome.answered, work.messages)
    report.count("messages received", outcome.received, work.messages)
    return Talk(outcome, workers / 1000 / work.messages, redis / 1000 / work.messages)
