"""What the model predicts is what the machine does: kernel memory, descriptors, tasks of a control group."""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tuning import advice, footprint, host
from tuning.capacity import worker_full_at
from tuning.facts import Facts
from tuning.finding import Finding, Verdict
from tuning.footprint import CannotMeasure
from tuning.target import Target

ROOT = Path(__file__).parent.parent.parent
PIDS = Path("/sys/fs/cgroup/pids")


def measured() -> footprint.Footprint:
    try:
        return footprint.measure()
    except CannotMeasure as fault:
        pytest.skip(str(fault))


@pytest.mark.alone
@pytest.mark.xdist_group("alone")
def test_a_connection_in_the_kernel_is_measured() -> None:
    found = measured()
    assert 2000 < found.accepted < 10_000
    if found.source == "slabinfo":
        assert sum(found.caches.values()) == found.accepted
        assert found.caches["TCP"] > 1500


def slab_bytes() -> int:
    return sum(round(count * size) for count, size in footprint.slabs(Path("/proc")).values())


def settled_slab_bytes() -> int:
    """All slabs, once those of sockets closed a moment ago are given back."""
    end = time.monotonic() + 10
    before, now = 0, slab_bytes()
    while abs(now - before) > 100_000 and time.monotonic() < end:
        time.sleep(0.1)
        before, now = now, slab_bytes()
    return now


@pytest.mark.alone
@pytest.mark.xdist_group("alone")
@pytest.mark.skipif(os.geteuid() != 0, reason="/proc/slabinfo is root's")
def test_kernel_memory_of_five_thousand_connections_is_predicted_from_a_measurement() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 10_100:
        pytest.skip(f"RLIMIT_NOFILE is {hard}, 5,000 pairs of sockets need more")
    # The slabs are the whole machine's, and other programs open and close sockets too: one clean look of three will do.
    attempts = [predicted_and_used() for _ in range(3)]
    assert any(abs(predicted - used) < 0.10 * used for predicted, used in attempts), attempts


def predicted_and_used() -> tuple[int, int]:
    """Bytes of 5,000 connections, both ends: by the measurement of a few, and by the growth of all slabs."""
    each = measured()
    with ExitStack() as stack:
        epoll = stack.enter_context(select.epoll())
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(5)]
        empty = settled_slab_bytes()
        for i in range(5000):
            client = stack.enter_context(socket.create_connection(listeners[i % 5].getsockname()))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # nothing in TIME_WAIT
            epoll.register(stack.enter_context(listeners[i % 5].accept()[0]), select.EPOLLET)
        return 5000 * (each.accepted + each.connected), slab_bytes() - empty


SERVER = """
import resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]),) * 2)
listener = socket.create_server(("127.0.0.1", 0), backlog=1000)
print(listener.getsockname()[1], flush=True)
held = []
try:
    while True:
        held.append(listener.accept()[0])
        print(len(held), flush=True)
except OSError as fault:
    print("errno", fault.errno, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def server() -> Iterator[subprocess.Popen[str]]:
    """A server that accepts until its 150 descriptors are gone."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, "150"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def test_descriptors_end_at_the_exact_connection(server: subprocess.Popen[str]) -> None:
    assert server.stdout is not None
    port = int(server.stdout.readline())
    with ExitStack() as stack:
        for held in range(1, 41):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            assert int(server.stdout.readline()) == held
        facts = host.read(server.pid)
        assert facts.process.nofile_soft == facts.process.nofile_hard == 150
        full_at = worker_full_at(40, facts.process.descriptors or 0, facts.process.nofile_soft)
        for _ in range(full_at - 40 + 1):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        lines = [server.stdout.readline().split() for _ in range(full_at - 40 + 1)]
        assert lines[-2] == [str(full_at)]
        assert lines[-1] == ["errno", str(errno.EMFILE)]


def rows(facts: Facts, target: Target) -> dict[str, Finding]:
    return {one.name: one for one in advice.findings(facts, target)}


def test_a_running_process_is_judged_by_its_own_limits(server: subprocess.Popen[str]) -> None:
    assert server.stdout is not None
    server.stdout.readline()
    found = rows(host.read(server.pid), Target(1000))["RLIMIT_NOFILE hard"]
    assert (found.verdict, found.current, found.stops_at) == (Verdict.LOW, "150", 50)


FORKS = """
import os, sys
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
print(flush=True)
sys.stdin.readline()
read, write = os.pipe()
children = []
try:
    for _ in range(20):
        child = os.fork()
        if child == 0:
            os.close(write)
            os.read(read, 1)
            os._exit(0)
        children.append(child)
except OSError as fault:
    print(len(children), fault.errno, flush=True)
os.close(write)
for child in children:
    os.waitpid(child, 0)
"""


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of our own that holds at most 8 tasks."""
    path = PIDS / f"moorage-test-{os.getpid()}"
    try:
        path.mkdir()
        (path / "pids.max").write_text("8")
    except OSError as fault:
        pytest.skip(f"no control group of our own to be had: {fault}")
    yield path
    path.rmdir()


def test_tasks_of_a_control_group_end_as_predicted(group: Path) -> None:
    command = [sys.executable, "-c", FORKS, str(group)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        facts = host.read(child.pid)
        assert (facts.cgroup.version, facts.cgroup.pids_max, facts.cgroup.pids_used) == (1, 8, 1)
        found = rows(facts, Target(1000, workers=4))["cgroup pids"]
        assert (found.verdict, found.current) == (Verdict.LOW, "8")
        output, _ = child.communicate("go\n")
    assert output.split() == ["7", str(errno.EAGAIN)]


def test_measuring_leaves_nothing_behind() -> None:
    process = psutil.Process()
    before = (process.num_fds(), resource.getrlimit(resource.RLIMIT_NOFILE))
    measured()
    assert (process.num_fds(), resource.getrlimit(resource.RLIMIT_NOFILE)) == before
