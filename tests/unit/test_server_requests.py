"""What a session asks for: the bound on publishes that wait for Redis, which is each session's own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from router import vector
from router.namespaces import Namespaces
from router.outcome import BusDown, Unconfirmed
from router.pipe import Done
from server import limits
from server.auth import Claims
from server.requests import Requests
from server.session import CLOSED, Session
from server.stats import Stats

MOST = limits.PUBLISHES_IN_FLIGHT_MAX


class Speaker(Session):
    """A session that keeps what it is told."""

    __slots__ = ("told", "writes")

    def __init__(self, user: str) -> None:
        super().__init__(7, user, ())
        self.told: list[dict[str, Any]] = []
        self.writes = 0

    def offer(self, frame: bytes) -> bool:
        self.told += map(orjson.loads, frame.splitlines())
        self.writes += 1
        return True

    def take(self) -> list[tuple[str, int]]:
        told, self.told = self.told, []
        return [(each["op"], each["id"]) for each in told]


class House:
    """A worker whose Redis answers when it is told to."""

    def __init__(self) -> None:
        self.stats = Stats()
        self.muted: set[Session] = set()
        self.looks = 0  # at the clock
        self.lines_per_turn = 1_000_000
        self.pool = SimpleNamespace(stats=self.stats, mute=self.muted.add, unmute=self.muted.remove, now=self.now)
        self.bus = self
        self.joins: list[Callable[[bytes | None], None]] = []
        self.feed = self
        self.faulty: list[Session] = []
        self.calls: list[Callable[[], None]] = []  # for the end of the turn
        self.admission = SimpleNamespace(publish_wait_ms=lambda _who, _user: 0)
        self.waiting: list[Done] = []
        self.is_down = False
        house: Any = self
        self.requests = Requests(house, Namespaces(), channels_max=128, message_bytes_max=65536)

    def now(self) -> float:
        """A clock that is looked at every 8 lines, of which a turn has time for so many."""
        self.looks += 1
        return self.looks * 8 * limits.TURN_SECONDS_MAX / self.lines_per_turn

    def join(self, _names: list[bytes], done: Callable[[bytes | None], None]) -> None:
        self.joins.append(done)

    def read(self, text: vector.Text) -> vector.Vector | None:
        return vector.parse(text, 1)

    def later(self, call: Callable[[], None]) -> None:
        self.calls.append(call)

    def failed(self, session: Session) -> None:
        self.faulty.append(session)

    def claims(self, session: Session) -> Claims:
        return Claims(session.user)

    def publish(self, _name: bytes, _members: bytes, _retention: object, done: Done, *, once: bytes) -> None:
        if self.is_down:
            done(BusDown("no connection"))
        else:
            self.waiting.append(done)

    def answer(self, count: int, reply: object = b"01234567-1-1") -> None:
        now, self.waiting = self.waiting[:count], self.waiting[count:]
        for done in now:
            done(reply)
        self.requests.tell_answers()

    def end_turn(self) -> None:
        calls, self.calls = self.calls, []
        for call in calls:
            call()

    def says(self, session: Session, first: int, count: int) -> None:
        lines = [b'{"op":"publish","id":%d,"channel":"room:a","data":1}\n' % n for n in range(first, first + count)]
        self.requests.received(session, b"".join(lines))


@pytest.fixture
def house() -> House:
    return House()


def test_one_that_does_not_wait_for_redis_is_refused_alone(house: House, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "moorage.requests")
    alice, bob = Speaker("alice"), Speaker("bob")
    house.says(alice, 0, MOST + 3)
    assert [(each["op"], each["id"], each["code"]) for each in alice.told] == [
        ("error", MOST + n, 3004) for n in range(3)
    ]
    assert alice.told[0]["reason"] == f"{MOST} publishes of this connection wait for Redis"
    assert alice.told[0]["after_ms"] > 0
    assert house.stats.publish_failures == 3
    assert [record.getMessage() for record in caplog.records] == [
        f"publishes of alice are refused: {MOST} publishes of this connection wait for Redis"
    ], "once, and not for each"
    house.says(bob, 1, 1)
    alice.take()
    house.answer(2)
    house.says(alice, 5000, 3)
    assert alice.take() == [("published", 0), ("published", 1), ("error", 5002)]
    house.answer(MOST + 3)
    assert bob.take() == [("published", 1)]
    assert alice.take() == [*(("published", n) for n in range(2, MOST)), ("published", 5000), ("published", 5001)]


@pytest.mark.parametrize("reply", [b"01234567-1-1", 3, Unconfirmed("cut")])
def test_nothing_is_kept_of_those_who_wait_for_nothing(house: House, reply: object) -> None:
    alice, bob, carol = Speaker("alice"), Speaker("bob"), Speaker("carol")
    for each in (alice, bob, carol):
        house.says(each, 0, 5)
    bob.fd = CLOSED
    house.requests.forget(bob)
    house.answer(14, reply)
    assert house.requests._in_flight == {carol: 1}
    house.answer(1, reply)
    house.is_down = True
    house.says(alice, 9, 1)
    house.end_turn()
    assert alice.take()[-1] == ("error", 9)
    assert house.requests._in_flight == {}
    assert bob.take() == []


def test_what_redis_answers_at_once_is_told_in_one_write(house: House) -> None:
    alice, bob = Speaker("alice"), Speaker("bob")
    for first in (0, 4):
        for each in (alice, bob):
            house.says(each, first, 4)
    house.answer(14)
    assert alice.take() == [("published", n) for n in range(8)]
    assert bob.take() == [("published", n) for n in range(6)]
    assert (alice.writes, bob.writes) == (1, 1)


def test_what_was_answered_is_told_before_what_is_said_next(house: House) -> None:
    alice = Speaker("alice")
    house.is_down = True
    house.says(alice, 1, 2)
    house.requests.received(alice, b'{"op":"ping","id":3}\n')
    assert alice.take() == [("error", 1), ("error", 2), ("pong", 3)]
    house.says(alice, 4, 1)
    assert alice.take() == [], "others may be answered in this turn too"
    house.end_turn()
    assert alice.take() == [("error", 4)]


def test_who_is_sent_away_is_told_what_was_answered_before(house: House) -> None:
    alice = Speaker("alice")
    house.is_down = True
    house.says(alice, 1, 1)
    house.requests.forget(alice)
    assert alice.take() == [("error", 1)]
    house.end_turn()
    assert alice.take() == []


def test_a_bug_behind_an_answer_ends_the_session_that_waits_for_it(house: House) -> None:
    alice, bob = Speaker("alice"), Speaker("bob")
    for each in (alice, bob):
        house.requests.received(each, b'{"op":"subscribe","id":1,"channel":"room:a"}\n')
    assert house.muted == {alice, bob}
    for joined in house.joins:
        joined(b"01234567-1-1")  # and this worker has no carousel
    assert house.faulty == [alice, bob]


def test_who_goes_on_from_a_position_without_a_bus_is_not_let_in(house: House) -> None:
    """What is read when it is back begins where this worker was, and she may have been further elsewhere."""
    alice = Speaker("alice")
    subscribe = b'{"op":"subscribe","id":1,"channel":"room:a","position":"01234567-5-5"}\n{"op":"ping","id":2}\n'
    house.requests.received(alice, subscribe)
    house.joins.pop()(None)
    refused, answered = alice.told
    assert (refused["op"], refused["id"], refused["code"]) == ("error", 1, 3005)
    assert refused["after_ms"] > 0
    assert alice.channels == ()
    assert answered == {"op": "pong", "id": 2}, "she is read again"
    assert not house.muted


def test_who_sends_more_than_a_turn_has_time_for_goes_on_in_the_next(house: House) -> None:
    house.lines_per_turn = 16
    session, other = Speaker("alice"), Speaker("bob")
    house.requests.received(session, b"".join(b'{"op":"ping","id":%d}\n' % n for n in range(50)) + b'{"op":"pi')
    assert session.take() == [("pong", n) for n in range(16)]
    assert house.muted == {session}, "nothing more is read of her meanwhile"
    house.requests.received(other, b'{"op":"ping","id":1}\n')
    assert other.take() == [("pong", 1)]
    for first, end in ((16, 32), (32, 48), (48, 50)):
        house.end_turn()
        assert session.take() == [("pong", n) for n in range(first, end)]
    assert not house.muted
    house.requests.received(session, b'ng","id":50}\n')
    assert session.take() == [("pong", 50)]


def test_who_is_gone_when_her_next_turn_comes_is_not_missed(house: House) -> None:
    house.lines_per_turn = 16
    session = Speaker("alice")
    house.requests.received(session, b'{"op":"ping","id":1}\n' * 50)
    session.fd = CLOSED
    house.requests.forget(session)
    house.end_turn()
    assert len(session.take()) == 16
    assert not house.faulty
