"""The supervisor: listeners, fork, heartbeat, restart budget, signals, kill ladder. Nothing else.

Every listening socket is made before the first fork, one per worker and address in a SO_REUSEPORT group (socket(7)), and stays
open here: a worker that dies is replaced on the same socket, so that nobody who waits in its queue is reset.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import math
import os
import resource
import secrets
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

from setproctitle import setproctitle

from server import admin, admission, inherited, limits, logs, shard
from server.auth import Verifier
from server.child import Child, ending, reap_strangers
from server.config import Config
from server.drain import Progress, Window
from server.notify import Manager
from server.sockets import Sockets
from server.stats import Pages
from tuning import advice, host, running

log = logging.getLogger("moorage.supervisor")

# Exit codes of `moorage serve`, and of its children. 2 is a configuration that cannot be used.
OK, CRASHED, BAD_CONFIG, CANNOT_BOOT, CRASH_LOOP = range(5)

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)  # USR1: drain, from the admin process
_TICK_SECONDS = 0.25
_START_TICK_SECONDS = 0.05  # until all are ready
_PR_SET_PDEATHSIG = 1  # prctl(2)
_libc = ctypes.CDLL(None, use_errno=True)


class Companion(Protocol):
    """A process that the server needs beside its own: the embedded Valkey."""

    def alive(self) -> bool:
        """True while it runs."""

    def restart(self) -> None:
        """Start it again. Raises: RuntimeError."""


def may_restart(spent_at: list[float], now: float, *, count_max: int, window_s: float) -> bool:
    """Record a restart at `now`; False once the window holds more than `count_max`."""
    spent_at[:] = [at for at in spent_at if now - at < window_s] + [now]
    return len(spent_at) <= count_max


@dataclass
class Supervisor:
    """Keeps workers and the admin process running until told to stop."""

    config: Config
    children: list[Child]
    pages: Pages
    sockets: Sockets
    companion: Companion | None
    manager: Manager
    spent_at: list[float] = field(default_factory=list)
    stopping_until: float = 0.0  # 0: not stopping
    told_to_stop: bool = False  # by SIGTERM: the next signal means now
    progress: Progress | None = None  # of a drain
    queues_until: float = 0.0  # at the end of a drain no connection begins, and the queues run empty; 0: not there yet
    killed: bool = False
    exit_code: int = OK
    announced: bool = False
    signals: list[int] = field(default_factory=list)

    def run(self, announce: Callable[[], None]) -> int:
        """Supervise; `announce` is called once, when every worker is ready. Return the exit code."""
        with self._signals() as wakeup:
            while not self.killed or any(child.is_running for child in self.children):
                self._fill(time.monotonic())
                self._wait(wakeup)
                now = time.monotonic()
                self._obey(now)
                self._reap(now)
                self._watch(now)
                self.manager.beat(now)
                if not self.announced and not self.stopping_until and self._all_ready():
                    self.announced = True
                    announce()
        return self.exit_code

    # One round.

    def _wait(self, wakeup: socket.socket) -> None:
        poll = select.poll()
        poll.register(wakeup, select.POLLIN)
        for child in self.children:
            if child.is_running:
                poll.register(child.pidfd, select.POLLIN)
        poll.poll((_TICK_SECONDS if self.announced else _START_TICK_SECONDS) * 1000)
        with contextlib.suppress(BlockingIOError):
            self.signals += wakeup.recv(64)

    def _obey(self, now: float) -> None:
        signals, self.signals = self.signals, []
        for signum in signals:
            if signum == signal.SIGHUP:
                for child in self.children:
                    child.kill(signal.SIGHUP)
                if self.announced:
                    self.manager.reloading()
            elif signum == signal.SIGUSR1:
                self._drain(now, self.pages.asked_seconds)
            elif signum == signal.SIGTERM and not self.told_to_stop:
                self.told_to_stop = True
                if not self.stopping_until:
                    self._drain(now, self.config.drain_seconds)
            elif signum in (signal.SIGTERM, signal.SIGINT):
                self._stop(now)

    def _reap(self, now: float) -> None:
        if os.getpid() == 1:
            reap_strangers({child.pid for child in self.children if child.is_running})
        for child in self.children:
            if not child.is_running:
                continue
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid:
                os.close(child.pidfd)
                child.pidfd = -1
                self._died(child, os.waitstatus_to_exitcode(status), now)

    def _died(self, child: Child, code: int, now: float) -> None:
        if self.killed:
            return
        how = ending(code)
        if code == CANNOT_BOOT and not self.announced and not self.stopping_until:
            log.critical("%s could not boot: stopping", child.name)
            self._give_up(CANNOT_BOOT, now)
        elif may_restart(self.spent_at, now, count_max=limits.RESTARTS_MAX, window_s=limits.RESTART_WINDOW_SECONDS):
            log.error("%s (pid %d) ended, %s: replacing it", child.name, child.pid, how)
            if child.number >= 0:
                self.pages.restarted(child.number)
            child.started_at = -math.inf
        else:
            log.critical(
                "%s ended, %s: more than %d restarts in %.0f s, stopping",
                child.name, how, limits.RESTARTS_MAX, limits.RESTART_WINDOW_SECONDS,
            )  # fmt: skip
            self._give_up(CRASH_LOOP, now)

    def _watch(self, now: float) -> None:
        for child in self.children:
            if child.is_silent(now):
                log.error("%s (pid %d) silent for %.0f s: killing it", child.name, child.pid, limits.SILENT_SECONDS_MAX)
                child.started_at = now  # one signal is enough
                child.kill(signal.SIGKILL)
        if self.companion is not None and not self.queues_until and not self.killed and not self.companion.alive():
            self._restart_companion(now)
        if self.stopping_until:
            self._end(now)

    def _restart_companion(self, now: float) -> None:
        assert self.companion is not None
        if not may_restart(self.spent_at, now, count_max=limits.RESTARTS_MAX, window_s=limits.RESTART_WINDOW_SECONDS):
            log.critical("the embedded Valkey keeps ending: stopping")
            self._give_up(CRASH_LOOP, now)
            return
        log.error("the embedded Valkey ended: starting it again")
        try:
            self.companion.restart()
        except RuntimeError as error:
            log.error("the embedded Valkey: %s", error)

    def _all_ready(self) -> bool:
        return all(page.read().stats.ready for page in self.pages)

    # Stopping: drain, let the queues run empty, INT, then KILL.

    def _workers(self) -> list[Child]:
        return [child for child in self.children if child.page is not None]

    def _drain(self, now: float, seconds: float) -> None:
        """Begin a drain, or give the one under way another window."""
        if self.killed or self.queues_until:
            return
        window = Window(now, seconds, sum(page.read().stats.connections for page in self.pages))
        log.info("draining: %d sessions leave within %.0f s; SIGTERM again stops now", window.sessions, window.seconds)
        self.pages.window, self.progress = window, Progress(window)
        self.stopping_until = now + seconds + limits.DRAIN_EXTRA_SECONDS
        self.manager.stopping(
            f"draining {window.sessions} sessions", self.stopping_until + limits.STOP_SECONDS_MAX - now
        )
        for child in self._workers():
            child.kill(signal.SIGTERM)

    def _drain_on(self, progress: Progress, now: float) -> None:
        found = [child.page.read().stats for child in self._workers() if child.page is not None and child.is_running]
        left = sum(stats.connections for stats in found)
        if left > progress.window.sessions:  # the last to come were not in the pages yet
            self.pages.window = progress.window = progress.window._replace(sessions=left)
        if self.queues_until:
            if now >= self.queues_until:
                self._stop(now)
        elif now >= self.stopping_until or sum(stats.drained for stats in found) == len(self.pages):
            began, _, sessions = progress.window
            log.info("drained in %.1f s: %d of %d sessions are cut", now - began, left, sessions)
            self.sockets.hold_off()
            self.queues_until = now + limits.DRAIN_QUEUE_SECONDS
        elif progress.is_worth_saying(now, left):
            _, _, sessions = progress.window
            log.info("draining: %d of %d sessions left, %.0f s left", left, sessions, progress.window.seconds_left(now))
            self.manager.status(f"draining: {left} of {sessions} sessions left")

    def _stop(self, now: float) -> None:
        if not self.killed:
            self.killed = True
            self.stopping_until = now + limits.STOP_SECONDS_MAX
            self.pages.window = self.pages.window or Window(now, 0.0)
            self.sockets.hold_off()
            self.manager.stopping("stopping", limits.STOP_SECONDS_MAX)
            for child in self._workers():
                child.kill(signal.SIGINT)

    def _end(self, now: float) -> None:
        """Go on stopping: the admin process goes last, so that a drain can be watched."""
        if self.progress is not None and not self.killed:
            self._drain_on(self.progress, now)
        elif not any(child.is_running for child in self._workers()):
            for child in self.children:
                child.kill(signal.SIGINT)
        if self.killed and now >= self.stopping_until:
            for child in self.children:
                child.kill(signal.SIGKILL)

    def _give_up(self, code: int, now: float) -> None:
        self.exit_code = code
        self._stop(now)

    # Processes.

    def _fill(self, now: float) -> None:
        """Fork those who do not run; one of whom the kernel would not have any (fork(2), EAGAIN, ENOMEM) a little later."""
        for child in self.children:
            if child.is_running or self.killed or now - child.started_at < limits.FORK_PAUSE_SECONDS:
                continue
            child.started_at = now
            try:
                self._spawn(child)
            except OSError as error:
                log.error("%s cannot be forked: %s", child.name, error.strerror)
                if not self.announced:
                    self._give_up(CANNOT_BOOT, now)

    def _spawn(self, child: Child) -> None:
        """Fork, from the main thread: PR_SET_PDEATHSIG fires when the forking thread ends. Raises: OSError."""
        supervisor = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # none may reach the child while it has our handlers
        try:
            if (pid := os.fork()) == 0:
                self._live(child, supervisor)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        child.adopt(pid)

    def _live(self, child: Child, supervisor: int) -> NoReturn:
        try:
            self._become(child, supervisor)
            os._exit(OK)
        except shard.CannotStart as error:
            log.critical("%s cannot start: %s", child.name, error)
            os._exit(CANNOT_BOOT)
        except BaseException as error:
            if not isinstance(error, SystemExit):
                log.exception("%s crashed", child.name)
            os._exit(CRASHED)

    def _become(self, child: Child, supervisor: int) -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != supervisor:
            os._exit(OK)
        os.setpgid(0, 0)  # Ctrl-C is for the supervisor, which tells us
        signal.set_wakeup_fd(-1)
        for signum in _SIGNALS:  # until it can, it hears INT only; that we are left it sees for itself
            signal.signal(signum, signal.SIG_DFL if signum == signal.SIGINT else signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        setproctitle(f"moorage: {child.name}")
        for other in self.children:
            if other.is_running:
                os.close(other.pidfd)
            for sock in other.keeps:
                if sock not in child.keeps:
                    sock.close()
        child.work()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[socket.socket]:
        """Let signals only enqueue: their numbers arrive on the socket that is returned."""
        reading, writing = socket.socketpair()
        reading.setblocking(False)
        writing.setblocking(False)
        before = {s: signal.signal(s, lambda _signum, _frame: None) for s in _SIGNALS}
        signal.set_wakeup_fd(writing.fileno())
        try:
            yield reading
        finally:
            signal.set_wakeup_fd(-1)
            for signum, handler in before.items():
                signal.signal(signum, handler)
            reading.close()
            writing.close()


# Starting.


def cores() -> list[int]:
    """Return the processors this process may run on."""
    return sorted(os.sched_getaffinity(0))


def raise_descriptor_limit() -> int:
    """Raise the soft RLIMIT_NOFILE to the hard one, getrlimit(2); return it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def say_what_stops_it(count: int) -> None:
    """Log in at most two lines which limit of this host ends it first, with `count` workers. Takes some 5 ms."""
    try:
        lines = advice.start_lines(host.read(), count)
    except Exception:  # advice is no reason not to start
        log.exception("the limits of this host could not be read")
        return
    for line in lines:
        log.warning("%s", line)


def serve(config: Config, redis_url: str, companion: Companion | None = None) -> int:
    """Run the server on the Redis at `redis_url` until it is told to stop; return its exit code.

    `companion` is watched, and restarted when it ends.
    """
    logs.set_up(config.log_level, config.log_format)
    setproctitle("moorage: supervisor")
    raise_descriptor_limit()
    count = config.workers or len(cores())
    say_what_stops_it(count)
    try:
        verifier = None if config.is_open else shard.verifier(config)
        sockets = Sockets.open(config, count, inherited.take(os.environ))
    except (OSError, ValueError) as error:
        log.critical("cannot start: %s", error)
        return CANNOT_BOOT
    pages = Pages.create(count)
    pages.supervisor_pid = os.getpid()
    node = secrets.token_hex(3)
    census = admission.census(config, count)
    children = []
    for number in range(count):
        mine = sockets.of(number)
        place = shard.Place(number, node, *mine, pages[number], lambda: pages.window, count, census)
        children.append(_worker(config, place, redis_url, verifier, pin=count <= len(cores())))
    judge = running.Judge(sockets.ports(), config.connections_max)
    listening = sockets.admin.sockets
    children.append(Child("admin", lambda: admin.run(config, pages, listening, redis_url, judge), listening))
    manager = Manager.from_environ(os.environ)

    def announce() -> None:
        with contextlib.suppress(OSError):  # a log that is full, or that nobody reads any more
            print(*sockets.lines(), "ready", sep="\n", file=sys.stderr, flush=True)  # noqa: T201
        manager.ready(f"{count} workers: {', '.join(sockets.lines())}")

    # What is frozen is never looked at again by a collection, and its memory stays shared with the children.
    gc.collect()
    gc.freeze()
    return Supervisor(config, children, pages, sockets, companion, manager).run(announce)


def _worker(config: Config, place: shard.Place, redis_url: str, verifier: Verifier | None, *, pin: bool) -> Child:
    def work() -> None:
        if pin and place.number < len(mine := cores()):  # they may be fewer by now: a cpuset can change
            os.sched_setaffinity(0, {mine[place.number]})
        shard.run(config, place, redis_url, verifier)

    return Child(f"worker {place.number}", work, [*place.tcp, *place.http], place.page, place.number)
