"""Presence: what it costs to ask who is in a channel with many users, and who of very many is online.

Opens connections that have only their personal channel, takes the slope of memory, then opens those of the room. Then it
asks, one question after the other: who is in the room, and whether a user drawn at random is there. While
some of the questions about the room are answered, a connection to every worker pings: the longest round trip is how
long a worker's loop was held up, beside the longest when nobody asks anything.
"""

from __future__ import annotations

import json
import random
import select
import socket
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType

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
IDLE_SECONDS = 0.5  # of pinging without a question
PINGERS_PER_WORKER = 8  # opened, so that one of them is on every worker


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
    environ = {"MOORAGE_PRESENCE_CONNECTIONS_MAX": str(settings.names)}
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
    server, transport = target.listens(settings.transport), settings.transport
    base = max(1, settings.connections // 10)  # what the first ones wake up is not theirs alone
    crowd.open(Plan(transport, server, 0, base, rate=settings.rate))
    before = _memory(target)
    rest = settings.connections - base
    live = crowd.open(Plan(transport, server, base, rest, rate=settings.rate)).live
    report.count("personal channels", live, settings.connections)
    workers, redis = (now - then for now, then in zip(_memory(target), before, strict=True))
    report.add("memory of a connection with its personal channel, workers", workers / rest, "bytes/connection")
    if target.processes.redis:
        report.add("memory of its personal channel, Redis", redis / rest, "bytes/connection")
    report.say(f"{live:,} connections with a personal channel")
    plan = Plan(transport, server, 0, settings.users, users=ROOM_USERS, rooms=(ROOM,), rate=settings.rate)
    report.count("users in the room", crowd.open(plan).live - live, settings.users)
    target.quiet()


def _memory(target: Target) -> tuple[int, int]:
    target.quiet()
    return target.memory_bytes(target.processes.worker), target.memory_bytes(target.processes.redis)


def _ask_room(settings: PresenceSettings, report: Report, target: Target, asker: Line) -> None:
    """Ask who is in the room."""
    times, cpu_us, answer = _ask(target, asker, [ROOM] * settings.questions)
    found = json.loads(answer)
    report.count("users found in the room", found.get("connections", len(found.get("users", ()))), settings.users)
    report.add("the room, CPU of all workers", cpu_us / 1000, "ms/question")
    report.add("the room, answer", len(answer), "bytes")
    _add_times(report, "the room", times)


def _ask_online(settings: PresenceSettings, report: Report, target: Target, asker: Line) -> None:
    """Ask for users drawn at random."""
    names = [f"@u{random.randrange(settings.connections)}" for _ in range(ONLINE_QUESTIONS * settings.questions)]
    times, cpu_us, answer = _ask(target, asker, names)
    report.count("users found online", sum(json.loads(answer)["users"].values()), 1)
    report.add("one user, CPU of all workers", cpu_us / 1000, "ms/question")
    _add_times(report, "one user", times)


def _ask(target: Target, asker: Line, channels: list[str]) -> tuple[list[int], float, bytes]:
    """Ask one question after the other.

    Return the nanoseconds of each, the CPU microseconds of a question, and the last answer.
    """
    target.quiet()
    before, times, answer = target.cpu_ns(), list[int](), b""
    for channel in channels:
        began = time.monotonic_ns()
        answer = asker.ask(_question(channel))
        times.append(time.monotonic_ns() - began)
    target.quiet()
    return times, (target.cpu_ns() - before) / 1000 / len(channels), answer


def _add_times(report: Report, name: str, times: list[int]) -> None:
    ordered = sorted(times)
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
    found: dict[int, Line] = {}
    workers = target.processes.worker
    for number in range(PINGERS_PER_WORKER * len(workers)):
        line = stack.enter_context(Line(target.listens("tcp"), f"pinger{number}"))
        host, port = line.socket.getsockname()
        owner = measure.owners(workers).get((host, port))
        if owner is not None:
            found.setdefault(owner, line)
        if len(found) == len(workers):
            break
    return list(found.values())


def _longest_ping(pingers: Iterable[Line], asker: Line | None = None, question: bytes = b"") -> float:
    """Return the longest round trip of a ping, in seconds, while a question is answered or for IDLE_SECONDS."""
    waiting = {line.socket: line for line in pingers}
    resting: list[tuple[float, Line]] = []
    longest, until = 0, time.monotonic() + IDLE_SECONDS
    for line in waiting.values():
        line.send(_PING)
    if asker is not None:
        asker.send(question)
    is_over = False
    while waiting or resting:
        sockets = [*waiting, *([asker.socket] if asker is not None and not is_over else [])]
        for sock in select.select(sockets, [], [], PING_SECONDS)[0]:
            if asker is not None and sock is asker.socket:
                is_over = bool(asker.read())
            elif waiting[sock].read():
                line = waiting.pop(sock)
                longest = max(longest, time.monotonic_ns() - line.asked_ns)
                resting.append((time.monotonic() + PING_SECONDS, line))
        is_over = is_over or (asker is None and time.monotonic() > until)
        if is_over:
            resting.clear()
        while resting and resting[0][0] <= time.monotonic():
            line = resting.pop(0)[1]
            line.send(_PING)
            waiting[line.socket] = line
    return longest / 1e9


_PING = b'{"op":"ping","id":1}\n'
