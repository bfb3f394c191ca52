from __future__ import annotations

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
    bus, stats = Bus(), Stats()
    pressure = Pressure(bus, stats)
    pressure.waiting(limits.WAITING_BYTES_MAX)
    assert (bus.paused, stats.bus_pauses) == (False, 0)
    for _ in range(3):
        pressure.waiting(limits.WAITING_BYTES_MAX + 1)
    assert (bus.paused, stats.bus_pauses, len(caplog.records)) == (True, 1, 1)
    pressure.waiting(limits.WAITING_BYTES_MAX // 2)
    assert bus.paused
    pressure.waiting(limits.WAITING_BYTES_MAX // 2 - 1)
    assert not bus.paused
    pressure.waiting(limits.WAITING_BYTES_MAX + 1)
    assert (bus.paused, stats.bus_pauses) == (True, 2)
