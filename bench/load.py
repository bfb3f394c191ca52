"""Client processes: each holds a share of the connections, all do the same thing at the same time.

They are forked from the small process that conducts the bench, one for as many connections as RLIMIT_NOFILE allows,
and take commands over a pipe: the name of a method of `Clients`, and its arguments. A command that arrives while
another is still waiting, or the end of the pipe, ends that wait, so that Ctrl-C in the conductor stops everything.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import count
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from types import TracebackType
from typing import TypeVar

from bench.board import Board, Row
from bench.clients import SPARE_DESCRIPTORS, Clients, Plan, Tally
from bench.latency import Latencies
from bench.settings import Impossible

CONNECTIONS_PER_SOURCE_MAX = 12_000  # connect() slows 100-fold from 14,100 on: half of the ephemeral ports
ANY = "0.0.0.0"  # for a server elsewhere: the kernel chooses
T = TypeVar("T")
Kind = Callable[[int], Clients]
FORK = multiprocessing.get_context("fork")
_addresses = count()


class Failed(Exception):
    """The load could not be made, or not be taken."""


class Crowd:
    """Client processes as one: a command goes to all of them, their answers are added up."""

    def __init__(self, processes: int = 1, cpus: Iterable[int] = (), kind: Kind = Clients) -> None:
        """Fork `processes` clients, on the given CPUs if any are given."""
        self._links: list[Connection] = []
        self._processes: list[ForkProcess] = []
        self._board = Board(processes)
        gc.freeze()
        for place in range(processes):
            ours, theirs = FORK.Pipe()
            inherited, row = [*self._links, ours], self._board.row(place)
            process = FORK.Process(target=_serve, args=(theirs, inherited, tuple(cpus), kind, row), daemon=True)
            process.start()
            theirs.close()
            self._links.append(ours)
            self._processes.append(process)

    def __enter__(self) -> Crowd:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the client processes, and with them their connections."""
        for link in self._links:
            link.close()
        for process in self._processes:
            process.join(5)
            if process.exitcode is None:
                process.kill()
                process.join()

    @property
    def pids(self) -> list[int]:
        """Return the process ids of the clients."""
        return [process.pid for process in self._processes if process.pid is not None]

    def open(self, plan: Plan, seconds_max: float = 60.0) -> Tally:
        """Open the connections of `plan`, an equal share by each process, from source addresses not used before.

        Raises: Failed when none at all is open then; those that are missing otherwise are faults.
        """
        self.begin_open(plan, seconds_max)
        tally = self.arrived()
        if plan.count and not tally.live:
            raise Failed(f"none of {plan.count:,} connections was taken: {dict(tally.faults.most_common(3))}")
        return tally

    def begin_open(self, plan: Plan, seconds_max: float) -> None:
        """Have the clients open the connections of `plan`; `arrived` returns the outcome."""
        self.begin_shares("open", plan, seconds_max)

    def expect(self, number: int, seconds_max: float) -> None:
        """Have the clients wait for all messages before `number`; `arrived` returns the outcome."""
        self._send([("await_number", number, seconds_max)] * len(self._links))

    def begin(self, *command: object) -> None:
        """Give all clients a command and do not wait; `arrived` returns the outcome, `ended` that of the only process."""
        self._send([command] * len(self._links))

    def begin_shares(self, name: str, *arguments: object) -> None:
        """Give each client a command with its share of the plan among the arguments; `arrived` returns the outcome."""
        (plan,) = (each for each in arguments if isinstance(each, Plan))
        parts = shares(plan, len(self._links))
        self._send([(name, *(part if each is plan else each for each in arguments)) for part in parts])

    def arrived(self) -> Tally:
        """Wait for what `expect` or `begin` began."""
        return self._collect()

    def is_done(self, seconds: float) -> bool:
        """Wait at most so long for what was begun; True when all have answered, so that `arrived` returns at once."""
        until = time.monotonic() + seconds
        return all(link.poll(max(0.0, until - time.monotonic())) for link in self._links)

    def halt(self) -> Tally:
        """End what was begun and is not done, and return what there is."""
        self._send([("tally",)] * len(self._links))  # a command ends a wait, whose answer comes first
        self._collect()
        return self._collect()

    def seen(self) -> tuple[int, int, int]:
        """Return how many are live, messages received, heartbeats, without asking: what the clients show as they go."""
        return self._board.total()

    def latencies(self) -> Latencies:
        """Return the times of connections that were timed, of all processes together."""
        self._send([("latencies",)] * len(self._links))
        found = Latencies()
        for link in self._links:
            answer = self._receive(link)
            assert isinstance(answer, bytes)
            found.add(answer)
        return found

    def check(self, number: int) -> Tally:
        """Count what is missing or doubled: every connection should want message `number` next."""
        return self._gather([("check", number)] * len(self._links))

    def tally(self) -> Tally:
        """Return the counts of all processes together."""
        return self._gather([("tally",)] * len(self._links))

    def close(self) -> Tally:
        """Close all connections; the processes stay."""
        return self._gather([("close",)] * len(self._links))

    def ask(self, kind: type[T], *command: object) -> T:
        """Give a command that only its kind of clients has to the only process, and return the answer, of `kind`."""
        self.begin(*command)
        return self.ended(kind)

    def ended(self, kind: type[T]) -> T:
        """Wait for the answer to what `begin` began."""
        (link,) = self._links
        answer = self._receive(link)
        assert isinstance(answer, kind)
        return answer

    def _gather(self, commands: list[tuple[object, ...]]) -> Tally:
        self._send(commands)
        return self._collect()

    def _send(self, commands: list[tuple[object, ...]]) -> None:
        for link, command in zip(self._links, commands, strict=True):
            link.send(command)

    def _collect(self) -> Tally:
        answers = [self._receive(link) for link in self._links]
        return total([answer for answer in answers if isinstance(answer, Tally)])

    def _receive(self, link: Connection) -> object:
        try:
            return link.recv()
        except EOFError:
            raise Failed("a client process has ended: see its traceback above") from None


def total(tallies: list[Tally]) -> Tally:
    """Add up what several processes counted."""
    faults: Counter[str] = Counter()
    for tally in tallies:
        faults.update(tally.faults)
    return Tally(
        live=sum(tally.live for tally in tallies),
        received=sum(tally.received for tally in tallies),
        heartbeats=sum(tally.heartbeats for tally in tallies),
        faults=faults,
        finished_ns=max(tally.finished_ns for tally in tallies),
        sample=next((tally.sample for tally in tallies if tally.sample), b""),
    )


def shares(plan: Plan, processes: int) -> Iterator[Plan]:
    """Split `plan` among processes: users, tokens, rate, and source addresses of their own."""
    done = 0
    for place in range(processes):
        size = plan.count // processes + (place < plan.count % processes)
        yield replace(
            plan,
            first=plan.first + done,
            count=size,
            sources=tuple(sources(size)) if plan.server[0].startswith("127.") else ((ANY, size),),
            server=plan.servers[place % len(plan.servers)] if plan.servers else plan.server,
            tokens=plan.tokens[done : done + size],
            people=plan.people[done : done + size],
            rate=plan.rate / processes,
        )
        done += size


def sources(connections: int) -> Iterator[tuple[str, int]]:
    """Take fresh loopback addresses for so many connections: those used before have ports in TIME_WAIT."""
    while connections > 0:
        size = min(connections, CONNECTIONS_PER_SOURCE_MAX)
        number = next(_addresses)
        yield f"127.{1 + number // 62_500 % 254}.{number // 250 % 250}.{1 + number % 250}", size
        connections -= size


def processes_needed(connections: int, wanted: int | None) -> int:
    """Return how many client processes hold so many connections under RLIMIT_NOFILE.

    Raises: Impossible when `wanted` of them would not.
    """
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1] - SPARE_DESCRIPTORS
    least = -(-connections // most)
    if wanted is not None and wanted < least:
        raise Impossible(
            f"--client-processes: {wanted} hold {wanted * most:,} connections; {connections:,} need {least}"
        )
    return wanted or max(1, least)


def _serve(
    control: Connection, others: list[Connection], cpus: tuple[int, ...], kind: Callable[[int], Clients], row: Row
) -> None:
    """Be a client process until the conductor's end of the pipe is closed."""
    for other in others:  # inherited; while it is open here, its process would not see the conductor go
        other.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the conductor decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if cpus:
        os.sched_setaffinity(0, cpus)
    clients = kind(control.fileno())
    clients.row = row
    try:
        while True:
            while not clients.interrupted:
                clients.pump(60)
            name, *arguments = control.recv()
            clients.interrupted = False
            control.send(getattr(clients, name)(*arguments))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
