"""Heartbeats: everybody's once in every period, spread over it."""

from __future__ import annotations

from typing import cast

import pytest

from server import lines
from server.heartbeat import TICK_SECONDS_MAX, Heartbeat
from server.lane import Lane
from server.pool import Pool
from server.session import Backlog, Session

PERIOD_S = 25.0


class FakeLane:
    codec = lines


class Beaten(Session):
    """A session that notes when it was sent something."""

    lane = cast(Lane, FakeLane)

    def __init__(self, pool: FakePool) -> None:
        super().__init__(0, "u", ())
        self._pool = pool
        self.at: list[float] = []

    def offer(self, frame: bytes) -> bool:
        assert frame == lines.HEARTBEAT
        self.at.append(self._pool.clock)
        return True


class FakePool:
    def __init__(self, count: int) -> None:
        self.clock = 1000.0
        self.peers: list[object | None] = [Beaten(self) for _ in range(count)]

    def now(self) -> float:
        return self.clock

    def sessions(self) -> list[Beaten]:
        return [peer for peer in self.peers if isinstance(peer, Beaten)]


def run(pool: FakePool, heartbeat: Heartbeat, seconds: float) -> list[int]:
    """Tick as the event loop would; return how many were sent something in each tick."""
    until, sent, before = pool.clock + seconds, [], 0
    while pool.clock < until:
        pause = heartbeat.tick()
        assert 0 <= pause <= TICK_SECONDS_MAX
        total = sum(len(session.at) for session in pool.sessions())
        sent.append(total - before)
        before = total
        pool.clock += pause
    return sent


@pytest.mark.parametrize("count", [1, 64, 129, 10_000])
def test_everybody_is_sent_one_in_every_period(count: int) -> None:
    pool = FakePool(count)
    sent = run(pool, Heartbeat(cast(Pool, pool), PERIOD_S), 4 * PERIOD_S + 1)
    for session in pool.sessions():
        assert len(session.at) in (4, 5)
        gaps = [later - earlier for earlier, later in zip(session.at, session.at[1:], strict=False)]
        assert all(abs(gap - PERIOD_S) <= 2 * TICK_SECONDS_MAX for gap in gaps)
    assert max(sent) <= 128, "never many at once"


def test_they_are_spread_evenly() -> None:
    count = 10_000
    pool = FakePool(count)
    run(pool, Heartbeat(cast(Pool, pool), PERIOD_S), PERIOD_S)
    moments = sorted(session.at[0] for session in pool.sessions() if session.at)
    for tenth in range(10):
        began = 1000.0 + tenth * PERIOD_S / 10
        share = sum(began <= moment < began + PERIOD_S / 10 for moment in moments)
        assert 0.08 * count < share < 0.12 * count


def test_a_loop_that_was_held_up_catches_up_without_a_flood() -> None:
    pool = FakePool(5_000)
    heartbeat = Heartbeat(cast(Pool, pool), PERIOD_S)
    pool.clock += PERIOD_S / 2
    sent = run(pool, heartbeat, 0.001)
    assert max(sent) <= 128
    assert sum(sent) == 2_500


def test_one_that_stood_still_for_long_owes_nobody_more_than_a_lap() -> None:
    """`docker pause`: the laps that were missed are nobody's any more."""
    pool = FakePool(5_000)
    heartbeat = Heartbeat(cast(Pool, pool), PERIOD_S)
    pool.clock += 100.5 * PERIOD_S
    run(pool, heartbeat, PERIOD_S)
    assert all(len(session.at) in (2, 3) for session in pool.sessions())
    run(pool, heartbeat, 2 * PERIOD_S)
    assert all(len(session.at) in (4, 5) for session in pool.sessions()), "and it goes on"


def test_those_who_have_something_waiting_and_those_who_are_no_sessions_get_none() -> None:
    pool = FakePool(64)
    pool.peers[1] = None
    pool.peers[2] = object()
    waiting = pool.peers[3]
    assert isinstance(waiting, Beaten)
    waiting.backlog = Backlog()
    run(pool, Heartbeat(cast(Pool, pool), PERIOD_S), PERIOD_S + 1)
    assert waiting.at == []
    assert all(session.at for session in pool.sessions() if session is not waiting)


def test_a_table_that_grows_in_the_middle_of_a_lap() -> None:
    pool = FakePool(64)
    heartbeat = Heartbeat(cast(Pool, pool), PERIOD_S)
    run(pool, heartbeat, PERIOD_S / 2)
    pool.peers += [Beaten(pool) for _ in range(1_000)]
    run(pool, heartbeat, 2 * PERIOD_S)
    assert all(1 <= len(session.at) <= 4 for session in pool.sessions())
