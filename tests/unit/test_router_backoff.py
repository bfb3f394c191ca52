"""The pause grows, up to a bound, and is spread."""

from __future__ import annotations

from itertools import pairwise

import pytest

from router.backoff import SECONDS_MAX, SECONDS_MIN, backoff


def test_the_pause_grows_to_a_bound() -> None:
    pauses = [backoff(attempt, 1.0) for attempt in range(100)]
    assert pauses[0] == SECONDS_MIN
    assert pauses[-1] == SECONDS_MAX
    assert all(before <= after for before, after in pairwise(pauses))


@pytest.mark.parametrize("attempt", [0, 1, 3, 10, 10_000])
def test_chance_spreads_it_over_half(attempt: int) -> None:
    longest = backoff(attempt, 1.0)
    assert backoff(attempt, 0.0) == longest / 2
    assert backoff(attempt, 0.5) == longest * 3 / 4
