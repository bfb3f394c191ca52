"""The parts of the bus that need no Redis."""

from __future__ import annotations

from itertools import pairwise

import pytest

from router.bus import BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN, _check_version, backoff
from router.pipe import Refused


def test_the_pause_grows_to_a_bound() -> None:
    pauses = [backoff(attempt, 1.0) for attempt in range(100)]
    assert pauses[0] == BACKOFF_SECONDS_MIN
    assert pauses[-1] == BACKOFF_SECONDS_MAX
    assert all(before <= after for before, after in pairwise(pauses))


@pytest.mark.parametrize("attempt", [0, 1, 3, 10, 10_000])
def test_chance_spreads_it_over_half(attempt: int) -> None:
    longest = backoff(attempt, 1.0)
    assert backoff(attempt, 0.0) == longest / 2
    assert backoff(attempt, 0.5) == longest * 3 / 4


@pytest.mark.parametrize(
    "version", [b"7.0.15", b"7.2.4", b"8.0.0", b"9.1.2", b"10.0.0", b"255.255.255", b"", b"unknown"]
)
def test_a_server_that_is_new_enough(version: bytes) -> None:
    _check_version({b"server": b"redis", b"version": version})


def test_an_old_server_is_told_apart() -> None:
    with pytest.raises(Refused, match=r"found Redis 6\.2\.14, want Redis 7 or newer, or Valkey"):
        _check_version({b"server": b"redis", b"version": b"6.2.14"})
