import subprocess
import sys

from bench.target import addresses, by_role

FAMILY = """
import os, sys
from setproctitle import setproctitle
ready, told = os.pipe()
for title in ("moorage: worker 0", "moorage: worker 1", "moorage: admin", "moorage: valkey x.sock", "something else"):
    if not os.fork():
        setproctitle(title)
        os.write(told, b".")
        sys.stdin.read()
        os._exit(0)
for _ in range(5):
    os.read(ready, 1)
print("ready", flush=True)
sys.stdin.read()
"""


def test_addresses_are_read_from_what_the_server_prints() -> None:
    lines = ["log", "tcp 127.0.0.1:7400", "tcp 127.0.0.1:7401", "http [::1]:80", "admin 127.0.0.1:1", "ready"]
    assert addresses(lines) == {"tcp": ("127.0.0.1", 7400), "http": ("::1", 80), "admin": ("127.0.0.1", 1)}


def test_processes_are_told_apart_by_their_titles() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FAMILY, "--workers", "2", "--admin"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdin
        assert parent.stdout
        assert parent.stdout.readline() == "ready\n"
        found = by_role(parent.pid)
        parent.stdin.close()
    assert (len(found.worker), len(found.admin), len(found.redis)) == (2, 1, 1)
    assert found.supervisor[0] == parent.pid
    assert len(found.supervisor) == 2, "what has no known title is counted, with the supervisor"
    assert len(found.server) == 5
