"""Servers are forked from one process that has imported all that they need: that is most of what a start costs.

It is what the supervisor does with its workers. The nursery forks and reaps, no more, and forks only while it has one thread.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, TextIO

REQUEST_BYTES_MAX = 2**17

# It dies with who has started it, prctl(2), and its children with it.
_PROGRAM = """
import sys
sys.path[:0] = {path!r}
import nursery
child = nursery.tend({descriptor}, {parent})
if child:
    exec(child)
"""


class Born:
    """A child of the nursery, with what the tests need of `subprocess.Popen`."""

    def __init__(self, nursery: Nursery, pid: int, stderr: TextIO) -> None:
        self.pid = pid
        self.stderr: TextIO | None = stderr
        self.returncode: int | None = None
        self._nursery = nursery
        self._ended = os.pidfd_open(pid)
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """Return the exit code; None while it runs."""
        return self._poll(0)

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code when it has ended. Raises: subprocess.TimeoutExpired."""
        found = self._poll(timeout)
        if found is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(["moorage"], timeout)
        return found

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _poll(self, seconds: float | None) -> int | None:
        if self.returncode is None:
            waiting = select.poll()
            waiting.register(self._ended, select.POLLIN)
            if waiting.poll(None if seconds is None else seconds * 1000):
                with self._lock:
                    if self.returncode is None:
                        self.returncode = self._nursery.reap(self.pid)
        return self.returncode

    def __del__(self) -> None:
        os.close(self._ended)


class Nursery:
    """The process that forks."""

    def __init__(self, directory: str) -> None:
        self._lock = threading.Lock()
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            path = [directory, str(Path(__file__).parent)]
            program = _PROGRAM.format(path=path, descriptor=theirs.fileno(), parent=os.getpid())
            self._process = subprocess.Popen(
                [sys.executable, "-c", program], cwd=directory, pass_fds=[theirs.fileno()], start_new_session=True
            )

    def bear(self, program: str, arguments: Sequence[str], environ: dict[str, str]) -> Born:
        """Run a program in a session of its own, with a pipe for what it says on its standard error."""
        ours, theirs = os.pipe()
        try:
            pid = self._ask({"program": program, "arguments": arguments, "environ": environ}, theirs)
        finally:
            os.close(theirs)
        return Born(self, pid, os.fdopen(ours))

    def reap(self, pid: int) -> int:
        """Return the exit code of a child that has ended."""
        return self._ask({"reap": pid})

    def close(self) -> None:
        """End the process, once nothing is to be forked any more."""
        self._ours.close()
        self._process.wait()

    def _ask(self, request: dict[str, Any], *descriptors: int) -> int:
        with self._lock:
            socket.send_fds(self._ours, [json.dumps(request).encode()], descriptors)
            return int(self._ours.recv(64))


@cache
def nursery(directory: str) -> Nursery:
    """Return that of this process. The first to ask must be the main thread: it lives as long as the thread that made it."""
    assert threading.current_thread() is threading.main_thread()
    found = Nursery(directory)
    atexit.register(found.close)
    return found


def tend(descriptor: int, parent: int) -> str:
    """Fork and reap until told no more; in a child, return the program that it is to run. "" at the end."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        return ""
    import setproctitle

    import router.embedded  # noqa: F401
    import workers  # noqa: F401

    setproctitle.getproctitle()  # it looks for the place of the title, once, beside the environment with which a process began
    asked = socket.socket(fileno=descriptor)
    while True:
        data, descriptors, _, _ = socket.recv_fds(asked, REQUEST_BYTES_MAX, 1)
        if not data:
            return ""
        request = json.loads(data)
        if "reap" in request:
            status = os.waitpid(request["reap"], 0)[1]
            asked.send(b"%d" % os.waitstatus_to_exitcode(status))
            continue
        nurse, pid = os.getpid(), os.fork()
        if pid == 0:
            asked.close()
            _become(nurse, descriptors[0], request)
            return str(request["program"])
        os.close(descriptors[0])
        asked.send(b"%d" % pid)


def _become(nurse: int, stderr: int, request: dict[str, Any]) -> None:
    """Be as a process that was started with what `request` says."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != nurse:
        os._exit(1)
    os.setsid()
    os.dup2(stderr, 2)
    os.close(stderr)
    os.environ.clear()
    os.environ.update(request["environ"])
    sys.argv = ["-c", *request["arguments"]]
