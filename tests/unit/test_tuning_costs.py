"""Prices from windows: the ones that made the windows come out again, and what cannot be told is not."""

from __future__ import annotations

import random

import pytest

from tuning.costs import prices

TRUE = {
    "connection_seconds": 0.4e-6, "seconds": 9000e-6, "accepted": 45e-6, "writes": 8e-6, "published": 25e-6,
    "received_messages": 13e-6,
}  # fmt: skip
EVERY = {"held_us", "empty_us", "connect_us", "delivery_us", "publish_us", "receive_us"}


def window(noise: float = 0.0, **done: float) -> dict[str, float]:
    counted = dict.fromkeys(TRUE, 0.0) | {"seconds": 5.0} | done
    counted.setdefault("deliveries", counted["writes"])
    spent = sum(price * counted[name] for name, price in TRUE.items())
    return counted | {"cpu_seconds": spent * (1 + noise)}


def mixed(noise: float, seed: int = 1) -> list[dict[str, float]]:
    rng = random.Random(seed)
    found = []
    for _ in range(200):
        published = rng.randrange(2000)
        found.append(
            window(
                rng.uniform(-noise, noise),
                connection_seconds=rng.randrange(1_000_000),
                accepted=rng.choice((0, 0, rng.randrange(5000))),
                published=published,
                received_messages=published * rng.uniform(0, 2),
                writes=published * rng.randrange(1, 200),
            )
        )
    return found


@pytest.mark.parametrize(("noise", "tolerance"), [(0.0, 0.001), (0.05, 0.35)])
def test_the_prices_come_out_again(noise: float, tolerance: float) -> None:
    found = prices(mixed(noise))
    assert found.us["delivery_us"] == pytest.approx(8, rel=0.05)
    assert found.us["connect_us"] == pytest.approx(45, rel=tolerance)
    assert found.us.keys() <= EVERY | {"write_us"}
    if not noise:
        expected = {"held_us": 0.4, "empty_us": 9000, "publish_us": 25, "receive_us": 13}
        assert {name: found.us[name] for name in expected} == pytest.approx(expected, rel=tolerance)


def test_nothing_done_is_nothing_measured() -> None:
    found = prices([])
    assert found.us == {}
    assert set(found.unknown) == EVERY
    assert found.unknown["delivery_us"] == "not measured yet: 0 writes, 10,000 are needed"


def test_too_few_of_something_are_named_with_how_many_are_needed() -> None:
    found = prices([window(accepted=40), window(connection_seconds=50_000), window(connection_seconds=90_000)])
    assert found.unknown["connect_us"] == "not measured yet: 40 accepted, 1,000 are needed"


def test_what_always_comes_together_is_not_told_apart() -> None:
    found = prices(
        [window(published=n, received_messages=2 * n, writes=100 * n) for n in (100, 900, 0, 400, 700)]
        + [window(connection_seconds=n) for n in (10, 50_000, 90_000)]
    )
    assert found.us["delivery_us"] == pytest.approx(8 + (25 + 2 * 13) / 100, rel=0.01)
    assert found.within == {"publish_us": "delivery_us", "receive_us": "delivery_us"}
    assert found.unknown["publish_us"] == "not measured apart from delivery_us: published came as writes did"


def test_as_many_connections_all_the_time_include_what_empty_workers_use() -> None:
    found = prices([window(connection_seconds=500_000, accepted=n) for n in (0, 3000, 100, 0, 2000)])
    assert found.within == {"empty_us": "held_us"}
    assert found.us["held_us"] == pytest.approx(0.4 + 9000 * 5 / 500_000, rel=0.01)


def test_no_price_is_negative() -> None:
    windows = [window(accepted=n, writes=20_000 * (i % 3)) for i, n in enumerate((0, 4000, 100, 0, 2000, 10))]
    for one in windows:
        one["cpu_seconds"] = 1e-6 * (one["writes"] - one["accepted"])
    found = prices(windows)
    assert "connect_us" not in found.us
    assert found.unknown["connect_us"] == "not measured apart from the others: accepted made no difference that shows"


def test_a_delivery_is_cheaper_where_a_write_carries_many() -> None:
    found = prices([window(writes=n, deliveries=20 * n) for n in (100, 9000, 0, 4000, 7000)])
    assert found.us["write_us"] == pytest.approx(8, rel=0.01)
    assert found.us["delivery_us"] == pytest.approx(8 / 20, rel=0.01)
