"""A peer: what is needed of it, how its server is started, and what its processes use while it runs."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import psutil

from bench.measure import Gone, cpu_ns, memory_bytes
from bench.peers.wire import Wire
from bench.target import TargetError

SCENARIOS = ("idle", "connect", "fanout", "direct", "storm")
START_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 10.0
QUIET_SECONDS_MAX = 20.0
QUIET_SHARE_MAX = 0.05  # of one CPU, for twice the time looked at: timers of a runtime still tick, work does not
PR_SET_PDEATHSIG = 1
Address = tuple[str, int]
_prctl = ctypes.CDLL(None, use_errno=True).prctl


class PeerError(TargetError):
    """A peer did not start, or ended; the text has what it wrote last."""


class Running(ABC):
    """A server that runs, measured from outside. A context manager that stops it."""

    address: Address
    """Where those who receive connect to."""
    speakers: Address
    """Where those who send connect to."""

    @abstractmethod
    def pids(self) -> Sequence[int]:
        """Return all its processes."""

    @abstractmethod
    def stop(self) -> None:
        """End all its processes."""

    def helpers(self) -> Sequence[int]:
        """Return those of its processes that are a program of its own right: a database it needs."""
        return ()

    def last_words(self) -> str:
        """Return what it wrote last, for an error."""
        return ""

    def __enter__(self) -> Running:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def cpu_ns(self) -> int:
        """Return the CPU time of all its processes. Raises: PeerError when one has ended."""
        return self._sum(cpu_ns, self.pids())

    def memory_bytes(self) -> int:
        """Return the memory of all its processes. Raises: PeerError when one has ended."""
        return self._sum(memory_bytes, self.pids())

    def helper_ns(self) -> int:
        """Return the CPU time of the programs it needs beside its own. Raises: PeerError when one has ended."""
        return self._sum(cpu_ns, self.helpers())

    def helper_bytes(self) -> int:
        """Return the memory of the programs it needs beside its own. Raises: PeerError when one has ended."""
        return self._sum(memory_bytes, self.helpers())

    def quiet(self, seconds: float = 0.1) -> None:
        """Wait until it has had no work for twice `seconds`, QUIET_SECONDS_MAX at most."""
        deadline = time.monotonic() + QUIET_SECONDS_MAX
        calm = 0
        before, at = self.cpu_ns(), time.monotonic_ns()
        while calm < 2 and time.monotonic() < deadline:
            time.sleep(seconds)  # the measure itself: CPU over this time
            now, until = self.cpu_ns(), time.monotonic_ns()
            calm = calm + 1 if now - before < QUIET_SHARE_MAX * (until - at) else 0
            before, at = now, until

    def _sum(self, measure: Callable[[int], int], pids: Sequence[int]) -> int:
        try:
            return sum(measure(pid) for pid in pids)
        except Gone as error:
            raise PeerError(f"{error}: {self.last_words()}") from error


class Program(Running):
    """A server started from a command line, with everything it writes in a directory of its own."""

    def __init__(self, command: Sequence[str], home: Path, port: int, environ: Mapping[str, str] | None = None) -> None:
        """Start it, and wait until it takes connections on `port` of 127.0.0.1. Raises: PeerError."""
        self.address = self.speakers = ("127.0.0.1", port)
        self._log = home / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=home,
                env={**os.environ, **(environ or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the bench, which stops it in order
                # The bench has one thread, so that code between fork and exec is safe here.
                preexec_fn=lambda: _prctl(PR_SET_PDEATHSIG, signal.SIGTERM),  # noqa: PLW1509
            )
        try:
            self._await_port()
        except BaseException:
            self.stop()
            raise
        self._pids: list[int] = []

    def pids(self) -> Sequence[int]:
        """Return it and its descendants, as they are when first asked: all are there once it has had clients."""
        if not self._pids:
            self._pids = [self._process.pid, *(process.pid for process in self._family())]
        return self._pids

    def last_words(self) -> str:
        """Return the end of its log."""
        return f"its last lines: {self._log.read_text(errors='replace')[-1000:]}"

    def stop(self) -> None:
        """Terminate it, and kill what is left."""
        family = self._family()
        for number, seconds in ((signal.SIGTERM, STOP_SECONDS_MAX), (signal.SIGKILL, 5.0)):
            try:
                self._process.send_signal(number)
                self._process.wait(seconds)
                break
            except subprocess.TimeoutExpired:
                continue
        _, left = psutil.wait_procs(family, timeout=1)
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=5)

    def _family(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def _await_port(self) -> None:
        deadline = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                socket.create_connection(self.address, timeout=1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return
        raise PeerError(f"{self._process.args!r} did not listen within {START_SECONDS_MAX:g} s: {self.last_words()}")


class Peer(ABC):
    """An adapter: one server that can be compared with ours."""

    name: str
    about: str
    """What is run, in how many processes, in a few words for a person."""
    wire: Wire
    cannot: Mapping[str, str] = {}
    """Scenarios it has no way to take part in, and why."""
    is_reference: bool = False
    """True for a bound to compare with, that is not a server anybody would run."""

    @abstractmethod
    def missing(self) -> str | None:
        """Return why it cannot run on this machine, or None when it can."""

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Return the versions of what is run, by name."""

    @abstractmethod
    def start(self, workers: int, home: Path) -> Running:
        """Start it, in `workers` processes or threads where it can, with its files in `home`. Raises: PeerError."""


def absent(*programs: str, package: str) -> str | None:
    """Return which of the programs (names or paths) is not installed, with the Debian package that has it."""
    lost = [name for name in programs if found(name) is None]
    return f"not installed: {lost[0]} (Debian: {package})" if lost else None


def found(program: str) -> str | None:
    """Return the path of a program; servers are where only root's PATH leads."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
    return (program if Path(program).exists() else None) if "/" in program else shutil.which(program, path=path)


def said(pattern: str, *command: str) -> str:
    """Run a command, and return the first group of `pattern` in what it says; "unknown" when it is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    match = re.search(pattern, done.stdout + done.stderr)
    return match[1] if match else "unknown"


def free_port() -> int:
    """Return a port of 127.0.0.1 that is free now; it may be taken before it is used, then the start fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
