from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from server import host

SLABINFO = """slabinfo - version: 2.1
# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables
TCPv6                 26     26   2496   13    8 : tunables    0    0    0 : slabdata      2      2      0
TCP                   91    156   2368   13    8 : tunables    0    0    0 : slabdata     12     12      0
eventpoll_epi        298    448    128   32    1 : tunables    0    0    0 : slabdata     14     14      0
sock_inode_cache     134    247    832   19    4 : tunables    0    0    0 : slabdata     13     13      0
filp                 693    693    192   21    1 : tunables    0    0    0 : slabdata     33     33      0
dentry            115406 115521    192   21    1 : tunables    0    0    0 : slabdata   5501   5501      0
"""
SOCKSTAT = """sockets: used 14
TCP: inuse 90 orphan 0 tw 3 alloc 100 mem 25
UDP: inuse 0 mem 0
"""


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "slabinfo").write_text(SLABINFO)
    (tmp_path / "sockstat").write_text(SOCKSTAT)
    return tmp_path


def test_usage_of_this_process() -> None:
    usage = host.Processes().usage(os.getpid())
    assert usage is not None
    assert usage.cpu_seconds > 0
    assert usage.resident_bytes > 1_000_000
    assert usage.fd_limit >= usage.open_fds > 2


def test_open_descriptors_are_counted_as_they_come_and_go() -> None:
    processes = host.Processes()
    before = processes.usage(os.getpid())
    pipes = [os.pipe() for _ in range(10)]
    during = processes.usage(os.getpid())
    for pipe in pipes:
        os.close(pipe[0])
        os.close(pipe[1])
    assert before is not None
    assert during is not None
    # At most one apart: listing the directory, where the kernel cannot count, takes one.
    assert 19 <= during.open_fds - before.open_fds <= 21


def test_a_process_that_is_gone_is_none() -> None:
    processes = host.Processes()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert processes.usage(child.pid) is not None
    assert (processes.private_bytes(child.pid) or 0) > 0
    child.communicate()
    assert processes.usage(child.pid) is None
    assert processes.private_bytes(child.pid) is None
    processes.keep([os.getpid()])
    assert processes.usage(child.pid) is None


def test_kernel_tcp_reads_sockets_and_pages(proc: Path) -> None:
    assert host.kernel_tcp(proc / "sockstat") == (100, 25 * os.sysconf("SC_PAGESIZE"))
    assert host.kernel_tcp() is not None, "this machine has it"
    assert host.kernel_tcp(proc / "none") is None
    (proc / "sockstat").write_text("sockets: used 14\n")
    assert host.kernel_tcp(proc / "sockstat") is None


def test_a_connection_takes_its_share_of_slabs(proc: Path) -> None:
    page = os.sysconf("SC_PAGESIZE")
    objects = page * (8 / 13 + 1 / 32 + 4 / 19 + 1 / 21 + 1 / 21)
    assert host.kernel_bytes_per_connection(proc / "slabinfo") == pytest.approx(objects)
    assert 3_500 < objects < 4_500 or page != 4096, "measured: about 3.7 kB"


def test_without_slabinfo_nothing_is_claimed(proc: Path) -> None:
    assert host.kernel_bytes_per_connection(proc / "none") is None
    (proc / "slabinfo").write_text("slabinfo - version: 2.1\n")
    assert host.kernel_bytes_per_connection(proc / "slabinfo") is None
