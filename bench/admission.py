"""Twice the allowed rate of newcomers: who is served, who is refused, what that costs, and what others feel of it.

The CPU of an accepted and of a refused connection is measured at two servers of the same kind, one without a limit and one
that lets nearly nobody in, at the same rate of newcomers. A refused one is measured to its end, until both sides have
closed; an accepted one only until it is greeted. A third server has the limit. Sessions that were there before send
it pings at a fixed rate, while nobody comes, while the allowed rate comes and while twice as many come. Their latency
counts from the time a ping was meant to be sent.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from bench.clients import Plan
from bench.cpus import aside
from bench.knocks import Knockers, Pingers, Pings, Refusals
from bench.load import Crowd, processes_needed, shares
from bench.report import Report
from bench.settings import Impossible, Settings, amount, at_least, option
from bench.target import Target, room_for

GOAL = 1.0
ROOM = "room:bench"
FIRST_SESSION = 10_000_000  # users below it are newcomers


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionSettings(Settings):
    """Settings of `bench admission`."""

    connections: int = option(4_000, "newcomers of each kind, each round", at_least(2))
    rounds: int = option(3, "times to measure", at_least(1))
    rate: float = option(1_000.0, "newcomers a second that are allowed", amount)
    sessions: int = option(200, "sessions that were there before", at_least(1))
    ping_rate: int = option(500, "pings a second of them all", at_least(1))


class Arm:
    """A server, its newcomers, and where they are counted."""

    def __init__(self, limit: float, settings: AdmissionSettings, stack: ExitStack) -> None:
        environ = {"MOORAGE_ACCEPTS_PER_SECOND": str(limit)} if limit else {}
        self.target = stack.enter_context(Target(settings.workers, settings.redis, environ))
        self._spare = stack.enter_context(aside(self.target.cpus()))
        self.crowd = stack.enter_context(Crowd(1, self._spare, Knockers))
        self._transport = settings.transport
        self._done = 0

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


def run(settings: AdmissionSettings, report: Report) -> None:
    """Measure. Raises: TargetError, Failed, Refused, Impossible, OSError."""
    if settings.rate < 1:
        raise Impossible(f"--rate: found {settings.rate:g}, want the newcomers a second that are allowed, at least 1")
    if settings.client_processes not in (None, 1):
        raise Impossible(f"--client-processes: found {settings.client_processes}, want 1")
    wanted = settings.connections + int(settings.rate) + settings.sessions
    processes_needed(wanted, 1)
    room_for(wanted, settings.workers)
    with ExitStack() as stack:
        free, closed, limited = (Arm(limit, settings, stack) for limit in (0.0, 0.001, settings.rate))
        pingers = stack.enter_context(Crowd(1, (), Pingers))
        where = limited.target.listens("tcp")
        opened = pingers.open(Plan("tcp", where, FIRST_SESSION, settings.sessions, rate=settings.rate / 2))
        report.count("sessions", opened.live, settings.sessions)
        for place in range(settings.rounds):
            report.say(f"round {place + 1} of {settings.rounds}")
            _costs(settings, report, free, closed)
            _overload(settings, report, limited, pingers)
        for arm in (free, closed, limited):
            report.blame(arm.crowd.tally().faults)
        report.blame(pingers.tally().faults)
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


def _overload(settings: AdmissionSettings, report: Report, arm: Arm, pingers: Crowd) -> None:
    """Ping while nobody comes, while as many come as may, and while twice as many do."""
    seconds = settings.connections / settings.rate / 2  # so that all of them come in the last part
    for name, factor in (("quiet", 0), ("allowed rate", 1), ("twice the rate", 2)):
        if factor > 1:  # what may come at once is saved up, and would hide the rate
            arm.crowd.ask(Refusals, "knock", arm.plan(int(settings.rate) + 1, 0.0))
        else:
            arm.target.quiet()
        pingers.begin("ping", seconds, settings.ping_rate)
        count = int(settings.rate * seconds * factor)
        if count:
            found = arm.crowd.ask(Refusals, "knock", arm.plan(count, settings.rate * factor))
            report.count(f"{name}: offered", count)
            report.count(f"{name}: served", count - found.refused)
            report.count(f"{name}: refused", found.refused)
            report.add(f"{name}: offered", count / found.seconds, "connections/s")
            report.add(f"{name}: served", (count - found.refused) / found.seconds, "connections/s")
        pings = pingers.ended(Pings)
        report.count("pings answered", pings.answered, pings.sent)
        for label, share in (("p50", 0.50), ("p99", 0.99)):
            report.add(f"{name}: ping {label}", pings.quantile(share) / 1000, "us")
        arm.crowd.close()
