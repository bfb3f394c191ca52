"""Process 1 of a container inherits the orphans of others."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys

import psutil
import pytest

from server.child import Child

PROGRAM = """
import ctypes, os, time
from server.child import reap_strangers

ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: as process 1
reading, writing = os.pipe()
own = os.fork()
if own == 0:
    os.read(reading, 1)
    os._exit(3)
parent = os.fork()
if parent == 0:
    for _ in range(3):
        if os.fork() == 0:
            time.sleep(0.05)
            os._exit(0)
    os._exit(0)
os.waitpid(parent, 0)

def children():
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return set(map(int, file.read().split()))

until = time.monotonic() + 20
while children() != {own} and time.monotonic() < until:
    reap_strangers({own})
    time.sleep(0.01)
assert children() == {own}
os.write(writing, b"x")
os.waitid(os.P_PID, own, os.WEXITED | os.WNOWAIT)
reap_strangers({own})
assert os.waitstatus_to_exitcode(os.waitpid(own, 0)[1]) == 3, "its own children are left to whoever waits for them"
reap_strangers(set())
"""


def test_orphans_are_reaped_and_children_are_not() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], timeout=60, check=True)


def test_a_process_that_cannot_be_watched_is_ended() -> None:
    child = Child("worker 0", lambda: None, [])
    process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            child.adopt(process.pid)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not child.is_running
    child.kill(signal.SIGKILL)
    assert not psutil.pid_exists(process.pid)
    process.wait()
