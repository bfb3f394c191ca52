"""Memory of one connection: by processes that really grow."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from server import host
from server.footprint import CONNECTIONS_MIN, READ_SECONDS_MIN, Footprint
from server.stats import Snapshot, Stats

GROWS = """
import sys
print(flush=True)
held = []
while sys.stdin.read(1):
    held.append(bytearray(b'x') * {size})
    print(flush=True)
"""


@contextmanager
def growing(size: int) -> Iterator[subprocess.Popen[str]]:
    """A process that takes `size` bytes each time it is told to."""
    command = [sys.executable, "-c", GROWS.format(size=size)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def grow(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    assert process.stdout
    process.stdin.write("x")
    process.stdin.flush()
    process.stdout.readline()


def settle(footprint: Footprint, *snapshots: Snapshot) -> None:
    """Look twice: what has changed since the last look is not read."""
    footprint.notice(snapshots)
    footprint.notice(snapshots)


def snapshot(pid: int, connections: int) -> Snapshot:
    return Snapshot(1.0, pid, 0.0, Stats(connections_tcp=connections))


def test_a_connection_costs_what_its_worker_grew_by() -> None:
    size = 40_000_000
    with growing(size) as process:
        footprint = Footprint(host.Processes())
        footprint.notice([snapshot(process.pid, 0), snapshot(0, 0)])
        grow(process)
        settle(footprint, snapshot(process.pid, 2000))
        user = footprint.bytes_per_connection([snapshot(process.pid, 2000)], 0.0)["user"]
        assert user == pytest.approx(size / 2000, rel=0.05)
        grow(process)
        later = [snapshot(process.pid, 6000)]
        settle(footprint, *later)
        again = footprint.bytes_per_connection(later, READ_SECONDS_MIN)["user"]
        assert again == pytest.approx(size / 4000, rel=0.05), "what the first ones woke up is not theirs"


def test_a_worker_that_has_lost_connections_keeps_its_memory() -> None:
    size = 40_000_000
    with growing(size) as process:
        footprint = Footprint(host.Processes())
        footprint.notice([snapshot(process.pid, 0)])
        grow(process)
        settle(footprint, snapshot(process.pid, 4000))
        parts = footprint.bytes_per_connection([snapshot(process.pid, CONNECTIONS_MIN)], 0.0)
    assert parts["user"] == pytest.approx(size / 4000, rel=0.05)


def test_few_connections_or_a_worker_never_seen_small_tell_nothing() -> None:
    pid = os.getpid()
    footprint = Footprint(host.Processes())
    assert footprint.bytes_per_connection([snapshot(pid, CONNECTIONS_MIN - 1)], 0.0) == {}
    late = Footprint(host.Processes())
    settle(late, snapshot(pid, 5000))
    assert "user" not in late.bytes_per_connection([snapshot(pid, 5000)], 0.0)


def test_having_been_too_few_a_moment_ago_is_not_remembered() -> None:
    pid = os.getpid()
    footprint = Footprint(host.Processes())
    assert footprint.bytes_per_connection([snapshot(pid, 0)], 0.0) == {}
    settle(footprint, snapshot(pid, 5000))
    assert "user" in footprint.bytes_per_connection([snapshot(pid, 5000)], 1.0)


def test_a_worker_that_came_late_is_not_counted_until_it_has_grown() -> None:
    pid = os.getpid()
    with growing(0) as other:
        footprint = Footprint(host.Processes())
        footprint.notice([snapshot(pid, 0), snapshot(other.pid, 5000)])
        settle(footprint, snapshot(pid, 5000), snapshot(other.pid, 5000))
        parts = footprint.bytes_per_connection([snapshot(pid, 5000), snapshot(other.pid, 5000)], 0.0)
    assert 0 <= parts["user"] < 1000


def test_noticing_costs_nothing_when_nobody_is_new() -> None:
    class Counting(host.Processes):
        reads = 0

        def private_bytes(self, pid: int) -> int | None:
            self.reads += 1
            return super().private_bytes(pid)

    processes = Counting()
    footprint = Footprint(processes)
    for _ in range(5):
        footprint.notice([snapshot(os.getpid(), 0)])
    assert processes.reads == 1
    footprint.notice([])
    footprint.notice([snapshot(os.getpid(), 0)])
    assert processes.reads == 2


def test_a_storm_is_not_measured_before_it_is_over() -> None:
    """Its page may say fewer connections than its memory holds."""
    pid = os.getpid()
    footprint = Footprint(host.Processes())
    footprint.notice([snapshot(pid, 0)])
    footprint.notice([snapshot(pid, 2000)])
    assert "user" not in footprint.bytes_per_connection([snapshot(pid, 4000)], 0.0)
    settle(footprint, snapshot(pid, 4000))
    assert "user" in footprint.bytes_per_connection([snapshot(pid, 4000)], READ_SECONDS_MIN)
