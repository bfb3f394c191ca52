"""The server under test: started as a subprocess with nothing but its defaults, measured from outside, stopped.

It runs as `python -m commands serve` in an empty directory and without MOORAGE_* variables, so that no
configuration of the machine leaks into a figure, and says on stderr which ports it got.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import psutil

from bench import scrape
from bench.clients import raise_descriptor_limit
from bench.measure import Gone, cpu_ns, kernel_ns, memory_bytes
from bench.scrape import Address
from bench.settings import Impossible

START_SECONDS_MAX = 30.0
WORKER_SECONDS_MAX = 0.5  # for each worker, beyond that
STOP_SECONDS_MAX = 15.0
QUIET_SECONDS_MAX = 20.0
QUIET_SHARE_MAX = 0.02  # of one CPU: clocks and heartbeats still tick, work does not
WORKER_SHARE_MAX = 0.002  # of one CPU, more for each worker: an idle one was seen to use 0.0013, Redis included
PR_SET_PDEATHSIG = 1
WORKER_DESCRIPTORS = 100  # of its own: listeners, pipes, logs
_prctl = ctypes.CDLL(None, use_errno=True).prctl


class TargetError(Exception):
    """The server did not start, or ended; the text has what it wrote last."""


@dataclass(slots=True)
class Processes:
    """The processes of a server by what they are; every descendant is one of these."""

    worker: list[int] = field(default_factory=list)
    admin: list[int] = field(default_factory=list)
    redis: list[int] = field(default_factory=list)
    supervisor: list[int] = field(default_factory=list)

    @property
    def server(self) -> list[int]:
        """Return all but Redis."""
        return [*self.supervisor, *self.worker, *self.admin]


class Target:
    """A running server: where it listens, and what its processes use. A context manager that stops it."""

    def __init__(
        self, workers: int, redis: str | None = None, environ: Mapping[str, str] | None = None, config: str = ""
    ) -> None:
        """Start a server and wait until it is ready; `environ` is added to its environment, `config` is its file.

        Raises: TargetError.
        """
        self._home = tempfile.TemporaryDirectory(prefix="moorage-bench-")
        (Path(self._home.name) / "moorage.toml").write_text(config)
        self._log = Path(self._home.name) / "stderr"
        arguments = ["--workers", str(workers), *(["--redis", redis] if redis else [])]
        self._process = _spawn(arguments, self._home.name, self._log, environ or {})
        try:
            self.addresses = self._await_ready(workers)
            self.processes = self._await_workers(workers)
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Target:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Return the supervisor's process id."""
        return self._process.pid

    def listens(self, transport: str) -> Address:
        """Return where clients of a transport connect to."""
        return self.addresses["http" if transport == "sse" else transport]

    @property
    def workers(self) -> int:
        """Return how many workers it has."""
        return len(self.processes.worker)

    def memory(self, role: str = "worker") -> int:
        """Return the memory of all processes of a role. Raises: TargetError when one has ended."""
        return self.memory_bytes(getattr(self.processes, role))

    def cpu_ns(self, role: str = "worker") -> int:
        """Return the CPU time of all processes of a role. Raises: TargetError when one has ended."""
        try:
            return sum(cpu_ns(pid) for pid in getattr(self.processes, role))
        except Gone as error:
            raise TargetError(f"{error}: {self._last_words()}") from error

    def kernel_ns(self) -> int:
        """Return how much of the workers' CPU time was spent in the kernel. Raises: TargetError when one has ended."""
        try:
            return sum(map(kernel_ns, self.processes.worker))
        except Gone as error:
            raise TargetError(f"{error}: {self._last_words()}") from error

    def memory_bytes(self, pids: Sequence[int]) -> int:
        """Return the memory of these processes. Raises: TargetError when one has ended."""
        try:
            return sum(memory_bytes(pid) for pid in pids)
        except Gone as error:
            raise TargetError(f"{error}: {self._last_words()}") from error

    def embedded_url(self) -> str:
        """Return the URL of the Valkey it has started; "" when it uses another."""
        titles = [title(process) for process in _descendants(self.pid) if process.pid in self.processes.redis]
        paths = [match[0] for name in titles if (match := re.search(r"/\S+\.sock\b", name))]
        return f"unix://{paths[0]}" if paths else ""

    def connections(self) -> int:
        """Return how many sessions its workers say they hold. Raises: OSError."""
        return scrape.connections(self.addresses["admin"])

    def cpus(self) -> set[int]:
        """Return the CPUs its workers may run on: all of them unless it pins its workers."""
        return set().union(*(os.sched_getaffinity(pid) for pid in self.processes.worker))

    def quiet(self, seconds: float = 0.1) -> None:
        """Wait until neither workers nor Redis have had work for twice `seconds`, QUIET_SECONDS_MAX at most."""
        deadline = time.monotonic() + QUIET_SECONDS_MAX
        share_max = QUIET_SHARE_MAX + WORKER_SHARE_MAX * self.workers
        calm = 0
        before, at = self.cpu_ns("worker") + self.cpu_ns("redis"), time.monotonic_ns()
        while calm < 2 and time.monotonic() < deadline:
            time.sleep(seconds)  # the measure itself: CPU over this time
            now, until = self.cpu_ns("worker") + self.cpu_ns("redis"), time.monotonic_ns()
            calm = calm + 1 if now - before < share_max * (until - at) else 0
            before, at = now, until

    def stop(self) -> None:
        """Tell it to stop now, and kill what is left when it does not."""
        family = _descendants(self.pid)
        # The second SIGTERM means "without a drain". Two at once would be delivered as one: signal(7).
        for number, seconds in ((signal.SIGTERM, 0.2), (signal.SIGTERM, STOP_SECONDS_MAX), (signal.SIGKILL, 5.0)):
            try:
                self._process.send_signal(number)
                self._process.wait(seconds)
                break
            except subprocess.TimeoutExpired:
                continue
        _, left = psutil.wait_procs(family, timeout=1)
        for process in left:
            process.kill()
        self._home.cleanup()

    def _await_ready(self, workers: int) -> dict[str, Address]:
        deadline = time.monotonic() + START_SECONDS_MAX + workers * WORKER_SECONDS_MAX
        while time.monotonic() < deadline and self._process.poll() is None:
            lines = self._log.read_text(errors="replace").splitlines()
            if "ready" in lines:
                return addresses(lines)
            time.sleep(0.02)
        found = f"exit code {self._process.poll()}" if self._process.poll() is not None else "no line `ready`"
        raise TargetError(f"the server did not start within {START_SECONDS_MAX:g} s: {found}; {self._last_words()}")

    def _await_workers(self, count: int) -> Processes:
        deadline = time.monotonic() + START_SECONDS_MAX + count * WORKER_SECONDS_MAX
        while len((found := by_role(self.pid)).worker) != count:
            if time.monotonic() > deadline:
                titles = [title(process) for process in _descendants(self.pid)]
                raise TargetError(f"wanted {count} processes titled as workers, found {titles}")
            time.sleep(0.02)
        return found

    def _last_words(self) -> str:
        return f"its last lines: {self._log.read_text(errors='replace')[-2000:]}"


def room_for(connections: int, workers: int) -> None:
    """Refuse more connections than the server's descriptors allow.

    Raises: Impossible, with how many workers it takes.
    """
    limit = raise_descriptor_limit()  # the server inherits it
    each = (limit - WORKER_DESCRIPTORS) * 9 // 10  # SO_REUSEPORT spreads by hash: not evenly
    most = limit - WORKER_DESCRIPTORS if workers == 1 else workers * each
    if connections > most:
        raise Impossible(
            f"--connections: {workers} workers hold {most:,} under RLIMIT_NOFILE {limit:,}; "
            f"{connections:,} take --workers {-(-connections // each)}"
        )


def addresses(lines: Sequence[str]) -> dict[str, Address]:
    """Return the first address of each kind from lines like `tcp 127.0.0.1:7400`."""
    found: dict[str, Address] = {}
    for line in lines:
        if match := re.fullmatch(r"(tcp|http|admin) (\S+):(\d+)", line):
            found.setdefault(match[1], (match[2].strip("[]"), int(match[3])))
    return found


def by_role(supervisor: int) -> Processes:
    """Sort the tree of processes under `supervisor` by their titles."""
    found = Processes(supervisor=[supervisor])
    for process in _descendants(supervisor):
        name = title(process)
        role = next((role for role in ("worker", "admin") if re.search(rf"^moorage\b.*\b{role}\b", name)), None)
        if role:
            getattr(found, role).append(process.pid)
        elif re.search("valkey|redis", name):
            found.redis.append(process.pid)
        elif name:
            found.supervisor.append(process.pid)
    return found


def title(process: psutil.Process) -> str:
    """Return the command line as ps(1) shows it, "" for a process that has ended."""
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.Error:
        return ""


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _spawn(arguments: list[str], home: str, log: Path, environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    ports = [word for kind in ("--tcp", "--http", "--admin") for word in (kind, "127.0.0.1:0")]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MOORAGE_")}
    paths = [path for path in (clean.get("PYTHONPATH"), str(Path(__file__).resolve().parent.parent)) if path]
    with log.open("wb") as stderr:
        return subprocess.Popen(
            [sys.executable, "-m", "commands", "serve", *ports, *arguments],
            cwd=home,
            env={**clean, "PYTHONPATH": os.pathsep.join(paths), **environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,  # Ctrl-C is for the bench, which stops the server in order
            # The bench has one thread, so that code between fork and exec is safe here.
            preexec_fn=lambda: _prctl(PR_SET_PDEATHSIG, signal.SIGTERM),  # noqa: PLW1509
        )
