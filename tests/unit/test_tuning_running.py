"""A server's figures and its host's, put together."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from tuning import peers, running
from tuning.facts import UNLIMITED, Cgroup, Cpus, Facts, Memory, Nic, Sockets
from tuning.peers import Peers
from tuning.running import Host, Judge, judged

GIB = 1024**3
WORKERS = [
    {"worker": 0, "pid": 11, "connections": 1040, "open_fds": 1060, "fd_limit": 20_000, "fd_reserved": 64},
    {"worker": 1, "pid": 12, "connections": 960, "open_fds": 980, "fd_limit": 20_000, "fd_reserved": 64},
    {"worker": 2, "pid": 0, "connections": 0},
]
FIGURES: dict[str, Any] = {
    "connections": 2000,
    "connections_min": 1000,
    "workers": WORKERS,
    "bytes_per_connection": {"user": 350.0, "kernel": 3650.0},
    "cpu_cores_used": 0.1,
    "windows": [],
}
FACTS = Facts(
    cpus=Cpus(online=8, usable=8),
    memory=Memory(total=16 * GIB, available=8 * GIB),
    cgroup=Cgroup(version=2, memory_max=5 * GIB, memory_used=GIB),
    sockets=Sockets(tcp_pages=3048),
    nics=(Nic("eth0", speed_mbit=10_000), Nic("eth1", speed_mbit=-1)),
    sysctls={"net.ipv4.ip_local_port_range": "32768 60999", "net.ipv4.tcp_mem": "76134 101512 152268"},
)
HOST = Host(FACTS, Peers({"10.0.0.1": 1500, "10.0.0.2": 500}, destinations=2))


def ceilings(figures: dict[str, Any] = FIGURES, on: Host = HOST) -> dict[str, int]:
    return {one["limit"]: one["connections"] for one in judged(figures, on)["ceilings"]}


def test_every_limit_by_its_arithmetic() -> None:
    found = ceilings()
    assert found["fds"] == 2000 + 2 * (20_000 - 64 - 1060)
    assert found["memory"] == 2000 + 4 * GIB // 4000, "the control group has less than the host"
    assert found["cpu"] == 2000 * 2 / 0.1, "two workers use two processors of eight"
    assert found["ports"] == 2000 + 2 * (2 * 28_232 - 1500)
    assert found["tcp_mem"] == (101_512 - 8 * 256) / (1000 / 2000), (
        "the pages that eight processors keep are no sockets'"
    )


def test_pages_that_processors_without_a_worker_keep_are_no_sockets() -> None:
    many = replace(FACTS, cpus=Cpus(online=64, usable=64))
    assert "tcp_mem" not in ceilings(on=Host(many))


def test_the_arithmetic_names_what_is_kept_back() -> None:
    (fds,) = [one for one in judged(FIGURES, HOST)["ceilings"] if one["limit"] == "fds"]
    assert "has 1,060 of 20,000 descriptors and keeps 64 back: 18,876 left x 2 workers" in fds["because"]


def test_what_is_not_known_is_said_and_not_made_up() -> None:
    few = FIGURES | {"connections": 40, "bytes_per_connection": {}, "cpu_cores_used": None}
    answer = judged(few, Host(Facts()))
    assert answer["unknown"]["memory"] == "not measured yet: 40 connections, at least 1,000 are needed"
    assert set(answer["unknown"]) == {"memory", "ports", "cpu", "tcp_mem"}
    assert answer["host"] == {"cpus": None, "memory_bytes": None, "nic_mbit": None} or answer["host"]["cpus"]
    assert answer["costs"]["us"] == {}
    late = FIGURES | {"bytes_per_connection": {"kernel": 3650.0}}
    assert "were not seen" in judged(late, HOST)["unknown"]["memory"]
    hidden = FIGURES | {"bytes_per_connection": {"user": 350.0}}
    assert "/proc/slabinfo" in judged(hidden, HOST)["unknown"]["memory"]
    assert ceilings(hidden, Host(FACTS, kernel_bytes=3650.0))["memory"] == ceilings()["memory"]


def test_buffers_count_as_they_are_held_now() -> None:
    busy = Host(FACTS, Peers({"10.0.0.1": 2000}, buffer_bytes=2000 * 1000))
    assert ceilings(on=busy)["memory"] == 2000 + 4 * GIB // 5000
    assert judged(FIGURES, busy)["bytes_per_connection"] == {"user": 350.0, "kernel": 3650.0, "buffers": 1000.0}


def test_an_unlimited_control_group_leaves_the_host() -> None:
    on = Host(Facts(memory=FACTS.memory, cgroup=Cgroup(memory_max=UNLIMITED, memory_used=1)))
    assert ceilings(on=on)["memory"] == 2000 + 8 * GIB // 4000


def test_the_host_of_a_fleet() -> None:
    assert judged(FIGURES, HOST)["host"] == {"cpus": 8.0, "memory_bytes": 16 * GIB, "nic_mbit": 10_000}


def test_a_judge_reads_this_host() -> None:
    mine = FIGURES | {"workers": [WORKERS[0] | {"pid": os.getpid()}]}
    answer = Judge({1})(mine)
    assert {"fds", "memory"} <= {one["limit"] for one in answer["ceilings"]}
    told = Judge({1}, connections_max=2001)(mine)["ceilings"][0]
    assert (told["limit"], told["connections"]) == ("connections_max", 2001)
    gone = FIGURES | {"workers": [WORKERS[0] | {"pid": 2**22 + 1}]}
    assert Judge({1})(gone)["ceilings"]


def test_a_count_that_takes_long_is_not_waited_for_and_used_when_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, counts = threading.Event(), []

    def connected(_ports: object) -> Peers:
        counts.append(1)
        assert go_on.wait(10)
        return Peers({"10.0.0.1": 7})

    monkeypatch.setattr(peers, "connected", connected)
    monkeypatch.setattr(running, "PEERS_SECONDS_MAX", 0.01)
    judge = Judge({1})
    assert judge._connected() is None
    assert judge._connected() is None
    go_on.set()
    deadline = time.monotonic() + 10
    while (found := judge._connected()) is None:
        assert time.monotonic() < deadline
    assert found.held == {"10.0.0.1": 7}
    assert len(counts) == 1, "the longer a count takes, the longer it is good for"
