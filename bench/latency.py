"""Latencies in an HdrHistogram: three digits from a microsecond to an hour, in bounded memory, merged over processes.

http://hdrhistogram.org; the package is in the extra `bench`, and loaded by those who record something.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bench.settings import Impossible

MICROSECONDS_MAX = 3_600_000_000
DIGITS = 3
QUANTILES = (("p50", 50.0), ("p99", 99.0), ("p99.9", 99.9))


class Latencies:
    """Times, each counted from when a thing was meant to happen, so that a stall is seen by all it delays."""

    __slots__ = ("_histogram",)

    def __init__(self) -> None:
        self._histogram: Any = None

    def __len__(self) -> int:
        return 0 if self._histogram is None else int(self._histogram.total_count)

    def record(self, nanoseconds: int) -> None:
        """Count one time; those under a microsecond count as one. Raises: Impossible without the package."""
        if self._histogram is None:
            self._histogram = _histogram()
        self._histogram.record_value(min(MICROSECONDS_MAX, max(1, nanoseconds // 1000)))

    def extend(self, nanoseconds: Iterable[int]) -> None:
        """Count many times."""
        for one in nanoseconds:
            self.record(one)

    def encode(self) -> bytes:
        """Return all of it in the format of HdrHistogram V2, compressed; b"" when nothing was recorded."""
        return b"" if self._histogram is None else bytes(self._histogram.encode())

    def add(self, encoded: bytes) -> None:
        """Add what another process has encoded."""
        if encoded:
            if self._histogram is None:
                self._histogram = _histogram()
            self._histogram.decode_and_add(encoded)

    def us(self, percentile: float) -> float:
        """Return the microseconds that so many percent of the times do not exceed; 0 when there are none."""
        return 0.0 if self._histogram is None else float(self._histogram.get_value_at_percentile(percentile))

    @property
    def us_max(self) -> float:
        """Return the longest time, microseconds; 0 when there is none."""
        return 0.0 if self._histogram is None else float(self._histogram.get_max_value())

    def quantiles(self) -> list[tuple[str, float]]:
        """Return names and microseconds of what a report shows."""
        return [*((name, self.us(percent)) for name, percent in QUANTILES), ("max", self.us_max)]


def require() -> None:
    """Find out before a run that times can be recorded. Raises: Impossible."""
    _histogram()


def _histogram() -> Any:  # noqa: ANN401  # the package has no types
    try:
        from hdrh.histogram import HdrHistogram
    except ImportError:
        raise Impossible("latencies need the package hdrhistogram: pip install '.[bench]' in a checkout") from None
    return HdrHistogram(1, MICROSECONDS_MAX, DIGITS)
