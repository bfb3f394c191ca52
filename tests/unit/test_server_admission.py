"""Who is let in, and that everybody who leaves is counted out."""

from __future__ import annotations

import logging

import pytest

from server.admission import AFTER_MS, Admission, census
from server.close import Close, PeerError
from server.config import Config
from server.stats import Stats


class Gate:
    """An admission with a clock and stats of its own."""

    def __init__(self, workers: int = 1, **options: float) -> None:
        self.now, self.stats = 100.0, Stats()
        config = Config(**options)  # type: ignore[arg-type]
        self.of = [
            Admission(config, self.stats, found, number, workers, lambda: self.now)
            for found in [census(config, workers)]
            for number in range(workers)
        ]

    def enter(self, fd: int, address: str = "192.0.2.1", user: str | None = None, worker: int = 0) -> Close | None:
        """Return why it is refused, None when it is let in."""
        admission = self.of[worker]
        try:
            admission.enter(fd, lambda: address)
            if user is not None:
                admission.enter_user(fd, user)
        except PeerError as error:
            admission.refused(error)
            admission.leave(fd)
            self.stats.handshake_failures[error.code] += 1
            return error.code
        return None

    def leave(self, fd: int) -> None:
        self.of[0].leave(fd)


def test_without_limits_nothing_is_kept() -> None:
    assert census(Config(accepts_per_second=5.0), 4) is None
    gate = Gate()
    assert all(gate.enter(fd, user="alice") is None for fd in range(1000))
    assert not gate.of[0]._addresses
    assert not gate.of[0]._users
    gate.leave(5)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"connections_max": 3}, Close.FULL),
        ({"connections_per_address_max": 3}, Close.ADDRESS_FULL),
        ({"connections_per_user_max": 3}, Close.USER_FULL),
        ({"connections_max": 3, "connections_per_address_max": 100, "connections_per_user_max": 100}, Close.FULL),
    ],
)
def test_as_many_as_the_limit_and_one_more_for_each_that_leaves(options: dict[str, float], code: Close) -> None:
    gate = Gate(**options)
    fds = [9, 4, 700, 12, 5]
    assert [gate.enter(fd, user="alice") for fd in fds] == [None] * 3 + [code] * 2
    gate.leave(12)  # was never in
    assert gate.enter(12, user="alice") is code
    gate.leave(700)
    gate.leave(700)
    assert [gate.enter(fd, user="alice") for fd in (700, 5)] == [None, code]
    assert gate.stats.sessions_refused == 4
    for fd in fds:
        gate.leave(fd)
    assert [gate.enter(fd, user="alice") for fd in fds] == [None] * 3 + [code] * 2


def test_who_is_refused_for_her_name_is_not_counted_for_her_address() -> None:
    gate = Gate(connections_per_user_max=1, connections_per_address_max=2)
    assert [gate.enter(fd, user="alice") for fd in range(5)] == [None] + [Close.USER_FULL] * 4
    assert gate.enter(7, user="bob") is None
    assert gate.enter(8, user="carol") is Close.ADDRESS_FULL
    assert gate.enter(8, address="192.0.2.2", user="carol") is None


def test_an_address_is_an_ipv4_one_or_a_subnet() -> None:
    gate = Gate(connections_per_address_max=1)
    found = [gate.enter(fd, address) for fd, address in enumerate(["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"])]
    assert found == [None, Close.ADDRESS_FULL, None]
    assert [gate.enter(fd + 10, address) for fd, address in enumerate(["10.0.0.1", "10.0.0.2", "unknown"])] == [
        None
    ] * 3


def test_the_rate_is_shared_out_among_the_workers() -> None:
    gate = Gate(workers=4, accepts_per_second=40.0)
    assert [sum(gate.enter(fd, worker=worker) is None for fd in range(100)) for worker in range(4)] == [10] * 4
    gate.now += 0.5
    assert sum(gate.enter(fd) is None for fd in range(100)) == 5
    assert {code for code, count in gate.stats.handshake_failures.items() if count} == {Close.ACCEPT_RATE}


def test_publishes_are_paced_and_a_flood_is_abuse() -> None:
    gate = Gate(publishes_per_second=5.0)
    admission = gate.of[0]
    waits = [admission.publish_wait_ms("her", "alice") for _ in range(12)]
    assert waits[:10] == [0] * 10
    assert all(0 < wait <= 200 for wait in waits[10:])
    assert admission.publish_wait_ms("him", "bob") == 0
    assert gate.stats.publishes_limited == 2
    assert [admission.is_abuse("her") for _ in range(51)] == [False] * 50 + [True]
    gate.now += 60.0
    admission.keep(gate.now)
    assert not admission.is_abuse("her")
    assert Gate().of[0].publish_wait_ms("her", "alice") == 0


def test_the_log_says_how_many_and_names_one(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate(connections_per_address_max=1, accepts_per_second=1000.0)
    caplog.set_level(logging.WARNING, "moorage.admission")
    for fd in range(1500):
        gate.enter(fd, f"192.0.2.{fd % 2}")
    for _ in range(40):
        gate.of[0].keep(gate.now)
        gate.now += 0.25
    assert caplog.messages == [
        "refused 500 times: accept_rate; the last: too many newcomers at the moment",
        "refused 998 times: address_full; the last: 1 connections from 192.0.2.1, want at most 1",
    ]
    gate.of[0].keep(gate.now)
    assert len(caplog.messages) == 2, "once is enough"


@pytest.mark.parametrize("kind", ["address", "user"])
def test_what_a_full_table_has_not_counted_is_not_counted_out(
    kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _which: (100, 100))  # 448 keys fit
    caplog.set_level(logging.WARNING, "moorage.admission")
    gate = Gate(**{f"connections_per_{kind}_max": 1, "connections_max": 600})

    def enter(fd: int, who: int) -> Close | None:
        return gate.enter(fd, **{kind: f"who{who}"})

    assert [enter(fd, fd) for fd in range(601)] == [None] * 600 + [Close.FULL]
    assert gate.stats.census_overflows == 153, "all but 447, and that of all together"
    gate.of[0].keep(gate.now)
    assert "not counted 153 times: the table that limits on connections count in is full" in caplog.messages
    gate.leave(0)
    assert enter(700, 599) is None, "there is room for her now, and her first is not counted"
    gate.leave(599)
    assert enter(701, 599) is Close[f"{kind.upper()}_FULL"], "and still not when it leaves"
    for fd in [*range(1, 599), 700]:
        gate.leave(fd)
    assert [enter(fd, fd) for fd in range(400)] == [None] * 400
    assert gate.stats.census_overflows == 153


def test_those_who_are_refused_are_told_to_stay_away_for_longer_than_others() -> None:
    assert all(code.reconnect and 1000 < least < most for code, (least, most) in AFTER_MS.items())
