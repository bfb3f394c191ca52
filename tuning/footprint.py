"""Measures what an idle connection costs in the kernel of this host, by opening some and looking at the slabs.

A socket is a whole number of objects in each slab cache (TCP, its inode, the file, the epoll item), so the growth of a
cache is divided by the number of sockets and rounded: what other programs do meanwhile rounds away. Without
/proc/slabinfo (it is root's) the growth of all slabs is taken as it is, which is noisier.
"""

from __future__ import annotations

import resource
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

from tuning.facts import UNLIMITED

T = TypeVar("T")

TCP, INODE = "TCP", "sock_inode_cache"
PAIRS_PER_LISTENER = 100  # fits the queue and the port range of any host
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closed with a reset, no client stays behind in TIME_WAIT

PAIRS = 2000
PAIRS_MIN = 200  # with fewer, objects that the kernel keeps ready per CPU weigh too much
SPARE_DESCRIPTORS = 64
ATTEMPTS = 3  # other programs open and close sockets too
SETTLE_LOOKS, SETTLE_SECONDS, SETTLED_BYTES, SETTLED_OBJECTS = 20, 0.05, 256 * 1024, 40
NOISE = 0.4  # of an object a socket: nearer to a half, it cannot be told which

Slabs = Mapping[str, tuple[int, float]]
"""Cache -> active objects, and bytes of one with its share of the slab's slack."""


class CannotMeasure(Exception):
    """The kernel shows neither its slabs nor their sum, or there are too few descriptors."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Kernel bytes of one idle TCP connection on this host."""

    accepted: int  # the server's end: socket, inode, file, directory entry, epoll item
    connected: int  # the client's end, without epoll; it counts when both are on one host
    pairs: int  # how many were opened to find out
    source: str  # "slabinfo" or "meminfo"
    caches: Mapping[str, int]  # slab cache -> bytes in it for one accepted connection; empty for meminfo


def measure(pairs: int = PAIRS, proc: Path = Path("/proc")) -> Footprint:
    """Open `pairs` connections over loopback, and close them again; fewer where RLIMIT_NOFILE is small. Takes 0.1 s.

    Raises: CannotMeasure; OSError when loopback is down.
    """
    with _descriptors() as limit:
        room = (limit - psutil.Process().num_fds() - SPARE_DESCRIPTORS) // 2
        pairs = min(pairs, room)
        if pairs < PAIRS_MIN:
            raise CannotMeasure(f"room for {max(0, pairs)} pairs of sockets, wanted {PAIRS_MIN}: raise RLIMIT_NOFILE")
        try:
            slabs(proc)
        except OSError:
            return _by_meminfo(pairs)
        return _by_slabs(pairs, proc)


@contextmanager
def _descriptors() -> Iterator[int]:
    """The soft limit at the hard one for a while; how many descriptors that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield UNLIMITED if hard == resource.RLIM_INFINITY else hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def slabs(proc: Path) -> Slabs:
    """All slab caches (slabinfo(5)).

    Raises: OSError when /proc/slabinfo is not there or not for us.
    """
    found = {}
    for line in (proc / "slabinfo").read_text().splitlines()[2:]:
        name, active, _, _, per_slab, pages, *_ = line.split()
        found[name] = int(active), int(pages) * resource.getpagesize() / max(1, int(per_slab))
    return found


def growth(before: Slabs, after: Slabs, sockets: int) -> dict[str, int]:
    """Objects a socket in every cache that grew with the sockets: whole ones, the rest is noise."""
    grown = {}
    for name, (active, _) in after.items():
        each = (active - before.get(name, (0, 0.0))[0]) / sockets
        objects = round(each)
        if objects > 0 and abs(each - objects) < NOISE:
            grown[name] = objects
    return grown


def _by_slabs(pairs: int, proc: Path) -> Footprint:
    for _ in range(ATTEMPTS):
        _settle(lambda: slabs(proc).get(TCP, (0, 0.0))[0], SETTLED_OBJECTS)
        found = _slabs_once(pairs, proc)
        if found is not None:
            return found
    raise CannotMeasure("the slab caches did not grow with the sockets: this host is too busy to measure")


def _slabs_once(pairs: int, proc: Path) -> Footprint | None:
    first, second, third = _stages(pairs, lambda: slabs(proc))
    connecting, accepting = growth(first, second, pairs), growth(second, third, pairs)
    # Both ends have their TCP part once connected; the server's end gets its inode and file when it is accepted.
    if (connecting.get(TCP), connecting.get(INODE), accepting.get(TCP), accepting.get(INODE)) != (2, 1, None, 1):
        return None
    tcp = round(third[TCP][1])
    caches = {TCP: tcp} | {name: round(objects * third[name][1]) for name, objects in accepting.items()}
    client = sum(round(objects * third[name][1]) for name, objects in connecting.items()) - tcp
    return Footprint(sum(caches.values()), client, pairs, "slabinfo", caches)


def _by_meminfo(pairs: int) -> Footprint:
    for _ in range(ATTEMPTS):
        _settle(lambda: psutil.virtual_memory().slab, SETTLED_BYTES)
        found = _meminfo_once(pairs)
        if found is not None:
            return found
    raise CannotMeasure("the kernel's slab memory did not grow with the sockets: this host is too busy to measure")


def _settle(look: Callable[[], int], still: int) -> None:
    """Wait until what `look` sees stands still: the slabs of sockets closed a moment ago are given back late."""
    before = look()
    for _ in range(SETTLE_LOOKS):
        time.sleep(SETTLE_SECONDS)
        now = look()
        if abs(now - before) < still:
            return
        before = now


def _meminfo_once(pairs: int) -> Footprint | None:
    first, second, third = _stages(pairs, lambda: psutil.virtual_memory().slab)
    # The halves of a connected pair cannot be told apart here: what accept adds, the client's end has too.
    accepting = (third - second) / pairs
    tcp = (second - first - (third - second)) / pairs / 2
    if tcp <= 0 or accepting <= 0:
        return None
    return Footprint(round(tcp + accepting), round(tcp + accepting), pairs, "meminfo", {})


def _stages(pairs: int, look: Callable[[], T]) -> tuple[T, T, T]:
    """What `look` sees before the connections, when they are connected, and when they are accepted and watched."""
    with ExitStack() as stack:
        epoll = stack.enter_context(select.epoll())
        listeners = _listeners(stack, pairs)
        before = look()
        for listener, clients in listeners:
            for _ in range(clients):
                client = stack.enter_context(socket.create_connection(listener.getsockname(), timeout=5))
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        connected = look()
        for listener, clients in listeners:
            for _ in range(clients):
                accepted = stack.enter_context(listener.accept()[0])
                epoll.register(accepted, select.EPOLLIN | select.EPOLLET)
        return before, connected, look()


def _listeners(stack: ExitStack, pairs: int) -> list[tuple[socket.socket, int]]:
    """Listeners whose queues together hold `pairs` connections, each with its share."""
    share = max(1, min(PAIRS_PER_LISTENER, _somaxconn() // 2))
    listeners = []
    while pairs > 0:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=2 * share))
        listener.settimeout(5)
        listeners.append((listener, min(share, pairs)))
        pairs -= share
    return listeners


def _somaxconn() -> int:
    try:
        return int(Path("/proc/sys/net/core/somaxconn").read_text())
    except (OSError, ValueError):
        return 128
