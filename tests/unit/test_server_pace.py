"""Token buckets: so many at once, so many a second, and nothing kept of those who are idle."""

from __future__ import annotations

import pytest

from server.pace import Pace


def taken(pace: Pace, now: float, tries: int, key: object = "a") -> int:
    return sum(not pace.take(key, now) for _ in range(tries))


@pytest.mark.parametrize(("rate", "burst"), [(10.0, 20.0), (10.0, 1.0), (0.5, 1.0), (1000.0, 3.0), (2.5, 2.5)])
def test_a_burst_and_then_the_rate(rate: float, burst: float) -> None:
    pace = Pace(rate, burst)
    assert taken(pace, 100.0, 50) == int(burst)
    seconds, step = 20.0, 0.25 / rate
    moments = [100.0 + step * number for number in range(1, int(seconds / step) + 1)]
    assert sum(taken(pace, moment, 1) for moment in moments) == pytest.approx(rate * seconds, abs=1)
    assert taken(pace, 1000.0, 50) == int(burst), "no more than a burst is saved up"


def test_a_burst_below_one_is_one() -> None:
    assert taken(Pace(0.1, 0.2), 0.0, 5) == 1


def test_who_waits_as_long_as_it_says_is_let_through() -> None:
    pace = Pace(4.0, 2.0)
    now = 7.0
    for _ in range(50):
        wait = pace.take("a", now)
        assert 0 <= wait <= 0.25
        now += wait
        assert not wait or pace.take("a", now) == 0


def test_each_key_has_its_own() -> None:
    pace = Pace(1.0, 3.0)
    assert [taken(pace, 0.0, 9, key) for key in "abc"] == [3, 3, 3]


def test_the_idle_are_forgotten() -> None:
    pace = Pace(1.0, 3.0)
    for number in range(10):
        pace.take(number, number / 100)
    pace.take(0, 0.5)  # used again: its bucket is full later
    pace.sweep(0.9)
    assert len(pace) == 10
    pace.sweep(1.095)
    assert len(pace) == 1
    pace.sweep(2.0)
    assert len(pace) == 0
