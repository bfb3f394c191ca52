"""What the other tests stand on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from harness import wait_until

KILLED = """
import os, signal
from harness import Server

server = Server({how})
server.__enter__()
print(server.process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("how", ["['--workers', '1']", "['--workers', '1'], alone=True"])
def test_who_is_killed_leaves_no_server_behind(how: str) -> None:
    tests = Path(__file__).parents[1]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (tests.parent, tests)))}
    program = KILLED.format(how=how)
    found = subprocess.run([sys.executable, "-c", program], env=environ, stdout=subprocess.PIPE, text=True, timeout=60)
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
