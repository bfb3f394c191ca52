from __future__ import annotations

import logging

import pytest

from server import limits
from server.pressure import Pressure
from server.stats import Stats


class Bus:
    def __init__(self) -> None:
        self.paused = False

    def pause(self, paused: bool) -> None:
        self.paused = paused


def test_redis_waits_until_half_of_it_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    bus, stats, now = Bus(), Stats(), [0.0]
    pressure = Pressure(bus, stats, lambda: now[0])
    pressure.waiting(limits.WAITING_BYTES_MAX)
    assert (bus.paused, stats.bus_pauses) == (False, 0)
    for _ in range(3):
        pressure.waiting(limits.WAITING_BYTES_MAX + 1)
    assert (bus.paused, stats.bus_pauses) == (True, 1)
    pressure.waiting(limits.WAITING_BYTES_MAX // 2)
    assert bus.paused
    pressure.waiting(limits.WAITING_BYTES_MAX // 2 - 1)
    assert not bus.paused


def test_every_pause_is_counted_and_the_log_is_not_flooded(caplog: pytest.LogCaptureFixture) -> None:
    stats, now = Stats(), [0.0]
    pressure = Pressure(Bus(), stats, lambda: now[0])
    with caplog.at_level(logging.WARNING):
        for at in (0.0, 1.0, limits.REFUSALS_TOLD_SECONDS):
            now[0] = at
            pressure.waiting(limits.WAITING_BYTES_MAX + 1)
            pressure.waiting(0)
    assert stats.bus_pauses == 3
    assert [record.getMessage()[-16:] for record in caplog.records] == ["(1 times so far)", "(3 times so far)"]
