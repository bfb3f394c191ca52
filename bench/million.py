"""Very many connections on one machine: opened, held, told something, resumed in part, closed; nothing may be missing.

Both ends are here, so that memory is what ends it on a small machine: it is watched all the time, and when little is
left no more is opened and the rest is done with what there is. Workers and client processes are as many as RLIMIT_NOFILE
makes necessary. Every connection has a user of its own, hence a personal channel, and all are in one room.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

from bench import latency, measure, preflight, sysctls
from bench.clients import Plan
from bench.load import Crowd, processes_needed
from bench.progress import Progress
from bench.publisher import Publisher
from bench.remote import Remote, addresses
from bench.report import Report
from bench.scrape import Address
from bench.settings import Settings, amount, at_least, flag, option
from bench.target import Target
from bench.visitors import Nappers

ROOM = "room:bench"
FLIGHT = 4_096  # connections under way at a time, of all client processes
LEAST_BYTES = 1_000_000_000  # available memory at which no more is opened
BROADCAST_BYTES = 700  # that a message unread takes in the kernel, kept free for every connection
STOP_BYTES = 400_000_000  # at which everything is closed
BASE_SECONDS = 1.0
LOOK_SECONDS = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class MillionSettings(Settings):
    """Settings of `bench million`."""

    connections: int = option(1_000_000, "client connections", at_least(1))
    workers: int = option(0, "worker processes of the server; 0: as many as RLIMIT_NOFILE takes", at_least(0))
    rounds: int = option(1, "broadcasts to all, each counted", at_least(1))
    hold: float = option(60.0, "seconds to hold them, with heartbeats", amount)
    heartbeat: float = option(
        25.0, "seconds between two heartbeats of a connection, of the server that is started", amount
    )
    resume: int = option(10_000, "connections closed and resumed by position", at_least(0))
    missed: int = option(2, "messages published while they are away, to all", at_least(1))
    churn: float = option(0.0, "connections closed and opened anew a second while the others are held", amount)
    tune: bool = flag("set the kernel settings that are too low for the time of the run; takes root")
    server: tuple[Address, ...] = option(
        (), "a server that runs, or several apart by commas", addresses, metavar="HOST:PORT"
    )
    admin: tuple[Address, ...] = option((), "its admin port, for its CPU and memory", addresses, metavar="HOST:PORT")
    answer_heartbeats: bool = flag("answer every heartbeat of the server with one")


class Exhausted(Exception):
    """So little memory is left that everything has to be closed."""


class Spent(NamedTuple):
    """CPU nanoseconds so far, by who used them, and when that was."""

    at: int
    workers: int
    redis: int
    others: int
    clients: int

    def since(self, before: Spent) -> Spent:
        """Return the differences."""
        return Spent(*(now - then for now, then in zip(self, before, strict=True)))


class Memory(NamedTuple):
    """Memory at a number of connections, bytes."""

    connections: int
    workers: int
    others: int
    redis: int
    clients: int
    slab: int
    buffers: int
    available: int


class Run:
    """A server, its clients, and what is found out about both."""

    def __init__(
        self, settings: MillionSettings, report: Report, target: Target | Remote, crowd: Crowd, processes: int
    ) -> None:
        self.settings, self.report, self.target, self.crowd = settings, report, target, crowd
        self.processes = processes
        self.plan = Plan(
            settings.transport, target.listens(settings.transport), 0, 0, servers=settings.server, rooms=(ROOM,),
            flight=max(8, FLIGHT // processes), timed=True,
        )  # fmt: skip
        self.live = 0
        self.messages = 0
        self.least_available = preflight.available_bytes()
        self.base = self.memory()
        self.others = target.connections()  # who publishes, and who else is there on a server that ran already

    # What is measured.

    def spent(self) -> Spent:
        """Return the CPU time of everybody so far."""
        target = self.target
        clients = sum(map(measure.cpu_ns, self.crowd.pids))
        others = target.cpu_ns("supervisor") + target.cpu_ns("admin")
        return Spent(time.monotonic_ns(), target.cpu_ns(), target.cpu_ns("redis"), others, clients)

    def memory(self) -> Memory:
        """Return the memory of everybody now."""
        target = self.target
        found = Memory(
            connections=self.live,
            workers=target.memory(),
            others=target.memory("supervisor") + target.memory("admin"),
            redis=target.memory("redis"),
            clients=sum(map(measure.memory_bytes, self.crowd.pids)),
            slab=measure.slab().bytes,
            buffers=measure.sockets().buffer_bytes,
            available=preflight.available_bytes(),
        )
        self.report.curve.append(found._asdict())
        return found

    @contextmanager
    def step(self, name: str, goal: int) -> Iterator[Progress]:
        """Do a step, with progress for who waits, and the drops of the kernel in it."""
        progress, before = Progress(f"million: {name}", goal), preflight.drops()
        try:
            yield progress
        finally:
            progress.end()
            if lost := preflight.drops() - before:
                self.report.notes.append(f"{name}: the kernel dropped {lost:,} packets or connections at full queues")

    def is_short(self, least_bytes: float) -> bool:
        """True when less than that is available. Raises: Exhausted when next to nothing is."""
        available = preflight.available_bytes()
        self.least_available = min(available, self.least_available)
        if available < STOP_BYTES:
            raise Exhausted(f"{available / 1e6:,.0f} MB of memory were left with {self.crowd.seen()[0]:,} connections")
        return available < least_bytes

    # The steps.

    def open(self) -> None:
        """Open all, or as many as memory allows."""
        settings, report = self.settings, self.report
        plan = replace(self.plan, count=settings.connections, rate=settings.rate)
        before = self.spent()
        with self.step("opened", settings.connections) as progress:
            self.crowd.begin_open(plan, 60 + settings.connections / 2_000)
            while not (done := self.crowd.is_done(LOOK_SECONDS)):
                live = self.live = self.crowd.seen()[0]
                progress.show(live, f", {preflight.available_bytes() / 1e9:.1f} GB free")
                report.curve.append({"seconds": (time.monotonic_ns() - before.at) / 1e9, "connections": live})
                if self.is_short(LEAST_BYTES + live * BROADCAST_BYTES):
                    report.notes.append(f"memory ended it: no more was opened after {live:,} connections")
                    break
            tally = self.crowd.arrived() if done else self.crowd.halt()
        used = self.spent().since(before)
        self.live = tally.live
        seconds = max(1e-9, (tally.finished_ns - before.at) / 1e9)
        report.count("opened", tally.live)
        report.count("refused or not answered", tally.faults.total(), 0)
        report.blame(tally.faults)
        report.add("opening, time", seconds, "s")
        report.add("opening, rate", self.live / seconds, "connections/s")
        self._cpu("opening", used, max(1, self.live), "connection")
        report.latencies("opening, until connected", self.crowd.latencies())

    def weigh(self) -> None:
        """Compare memory with what it was before."""
        time.sleep(BASE_SECONDS)  # Redis and the workers finish what the last connections began
        base, full, live, add = self.base, self.memory(), max(1, self.live), self.report.add
        add("workers, each before", base.workers / max(1, self.target.workers), "bytes/worker")
        add("user-space memory, all processes", (full.workers + full.others - base.workers - base.others) / live,
            "bytes/connection", 350)  # fmt: skip
        add("of it in workers", (full.workers - base.workers) / live, "bytes/connection")
        add("Redis memory", (full.redis - base.redis) / live, "bytes/connection")
        add("client processes", (full.clients - base.clients) / live, "bytes/connection")
        add("kernel slab, one end", (full.slab - base.slab) / live / 2, "bytes/connection")
        add("kernel socket buffers, one end", (full.buffers - base.buffers) / live / 2, "bytes/connection")
        add("server with Redis, whole", (full.workers + full.others + full.redis) / 1e6, "MB")
        add("memory taken, all of the machine", (base.available - full.available) / 1e6, "MB")

    def hold(self) -> None:
        """Stay for a while; some may be closed and opened again meanwhile."""
        settings, seconds = self.settings, self.settings.hold
        if not seconds:
            return
        if settings.answer_heartbeats:
            self.crowd.begin("answer_heartbeats", True)
            self.crowd.arrived()
        heartbeats, before, kernel = self.crowd.seen()[2], self.spent(), self.target.kernel_ns()
        with self.step(f"held for {seconds:g} s", int(seconds)) as progress:
            self._begin_hold()
            while not self.crowd.is_done(LOOK_SECONDS):
                progress.show(int((time.monotonic_ns() - before.at) / 1e9), f", {self.crowd.seen()[0]:,} connections")
                self.is_short(0)
            tally = self.crowd.arrived()
        used, heard = self.spent().since(before), tally.heartbeats - heartbeats
        for who, spent in (("workers", used.workers), ("Redis", used.redis), ("supervisor and admin", used.others)):
            self.report.add(f"held, CPU of {who}", spent / used.at, "cores", 0.35 if who == "workers" else None)
        if kernel:
            kernel = self.target.kernel_ns() - kernel
            self.report.add("held, CPU of workers, of it in the kernel", kernel / used.at, "cores")
        self.report.add("held, workers, a heartbeat", used.workers / 1000 / max(1, heard), "CPU us")
        self.report.add("held, CPU of clients", used.clients / used.at, "cores")
        self.report.count("heartbeats heard", heard)
        self.report.count("lost while held", self.live - tally.live, 0)
        self.report.blame(tally.faults)
        period = max(0.01, settings.heartbeat)
        due = int(self.live * max(0.0, seconds - period) / period * 0.98)
        if not settings.churn and not settings.server and heard < due:
            self.report.fault(f"heartbeats: {heard:,} were heard, {due:,} at least were due")
        self.live = tally.live
        self.memory()

    def _begin_hold(self) -> None:
        settings = self.settings
        if not settings.churn:
            self.crowd.begin("hold", settings.hold, None)
            return
        count = min(self.live, int(settings.churn * settings.hold))
        plan = replace(self.plan, count=count, number=self.messages, rate=settings.churn)
        self.crowd.begin_shares("hold", settings.hold, plan)

    def broadcast(self, publisher: Publisher, name: str, count: int = 1) -> None:
        """Publish `count` messages to everybody in one write, and count who has them."""
        goal = self.crowd.seen()[1] + count * self.live
        before = self.spent()
        buffers = 0
        with self.step(name, count * self.live) as progress:
            self.crowd.expect(self.messages + count, 120 + self.live / 5_000)
            publisher.publish(ROOM, self.messages, count)
            while not self.crowd.is_done(LOOK_SECONDS):
                progress.show(count * self.live - (goal - self.crowd.seen()[1]))
                buffers = max(buffers, measure.sockets().buffer_bytes)
                self.is_short(0)
            tally = self.crowd.arrived()
        self.messages += count
        used = self.spent().since(before)
        self.report.add(f"{name}, until the last has it", (tally.finished_ns - before.at) / 1e9, "s")
        self._cpu(name, used, max(1, self.live * count), "delivery")
        self.report.add(f"{name}, most in socket buffers", buffers / 1e6, "MB")

    def check(self, received: int) -> None:
        """Count what was received in all, and look for any connection that wants another message than the next."""
        tally = self.crowd.check(self.messages)
        self.report.count("lost at the end", self.live - tally.live, 0)
        if not self.settings.churn:
            self.report.count("messages received by all", tally.received, received)
        self.report.blame(tally.faults)

    def resume(self, publisher: Publisher) -> None:
        """Close a part, publish to the others, and let that part come back where it was."""
        settings, report = self.settings, self.report
        each = min(settings.resume, self.live) // self.processes
        if not each:
            return
        position, whole = publisher.position(), self.live
        self.crowd.begin("leave", each)
        self.live = self.crowd.arrived().live
        away = whole - self.live
        self.broadcast(publisher, f"broadcast of {settings.missed} while some are away", settings.missed)
        received = self.crowd.seen()[1]
        plan = replace(self.plan, count=away, number=self.messages - settings.missed, position=position)
        before = self.spent()
        self.crowd.begin_shares("come_back", plan, 60.0)
        self.live = self.crowd.arrived().live
        self.crowd.expect(self.messages, 60.0)
        tally = self.crowd.arrived()
        used = self.spent().since(before)
        report.count("resumed", self.live - (whole - away), away)
        report.count("messages they had missed, received", tally.received - received, away * settings.missed)
        report.add("resuming, until all have what they missed", (tally.finished_ns - before.at) / 1e9, "s")
        self._cpu("resuming", used, away, "connection")
        report.latencies("resuming, until connected", self.crowd.latencies())

    def close(self) -> None:
        """Close all, and wait until the server has noticed."""
        report, before = self.report, self.spent()
        with self.step("closed", self.live) as progress:
            self.crowd.begin("close")
            deadline = time.monotonic() + 60 + self.live / 5_000
            while (held := self._held()) > 0 and time.monotonic() < deadline:
                progress.show(self.live - held)
                time.sleep(LOOK_SECONDS)
            self.crowd.arrived()
        used = self.spent().since(before)
        report.add("closing, time", used.at / 1e9, "s")
        self._cpu("closing", used, max(1, self.live), "connection")
        report.count("connections the server still holds", max(0, held), 0)
        self.live = 0

    def _held(self) -> int:
        """Return how many of ours the server still holds, by its own account; all while it does not say."""
        try:
            return self.target.connections() - self.others
        except (OSError, ValueError):
            return self.live

    def _cpu(self, name: str, used: Spent, count: int, unit: str) -> None:
        self.report.add(f"{name}, CPU of workers", used.workers / 1e9, "s")
        self.report.add(f"{name}, workers", used.workers / 1000 / count, f"CPU us/{unit}")
        self.report.add(f"{name}, Redis", used.redis / 1000 / count, f"CPU us/{unit}")
        self.report.add(f"{name}, clients", used.clients / 1000 / count, f"CPU us/{unit}")


def run(settings: MillionSettings, report: Report) -> None:
    """Measure. Raises: TargetError, Failed, Refused, Impossible, OSError."""
    latency.require()
    workers = 0 if settings.server else settings.workers or preflight.workers_needed(settings.connections)
    processes = processes_needed(settings.connections, settings.client_processes)
    preflight.check(settings.connections, workers, processes, preflight.read())
    low = preflight.settings(settings.connections, workers)
    where = f"{workers} workers" if workers else "a server that ran already, perhaps elsewhere"
    report.notes.append(
        f"{where}, {processes} client processes; {measure.slab().source}, both ends where both are here"
    )
    with ExitStack() as stack:
        if settings.tune:
            stack.enter_context(sysctls.changed(low))
            report.notes += [f"set for the run: {name} = {value}" for name, value in low.items()]
        else:
            report.notes += preflight.hints(low)
        target: Target | Remote = (
            stack.enter_context(Remote(settings.server, settings.admin[0] if settings.admin else None))
            if settings.server
            else stack.enter_context(
                Target(workers, settings.redis, {"MOORAGE_HEARTBEAT_SECONDS": f"{settings.heartbeat:g}"})
            )
        )
        crowd = stack.enter_context(Crowd(processes, kind=Nappers))
        publisher = stack.enter_context(Publisher(target.listens("tcp")))
        time.sleep(BASE_SECONDS)  # the cost of starting is not to be counted with that of connections
        one = Run(settings, report, target, crowd, processes)
        try:
            one.open()
            one.weigh()
            one.hold()
            for _ in range(settings.rounds):
                one.broadcast(publisher, "broadcast")
            one.resume(publisher)
            one.check((settings.rounds + settings.missed * bool(settings.resume)) * one.live)
            one.close()
        except Exhausted as stop:
            report.fault(f"stopped: {stop}")
        except KeyboardInterrupt:
            report.notes.append(f"interrupted with {crowd.seen()[0]:,} connections open")
            raise
        finally:
            report.add("least memory available", one.least_available / 1e6, "MB")
