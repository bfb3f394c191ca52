"""Twice the allowed rate of newcomers: who is served, who is refused, what that costs, and what others feel of it.

The CPU of an accepted and of a refused connection is measured at two servers of the same kind, one without a limit and one
that lets nearly nobody in, at the same rate of newcomers. A refused one is measured to its end, until both sides have
closed; an accepted one only until it is greeted. A third server has the limit.

Sessions that were there before ping at a fixed rate: while nobody comes, while the allowed rate comes, while twice as many
come to the server without a limit, and while twice as many come to the one with it. The last two differ in nothing but
the refusals: what newcomers cost the machine, and their own clients, is the same in both. A latency counts from the time
a ping was meant to be sent. How long worker and pingers waited for a processor is given for each ping: where that is more
than a fifth of the latency, the machine was busy with something else.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from bench.clients import Plan
from bench.cpus import aside
from bench.knocks import Knockers, Pingers, Pings, Refusals
from bench.load import Crowd, processes_needed, shares
from bench.measure import waited_ns
from bench.report import Report
from bench.settings import Impossible, Settings, amount, at_least, option
from bench.target import Target, room_for

GOAL = 1.0  # CPU of a refused connection, in accepted ones
PING_GOAL = 1.1  # latency of others while half are refused, in that while all are let in: as good, within the spread
ROOM = "room:bench"
FIRST_SESSION = 10_000_000  # users below it are newcomers
QUANTILES = (("p50", 0.50), ("p90", 0.90), ("p99", 0.99))


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionSettings(Settings):
    """Settings of `bench admission`."""

    connections: int = option(4_000, "newcomers of each kind, each round", at_least(2))
    rounds: int = option(5, "times to measure", at_least(1))
    rate: float = option(1_000.0, "newcomers a second that are allowed", amount)
    sessions: int = option(200, "sessions that were there before", at_least(1))
    ping_rate: int = option(500, "pings a second of them all", at_least(1))


class Arm:
    """A server that lets `limit` newcomers in a second (0: all), its newcomers, and the sessions that were there before."""

    def __init__(self, limit: float, settings: AdmissionSettings, stack: ExitStack) -> None:
        environ = {"MOORAGE_ACCEPTS_PER_SECOND": str(limit)} if limit else {}
        self.target = stack.enter_context(Target(settings.workers, settings.redis, environ))
        # No longer than this: a server that is started under it is pinned to the CPUs of all clients.
        with aside(self.target.cpus()) as spare:
            self.crowd = stack.enter_context(Crowd(1, spare, Knockers))
            self.pingers = stack.enter_context(Crowd(1, spare, Pingers))
        self._transport = settings.transport
        self._done = 0

    def settle(self, settings: AdmissionSettings, report: Report) -> None:
        """Let in the sessions that are there before."""
        where = self.target.listens("tcp")
        opened = self.pingers.open(Plan("tcp", where, FIRST_SESSION, settings.sessions, rate=settings.rate / 2))
        report.count("sessions", opened.live, settings.sessions)

    def plan(self, count: int, rate: float) -> Plan:
        """Return a plan for `count` newcomers whose names are new."""
        self._done += count
        where = self.target.listens(self._transport)
        return next(shares(Plan(self._transport, where, self._done - count, count, rooms=(ROOM,), rate=rate), 1))

    def knock(self, count: int, rate: float) -> tuple[Refusals, float]:
        """Let newcomers come; return who was refused, and the CPU microseconds of the workers for each that came."""
        self.target.quiet()
        before = self.target.cpu_ns()
        found = self.crowd.ask(Refusals, "knock", self.plan(count, rate))
        self.target.quiet()
        return found, (self.target.cpu_ns() - before) / 1000 / count

    def waited_ns(self) -> int:
        """Return how long workers and pingers have waited for a processor, which no server can help."""
        return sum(map(waited_ns, (*self.target.processes.worker, *self.pingers.pids)))

    def empty_bucket(self, rate: float) -> None:
        """Take what has been saved up of the limit: it may come at once, and would hide the rate."""
        self.crowd.ask(Refusals, "knock", self.plan(2 * int(rate), 0.0))


def run(settings: AdmissionSettings, report: Report) -> None:
    """Measure. Raises: TargetError, Failed, Refused, Impossible, OSError."""
    if settings.rate < 1:
        raise Impossible(f"--rate: found {settings.rate:g}, want the newcomers a second that are allowed, at least 1")
    if settings.client_processes not in (None, 1):
        raise Impossible(f"--client-processes: found {settings.client_processes}, want 1")
    wanted = settings.connections + 2 * int(settings.rate) + settings.sessions
    processes_needed(wanted, 1)
    room_for(wanted, settings.workers)
    with ExitStack() as stack:
        free, closed, limited = (Arm(limit, settings, stack) for limit in (0.0, 0.001, settings.rate))
        free.settle(settings, report)
        limited.settle(settings, report)
        for place in range(settings.rounds):
            report.say(f"round {place + 1} of {settings.rounds}")
            _costs(settings, report, free, closed)
            _overload(settings, report, free, limited)
        for arm in (free, closed, limited):
            report.blame(arm.crowd.tally().faults)
            report.blame(arm.pingers.tally().faults)
    report.notes.append("a refused connection is measured until it is closed, an accepted one until it is greeted")


def _costs(settings: AdmissionSettings, report: Report, free: Arm, closed: Arm) -> None:
    """Measure one that is let in and one that is not, at the same rate."""
    count, rate = settings.connections, settings.rate
    served, accepted_us = free.knock(count, rate)
    turned_away, refused_us = closed.knock(count, rate)
    report.count("accepted where there is no limit", count - served.refused, count)
    report.count("refused where nobody is let in", turned_away.refused)
    free.crowd.close()
    closed.crowd.close()
    report.add("refused, ratio to accepted", refused_us / accepted_us, "x", GOAL)
    report.add("accepted", accepted_us, "CPU us/connection")
    report.add("refused", refused_us, "CPU us/connection")


def _overload(settings: AdmissionSettings, report: Report, free: Arm, limited: Arm) -> None:
    """Ping while nobody comes, while as many come as may, and while twice as many do: all let in, then half refused.

    Nobody leaves before the end: a server is busy with those who do for some seconds.
    """
    once, twice = settings.rate, 2 * settings.rate
    quiet = _pinged(settings, report, "quiet", limited, 0.0)
    allowed = _pinged(settings, report, "allowed rate", limited, once)
    all_in = _pinged(settings, report, "twice the rate, all let in", free, twice)
    limited.empty_bucket(settings.rate)
    refusing = _pinged(settings, report, "twice the rate", limited, twice)
    free.crowd.close()
    limited.crowd.close()
    for label, share in QUANTILES:
        found = refusing.quantile(share)
        for name, other, goal in (
            ("as many let in", all_in, PING_GOAL if share == 0.5 else None),  # of the rest, the machine has a part
            ("the allowed rate", allowed, None),
            ("quiet", quiet, None),
        ):
            report.add(
                f"ping {label} at twice the rate, ratio to {name}", found / max(1, other.quantile(share)), "x", goal
            )


def _pinged(settings: AdmissionSettings, report: Report, name: str, arm: Arm, rate: float) -> Pings:
    """Ping while newcomers come at `rate`."""
    seconds = settings.connections / settings.rate / 2  # so that all of them come when twice as many do
    if rate <= settings.rate:
        arm.target.quiet()
    waited = arm.waited_ns()
    arm.pingers.begin("ping", seconds, settings.ping_rate)
    if count := int(rate * seconds):
        found = arm.crowd.ask(Refusals, "knock", arm.plan(count, rate))
        report.count(f"{name}: offered", count)
        report.count(f"{name}: served", count - found.refused)
        report.count(f"{name}: refused", found.refused)
        report.add(f"{name}: offered", count / found.seconds, "connections/s")
        report.add(f"{name}: served", (count - found.refused) / found.seconds, "connections/s")
    pings = arm.pingers.ended(Pings)
    report.add(f"{name}: waited for a processor", (arm.waited_ns() - waited) / pings.sent / 1000, "us/ping")
    report.count("pings answered", pings.answered, pings.sent)
    for label, share in QUANTILES:
        report.add(f"{name}: ping {label}", pings.quantile(share) / 1000, "us")
    return pings
