"""CPU of a connection set up: in open mode, with a token the server has seen, and with one it has not.

Three servers run side by side and take turns, a share of the connections each round. None is ever closed, so that no
round pays for an earlier one's leaving. The tokens of the cached kind are shown to the server over HTTP beforehand, so
that their users are as new to it as all others. What a signature check costs by itself is measured in the same round.
"""

from __future__ import annotations

import http.client
import json
import secrets
import time
from contextlib import ExitStack
from dataclasses import dataclass

import jwt

from bench.clients import Plan
from bench.cpus import aside
from bench.load import Crowd, processes_needed
from bench.publisher import Refused
from bench.report import Report
from bench.settings import Settings, at_least, option
from bench.target import Target, room_for

ROOM = "room:bench"
OPEN_GOAL = CACHED_GOAL = 45
DISTINCT_GOAL = 60  # beyond the signature check
KINDS = ("open mode", "cached token", "distinct token")
WARM_UP = 200
CHECKS_MAX = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectSettings(Settings):
    """Settings of `bench connect`."""

    connections: int = option(15_000, "connections of each kind, in all rounds together", at_least(1))
    flight: int = option(128, "connections under way at a time, per client process", at_least(1))


class Arm:
    """A server of its own for one kind of connection, and its clients."""

    def __init__(self, kind: str, settings: ConnectSettings, stack: ExitStack) -> None:
        self.kind = kind
        self._settings = settings
        self._secret = "" if kind == "open mode" else secrets.token_hex(32)
        environ = {"MOORAGE_AUTH_SECRET": self._secret} if self._secret else {}
        self.target = stack.enter_context(Target(settings.workers, settings.redis, environ))
        self.crowd: Crowd
        self.done = 0

    @property
    def timed(self) -> bool:
        """True when connections arrive at a rate, so that the time of each means something."""
        return self._settings.rate > 0

    def prepare(self, count: int) -> tuple[str, ...]:
        """Return tokens for the next `count` users, shown to the server if they are to be cached; none in open mode."""
        if not self._secret:
            return ()
        expiry = int(time.time()) + 3600
        users = range(self.done, self.done + count)
        tokens = tuple(jwt.encode({"sub": f"u{user}", "exp": expiry}, self._secret, "HS256") for user in users)
        if self.kind == "cached token":
            show(self.target.addresses["http"], tokens)
        return tokens

    def connect(self, count: int) -> tuple[float, float, float]:
        """Open `count` connections; return CPU microseconds each of workers and of Redis, and the seconds it took."""
        settings, target = self._settings, self.target
        plan = Plan(
            wire=settings.transport,
            server=target.listens(settings.transport),
            first=self.done,
            count=count,
            rooms=(ROOM,),
            tokens=self.prepare(count),
            rate=settings.rate,
            flight=settings.flight,
            timed=self.timed,
        )
        target.quiet()
        workers, redis, began = target.cpu_ns(), target.cpu_ns("redis"), time.monotonic_ns()
        seconds = (self.crowd.open(plan).finished_ns - began) / 1e9
        target.quiet()
        self.done += count
        spent = (target.cpu_ns() - workers) / 1000 / count
        return spent, (target.cpu_ns("redis") - redis) / 1000 / count, seconds

    def check_us(self, count: int) -> float:
        """Return the CPU microseconds of one bare signature check by PyJWT."""
        expiry = int(time.time()) + 3600
        tokens = [jwt.encode({"sub": f"u{user}", "exp": expiry}, self._secret, "HS256") for user in range(count)]
        began = time.process_time_ns()
        for token in tokens:
            jwt.decode(token, self._secret, algorithms=["HS256"])
        return (time.process_time_ns() - began) / 1000 / count


def show(server: tuple[str, int], tokens: tuple[str, ...]) -> None:
    """Publish something with each token, over one HTTP connection, so that the server has verified it.

    Raises: Refused.
    """
    link = http.client.HTTPConnection(*server, timeout=30)
    body = json.dumps({"channel": "room:shown", "data": 0})
    for token in tokens:
        link.request("POST", "/publish", body, {"Authorization": f"Bearer {token}", "Content-Type": "application/json"})
        with link.getresponse() as answer:
            text = answer.read()
            if answer.status != 200:
                raise Refused(f"POST /publish: {answer.status} {text.decode(errors='replace')}")
    link.close()


def run(settings: ConnectSettings, report: Report) -> None:
    """Measure. Raises: TargetError, Failed, Refused, Impossible, OSError."""
    share = max(1, settings.connections // settings.rounds)
    wanted = share * settings.rounds
    warm = min(WARM_UP, share)
    room_for(wanted + warm, settings.workers)
    processes = processes_needed(wanted + warm, settings.client_processes)
    with ExitStack() as stack:
        arms = [Arm(kind, settings, stack) for kind in KINDS]
        spare = stack.enter_context(aside(arms[0].target.cpus()))
        for arm in arms:
            arm.crowd = stack.enter_context(Crowd(processes, spare))
            arm.connect(warm)
        for place in range(settings.rounds):
            report.say(f"round {place + 1} of {settings.rounds}")
            for arm in arms if place % 2 else reversed(arms):
                _measure(arm, share, report)
        for arm in arms:
            tally = arm.crowd.tally()
            report.count(f"connected, {arm.kind}", tally.live, wanted + warm)
            report.blame(tally.faults)
    if settings.workers > 1:
        report.notes.append("a token is cached by the worker that saw it: with several, some are verified again")


def _measure(arm: Arm, share: int, report: Report) -> None:
    spent, redis, seconds = arm.connect(share)
    goal = {"open mode": OPEN_GOAL, "cached token": CACHED_GOAL}.get(arm.kind)
    report.add(arm.kind, spent, "CPU us/connection", goal)
    if arm.kind == "distinct token":
        check = arm.check_us(min(share, CHECKS_MAX))
        report.add("signature check alone", check, "CPU us")
        report.add("distinct token, beyond the check", spent - check, "CPU us/connection", DISTINCT_GOAL)
    if arm.target.processes.redis:
        report.add(f"{arm.kind}, Redis", redis, "CPU us/connection")
    report.add(f"{arm.kind}, arrival", share / seconds, "connections/s")
    if arm.timed:  # as fast as they are answered, each would wait for those before it
        report.latencies(f"{arm.kind}, until connected", arm.crowd.latencies())
