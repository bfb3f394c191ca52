"""Facts are read from any /proc and /sys, and whatever is not there is None."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from tuning import host
from tuning.facts import UNLIMITED, Facts, from_json, to_json


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_this_host_is_read() -> None:
    facts = host.read()
    assert facts.process.pid == os.getpid()
    assert facts.cpus.online == psutil.cpu_count()
    assert facts.memory.total == psutil.virtual_memory().total
    soft, hard = psutil.Process().rlimit(psutil.RLIMIT_NOFILE)
    unlimited = psutil.RLIM_INFINITY
    assert facts.process.nofile_soft == (UNLIMITED if soft == unlimited else soft)
    assert facts.process.nofile_hard == (UNLIMITED if hard == unlimited else hard)
    assert from_json(to_json(facts)) == facts


def test_psutil_is_left_as_it_was(tmp_path: Path) -> None:
    host.read(proc=tmp_path / "proc", sys=tmp_path / "sys")
    assert psutil.PROCFS_PATH == "/proc"


def test_an_empty_proc_and_sys_say_nothing(tmp_path: Path) -> None:
    facts = host.read(proc=tmp_path / "proc", sys=tmp_path / "sys")
    assert facts.kernel is None
    assert facts.container is None
    assert facts.namespaces.network_is_host is None
    assert facts.memory.total is None
    assert facts.tasks is None
    assert facts.nics is None
    assert facts.sysctls == {}
    assert facts.cgroup == Facts().cgroup
    assert facts.sockets == Facts().sockets


def test_garbage_in_proc_says_nothing(tmp_path: Path) -> None:
    garbage = dict.fromkeys(
        ("meminfo", "loadavg", "net/sockstat", "net/netstat", "net/softnet_stat", "self/cgroup", "vmstat"),
        "\x00garbage",
    )
    write(tmp_path / "proc", garbage)
    facts = host.read(proc=tmp_path / "proc", sys=tmp_path / "sys")
    assert facts.sockets == Facts().sockets
    assert facts.tasks is None
    assert facts.memory.commit_limit is None


def test_figures_of_a_recorded_proc(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/sys/kernel/osrelease": "6.1.0\n",
            "proc/loadavg": "0.1 0.2 0.3 2/345 999\n",
            "proc/meminfo": "MemTotal: 1000 kB\nMemFree: 500 kB\nMemAvailable: 700 kB\nBuffers: 1 kB\nCached: 1 kB\n"
            "HugePages_Total: 5\nHugePages_Free: 2\nHugePages_Rsvd: 1\n"
            "Hugepagesize: 2048 kB\nCommitLimit: 900 kB\nCommitted_AS: 100 kB\n",
            "proc/net/sockstat": "sockets: used 9\nTCP: inuse 4 orphan 0 tw 3 alloc 5 mem 17\n",
            "proc/net/netstat": "TcpExt: SyncookiesSent ListenOverflows\nTcpExt: 1 26\nIpExt: A\nIpExt: 2\n",
            "proc/net/softnet_stat": "00000001 0000000a 0\n00000001 00000001 0\n",
            "proc/sys/net/core/somaxconn": "4096\n",
            "proc/sys/net/ipv4/tcp_mem": "1\t2\t3\n",
            "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
            "sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc\n",
            "sys/devices/system/node/node0/x": "",
            "sys/devices/system/node/node1/x": "",
        },
    )
    facts = host.read(proc=tmp_path / "proc", sys=tmp_path / "sys")
    assert (facts.kernel, facts.tasks, facts.cpus.clocksource, facts.cpus.numa_nodes) == ("6.1.0", 345, "tsc", 2)
    assert facts.sysctls == {"net.core.somaxconn": "4096", "net.ipv4.tcp_mem": "1 2 3"}
    assert facts.namespaces.network_is_host is False
    assert (facts.memory.total, facts.memory.available) == (1000 * 1024, 700 * 1024)
    assert (facts.memory.huge_pages, facts.memory.huge_pages_free) == (5, 2)
    assert facts.memory.huge_pages_in_use == 4, "three that are touched, and one that is promised"
    assert facts.memory.huge_page_bytes == 2048 * 1024
    assert (facts.memory.commit_limit, facts.memory.committed) == (900 * 1024, 100 * 1024)
    assert facts.memory.transparent_huge_pages == "madvise"
    assert (facts.sockets.tcp_inuse, facts.sockets.tcp_time_wait, facts.sockets.tcp_pages) == (4, 3, 17)
    assert (facts.sockets.listen_overflows, facts.sockets.softnet_drops) == (26, 11)


def test_the_first_network_namespace_is_known_by_what_only_it_shows(tmp_path: Path) -> None:
    write(tmp_path, {"proc/sys/net/core/somaxconn": "1", "proc/sys/net/core/netdev_max_backlog": "1000"})
    assert host.read(proc=tmp_path / "proc", sys=tmp_path / "sys").namespaces.network_is_host is True


def test_a_pid_that_is_nobodys_is_refused() -> None:
    with pytest.raises(ProcessLookupError, match="no process has pid 999999999"):
        host.read(999_999_999)
