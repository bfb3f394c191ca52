"""Coming back over real sockets: in order, once, bounded, and with everybody else unhurt."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from halls import Guest, Hall
from journals import Desk, number

from router.embedded import Embedded
from router.journal import Retention
from router.message import Message
from router.outcome import Unconfirmed
from router.position import Position
from router.replay import Missed
from server import catchup, lines
from server.close import Close
from server.config import Config
from server.session import CLOSED


@pytest.fixture(scope="module")
def server() -> Iterator[Embedded]:
    with Embedded() as embedded:
        yield embedded


@pytest.fixture
def hall(server: Embedded) -> Iterator[Hall]:
    hall = Hall(Desk(server), Config())
    yield hall
    hall.close()
    hall.desk.close()


def come_back(hall: Hall, guest: Guest, since: Position, *names: bytes) -> None:
    upto = hall.desk.place()
    missed = Missed(hall.feed.reader, since.epoch, dict.fromkeys(names, since.id), upto.id)
    hall.catchup.start(
        guest.session, missed, str(since).encode(), lambda whole: lines.answer({"op": "hello", "whole": whole})
    )


def live(hall: Hall, guest: Guest, name: bytes) -> int:
    """A message that comes while a session is being caught up."""
    position, _, members = hall.desk.publish(name).split(b" ", 2)
    assert guest.session.offer(lines.message(Message(b"message", name, position, members)))
    return int(position.split(b"-")[2])


def test_what_was_missed_then_what_is_new(hall: Hall) -> None:
    since = hall.desk.place()
    sent = [number(hall.desk.publish(b"room:%d" % (n % 3))) for n in range(400)]
    guest = hall.open("alice")
    come_back(hall, guest, since, b"room:0", b"room:1", b"room:2")
    sent.append(live(hall, guest, b"room:0"))
    hall.settle(guest)
    heard = guest.heard()
    assert heard[0] == {"op": "hello", "whole": True}
    assert guest.numbers() == sent
    assert guest.session.backlog is None
    assert (hall.stats.backlogged_connections, hall.stats.backlog_bytes) == (0, 0)


def far_behind(hall: Hall) -> tuple[Guest, list[int]]:
    """Return somebody who has come back and not read yet what is sent, and the numbers of what was missed, which is much."""
    since, big = hall.desk.place(), b'"%b"' % (b"x" * 60_000)
    sent = [number(hall.desk.publish(b"room:a", big)) for _ in range(30)]
    guest = hall.open("alice")
    come_back(hall, guest, since, b"room:a")
    hall.settle()
    return guest, sent


def read_slowly(hall: Hall, guest: Guest) -> None:
    """Read until everything has come."""
    while hall.catchup:
        hall.work()
        guest.read(10_000)
    hall.settle(guest)


def test_a_peer_that_reads_slowly_costs_a_page_and_gets_all(hall: Hall) -> None:
    guest, sent = far_behind(hall)
    reads = hall.feed.reader.reads
    assert hall.stats.backlog_bytes < 400_000
    hall.settle()
    assert hall.feed.reader.reads == reads, "nothing is read for a peer that does not"
    read_slowly(hall, guest)
    assert guest.numbers() == sent


def test_data_that_are_lost_on_the_way_are_a_gap_and_what_is_new_comes_once(hall: Hall) -> None:
    """The same number is another message in another epoch: what is read goes on in the one in which it began, or ends."""
    epoch = hall.desk.place().epoch
    guest, sent = far_behind(hall)
    hall.desk.client.flushall()
    new = [live(hall, guest, b"room:a") for _ in range(3)]
    read_slowly(hall, guest)
    heard = [(each["op"], each["position"].partition("-")[0]) for each in guest.heard()[1:]]
    had = heard.index(("gap", epoch))
    assert 0 < had < len(sent)
    assert guest.numbers() == sent[:had] + new
    assert heard[had + 1 :] == [("message", hall.desk.place().epoch)] * 3


def test_peers_that_do_not_read_hold_up_nobody(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catchup, "ACTIVE_MAX", 2)
    since, big = hall.desk.place(), b'"%b"' % (b"x" * 60_000)
    sent = [number(hall.desk.publish(b"room:a", big)) for _ in range(10)]
    deaf = [hall.open(f"deaf{n}") for n in range(4)]
    for guest in deaf:
        come_back(hall, guest, since, b"room:a")
    hall.settle()
    alice = hall.open("alice")
    come_back(hall, alice, since, b"room:a")
    for _ in range(200):
        hall.work()
        alice.read()
    assert alice.numbers() == sent
    assert len(hall.catchup) == 4


def test_no_more_than_so_many_read_at_a_time(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catchup, "ACTIVE_MAX", 3)
    hall.desk.is_prompt = False
    since = hall.desk.place()
    sent = [number(hall.desk.publish(b"room:%d" % n)) for n in range(10)]
    guests = [hall.open(f"u{n}") for n in range(10)]
    for n, guest in enumerate(guests):
        come_back(hall, guest, since, b"room:%d" % n)
    hall.work()
    assert len(hall.desk.asked) == 3
    assert len(hall.catchup) == 10
    while hall.catchup:
        hall.desk.answer(1)
        hall.work()
        assert len(hall.desk.asked) <= 3
    assert [guest.numbers() for guest in guests] == [[each] for each in sent]


def test_those_who_leave_do_not_make_redis_send_more_at_a_time(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was asked for a session that has gone comes all the same: until then it has its turn."""
    monkeypatch.setattr(catchup, "ACTIVE_MAX", 3)
    hall.desk.is_prompt = False
    since = hall.desk.place()
    for n in range(10):
        hall.desk.publish(b"room:%d" % n)
    for n in range(10):
        guest = hall.open(f"u{n}")
        come_back(hall, guest, since, b"room:%d" % n)
        hall.work()
        hall.end(guest.session, Close.STOPPED)
        assert len(hall.desk.asked) <= 3
    while hall.desk.asked:
        hall.desk.answer(1)
        hall.work()
    assert len(hall.catchup) == 0


@pytest.mark.parametrize("close", ["by us", "by the peer"])
@pytest.mark.parametrize("answers", range(4))
def test_a_session_that_ends_at_any_moment(hall: Hall, close: str, answers: int) -> None:
    """Nothing is sent to it, nothing is left of it, and its turn goes to another."""
    since = hall.desk.place()
    for _ in range(300):
        hall.desk.publish(b"room:a")
    guest, other = hall.open("alice"), hall.open("bob")
    hall.desk.is_prompt = False
    come_back(hall, guest, since, b"room:a")
    hall.work()
    for _ in range(answers):
        hall.desk.answer(1)
        guest.read()
        hall.work()
    if close == "by us":
        hall.end(guest.session, Close.DRAINING)
    else:
        guest.sock.close()
    hall.work()
    hall.desk.is_prompt = True
    hall.desk.answer()
    come_back(hall, other, since, b"room:a")
    hall.settle(guest if close == "by us" else other, other)
    assert guest.session.fd == CLOSED
    assert len(other.numbers()) == 300
    assert len(hall.catchup) == 0
    assert hall.stats.backlogged_connections == 0


def test_a_session_that_ends_in_its_greeting(hall: Hall) -> None:
    since = hall.desk.place()
    hall.desk.publish(b"room:a")
    guest = hall.open("alice")
    missed = Missed(hall.feed.reader, since.epoch, {b"room:a": since.id}, hall.desk.place().id)
    hall.catchup.start(
        guest.session, missed, b"", lambda _whole: b"", done=lambda: hall.end(guest.session, Close.MOVED)
    )
    hall.settle(guest)
    assert hall.ended == [(guest.session, Close.MOVED)]
    assert len(hall.catchup) == 0


def test_what_waited_before_goes_first_and_nothing_twice(hall: Hall) -> None:
    """A backlog that drains while a page is under way is no reason to ask for the next one."""
    since = hall.desk.place()
    sent = [number(hall.desk.publish(b"room:a")) for _ in range(150)]
    guest = hall.open("alice")
    before = lines.answer({"op": "before", "text": "x" * 100_000})
    assert guest.session.offer(before)
    assert guest.session.backlog is not None
    hall.desk.is_prompt = False
    come_back(hall, guest, since, b"room:a")
    for _ in range(20):
        hall.work()
        guest.read()
    assert len(hall.desk.asked) == 1
    hall.desk.is_prompt = True
    hall.desk.answer()
    hall.settle(guest)
    assert [each["op"] for each in guest.heard()[:2]] == ["before", "hello"]
    assert guest.numbers() == sent


def test_a_bug_on_the_way_ends_the_session(hall: Hall) -> None:
    since = hall.desk.place()
    hall.desk.publish(b"room:a")
    guest = hall.open("alice")
    hall.desk.is_prompt = False
    come_back(hall, guest, since, b"room:a")
    hall.work()
    hall.desk.fail(ZeroDivisionError("a bug"))
    hall.settle(guest)
    assert hall.ended == [(guest.session, Close.OUR_FAULT)]


def test_a_bus_that_fails_on_the_way_is_told(hall: Hall) -> None:
    since = hall.desk.place()
    for _ in range(150):
        hall.desk.publish(b"room:a")
    guest = hall.open("alice")
    hall.desk.is_prompt = False
    come_back(hall, guest, since, b"room:a")
    hall.work()
    hall.desk.answer(1)
    hall.work()
    guest.read()
    hall.desk.fail(Unconfirmed("cut"))
    hall.settle(guest)
    assert hall.ended == [(guest.session, Close.BUS_DOWN)]
    last = guest.heard()[-1]
    assert (last["op"], last["code"], last["reconnect"]) == ("close", 3005, True)
    assert guest.numbers() == list(range(1, 101))


def test_a_gap_is_told_where_it_comes_to_light(hall: Hall) -> None:
    since = hall.desk.place()
    for _ in range(5):
        hall.desk.publish(b"few:a", retention=Retention(2, 3600))
        hall.desk.publish(b"room:a")
    guest = hall.open("alice")
    come_back(hall, guest, since, b"few:a", b"room:a")
    hall.settle(guest)
    heard = guest.heard()
    assert heard[0] == {"op": "hello", "whole": False}
    assert heard[1] == {"op": "gap", "channel": "few:a", "position": str(since)}
    assert guest.numbers() == [2, 4, 6, 7, 8, 9, 10]


def test_a_gap_on_the_way_has_the_position_reached(hall: Hall) -> None:
    since = hall.desk.place()
    for _ in range(150):
        hall.desk.publish(b"room:a")
    guest = hall.open("alice")
    hall.desk.is_prompt = False
    come_back(hall, guest, since, b"room:a")
    hall.work()
    hall.desk.answer(1)
    hall.work()
    for _ in range(3):
        hall.desk.publish(b"room:a", retention=Retention(4, 3600))
    hall.desk.is_prompt = True
    hall.desk.answer()
    hall.settle(guest)
    heard = guest.heard()
    at = [each["op"] for each in heard].index("gap")
    assert heard[at]["position"] == heard[at - 1]["position"]
    assert guest.numbers() == [*range(1, 101), 150]
