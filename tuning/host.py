"""Reads this host into `Facts`. psutil where it has the figure, /proc and /sys where it has nothing.

Whatever cannot be read is None: a check must work in a hardened container as well as on bare metal.
"""

from __future__ import annotations

import os
import resource
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import psutil

from tuning import cards, cgroups
from tuning.facts import UNLIMITED, Cgroup, Cpus, Facts, Memory, Namespaces, Process, Sockets

T = TypeVar("T")

SYSCTLS = (
    "fs.epoll.max_user_watches",
    "fs.file-max",
    "fs.file-nr",
    "fs.nr_open",
    "kernel.numa_balancing",
    "kernel.pid_max",
    "kernel.threads-max",
    "net.core.netdev_max_backlog",
    "net.core.rmem_max",
    "net.core.somaxconn",
    "net.core.wmem_max",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.tcp_mem",
    "net.ipv4.tcp_migrate_req",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_timestamps",
    "net.ipv4.tcp_tw_reuse",
    "net.ipv4.tcp_wmem",
    "net.netfilter.nf_conntrack_buckets",
    "net.netfilter.nf_conntrack_count",
    "net.netfilter.nf_conntrack_max",
    "vm.max_map_count",
    "vm.overcommit_memory",
    "vm.swappiness",
    "vm.zone_reclaim_mode",
)

# proc_ns.h: the first namespaces of a machine have fixed inode numbers (PROC_PID_INIT_INO, PROC_USER_INIT_INO).
PID_HOST_INODE = 0xEFFFFFFC
USER_HOST_INODE = 0xEFFFFFFD
CAP_SYS_RESOURCE = 24

UNREADABLE = (OSError, ValueError, KeyError, IndexError, AttributeError, RuntimeError, psutil.Error)


def read(pid: int | None = None, proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> Facts:
    """The facts of this host, with the limits of process `pid` (None: this process).

    Raises: ProcessLookupError when there is no process `pid`.
    """
    if pid is not None and not psutil.pid_exists(pid):
        raise ProcessLookupError(f"no process has pid {pid}")
    with _procfs(proc):
        spaces = _namespaces(proc)
        all_host = bool(spaces.network_is_host and spaces.pid_is_host)
        return Facts(
            kernel=_attempt(lambda: (proc / "sys/kernel/osrelease").read_text().strip()),
            container=_attempt(lambda: cgroups.container(proc, namespaces_are_host=all_host)),
            namespaces=spaces,
            cpus=_cpus(sys),
            memory=_memory(proc, sys),
            cgroup=_attempt(lambda: cgroups.read(proc, sys, pid)) or Cgroup(),
            process=process(pid, proc),
            sockets=_sockets(proc),
            tasks=_attempt(lambda: int((proc / "loadavg").read_text().split()[3].split("/")[1])),
            nics=_attempt(lambda: cards.read(proc, sys)),
            sysctls=_sysctls(proc),
        )


@contextmanager
def _procfs(proc: Path) -> Iterator[None]:
    """Point psutil at `proc` and keep it quiet about what it cannot read."""
    # types-psutil does not know the documented constant.
    before, psutil.PROCFS_PATH = psutil.PROCFS_PATH, str(proc)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        psutil.PROCFS_PATH = before


def _attempt(read_one: Callable[[], T]) -> T | None:
    try:
        return read_one()
    except UNREADABLE:
        return None


def _sysctls(proc: Path) -> dict[str, str]:
    found = {}
    for name in SYSCTLS:
        text = _attempt(lambda name=name: (proc / "sys" / name.replace(".", "/")).read_text())  # type: ignore[misc]
        if text is not None:
            found[name] = " ".join(text.split())
    return found


def _namespaces(proc: Path) -> Namespaces:
    net = proc / "sys/net/core"
    return Namespaces(
        # net_namespace.c: the kernel shows netdev_max_backlog to the first network namespace only.
        network_is_host=(net / "netdev_max_backlog").exists() if (net / "somaxconn").exists() else None,
        pid_is_host=_attempt(lambda: (proc / "self/ns/pid").stat().st_ino == PID_HOST_INODE),
        user_is_host=_attempt(lambda: (proc / "self/ns/user").stat().st_ino == USER_HOST_INODE),
    )


def _cpus(sys: Path) -> Cpus:
    clock = sys / "devices/system/clocksource/clocksource0/current_clocksource"
    nodes = sys / "devices/system/node"
    return Cpus(
        online=_attempt(psutil.cpu_count),
        usable=_attempt(lambda: len(os.sched_getaffinity(0))),
        clocksource=_attempt(lambda: clock.read_text().strip()),
        numa_nodes=_attempt(lambda: len(list(nodes.glob("node[0-9]*")))) or None,
    )


def _memory(proc: Path, sys: Path) -> Memory:
    ram = _attempt(psutil.virtual_memory)
    swap = _attempt(psutil.swap_memory)
    more = _attempt(lambda: _meminfo(proc)) or {}
    thp = sys / "kernel/mm/transparent_hugepage/enabled"
    return Memory(
        total=ram.total if ram else None,
        available=ram.available if ram else None,
        swap_total=swap.total if swap else None,
        swap_used=swap.used if swap else None,
        page_bytes=_attempt(resource.getpagesize),
        commit_limit=more.get("CommitLimit"),
        committed=more.get("Committed_AS"),
        transparent_huge_pages=_attempt(lambda: thp.read_text().split("[")[1].split("]")[0]),
        huge_page_bytes=more.get("Hugepagesize"),
        huge_pages=more.get("HugePages_Total"),
        huge_pages_free=more.get("HugePages_Free"),
        huge_pages_reserved=more.get("HugePages_Rsvd"),
    )


def _meminfo(proc: Path) -> dict[str, int]:
    """Bytes, or counts where the kernel gives no unit."""
    figures = {}
    for line in (proc / "meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        figures[name] = int(words[0]) * (1024 if words[1:] == ["kB"] else 1)
    return figures


def process(pid: int | None, proc: Path = Path("/proc")) -> Process:
    """The limits of process `pid`, and what it uses of them; of this process when None."""
    found = _attempt(lambda: psutil.Process(pid))
    if found is None:
        return Process(pid=pid)
    nofile = _attempt(lambda: found.rlimit(psutil.RLIMIT_NOFILE))
    nproc = _attempt(lambda: found.rlimit(psutil.RLIMIT_NPROC))
    return Process(
        pid=found.pid,
        name=_attempt(found.name),
        nofile_soft=_limit(nofile[0]) if nofile else None,
        nofile_hard=_limit(nofile[1]) if nofile else None,
        nproc_soft=_limit(nproc[0]) if nproc else None,
        descriptors=_attempt(found.num_fds),
        may_raise=_attempt(lambda: _has_capability(proc / str(found.pid) / "status", CAP_SYS_RESOURCE)),
    )


def _limit(value: int) -> int:
    return UNLIMITED if value == psutil.RLIM_INFINITY else value


def _has_capability(status: Path, number: int) -> bool:
    lines = [line for line in status.read_text().splitlines() if line.startswith("CapEff:")]
    return bool(int(lines[0].split()[1], 16) >> number & 1)


def _sockets(proc: Path) -> Sockets:
    tcp = _attempt(lambda: _sockstat(proc)) or {}
    return Sockets(
        tcp_inuse=tcp.get("inuse"),
        tcp_time_wait=tcp.get("tw"),
        tcp_pages=tcp.get("mem"),
        listen_overflows=_attempt(lambda: _netstat(proc)["ListenOverflows"]),
        softnet_drops=_attempt(lambda: _softnet_drops(proc)),
    )


def _sockstat(proc: Path) -> dict[str, int]:
    lines = [line for line in (proc / "net/sockstat").read_text().splitlines() if line.startswith("TCP:")]
    words = lines[0].split()[1:]
    return dict(zip(words[::2], map(int, words[1::2]), strict=True))


def _netstat(proc: Path) -> dict[str, int]:
    lines = [line.split() for line in (proc / "net/netstat").read_text().splitlines() if line.startswith("TcpExt:")]
    return dict(zip(lines[0][1:], map(int, lines[1][1:]), strict=True))


def _softnet_drops(proc: Path) -> int:
    """Packets dropped because a CPU's backlog was full: the second column of every CPU's line."""
    return sum(int(line.split()[1], 16) for line in (proc / "net/softnet_stat").read_text().splitlines())
