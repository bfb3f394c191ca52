"""What the kernel says of this host and of the workers on it: processor time, memory, descriptors, TCP.

psutil reads it, by process id. /proc is read here only for what psutil has not.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

SOCKSTAT = Path("/proc/net/sockstat")
SLABINFO = Path("/proc/slabinfo")

_TCP = re.compile(r"^TCP: .*\balloc (\d+) mem (\d+)", re.MULTILINE)
_PAGE_BYTES = os.sysconf("SC_PAGESIZE")
_GONE = (psutil.NoSuchProcess, psutil.AccessDenied)

# What one accepted socket is made of. A cache that the kernel has merged into another has no line of its own.
_SOCKET_CACHES = (
    "TCP", "sock_inode_cache", "filp", "dentry", "eventpoll_epi", "eventpoll_pwq", "ep_head", "lsm_inode_cache",
    "lsm_file_cache",
)  # fmt: skip
_CPUCLOCK_SCHED = 2  # clock_getcpuclockid(3)


class Usage(NamedTuple):
    """What one process has used and holds. `cpu_seconds` is user and system time."""

    cpu_seconds: float
    resident_bytes: int
    open_fds: int
    fd_limit: int


class Processes:
    """Reads of processes by id. A process that is gone, or not ours to read, is None."""

    def __init__(self) -> None:
        self._known: dict[int, psutil.Process] = {}

    def keep(self, pids: Iterable[int]) -> None:
        """Forget every process but these."""
        self._known = {pid: self._known[pid] for pid in pids if pid in self._known}

    def usage(self, pid: int) -> Usage | None:
        """What `pid` uses now: some 50 us."""
        try:
            process = self._process(pid)
            cpu = process.cpu_times()
            limit, _ = process.rlimit(psutil.RLIMIT_NOFILE)
            return Usage(cpu.user + cpu.system, process.memory_info().rss, _open_fds(process), limit)
        except _GONE:
            return None

    def private_bytes(self, pid: int) -> int | None:
        """Memory that only this process has. The kernel walks every page for it, some milliseconds a process.

        Not the proportional set size: a forked worker's share of what it has in common with its siblings grows
        whenever one of them writes to a page, which says nothing about its connections.
        """
        try:
            return int(self._process(pid).memory_full_info().uss)
        except _GONE:
            return None

    def _process(self, pid: int) -> psutil.Process:
        if (process := self._known.get(pid)) is None:
            process = self._known[pid] = psutil.Process(pid)
        return process


def cpu_seconds(pid: int) -> float | None:
    """User and system time of all threads of a process, to the nanosecond; None when it is gone.

    psutil counts in ticks of 10 ms, and an idle worker uses about one of them a second.
    """
    try:
        return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)
    except OSError:
        return None


def _open_fds(process: psutil.Process) -> int:
    """Since Linux 6.2 the size of the directory is the answer; psutil lists it, 10 ms for 20,000 descriptors."""
    with suppress(OSError):
        if count := os.stat(f"/proc/{process.pid}/fd").st_size:
            return count
    return process.num_fds()


class KernelTcp(NamedTuple):
    """The kernel's own account of TCP (proc(5), /proc/net/sockstat), both families, both ends."""

    sockets: int
    memory_bytes: int  # of buffers


def kernel_tcp(sockstat: Path = SOCKSTAT) -> KernelTcp | None:
    """What the host's TCP holds; None where /proc does not tell."""
    try:
        found = _TCP.search(sockstat.read_text())
    except OSError:
        return None
    return KernelTcp(int(found[1]), int(found[2]) * _PAGE_BYTES) if found else None


def kernel_bytes_per_connection(slabinfo: Path = SLABINFO) -> float | None:
    """What one idle accepted TCP connection takes of the kernel's memory: its objects.

    Each object is counted with its share of its slab's waste. The sizes are this kernel's own, and do not depend on
    what else is in the caches: dentries of files, or the other ends of the connections on the same machine. Buffers are
    not in it: the kernel's sum of them is of all programs, and has up to 1 MiB a processor in it that no socket holds.
    None where /proc/slabinfo is not readable (root only).
    """
    try:
        lines = slabinfo.read_text().splitlines()
    except OSError:
        return None
    caches = {name: rest for name, *rest in map(str.split, lines) if name in _SOCKET_CACHES}
    if "TCP" not in caches:
        return None
    # slabinfo(5): active_objs num_objs objsize objperslab pagesperslab
    return sum(int(cache[4]) * _PAGE_BYTES / int(cache[3]) for cache in caches.values())
