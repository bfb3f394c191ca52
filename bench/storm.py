"""All connections come back at once, each with the position it had, and each having missed messages in its room.

The clients open, note the position of now, and leave; messages are published to every room; then all connect at the same
moment. What counts is when the last of them has everything it missed, in order and once, and what that took: time until
connected (from the moment of the storm, so that waiting for a turn counts), CPU, commands at Redis, memory at its peak.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, replace

import jwt

from bench import latency, redis
from bench.clients import Plan
from bench.cpus import aside
from bench.load import Crowd, processes_needed
from bench.publisher import Publisher
from bench.report import Report
from bench.settings import Settings, at_least, flag, option
from bench.target import Target, room_for
from bench.visitors import Visitors

WAIT_SECONDS_MAX = 120.0
LOOK_SECONDS = 0.05
COMMANDS_SHOWN = 6
TOKEN_SECONDS = 24 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class StormSettings(Settings):
    """Settings of `bench storm`."""

    connections: int = option(20_000, "client connections", at_least(1))
    workers: int = option(2, "worker processes of the server", at_least(1))
    rounds: int = option(3, "storms, one after the other", at_least(1))
    missed: int = option(100, "messages that every connection has missed", at_least(0))
    room_size: int = option(10, "connections in a room, who miss the same messages", at_least(1))
    flight: int = option(2_000, "connections under way at a time, per client process", at_least(1))
    tokens: bool = flag("sign in with tokens, which every worker verifies")


@dataclass(slots=True)
class Storm:
    """The server, those who come back to it, and who speaks meanwhile."""

    settings: StormSettings
    report: Report
    target: Target
    crowd: Crowd
    publisher: Publisher
    plan: Plan
    done: int = 0

    def leave(self) -> str:
        """Have all leave; return the position at which they did."""
        position = self.publisher.position()
        self.crowd.begin("leave", self.settings.connections)
        self.crowd.arrived()
        self.target.quiet()
        return position

    def strike(self, position: str) -> None:
        """Publish what they miss, then let all come back, and measure that."""
        settings, target, crowd, report = self.settings, self.target, self.crowd, self.report
        first, self.done = self.done, self.done + settings.missed
        for number in range(first, self.done):
            self.publisher.flood(self.plan.rooms, number)
        target.quiet()
        plan = replace(self.plan, position=position, number=first, timed=True)
        commands = self._commands()
        workers, redis_ns, began = target.cpu_ns(), target.cpu_ns("redis"), time.monotonic_ns()
        before = peak = target.memory_bytes(target.processes.worker)
        crowd.begin_shares("come_back", plan, WAIT_SECONDS_MAX)
        peak = max(peak, self._peak())
        connected = crowd.arrived()
        crowd.expect(self.done, WAIT_SECONDS_MAX)
        peak = max(peak, self._peak())
        tally = crowd.arrived()
        workers, redis_ns = target.cpu_ns() - workers, target.cpu_ns("redis") - redis_ns
        count = settings.connections
        report.count("back", tally.live, count)
        report.add("all connected", (connected.finished_ns - began) / 1e9, "s")
        report.add("all have everything", (tally.finished_ns - began) / 1e9, "s")
        report.latencies("until connected", crowd.latencies())
        report.add("workers", workers / 1000 / count, "CPU us/connection")
        if settings.missed:
            report.add("workers, a message missed", workers / 1000 / (count * settings.missed), "CPU us/message")
        report.add("Redis", redis_ns / 1000 / count, "CPU us/connection")
        report.add("workers' memory before", before / 1e6, "MB")
        report.add("workers' memory at the peak", peak / 1e6, "MB")
        used = redis.since(self._commands(), commands)
        for name in sorted(used, key=lambda each: -used[each].us)[:COMMANDS_SHOWN]:
            report.add(f"Redis, {name}", used[name].calls / count, "calls/connection")
            report.add(f"Redis, {name}, of its time", used[name].us / count, "us/connection")

    def _peak(self) -> int:
        most = 0
        while not self.crowd.is_done(LOOK_SECONDS):
            most = max(most, self.target.memory_bytes(self.target.processes.worker))
        return most

    def _commands(self) -> dict[str, redis.Calls]:
        url = self.settings.redis or self.target.embedded_url()
        return redis.command_stats(url) if url else {}


def run(settings: StormSettings, report: Report) -> None:
    """Measure. Raises: TargetError, Failed, Refused, Impossible, OSError."""
    latency.require()
    room_for(settings.connections, settings.workers)
    processes = processes_needed(settings.connections, settings.client_processes)
    secret = secrets.token_hex(32) if settings.tokens else ""
    environ = {"MOORAGE_AUTH_SECRET": secret} if secret else {}
    with (
        Target(settings.workers, settings.redis, environ) as target,
        aside(target.cpus()) as spare,
        Crowd(processes, spare, Visitors) as crowd,
        Publisher(target.listens("tcp"), token=_token("publisher", secret) if secret else None) as publisher,
    ):
        rooms = tuple(f"room:{number}" for number in range(-(-settings.connections // settings.room_size)))
        tokens = tuple(_token(f"u{number}", secret) for number in range(settings.connections)) if secret else ()
        plan = Plan(
            settings.transport, target.listens(settings.transport), 0, settings.connections, rooms=rooms,
            tokens=tokens, rate=settings.rate, flight=settings.flight,
        )  # fmt: skip
        report.count("connections open", crowd.open(plan, WAIT_SECONDS_MAX).live, settings.connections)
        storm = Storm(settings, report, target, crowd, publisher, plan)
        for place in range(settings.rounds):
            report.say(f"round {place + 1} of {settings.rounds}")
            storm.strike(storm.leave())
            report.blame(crowd.tally().faults)
        tally = crowd.check(storm.done)
        report.count("messages received", tally.received, settings.connections * settings.missed * settings.rounds)
        report.blame(tally.faults)


def _token(user: str, secret: str) -> str:
    return jwt.encode({"sub": user, "exp": int(time.time()) + TOKEN_SECONDS}, secret, "HS256")
