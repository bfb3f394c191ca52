"""Sizing a fleet: each part by its own arithmetic, the largest wins."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tuning.fleet import PORTS_FAST, Costs, Load, Node, size_fleet

GIB = 1024**3
COSTS = Costs(350, 3700, connect_us=50, publish_us=25, receive_us=13, delivery_us=10, redis_messages_per_second=90_000)
NODE = Node(cpus=32, memory_bytes=128 * GIB, spare=1)


def test_idle_users_are_a_matter_of_memory() -> None:
    fleet = size_fleet(Load(40_000_000, 0, 0, storm_seconds=600), COSTS, NODE)
    assert fleet.decided_by == "memory"
    assert fleet.nodes == 2 + 1
    assert fleet.redis_shards == 1
    assert fleet.balancer_addresses == -(-40_000_000 // (2 * PORTS_FAST))


def test_talkative_users_are_a_matter_of_cpu() -> None:
    fleet = size_fleet(Load(1_000_000, 6, 100), COSTS, NODE)
    assert fleet.decided_by == "cpu"
    # 100,000 publishes/s and 10,000,000 deliveries/s
    assert fleet.nodes > 10_000_000 * 10e-6 / (32 * 0.6)
    assert fleet.redis_shards == -(-100_000 * 101 // 90_000)


def test_large_messages_are_a_matter_of_the_network() -> None:
    fleet = size_fleet(Load(100_000, 6, 100, message_bytes=50_000), COSTS, NODE)
    assert fleet.decided_by == "network"
    assert fleet.network_mbit_per_node <= 10_000 * 0.6


def test_few_descriptors_are_a_matter_of_descriptors() -> None:
    fleet = size_fleet(Load(2_000_000, 0, 0), COSTS, replace(NODE, descriptors=1124, spare=0))
    assert (fleet.decided_by, fleet.nodes) == ("descriptors", -(-2_000_000 // (32 * 1024)))


def test_a_small_load_is_one_node_and_its_spare() -> None:
    assert size_fleet(Load(100, 1, 10), COSTS, NODE).nodes == 2


def test_every_part_shows_its_arithmetic() -> None:
    text = "\n".join(size_fleet(Load(1_000_000, 2, 50), COSTS, NODE).reasons)
    for part in ("cpu:", "memory:", "network:", "descriptors:", "nodes:", "Redis:", "balancer:"):
        assert part in text


def test_more_of_anything_never_needs_less() -> None:
    sizes = [size_fleet(Load(users, 2, 50), COSTS, NODE).nodes for users in range(10_000, 20_000_000, 990_000)]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Load(0, 1, 1), "users"),
        (lambda: Load(1, -1, 1), "messages_per_user_per_minute"),
        (lambda: Load(1, float("inf"), 1), "messages_per_user_per_minute"),
        (lambda: Load(1, 1, float("nan")), "fanout"),
        (lambda: replace(COSTS, connect_us=0), "connect_us"),
        (lambda: replace(COSTS, delivery_us=-1), "delivery_us"),
        (lambda: replace(NODE, cpus=0), "cpus"),
        (lambda: replace(NODE, busy_share=1.5), "busy_share"),
    ],
)
def test_what_makes_no_sense_is_named(make: Any, field: str) -> None:
    with pytest.raises(ValueError, match=rf"^{field}: found "):
        make()
