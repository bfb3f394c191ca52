"""What the other tests stand on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
from harness import wait_until

KILLED = """
import os, signal
from harness import Server

server = Server(wait=False, before="import signal; sys.stderr.write('up\\\\n'); sys.stderr.flush(); signal.pause()")
server.__enter__()
while "up\\n" not in server.log:
    pass
print(server.process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_who_is_killed_leaves_no_server_behind() -> None:
    tests = Path(__file__).parents[1]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (tests.parent, tests)))}
    found = subprocess.run([sys.executable, "-c", KILLED], env=environ, stdout=subprocess.PIPE, text=True, timeout=30)
    assert found.returncode == -9
    pid = int(found.stdout)
    try:
        wait_until(lambda: not runs(pid), "it is gone", 5)
    finally:
        if runs(pid):
            os.kill(pid, signal.SIGKILL)


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
