"""What a machine lacks for a run of both ends on it, found before it starts: descriptors, files, memory, queues.

`moorage tuning plan` says more of all these, and writes what is to be set.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from bench import sysctls
from bench.clients import SPARE_DESCRIPTORS
from bench.settings import Impossible

PROC = Path("/proc")
KERNEL_BYTES = 4_000  # of one end of an idle connection: socket, inode, file, dentry, epoll item
USER_BYTES = 360  # of a session with a user, a personal channel and a room
REDIS_BYTES = 330  # of a subscribed personal channel
WORKER_BYTES, CLIENT_BYTES = 9_000_000, 6_000_000  # of a process of its own
RESERVE_BYTES = 1_000_000_000
DESCRIPTORS_OWN = 100  # of a worker that no connection gets: half of them are kept for refusals
SPREAD = 5.0  # standard deviations by which the fullest of the workers exceeds its share: SO_REUSEPORT goes by a hash
CAP_SYS_ADMIN = 21  # who has it may exceed fs.file-max


class Machine(NamedTuple):
    """What was read of it."""

    descriptors: int
    files_max: int
    is_privileged: bool
    available_bytes: int


def read() -> Machine:
    """Read it."""
    return Machine(
        descriptors=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        files_max=int(sysctls.read("fs.file-max")),
        is_privileged=bool(_capabilities() >> CAP_SYS_ADMIN & 1),
        available_bytes=available_bytes(),
    )


def available_bytes() -> int:
    """Return the memory that may be used without swapping: MemAvailable, proc_meminfo(5)."""
    lines = (PROC / "meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))


def drops() -> int:
    """Return how many packets and connections the kernel has dropped at full queues since it started.

    Packets at netdev_max_backlog (the second column of /proc/net/softnet_stat, in hexadecimal), connections at the
    accept queue (ListenDrops).
    """
    packets = sum(int(line.split()[1], 16) for line in (PROC / "net/softnet_stat").read_text().splitlines())
    names, values = ((PROC / "net/netstat").read_text().splitlines())[:2]
    return packets + int(dict(zip(names.split(), values.split(), strict=True)).get("ListenDrops", 0))


def worker_holds(descriptors: int) -> int:
    """Return how many connections a worker should get on average, so that the fullest still has descriptors for its."""
    most = descriptors - DESCRIPTORS_OWN
    return max(1, int(most - SPREAD * most**0.5))


def workers_needed(connections: int) -> int:
    """Return how many workers hold so many, at least one for each core."""
    least = -(-connections // worker_holds(resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    return max(os.cpu_count() or 1, least)


def needed_bytes(connections: int, workers: int, clients: int) -> int:
    """Return the memory of a run; `workers` 0: the server is elsewhere."""
    ends = 2 if workers else 1
    each = ends * KERNEL_BYTES + (USER_BYTES + REDIS_BYTES if workers else 0)
    return connections * each + workers * WORKER_BYTES + clients * CLIENT_BYTES + RESERVE_BYTES


def check(connections: int, workers: int, clients: int, machine: Machine) -> None:
    """Find out whether the run can be made at all. Raises: Impossible with everything that is missing, and what would do."""
    missing = []
    files = files_needed(connections, workers)
    if files > machine.files_max and not machine.is_privileged:
        missing.append(f"fs.file-max is {machine.files_max:,}: sysctl -w fs.file-max={files}")
    if workers and connections > workers * worker_holds(machine.descriptors):
        missing.append(
            f"{workers} workers hold {workers * worker_holds(machine.descriptors):,} under RLIMIT_NOFILE "
            f"{machine.descriptors:,}: --workers {workers_needed(connections)}, or raise it"
        )
    if connections > clients * (machine.descriptors - SPARE_DESCRIPTORS):
        missing.append(f"{clients} client processes hold {clients * (machine.descriptors - SPARE_DESCRIPTORS):,}")
    needed, own = (needed_bytes(count, workers, clients) for count in (connections, 0))
    if needed > machine.available_bytes:
        if own >= machine.available_bytes:
            own = RESERVE_BYTES  # the processes alone are too many: fewer connections take fewer of them
        fits = int((machine.available_bytes - own) * connections / (needed - own)) // 10_000 * 10_000
        missing.append(
            f"memory: {needed / 1e9:.1f} GB are needed, {machine.available_bytes / 1e9:.1f} GB available"
            + (f": --connections {fits}" if fits > 0 else "")
        )
    if missing:
        raise Impossible(f"--connections {connections:,}: " + "; ".join(missing))


def settings(connections: int, workers: int) -> dict[str, str]:
    """Return the kernel settings that are too low for the run on this machine, and what they should be.

    Packets over loopback wait in a queue of netdev_max_backlog for each core while the sender's core is busy, and those
    beyond are dropped and sent again after 0.2 s and more. What a broadcast has sent and the clients have not read
    takes a buffer each (tcp_mem, in pages). Every socket is an open file (file-max).
    """
    pages = connections // 2
    wanted = {}
    tcp_mem = _current("net.ipv4.tcp_mem")
    if tcp_mem is not None and pages > tcp_mem[1]:  # pressure
        wanted["net.ipv4.tcp_mem"] = f"{pages} {pages * 3 // 2} {pages * 2}"
    for name, least in (
        ("fs.file-max", files_needed(connections, workers)),
        ("net.core.netdev_max_backlog", min(300_000, connections)),
        ("net.core.somaxconn", min(65_535, connections)),
    ):
        current = _current(name)
        if current is not None and current[0] < least:
            wanted[name] = str(least)
    return wanted


def _current(name: str) -> list[int] | None:
    """The numbers of a setting; None where it is the host's, and a container does not see it."""
    try:
        return [int(number) for number in sysctls.read(name).split()]
    except FileNotFoundError:
        return None


def files_needed(connections: int, workers: int) -> int:
    """Return how many files of the machine a run opens."""
    return connections * (2 if workers else 1) + 10_000


def hints(wanted: Mapping[str, str]) -> list[str]:
    """Return what a person is told of settings that are too low."""
    return [
        f"{name} is {sysctls.read(name)}, which is low for this: sysctl -w {name}='{value}', or --tune"
        for name, value in wanted.items()
    ]


def _capabilities() -> int:
    lines = (PROC / "self/status").read_text().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
