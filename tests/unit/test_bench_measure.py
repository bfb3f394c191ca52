import os
import socket
import subprocess
import sys
import time

import pytest

from bench.measure import Gone, cpu_ns, kernel_ns, memory_bytes, owners, slab, slabinfo_bytes, sockets, waited_ns

GREEDY = (
    "import sys; sys.stdin.readline(); a = bytearray(b'x') * 30_000_000; print('grown', flush=True); sys.stdin.read()"
)
SLABINFO = """\
slabinfo - version: 2.1
# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables ...
TCP                   100    130   2368   13    8 : tunables    0    0    0 : slabdata     10     10      0
sock_inode_cache      200    200    832   19    4 : tunables    0    0    0 : slabdata     11     11      0
dentry             900000 900000    192   21    1 : tunables    0    0    0 : slabdata  43000  43000      0
buffer_head        900000 900000    104   39    1 : tunables    0    0    0 : slabdata  43000  43000      0
"""


def test_cpu_counts_what_a_process_uses_and_tells_when_it_is_gone() -> None:
    before = cpu_ns(os.getpid())
    sum(range(200_000))
    assert cpu_ns(os.getpid()) > before
    with subprocess.Popen([sys.executable, "-c", "pass"]) as child:
        pass
    with pytest.raises(Gone, match=str(child.pid)):
        cpu_ns(child.pid)
    for measure in (kernel_ns, memory_bytes, waited_ns):
        with pytest.raises(Gone, match=str(child.pid)):
            measure(child.pid)


def test_what_the_kernel_does_is_a_part_of_it() -> None:
    kernel = kernel_ns(os.getpid())
    until = time.monotonic() + 20
    while kernel_ns(os.getpid()) < kernel + 50_000_000:
        assert time.monotonic() < until
        for _ in range(1000):
            os.stat("/")  # a system call is wanted
    assert kernel_ns(os.getpid()) - kernel < cpu_ns(os.getpid())


def test_waiting_counts_while_another_has_the_processor() -> None:
    """Two that want the same processor for so long: it cannot have had both."""
    spin = "import time\nwhile time.process_time() < 0.2: pass"
    cpu = min(os.sched_getaffinity(0))
    first, second = (
        subprocess.Popen(["taskset", "-c", str(cpu), sys.executable, "-c", spin + "\ninput()"], stdin=subprocess.PIPE)
        for _ in range(2)
    )
    with first, second:
        until = time.monotonic() + 20
        while sum(map(waited_ns, (first.pid, second.pid))) < 100_000_000:
            assert time.monotonic() < until
        for each in (first, second):
            each.communicate(b"\n")


def test_memory_counts_what_a_process_takes() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", GREEDY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin
        assert child.stdout
        before = memory_bytes(child.pid)
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "grown\n"
        grown = memory_bytes(child.pid) - before
        child.stdin.close()
    assert 30_000_000 <= grown < 45_000_000


def test_slab_counts_objects_in_use_of_sockets_and_of_nothing_else() -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    # A TCP object is 8/13 of a page, an inode 4/19, and each inode has a dentry of 1/21.
    assert slabinfo_bytes(SLABINFO) == int(page * (100 * 8 / 13 + 200 * 4 / 19 + 200 / 21))


def test_the_kernel_of_this_machine_can_be_read() -> None:
    assert slab().bytes > 0
    assert sockets().alloc >= 0


def test_owners_tells_which_process_holds_the_servers_end() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
        listener.accept()[0],
    ):
        found = owners([os.getpid()])
        assert found[client.getsockname()] == os.getpid()
        assert not owners([])
