"""The arithmetic of a target."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tuning.target import RESERVED_DESCRIPTORS, Target


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("connections", 0),
        ("held", -1),
        ("workers", 0),
        ("balancers", -1),
        ("destinations", 0),
        ("kernel_bytes", 0),
        ("busy_percent", 101),
        ("busy_percent", -1),
        ("pause_seconds", 0.0),
        ("pause_seconds", float("nan")),
        ("ports", (7400, 70_000)),
    ],
)
def test_what_makes_no_sense_is_named(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{field}: found "):
        Target(**{"connections": 1000, field: value})


def test_one_worker_needs_a_descriptor_a_connection() -> None:
    assert Target(19_900).descriptors == 20_000
    assert Target(1).held_by(20_000) == 19_900
    assert Target(1).held_by(RESERVED_DESCRIPTORS) == 0


@pytest.mark.parametrize("workers", [1, 2, 8, 106])
@pytest.mark.parametrize("limit", [1024, 20_000, 1_048_576])
def test_held_by_is_the_inverse_of_descriptors(workers: int, limit: int) -> None:
    held = Target(1, workers=workers).held_by(limit)
    assert Target(held, workers=workers).descriptors <= limit + 1
    assert Target(held + workers + 2, workers=workers).descriptors >= limit


def test_the_margin_covers_what_a_fair_hash_does() -> None:
    generator = random.Random(7)
    target = Target(20_000, workers=8)
    for _ in range(20):
        counts = [0] * target.workers
        for _ in range(target.connections):
            counts[generator.randrange(target.workers)] += 1
        assert max(counts) <= target.per_worker


def test_connections_already_held_are_not_counted_again() -> None:
    assert Target(1000, held=400).more == 600
    assert Target(1000, held=2000).more == 0
