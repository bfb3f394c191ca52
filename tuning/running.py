"""A running server's own figures, and its host's, put together for the capacity model.

The server measures and knows no model; it is handed a `Judge`, asks it, and publishes the answer.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tuning import advice, capacity, footprint, host, peers, ports
from tuning.capacity import Ceiling, Measured
from tuning.costs import prices
from tuning.facts import UNLIMITED, Facts
from tuning.peers import Peers
from tuning.target import Target

PEERS_SECONDS_MAX = 0.5  # to wait for a count; one that takes longer is used when it is done
PEERS_SHARE_MAX = 0.01  # of one processor, for counting them: a millisecond for 1,000, a second for a million
MODELLED = ("memory", "fds", "ports", "cpu", "tcp_mem")


@dataclass(frozen=True, slots=True)
class Host:
    """What of a host the model wants."""

    facts: Facts
    peers: Peers | None = None
    kernel_bytes: float | None = None  # of a connection, where the server could not tell
    connections_max: int = 0  # what the server is told to hold


class Judge:
    """Says how many connections fit, by what a server says of itself (`server/meter.py`). Safe from any thread."""

    def __init__(self, listening: Collection[int], connections_max: int = 0) -> None:
        """`listening`: the ports that clients and balancers connect to."""
        self._listening = listening
        self._connections_max = connections_max
        self._lock = threading.Lock()
        self._peers: Peers | None = None
        self._count_again_at = float("-inf")
        self._counting: threading.Thread | None = None
        self._kernel_bytes: float | None = None
        self._tried = False

    def __call__(self, figures: Mapping[str, Any]) -> dict[str, Any]:
        """The ceilings, what was not measured, the prices, and the host, as plain objects for JSON."""
        with self._lock:
            pid = next((w["pid"] for w in figures["workers"] if "fd_limit" in w), None)
            try:
                facts = host.read(pid)
            except ProcessLookupError:  # it ended a moment ago
                facts = host.read()
            return judged(figures, Host(facts, self._connected(), self._kernel(figures), self._connections_max))

    def _connected(self) -> Peers | None:
        """Counted again when that is old: the longer it takes, the older it gets.

        A host of millions of sockets takes seconds, and a scrape that waited for them would not be answered in time.
        """
        if self._counting is None and time.monotonic() >= self._count_again_at:
            self._counting = threading.Thread(target=self._count, daemon=True)
            self._counting.start()
        if self._counting is not None:
            self._counting.join(PEERS_SECONDS_MAX)
            if not self._counting.is_alive():
                self._counting = None
        return self._peers

    def _count(self) -> None:
        began = time.monotonic()
        try:
            self._peers = peers.connected(self._listening)
        except OSError:
            self._peers = None
        now = time.monotonic()
        self._count_again_at = now + (now - began) / PEERS_SHARE_MAX

    def _kernel(self, figures: Mapping[str, Any]) -> float | None:
        """Measured with connections of our own, once, where the server may not read /proc/slabinfo."""
        enough = figures["connections"] >= figures["connections_min"]
        if enough and "kernel" not in figures["bytes_per_connection"] and not self._tried:
            self._tried = True
            try:
                self._kernel_bytes = footprint.measure().accepted
            except (footprint.CannotMeasure, OSError):
                pass
        return self._kernel_bytes


def judged(figures: Mapping[str, Any], on: Host) -> dict[str, Any]:
    """What `Judge` answers."""
    found = measured(figures, on)
    ceilings = capacity.ceilings(found)
    costs = prices(figures["windows"])
    memory = on.facts.memory
    nics = [nic.speed_mbit for nic in on.facts.nics or () if nic.speed_mbit and nic.speed_mbit > 0]
    each = dict(figures["bytes_per_connection"])
    if each and on.peers and on.peers.held:
        each["buffers"] = _buffers(on.peers)
    return {
        "bytes_per_connection": each,
        "ceilings": [asdict(one) for one in ceilings],
        "unknown": _unknown(figures, found, ceilings),
        "costs": {"us": dict(costs.us), "unknown": dict(costs.unknown), "within": dict(costs.within)},
        "host": {"cpus": _cores(on.facts, 0), "memory_bytes": memory.total, "nic_mbit": max(nics, default=None)},
    }


def measured(figures: Mapping[str, Any], on: Host) -> Measured:
    """The model's input."""
    facts = on.facts
    alive = [worker for worker in figures["workers"] if "fd_limit" in worker]
    each = figures["bytes_per_connection"]
    kernel = each.get("kernel", on.kernel_bytes)
    held: Mapping[str, int] = on.peers.held if on.peers else {}
    usable = ports.usable(facts)
    tcp_mem = facts.three("net.ipv4.tcp_mem")
    target = Target(max(1, figures["connections"]), held=figures["connections"], workers=max(1, len(alive)))
    return Measured(
        connections=figures["connections"],
        user_bytes=each.get("user"),
        kernel_bytes=kernel + _buffers(on.peers) if kernel is not None else None,
        memory_room=_memory_room(facts),
        cpu_cores_used=figures["cpu_cores_used"],
        cpu_cores=_cores(facts, len(alive)),
        cpus=facts.cpus.online,
        descriptors=tuple((worker["open_fds"], worker["fd_limit"]) for worker in alive),
        descriptors_reserved=max((worker["fd_reserved"] for worker in alive), default=0),
        peers=held,
        destinations=on.peers.destinations if on.peers else 1,
        ports=usable[2] if usable else None,
        tcp_pages=facts.sockets.tcp_pages,
        tcp_pages_max=tcp_mem[1] if tcp_mem else None,
        connections_max=on.connections_max,
        host_limits=capacity.host_limits(advice.findings(facts, target)),
    )


def _buffers(held: Peers | None) -> float:
    """Bytes of buffers that a connection has in the kernel, as busy as they are now."""
    return held.buffer_bytes / sum(held.held.values()) if held and held.held else 0.0


def _memory_room(facts: Facts) -> int | None:
    """Bytes that may still be taken: of the host, or of the control group when that is less."""
    rooms = [facts.memory.available]
    most, used = facts.cgroup.memory_max, facts.cgroup.memory_used
    if most is not None and most != UNLIMITED and used is not None:
        rooms.append(max(0, most - used))
    return min((room for room in rooms if room is not None), default=None)


def _cores(facts: Facts, workers: int) -> float | None:
    """Processors that so many workers can use, each of one thread; 0: those there are."""
    limits = [facts.cpus.usable or facts.cpus.online or os.cpu_count(), facts.cgroup.cpus, workers or None]
    return min((float(limit) for limit in limits if limit is not None), default=None)


def _unknown(figures: Mapping[str, Any], found: Measured, ceilings: Collection[Ceiling]) -> dict[str, str]:
    """Why a limit of the model has no ceiling."""
    least = figures["connections_min"]
    few = f"{found.connections:,} connections, at least {least:,} are needed"
    reasons = {
        "fds": "no worker is running",
        "ports": "no address holds enough connections to be a balancer: clients come directly, or are few",
        "cpu": "the workers are idle: too little to tell what a connection costs",
        "tcp_mem": "idle sockets hold no pages of it",
        "memory": few if found.connections < least else _no_memory(found),
    }
    known = {one.limit for one in ceilings}
    return {limit: f"not measured yet: {reasons[limit]}" for limit in MODELLED if limit not in known}


def _no_memory(found: Measured) -> str:
    if found.kernel_bytes is None:
        return "the kernel shows no slabs here (/proc/slabinfo), and measuring with connections of our own failed"
    if found.user_bytes is None:
        return "the workers were not seen with half as many connections; it will be told once they have grown"
    return "the kernel does not say what is available"
