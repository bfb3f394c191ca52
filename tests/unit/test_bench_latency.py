import pytest

from bench.latency import MICROSECONDS_MAX, Latencies, require


def test_times_of_several_processes_are_one_histogram() -> None:
    one, other, both = Latencies(), Latencies(), Latencies()
    one.extend(range(1_000_000, 51_000_000, 1_000_000))  # 1 to 50 ms
    other.extend(range(51_000_000, 101_000_000, 1_000_000))
    for part in (one, other):
        both.add(part.encode())
    assert len(both) == 100
    found = dict(both.quantiles())
    assert found["p50"] == pytest.approx(50_000, rel=0.001)
    assert found["p99"] == pytest.approx(99_000, rel=0.001)
    assert found["max"] == pytest.approx(100_000, rel=0.001)


def test_nothing_recorded_is_nothing_sent() -> None:
    empty = Latencies()
    assert (len(empty), empty.encode(), empty.us(50), empty.us_max) == (0, b"", 0.0, 0.0)
    empty.add(b"")
    assert len(empty) == 0


def test_what_is_out_of_range_counts_at_its_end() -> None:
    times = Latencies()
    times.extend([-5, 0, 10**18])
    assert len(times) == 3
    assert times.us(50) == 1
    assert times.us_max == pytest.approx(MICROSECONDS_MAX, rel=0.001)


def test_the_package_is_there() -> None:
    require()
