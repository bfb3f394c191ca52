"""Limits hit for real, in network namespaces of our own: `check` predicts, `apply` removes, `--undo` restores.

Each test runs one function of tuning_in_namespace.py in a child process inside a new network namespace, where the
sysctls of the namespace are ours to set.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

INSIDE = Path(__file__).with_name("tuning_in_namespace.py")
ROOT = Path(__file__).parent.parent.parent
UNSHARE = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]


def may_unshare() -> bool:
    return (
        shutil.which("unshare") is not None and subprocess.run([*UNSHARE, "true"], capture_output=True).returncode == 0
    )


pytestmark = pytest.mark.skipif(not may_unshare(), reason="this machine lets us make no network namespace")


def in_namespace(name: str, *more: str) -> dict[str, Any]:
    """What function `name` of tuning_in_namespace.py returned, run in a network namespace of its own; and in `more`."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*UNSHARE, *more, sys.executable, str(INSIDE), name], capture_output=True, env=environ, cwd=ROOT, timeout=90
    )
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_somaxconn_overflows_as_predicted_and_no_more_once_applied() -> None:
    found = in_namespace("somaxconn")
    assert (found["predicted"]["verdict"], found["predicted"]["current"]) == ("too low", "128")
    assert found["predicted"]["needed"] == "4096"
    assert found["overflowed"]
    assert 129 <= found["before"] < 200  # one more than the limit, and those whose SYN was sent again meanwhile
    assert "connections were turned away since boot (ListenOverflows)" in found["reason"]
    assert found["apply"][0] == 0, found["apply"]
    assert found["all"]
    assert found["overflows_after"] == 0
    assert found["after"] == "ok"
    assert found["undo"][0] == 0, found["undo"]
    assert found["restored"] == "128"


def test_ports_run_out_at_the_predicted_connection_and_no_more_once_applied() -> None:
    found = in_namespace("port_range")
    assert (found["predicted"]["verdict"], found["predicted"]["stops_at"]) == ("too low", 200)
    assert (found["held"], found["errno"]) == (200, errno.EADDRNOTAVAIL)
    assert found["apply"][0] == 0, found["apply"]
    assert (found["after"], found["errno_after"]) == ("ok", 0)
    assert found["undo_in_use"][0] == 1
    assert "40000 40199 is below what is in use now" in found["undo_in_use"][1]
    assert found["range_in_use"] == found["range"] != "40000 40199"
    assert found["undo"][0] == 0, found["undo"]
    assert found["restored"] == "40000 40199"


def test_a_range_widened_over_the_listening_ports_reserves_them() -> None:
    found = in_namespace("port_range_over_the_listener")
    assert found["code"] == 0, found["output"]
    assert found["ip_local_port_range"] == "5532 65535"
    assert found["ip_local_reserved_ports"] == "7400,7480,7490"
    for name in ("file", "file_again"):  # the second finds all right, and must not take it for no longer needed
        assert "net.ipv4.ip_local_port_range = 5532 65535" in found[name]
        assert "net.ipv4.ip_local_reserved_ports = 7400,7480,7490" in found[name]


def test_clients_of_a_closing_listener_move_once_applied() -> None:
    found = in_namespace("migrate_req")
    assert found["predicted"] == "too low"
    assert found["resets"] > 20  # about half of 100
    assert found["apply"][0] == 0, found["apply"]
    assert found["resets_after"] == 0
    assert found["restored"] == "0"


def test_one_slow_peer_takes_less_of_the_kernel_once_applied() -> None:
    found = in_namespace("slow_peer")
    assert found["predicted"] == "wasteful"
    assert found["apply"][0] == 0, found["apply"]
    assert found["before"] > 2_000_000
    assert found["after"] < 1_000_000
    assert found["restored"] == "4096 16384 4194304"


def test_ports_in_time_wait_are_used_again_once_applied() -> None:
    found = in_namespace("tw_reuse")
    assert found["predicted"] == "too low"
    assert found["rounds"] == 20
    assert found["apply"][0] == 0, found["apply"]
    assert found["again"]
    assert found["restored"] == "0"


def test_the_listening_port_is_free_at_a_restart_once_applied() -> None:
    found = in_namespace("reserved_ports")
    assert (found["predicted"]["verdict"], found["predicted"]["needed"]) == ("too low", "7400")
    assert found["errno"] == errno.EADDRINUSE
    assert found["apply"][0] == 0, found["apply"]
    assert found["errno_after"] == 0
    assert found["restored"] == ""


def test_reservations_that_the_kernel_writes_in_its_own_way_are_made_and_undone() -> None:
    found = in_namespace("reserved_beside_others")
    assert found["apply"][0] == 0, found["apply"]
    assert found["applied"] == "7400-7401,7480,7490,8080"
    assert found["undo"][0] == 0, found["undo"]
    assert found["restored"] == "7401,8080"


def test_a_disk_that_is_full_by_the_end_hides_nothing_of_what_was_done() -> None:
    found = in_namespace("full_disk", "--mount")
    assert found["apply"][0] == 0, found["apply"]
    assert "set         net.core.somaxconn: 128 -> 4096" in found["apply"][1]
    assert found["applied"] == "4096"
    assert found["undo"][0] == 0, found["undo"]
    assert "restored    net.core.somaxconn: 4096 -> 128" in found["undo"][1]
    assert found["restored"] == "128"


@pytest.mark.skipif(shutil.which("ip") is None, reason="no ip program here")
def test_half_open_connections_end_as_predicted_and_no_more_once_applied() -> None:
    found = in_namespace("syn_backlog")
    if "skip" in found:
        pytest.skip(found["skip"])
    assert found["predicted"] == "too low"
    assert found["before"] == {"half_open": 193, "gets_in": False}  # 3/4 of 256 and one
    assert found["apply"][0] == 0, found["apply"]
    assert found["after"] == {"half_open": 1000, "gets_in": True}
    assert found["restored"] == "256"
    assert found["with_cookies"] == {"half_open": 1000, "gets_in": True, "verdict": "ok"}


def test_what_is_said_of_namespaces_is_what_this_kernel_does() -> None:
    found = in_namespace("scopes")
    assert found["network_is_host"] is False
    for name, writable in found["writable"].items():
        if name in found["rows"]:
            assert (found["rows"][name][0] == "network namespace") is writable, name
    # tcp_mem is the host's, so it cannot be provoked in a namespace; `check` says that it cannot tell.
    assert found["rows"]["net.ipv4.tcp_mem"] == ["host", "cannot tell"]


@pytest.mark.skipif(shutil.which("sysctl") is None, reason="no sysctl program here")
def test_the_real_sysctl_loads_what_emit_prints() -> None:
    found = in_namespace("emitted_sysctls")
    assert (found["code"], found["errors"]) == (0, "")
    assert "net.core.somaxconn" in found["values"]
    for wanted, got in found["values"].values():
        assert wanted == got
