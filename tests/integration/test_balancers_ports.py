"""A balancer runs out of ports to one address and port of a node, as predicted, and no more with a second one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

INSIDE = Path(__file__).with_name("balancer_in_namespace.py")
TESTS = Path(__file__).parent.parent
UNSHARE = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]


def may_unshare() -> bool:
    return (
        shutil.which("unshare") is not None and subprocess.run([*UNSHARE, "true"], capture_output=True).returncode == 0
    )


@pytest.mark.skipif(not may_unshare(), reason="this machine lets us make no network namespace")
@pytest.mark.skipif(shutil.which("haproxy") is None, reason="no haproxy on this machine")
def test_ports_of_a_balancer_run_out_and_a_second_port_of_the_node_is_the_cure() -> None:
    path = os.pathsep.join(map(str, (TESTS.parent, TESTS, TESTS / "integration")))
    done = subprocess.run(
        [*UNSHARE, sys.executable, str(INSIDE)],
        capture_output=True, env={**os.environ, "PYTHONPATH": path}, cwd=TESTS.parent, timeout=90,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    found = json.loads(done.stdout)
    print(found)
    assert (found["predicted"]["verdict"], found["predicted"]["stops_at"]) == ("too low", 200)
    assert found["one"]["held"] == 200
    assert found["one"]["errors"] >= 100
    assert found["two"] == {"held": 300, "errors": 0}
    assert found["with_two"]["stops_at"] == 400
    assert found["as_shipped"]["verdict"] == "ok"
