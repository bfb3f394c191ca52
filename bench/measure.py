"""What the kernel says about processes and sockets: CPU to the nanosecond, memory, slab, who holds which socket."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
CPUCLOCK_SCHED = 2  # clock_getcpuclockid(3): the scheduler's own count, against 10 ms ticks in /proc/PID/stat


class Gone(Exception):
    """A process that was being measured has ended."""


def cpu_ns(pid: int) -> int:
    """Return the CPU time of a process, user and system, all threads and those that ended.

    Raises: Gone when there is no such process.
    """
    try:
        return time.clock_gettime_ns((~pid << 3) | CPUCLOCK_SCHED)
    except OSError as error:
        raise Gone(f"process {pid} has ended while it was measured") from error


def kernel_ns(pid: int) -> int:
    """Return how much of its CPU time a process has spent in the kernel, by the clock tick: /proc/PID/stat, `stime`.

    Raises: Gone when there is no such process.
    """
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()  # a name may hold spaces
    except (FileNotFoundError, ProcessLookupError) as error:
        raise Gone(f"process {pid} has ended while it was measured") from error
    return int(fields[12]) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def waited_ns(pid: int) -> int:
    """Return how long the first thread of a process has been ready to run and has not run: /proc/PID/schedstat.

    Raises: Gone when there is no such process.
    """
    try:
        return int((PROC / str(pid) / "schedstat").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError) as error:
        raise Gone(f"process {pid} has ended while it was measured") from error


def memory_bytes(pid: int) -> int:
    """Return the proportional set size of a process without the pages of files (/proc/PID/smaps_rollup).

    Memory it shares with its parent counts in part. Pages of files (the interpreter, libraries) do not grow with
    connections, and their share in a process changes with whatever else on the machine has mapped them.

    Raises: Gone when there is no such process.
    """
    try:
        text = (PROC / str(pid) / "smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise Gone(f"process {pid} has ended while it was measured") from error
    return 1024 * sum(
        int(line.split()[1]) for line in text.splitlines() if line.startswith(("Pss_Anon:", "Pss_Shmem:"))
    )


class Slab(NamedTuple):
    """Kernel memory in slabs, of the whole machine, and where the figure is from."""

    bytes: int
    source: str


# What an accepted TCP socket in an epoll set consists of; every socket inode has one each of its companions, which
# are counted by it, because files have them as well. A kernel that has merged one of these caches with another lists
# it under that one's name, and the figure falls short by it.
SOCKET_CACHES = {
    "TCP",
    "TCPv6",
    "sock_inode_cache",
    "filp",
    "lsm_file_cache",
    "eventpoll_epi",
    "eventpoll_pwq",
    "ep_head",
}
COMPANIONS = {"dentry", "lsm_inode_cache"}


def slab() -> Slab:
    """Return the slab memory that sockets consist of, or that of everything where only root may see the caches."""
    try:
        return Slab(slabinfo_bytes((PROC / "slabinfo").read_text()), "what sockets consist of, by /proc/slabinfo")
    except PermissionError:
        lines = (PROC / "meminfo").read_text().splitlines()
        total = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Slab:"))
        return Slab(total, "all slab memory, by /proc/meminfo")


def slabinfo_bytes(text: str) -> int:
    """Return the bytes of objects in use, with their part of the pages, that sockets consist of.

    `text` is /proc/slabinfo, version 2.1. Pages that are kept for new objects do not count: they are left from sockets
    closed earlier as often as made for new ones.
    """
    page = os.sysconf("SC_PAGE_SIZE")
    caches = {fields[0]: fields for fields in map(str.split, text.splitlines()[2:])}
    each = {name: page * int(of[5]) / int(of[4]) for name, of in caches.items()}  # pagesperslab, objperslab
    inodes = int(caches["sock_inode_cache"][1])
    own = sum(each[name] * int(caches[name][1]) for name in SOCKET_CACHES & caches.keys())  # active_objs
    return int(own + inodes * sum(each[name] for name in COMPANIONS & caches.keys()))


class Sockets(NamedTuple):
    """TCP sockets of the network namespace (/proc/net/sockstat); `buffer_bytes` is what their queues hold."""

    inuse: int
    alloc: int
    buffer_bytes: int


def sockets() -> Sockets:
    """Return the kernel's own count of TCP sockets and of the pages in their buffers."""
    line = next(text for text in (PROC / "net/sockstat").read_text().splitlines() if text.startswith("TCP:"))
    words = line.split()[1:]
    values = dict(zip(words[::2], map(int, words[1::2]), strict=True))
    return Sockets(values["inuse"], values["alloc"], values["mem"] * os.sysconf("SC_PAGE_SIZE"))


Peer = tuple[str, int]


def owners(pids: Iterable[int]) -> dict[Peer, int]:
    """Return which of these processes holds the server's end of a connection, by the client's IPv4 address and port.

    It asks the kernel, not the server, so that it is right for any server. A socket in several processes (a
    listener) has no remote address and is left out.
    """
    inodes = {inode: pid for pid in pids for inode in _socket_inodes(pid)}
    found: dict[Peer, int] = {}
    with (PROC / "net/tcp").open() as table:
        next(table)
        for line in table:
            fields = line.split()
            pid = inodes.get(fields[9])
            if pid is not None and fields[2] != "00000000:0000":
                found[_peer(fields[2])] = pid
    return found


def _socket_inodes(pid: int) -> Iterable[str]:
    for entry in os.scandir(PROC / str(pid) / "fd"):
        try:
            target = os.readlink(entry.path)
        except FileNotFoundError:  # closed meanwhile
            continue
        if target.startswith("socket:["):
            yield target[len("socket:[") : -1]


def _peer(text: str) -> Peer:
    """Parse `0100007F:1F90`: an address in the machine's byte order, and a port."""
    address, port = text.split(":")
    octets = int(address, 16).to_bytes(4, "little")
    return ".".join(map(str, octets)), int(port, 16)
