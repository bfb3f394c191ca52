"""Leaving: everybody once, spread over the window, in no order anybody could foresee."""

from __future__ import annotations

from server.drain import Drain, Progress, Window
from server.session import CLOSED, Session


def sessions(count: int) -> list[Session]:
    return [Session(number, f"u{number}", ()) for number in range(count)]


def test_they_leave_evenly_over_the_window() -> None:
    everybody = sessions(1000)
    drain = Drain(everybody, Window(50.0, 10.0))
    assert drain.due(50.0, 1000) == []
    told: list[Session] = []
    for tenth in range(1, 11):
        told += drain.due(50.0 + tenth, 1000)
        assert len(told) in (tenth * 100, min(1000, tenth * 100 + 1))
        assert len(drain) == 1000 - len(told)
    assert set(told) == set(everybody)
    assert told != everybody, "shuffled"
    assert drain.due(99.0, 1000) == []


def test_without_a_window_all_leave_at_once_but_never_more_than_asked_for() -> None:
    drain = Drain(sessions(100), Window(0.0, 0.0))
    assert len(drain.due(0.0, 64)) == 64
    assert len(drain.due(0.0, 64)) == 36
    assert len(drain) == 0


def test_those_who_left_by_themselves_are_not_told() -> None:
    everybody = sessions(100)
    drain = Drain(everybody, Window(0.0, 10.0))
    for session in everybody[:60]:
        session.fd = CLOSED
    assert {session.user for session in drain.due(10.0, 1000)} == {session.user for session in everybody[60:]}
    assert len(drain) == 0


def test_nobody_is_there() -> None:
    drain = Drain([], Window(0.0, 10.0))
    assert drain.due(5.0, 10) == []
    assert not drain


def test_single_sessions_of_many_workers_have_moments_of_their_own() -> None:
    tenths = [0] * 10
    for _ in range(1000):
        drain = Drain(sessions(1), Window(0.0, 10.0))
        tenths[next(t for t in range(10) if drain.due(t + 1.0, 1))] += 1
    assert min(tenths) > 50, tenths


def test_progress_is_said_every_tenth_and_every_five_seconds() -> None:
    progress = Progress(Window(100.0, 60.0, 200))
    moments = [
        (101.0, 150),
        (102.0, 150),
        (103.9, 100),
        (104.0, 130),
        (104.1, 100),
        (106.0, 81),
        (110.9, 80),
        (111.0, 80),
    ]
    said = [moment for moment, left in moments if progress.is_worth_saying(moment, left)]
    assert said == [102.0, 104.0, 106.0, 111.0]


def test_a_window_without_length_has_passed() -> None:
    assert Window(100.0, 0.0).share(100.0) == 1.0
    assert Window(100.0, 10.0).share(99.0) == 0.0
    assert Window(100.0, 10.0).share(105.0) == 0.5
    assert Window(100.0, 10.0).seconds_left(105.0) == 5.0
    assert Window(100.0, 10.0).seconds_left(115.0) == 0.0
