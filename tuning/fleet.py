"""How large a fleet a load needs: nodes, workers, Redis shards, balancer addresses, network; pure.

Every part is sized by itself and the largest wins. Costs are those a running server or a benchmark measured; the share
of a machine that is planned for (`busy_share`) and the spare nodes are the planner's choice and are shown as such.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from tuning.finding import count, size
from tuning.target import RESERVED_DESCRIPTORS

WIRE_BYTES = 66 + 12  # Ethernet, IP, TCP headers and the timestamp option, around one message
ACK_BYTES = 66 + 12
PORTS_FAST = 14_116  # half of the kernel's default range of 28,232: connect() slows down past it


@dataclass(frozen=True, slots=True)
class Load:
    """What the users do.

    Raises: ValueError naming the field that makes no sense.
    """

    users: int  # connected at one time
    messages_per_user_per_minute: float
    fanout: float  # subscribers that get one message, on average
    message_bytes: int = 200  # as sent to a subscriber
    storm_seconds: int = 60  # after an outage everybody is back within this time

    def __post_init__(self) -> None:
        _positive(self, but_zero=("messages_per_user_per_minute", "fanout", "message_bytes"))

    @property
    def published(self) -> float:
        """Messages a second."""
        return self.users * self.messages_per_user_per_minute / 60

    @property
    def delivered(self) -> float:
        """Messages to subscribers a second."""
        return self.published * self.fanout


@dataclass(frozen=True, slots=True)
class Costs:
    """What one of each costs the server, measured. A message's three parts may be 0 where another includes them.

    Raises: ValueError naming the field that makes no sense.
    """

    user_bytes: float  # a connection
    kernel_bytes: float
    connect_us: float  # CPU of a connection set up
    publish_us: float  # CPU of a message taken in and sent to Redis
    receive_us: float  # CPU of a message received from Redis by one worker
    delivery_us: float  # CPU of a message written to one subscriber
    redis_messages_per_second: int  # one shard: publishes plus copies to workers, on one core

    def __post_init__(self) -> None:
        _positive(self, but_zero=("publish_us", "receive_us", "delivery_us"))


@dataclass(frozen=True, slots=True)
class Node:
    """One machine, and how much of it is planned for.

    Raises: ValueError naming the field that makes no sense.
    """

    cpus: int
    memory_bytes: int
    nic_mbit: int = 10_000
    descriptors: int = 1_048_576  # RLIMIT_NOFILE of a worker
    ports: int = 1  # address:port pairs it listens on for balancers
    busy_share: float = 0.6  # of CPU, memory and network: the rest is for bursts and for the host itself
    spare: int = 1  # nodes that may be down

    def __post_init__(self) -> None:
        _positive(self, but_zero=("spare",))
        if self.busy_share > 1:
            raise ValueError(f"busy_share: found {self.busy_share}, wanted at most 1")


@dataclass(frozen=True, slots=True)
class Fleet:
    """The answer, with the arithmetic of every part."""

    nodes: int
    workers_per_node: int
    redis_shards: int
    balancer_addresses: int
    network_mbit_per_node: float
    decided_by: str  # the part that wants the most nodes
    reasons: tuple[str, ...]


def size_fleet(load: Load, costs: Costs, node: Node) -> Fleet:
    """The smallest fleet of such nodes that carries `load` with `node.spare` of them down."""
    parts = {
        "cpu": _by_cpu(load, costs, node),
        "memory": _by_memory(load, costs, node),
        "network": _by_network(load, node),
        "descriptors": _by_descriptors(load, node),
    }
    decided_by = max(parts, key=lambda name: parts[name][0])
    working = parts[decided_by][0]
    nodes = working + node.spare
    reasons = [f"{name}: {reason} = {count(least)} nodes" for name, (least, reason) in parts.items()]
    reasons.append(f"nodes: {count(working)}, by {decided_by}, + {node.spare} spare = {count(nodes)}")
    shards, why_shards = _shards(load, costs, nodes * node.cpus)
    addresses, why_addresses = _addresses(load, node, working)
    mbit = _wire_bits(load) / working / 1e6
    reasons += [why_shards, why_addresses, f"network: {mbit:,.0f} Mbit/s each of {count(working)} nodes"]
    return Fleet(nodes, node.cpus, shards, addresses, mbit, decided_by, tuple(reasons))


def _by_cpu(load: Load, costs: Costs, node: Node) -> tuple[int, str]:
    """Every worker that holds a subscriber receives the message once, so copies grow with the fleet: iterate."""
    storm = load.users / load.storm_seconds * costs.connect_us / 1e6
    steady = load.published * costs.publish_us / 1e6 + load.delivered * costs.delivery_us / 1e6
    per_node = node.cpus * node.busy_share
    nodes, copies = 1, 0.0
    # Copies are at most the fan-out, so the number of nodes stops growing.
    while True:
        copies = load.published * min(load.fanout, nodes * node.cpus)
        cores = max(steady + copies * costs.receive_us / 1e6, storm)
        wanted = max(1, math.ceil(cores / per_node))
        if wanted <= nodes:
            break
        nodes = wanted
    return nodes, (
        f"max of {load.published:,.0f} publishes/s x {costs.publish_us:.3g} us + {copies:,.0f} copies/s x "
        f"{costs.receive_us:.3g} us"
        f" + {load.delivered:,.0f} deliveries/s x {costs.delivery_us:.3g} us, and a storm of "
        f"{load.users / load.storm_seconds:,.0f}"
        f" connects/s x {costs.connect_us:.3g} us: {cores:.1f} cores / ({node.cpus} x {node.busy_share:g})"
    )


def _by_memory(load: Load, costs: Costs, node: Node) -> tuple[int, str]:
    each = costs.user_bytes + costs.kernel_bytes
    nodes = max(1, math.ceil(load.users * each / (node.memory_bytes * node.busy_share)))
    return nodes, (
        f"{count(load.users)} users x ({costs.user_bytes:.0f} B user + {costs.kernel_bytes:.0f} B kernel)"
        f" = {size(load.users * each)} / ({size(node.memory_bytes)} x {node.busy_share:g})"
    )


def _wire_bits(load: Load) -> float:
    return load.delivered * (load.message_bytes + WIRE_BYTES) * 8


def _by_network(load: Load, node: Node) -> tuple[int, str]:
    bits = _wire_bits(load)
    nodes = max(1, math.ceil(bits / (node.nic_mbit * 1e6 * node.busy_share)))
    return nodes, (
        f"{load.delivered:,.0f} deliveries/s x ({load.message_bytes} + {WIRE_BYTES}) B = {bits / 1e6:,.0f} Mbit/s"
        f" / ({count(node.nic_mbit)} x {node.busy_share:g})"
    )


def _by_descriptors(load: Load, node: Node) -> tuple[int, str]:
    room = max(1, node.descriptors - RESERVED_DESCRIPTORS)
    nodes = max(1, math.ceil(load.users / (node.cpus * room)))
    return nodes, f"{count(load.users)} users / ({node.cpus} workers x {count(room)} descriptors)"


def _shards(load: Load, costs: Costs, workers: int) -> tuple[int, str]:
    messages = load.published * (1 + min(load.fanout, workers))
    shards = max(1, math.ceil(messages / costs.redis_messages_per_second))
    return shards, (
        f"Redis: {load.published:,.0f} publishes/s x (1 + a copy to each of up to {count(workers)} workers)"
        f" = {messages:,.0f} / {count(costs.redis_messages_per_second)} = {count(shards)} shards"
    )


def _addresses(load: Load, node: Node, nodes: int) -> tuple[int, str]:
    """Each balancer address reaches every node, with its ports again for each."""
    addresses = max(1, math.ceil(load.users / (nodes * node.ports * PORTS_FAST)))
    return addresses, (
        f"balancer: {count(load.users)} users / ({count(nodes)} nodes x {node.ports} ports each x {count(PORTS_FAST)}"
        f" local ports found fast) = {count(addresses)} addresses"
    )


def _positive(noun: Load | Costs | Node, but_zero: tuple[str, ...]) -> None:
    for one in fields(noun):
        value = getattr(noun, one.name)
        if not (value > 0 or (value == 0 and one.name in but_zero)) or not math.isfinite(value):
            raise ValueError(
                f"{one.name}: found {value}, wanted {'0 or more' if one.name in but_zero else 'more than 0'}"
            )
