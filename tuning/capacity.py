"""How many more connections fit, from what a running server measured; pure.

The model is linear: what one connection costs today, the next one costs too. So each ceiling is the present number of
connections plus what is left of something, divided by what a connection takes of it. Its assumptions: connections stay
as busy as they are now; a balancer spreads evenly over the server's addresses, and the kernel over the workers; nothing
else on the host grows. What was not measured has no ceiling, rather than a guessed one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tuning.descriptors import EPOLL_WATCHES, FILE_MAX
from tuning.finding import Finding, count, size
from tuning.ports import CONNTRACK

BALANCER_CONNECTIONS_MIN = 256  # an address with fewer is a client or an office, not a balancer
TCP_PAGES_PER_CPU = 256  # net/sock.h: SK_MEMORY_PCPU_RESERVE, 1 MiB a CPU is taken ahead and says nothing
CPU_NOISE_CORES = 0.02  # an idle server's own timers; below, a ratio to connections means nothing


@dataclass(frozen=True, slots=True)
class Measured:
    """A running server at one moment. None: not measured."""

    connections: int
    user_bytes: float | None = None  # of a connection: PSS slope
    kernel_bytes: float | None = None  # of a connection
    memory_room: int | None = None  # bytes: MemAvailable, or what is left in the cgroup when that is less
    cpu_cores_used: float | None = None  # by all workers, over the last minute
    cpu_cores: float | None = None  # that the workers may use
    cpus: int | None = None  # of the machine; as many as the workers may use unless said
    descriptors: tuple[tuple[int, int], ...] = ()  # per worker: open, and RLIMIT_NOFILE
    descriptors_reserved: int = 0  # the last ones of each worker, which it gives to no connection
    peers: Mapping[str, int] = field(default_factory=dict)  # remote address -> connections; the largest will do
    destinations: int = 1  # address:port pairs that balancers connect to
    ports: int | None = None  # a balancer's usable local ports, per destination
    tcp_pages: int | None = None  # in use by the host
    tcp_pages_max: int | None = None  # where the kernel starts to shrink buffers: tcp_mem's pressure
    connections_max: int = 0  # the server's own option; 0: none
    host_limits: Mapping[str, int] = field(default_factory=dict)  # other limits -> connections at which they bind


@dataclass(frozen=True, slots=True)
class Ceiling:
    """A limit, in connections."""

    limit: str  # "memory", "fds", "ports", "cpu", "tcp_mem", "connections_max" or a sysctl
    connections: int  # in all
    more: int  # than now
    because: str  # the arithmetic
    moves: str  # the setting or the hardware that moves it


def ceilings(measured: Measured) -> list[Ceiling]:
    """Every limit that the measurements can tell, the first to bind first."""
    known = (_memory(measured), _descriptors(measured), _ports(measured), _cpu(measured), _tcp_pages(measured))
    found = [ceiling for ceiling in known if ceiling is not None]
    if most := measured.connections_max:
        because = f"the server is told to hold {count(most)} connections"
        found.append(_ceiling(measured, "connections_max", most, because, "--connections-max"))
    for name, connections in measured.host_limits.items():
        because = f"{name} ends at {count(connections)} connections"
        found.append(_ceiling(measured, name, connections, because, f"{name}: see `moorage tuning check`"))
    return sorted(found, key=lambda ceiling: (ceiling.connections, ceiling.limit))


def _ceiling(measured: Measured, limit: str, connections: float, because: str, moves: str) -> Ceiling:
    total = max(0, math.floor(connections))
    return Ceiling(limit, total, max(0, total - measured.connections), because, moves)


def _memory(measured: Measured) -> Ceiling | None:
    user, kernel, room = measured.user_bytes, measured.kernel_bytes, measured.memory_room
    if user is None or kernel is None or room is None or user + kernel <= 0:
        return None
    more = room // (user + kernel)
    because = f"{size(room)} left / ({user:.0f} B user + {kernel:.0f} B kernel) = {count(int(more))} more"
    return _ceiling(measured, "memory", measured.connections + more, because, "more memory, or a second host")


def _descriptors(measured: Measured) -> Ceiling | None:
    """The fullest worker ends it: its queue is not served by the others."""
    if not measured.descriptors:
        return None
    reserved = measured.descriptors_reserved
    rooms = [worker_full_at(0, used + reserved, limit) for used, limit in measured.descriptors]
    more = min(rooms) * len(rooms)
    used, limit = measured.descriptors[rooms.index(min(rooms))]
    because = f"the fullest worker has {count(used)} of {count(limit)} descriptors"
    because += f" and keeps {reserved} back: {count(min(rooms))} left" if reserved else f": {count(min(rooms))} left"
    if len(rooms) > 1:
        because += f" x {len(rooms)} workers = {count(more)} more"
    return _ceiling(
        measured, "fds", measured.connections + more, because, "RLIMIT_NOFILE (LimitNOFILE=), or more workers"
    )


def _ports(measured: Measured) -> Ceiling | None:
    """The ports of the balancer address that holds most; no ceiling where clients come directly."""
    balancers = [held for held in measured.peers.values() if held >= BALANCER_CONNECTIONS_MIN]
    if not balancers or measured.ports is None:
        return None
    each = measured.ports * measured.destinations
    more = max(0, each - max(balancers)) * len(balancers)
    because = (
        f"the fullest of {len(balancers)} balancer addresses holds {count(max(balancers))} of "
        f"{count(measured.ports)} ports"
        f" x {measured.destinations} destinations; its connect() slows down past half of them"
    )
    moves = "more --tcp or --http addresses, more balancer addresses, or a wider net.ipv4.ip_local_port_range on them"
    return _ceiling(measured, "ports", measured.connections + more, because, moves)


def _cpu(measured: Measured) -> Ceiling | None:
    used, cores = measured.cpu_cores_used, measured.cpu_cores
    if used is None or cores is None or used < CPU_NOISE_CORES or not measured.connections:
        return None
    because = (
        f"{used:.2f} cores for {count(measured.connections)} connections as busy as now"
        f" = {used / measured.connections * 1e6:.1f} us a second each; {cores:g} cores"
    )
    total = max(measured.connections, measured.connections * cores / used)
    return _ceiling(measured, "cpu", total, because, "more processors and as many workers, or a second host")


def _tcp_pages(measured: Measured) -> Ceiling | None:
    used, most = measured.tcp_pages, measured.tcp_pages_max
    if used is None or most is None or not measured.connections:
        return None
    reserve = TCP_PAGES_PER_CPU * (measured.cpus or math.ceil(measured.cpu_cores or 1))
    if used <= reserve:
        return None  # idle sockets hold no pages
    each = (used - reserve) / measured.connections
    because = f"{each:.2f} pages of socket buffers a connection, {count(used)} of {count(most)} in use"
    return _ceiling(measured, "tcp_mem", (most - reserve) / each, because, "net.ipv4.tcp_mem, or fewer slow peers")


def host_limits(found: Iterable[Finding]) -> dict[str, int]:
    """What `Measured.host_limits` wants: those findings that end in connections and that no server measures."""
    names = (FILE_MAX.name, EPOLL_WATCHES.name, CONNTRACK.name)
    return {one.name: one.stops_at for one in found if one.name in names and one.stops_at is not None}


def worker_full_at(connections: int, used: int, limit: int) -> int:
    """The connection count of one worker that takes its last descriptor: exact, one descriptor a connection."""
    return connections + max(0, limit - used)
