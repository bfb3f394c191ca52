"""Presence: what it costs to ask who is in a channel with many users, and who of very many is online.

Opens connections that have only their personal channel, takes the slope of memory, then opens those of the room. Then it
asks, one question after the other: who is in the room, and whether a user drawn at random is there. While
some of the questions about the room are answered, a connection to every worker pings: the longest round trip is how
long a worker's loop was held up, beside the longest when nobody asks anything. Nobody is sent a heartbeat meanwhile: those
of very many connections would be the most of what is measured, and the server never quiet.
"""

from __future__ import annotations

import json
import random
import selectors
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import NamedTuple

from bench import measure
from bench.clients import Plan
from bench.cpus import aside
from bench.direct import quantile
from bench.load import Crowd, processes_needed
from bench.publisher import ANSWER_SECONDS_MAX, Refused
from bench.report import Report
from bench.scrape import Address
from bench.settings import Settings, at_least, option
from bench.target import Target, room_for
from bench.wire import CONNECTED, connect_line

ROOM = "room:bench"
ROOM_USERS = "v"  # their names begin with it
STALL_QUESTIONS = 5  # in a round, while others ping
ONLINE_QUESTIONS = 20  # about one user for each about the room: they are cheap
PING_SECONDS = 0.001  # between two pings of a connection
IDLE_SECONDS = 0.5  # without a question
PINGERS_PER_WORKER = 8  # opened, so that one of them is on every worker
HEARTBEAT_SECONDS = 3600.0
FLIGHT = 4_096  # connections under way at a time, of all client processes
OPEN_SECONDS, OPENED_PER_SECOND_MIN = 60.0, 1_000  # given to the clients


@dataclass(frozen=True, slots=True, kw_only=True)
class PresenceSettings(Settings):
    """Settings of `bench presence`."""

    connections: int = option(10_000, "users who have only their personal channel", at_least(2))
    users: int = option(10_000, "users in one channel", at_least(1))
    names: int = option(1_000_000, "connections that an answer names (presence_connections_max)", at_least(1))
    questions: int = option(50, "questions about the room in a round", at_least(1))
    workers: int = option(2, "worker processes of the server", at_least(1))


def run(settings: PresenceSettings, report: Report) -> None:
    """Measure. Raises: TargetError, Failed, Refused, Impossible, OSError."""
    total = settings.connections + settings.users
    room_for(total + PINGERS_PER_WORKER * settings.workers, settings.workers)
    processes = processes_needed(total, settings.client_processes)
    environ = {
        "MOORAGE_PRESENCE_CONNECTIONS_MAX": str(settings.names),
        "MOORAGE_HEARTBEAT_SECONDS": f"{HEARTBEAT_SECONDS:g}",
    }
    with (
        Target(settings.workers, settings.redis, environ) as target,
        aside(target.cpus()) as spare,
        Crowd(processes, spare) as crowd,
        ExitStack() as stack,
    ):
        _open(settings, report, target, crowd)
        asker = stack.enter_context(Line(target.listens("tcp"), "asker"))
        pingers = _one_a_worker(target, stack)
        report.count("workers that are pinged", len(pingers), settings.workers)
        for place in range(settings.rounds):
            report.say(f"round {place + 1} of {settings.rounds}")
            _ask_room(settings, report, target, asker)
            _ask_online(settings, report, target, asker)
            idle = _longest_ping(pingers)
            busy = max(_longest_ping(pingers, asker, _question(ROOM)) for _ in range(STALL_QUESTIONS))
            report.add("longest ping while the room is asked about", busy * 1e3, "ms")
            report.add("longest ping while nothing is asked", idle * 1e3, "ms")
        report.blame(crowd.tally().faults)


def _open(settings: PresenceSettings, report: Report, target: Target, crowd: Crowd) -> None:
    """Open all connections, and take what memory a personal channel costs."""
    plan = Plan(
        settings.transport, target.listens(settings.transport), 0, 0, rate=settings.rate,
        flight=max(8, FLIGHT // len(crowd.pids)),
    )  # fmt: skip
    base = max(1, settings.connections // 10)  # what the first ones wake up is not theirs alone
    _open_all(crowd, replace(plan, count=base))
    before = _memory(target)
    rest = settings.connections - base
    live = _open_all(crowd, replace(plan, first=base, count=rest))
    report.count("personal channels", live, settings.connections)
    workers, redis = (now - then for now, then in zip(_memory(target), before, strict=True))
    report.add("memory of a connection with its personal channel, workers", workers / rest, "bytes/connection")
    if target.processes.redis:
        report.add("memory of its personal channel, Redis", redis / rest, "bytes/connection")
    report.say(f"{live:,} connections with a personal channel")
    room = replace(plan, count=settings.users, users=ROOM_USERS, rooms=(ROOM,))
    report.count("users in the room", _open_all(crowd, room) - live, settings.users)


def _open_all(crowd: Crowd, plan: Plan) -> int:
    """Open the connections of `plan`, and return how many there are now."""
    return crowd.open(plan, OPEN_SECONDS + plan.count / OPENED_PER_SECOND_MIN).live


def _memory(target: Target) -> tuple[int, int]:
    target.quiet()
    return target.memory_bytes(target.processes.worker), target.memory_bytes(target.processes.redis)


class Asked(NamedTuple):
    """What came of several questions, one after the other."""

    times: list[int]  # nanoseconds of each
    workers_ms: float  # CPU of a question
    redis_ms: float
    answer: bytes  # the last


def _ask_room(settings: PresenceSettings, report: Report, target: Target, asker: Line) -> None:
    """Ask who is in the room."""
    asked = _ask(target, asker, [ROOM] * settings.questions)
    found = json.loads(asked.answer)
    report.count("users found in the room", found.get("connections", len(found.get("users", ()))), settings.users)
    _add(report, "the room", asked)
    report.add("the room, answer", len(asked.answer), "bytes")


def _ask_online(settings: PresenceSettings, report: Report, target: Target, asker: Line) -> None:
    """Ask for users drawn at random."""
    names = [f"@u{random.randrange(settings.connections)}" for _ in range(ONLINE_QUESTIONS * settings.questions)]
    asked = _ask(target, asker, names)
    report.count("users found online", sum(json.loads(asked.answer)["users"].values()), 1)
    _add(report, "one user", asked)


def _ask(target: Target, asker: Line, channels: list[str]) -> Asked:
    """Ask one question after the other; what so many workers use without a question is taken off."""
    idle, seconds = _cpu_while(target, lambda: time.sleep(IDLE_SECONDS))
    times, answer = list[int](), b""

    def ask() -> None:
        nonlocal answer
        for channel in channels:
            began = time.monotonic_ns()
            answer = asker.ask(_question(channel))
            times.append(time.monotonic_ns() - began)

    used, lasted = _cpu_while(target, ask)
    workers, redis = (
        max(0.0, busy - rest * lasted / seconds) / 1e6 / len(channels) for busy, rest in zip(used, idle, strict=True)
    )
    return Asked(times, workers, redis, answer)


def _cpu_while(target: Target, work: Callable[[], None]) -> tuple[tuple[int, int], float]:
    """Do `work` in quiet; return the CPU nanoseconds of workers and Redis, and the seconds from before to after it."""
    target.quiet()
    began, workers, redis = time.monotonic(), target.cpu_ns("worker"), target.cpu_ns("redis")
    work()
    target.quiet()
    return (target.cpu_ns("worker") - workers, target.cpu_ns("redis") - redis), time.monotonic() - began


def _add(report: Report, name: str, asked: Asked) -> None:
    report.add(f"{name}, CPU of all workers", asked.workers_ms, "ms/question")
    report.add(f"{name}, CPU of Redis", asked.redis_ms, "ms/question")
    ordered = sorted(asked.times)
    for quantile_name, share in (("p50", 0.50), ("p99", 0.99)):
        report.add(f"{name}, time of an answer {quantile_name}", quantile(ordered, share) / 1e6, "ms")


def _question(channel: str) -> bytes:
    return b'{"op":"presence","id":1,"channel":"%b"}\n' % channel.encode()


class Line:
    """A TCP connection that asks one thing at a time. A context manager that closes it."""

    def __init__(self, server: Address, user: str) -> None:
        """Connect. Raises: Refused, OSError."""
        self.socket = socket.create_connection(server, timeout=ANSWER_SECONDS_MAX)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.asked_ns = 0
        self._pieces: list[bytes] = []
        answer = self.ask(connect_line(user, ()))
        if CONNECTED not in answer:
            raise Refused(f"wanted a connection, got {answer.decode(errors='replace') or 'the end'}")

    def __enter__(self) -> Line:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def ask(self, line: bytes) -> bytes:
        """Send a line, and wait for the one that answers it. Raises: Refused, OSError."""
        self.send(line)
        while not (answer := self.read()):
            pass
        return answer

    def send(self, line: bytes) -> None:
        """Send a line."""
        self.socket.sendall(line)
        self.asked_ns = time.monotonic_ns()

    def read(self) -> bytes:
        """Read what is there, or wait for it; return the answer when it is whole. Raises: Refused, OSError."""
        data = self.socket.recv(1 << 20)
        if not data:
            raise Refused("the connection was closed by the server")
        self._pieces.append(data)
        if not data.endswith(b"\n"):
            return b""
        answer = b"".join(self._pieces).lstrip(b"\n")  # heartbeats
        self._pieces.clear()
        if b'"op":"error"' in answer[:40]:
            raise Refused(f"an error instead of an answer: {answer.decode(errors='replace')}")
        return answer


def _one_a_worker(target: Target, stack: ExitStack) -> list[Line]:
    """Open connections, and return one to each worker; the kernel says which worker holds it."""
    workers = target.processes.worker
    numbers = range(PINGERS_PER_WORKER * len(workers))
    lines = [stack.enter_context(Line(target.listens("tcp"), f"pinger{number}")) for number in numbers]
    owners = measure.owners(workers)  # once: it looks at every descriptor of all of them
    found: dict[int, Line] = {}
    for line in lines:
        host, port = line.socket.getsockname()
        owner = owners.get((host, port))
        if owner is not None:
            found.setdefault(owner, line)
    return list(found.values())


def _longest_ping(pingers: Iterable[Line], asker: Line | None = None, question: bytes = b"") -> float:
    """Return the longest round trip of a ping, in seconds, while a question is answered or for IDLE_SECONDS."""
    resting: list[tuple[float, Line]] = []
    longest, until, is_over = 0, time.monotonic() + IDLE_SECONDS, False
    with selectors.DefaultSelector() as waiting:

        def ping(line: Line) -> None:
            line.send(_PING)
            waiting.register(line.socket, selectors.EVENT_READ, line)

        for line in pingers:
            ping(line)
        if asker is not None:
            waiting.register(asker.socket, selectors.EVENT_READ, asker)
            asker.send(question)
        while waiting.get_map() or resting:
            for key, _ in waiting.select(PING_SECONDS):
                line = key.data
                if not line.read():
                    continue
                waiting.unregister(line.socket)
                if line is asker:
                    is_over = True
                else:
                    longest = max(longest, time.monotonic_ns() - line.asked_ns)
                    resting.append((time.monotonic() + PING_SECONDS, line))
            is_over = is_over or (asker is None and time.monotonic() > until)
            if is_over:
                resting.clear()
            while resting and resting[0][0] <= time.monotonic():
                ping(resting.pop(0)[1])
    return longest / 1e9


_PING = b'{"op":"ping","id":1}\n'
