"""The greeting: what it says, and what follows it when somebody comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from halls import Guest, Hall, sse
from journals import Desk, number

from router.embedded import Embedded
from router.message import Message
from router.namespaces import Namespace, Namespaces
from router.outcome import Unconfirmed
from router.position import Position, parse
from server import lines
from server.close import Close
from server.config import Config
from server.session import CLOSED
from server.welcome import Welcome


@pytest.fixture(scope="module")
def server() -> Iterator[Embedded]:
    with Embedded() as embedded:
        yield embedded


@pytest.fixture
def hall(server: Embedded) -> Iterator[Hall]:
    namespaces = Namespaces(named=(Namespace("live", durable=False),))
    hall = Hall(Desk(server), Config(heartbeat_seconds=10.0, namespaces=namespaces))
    yield hall
    hall.close()
    hall.desk.close()


@pytest.fixture
def greet(hall: Hall) -> Callable[..., list[dict[str, object]]]:
    welcome = Welcome(hall, "node-1")

    def greet(guest: Guest, began: bytes | None, asked: str | None, head: bytes = b"") -> list[dict[str, object]]:
        welcome.greet(guest.session, began, asked, head)
        hall.settle(guest)
        return [] if head else guest.heard()

    return greet


Greet = Callable[..., list[dict[str, object]]]


def test_a_greeting(hall: Hall, greet: Greet) -> None:
    now = hall.desk.now()
    first, second = hall.open("alice", b"room:a", b"live:a"), hall.open("bob")
    assert greet(first, now, None) == [
        {
            "op": "connected",
            "user": "alice",
            "session": "node-1-1",
            "heartbeat_s": 10,
            "position": now.decode(),
            "recovered": True,
            "channels": ["@alice", "room:a", "live:a"],
        }
    ]
    assert greet(second, now, None)[0]["session"] == "node-1-2"


def test_without_a_bus_a_stream_begins_at_the_head(hall: Hall, greet: Greet) -> None:
    hall.feed.head = hall.desk.now()
    (greeting,) = greet(hall.open("alice"), None, None)
    assert (greeting["position"], greeting["recovered"]) == (hall.feed.head.decode(), False)


@pytest.mark.parametrize("codec", [lines, sse])
def test_who_comes_back_without_a_bus_is_asked_to_come_again(hall: Hall, greet: Greet, codec: object) -> None:
    """What it missed is in the journal still: to begin anew now would lose it."""
    guest = hall.open("alice", codec=codec)  # type: ignore[arg-type]
    greet(guest, None, hall.desk.now().decode(), b"HEAD\n")
    assert hall.ended == [(guest.session, Close.BUS_DOWN)]
    guest.read()
    assert guest.data.startswith(b"HEAD\n")
    assert b"3005" in guest.data
    assert b"connected" not in guest.data


@pytest.mark.parametrize(
    ("asked", "up"), [("", True), ("", False), ("garbage", True), ("0-0-0", False), ("ffffffff-1-1", True)]
)
def test_a_position_of_nobody(hall: Hall, greet: Greet, asked: str, up: bool) -> None:
    now = hall.desk.now()
    hall.feed.head = now
    (greeting,) = greet(hall.open("alice"), now if up else None, asked)
    assert (greeting["position"], greeting["recovered"]) == (now.decode(), False)


def test_a_position_ahead_of_the_stream(hall: Hall, greet: Greet) -> None:
    now = hall.desk.place()
    ahead = now._replace(id=now.id._replace(number=now.id.number + 1))
    (greeting,) = greet(hall.open("alice"), str(now).encode(), str(ahead))
    assert (greeting["position"], greeting["recovered"]) == (str(now), False)


def test_a_position_that_is_now(hall: Hall, greet: Greet) -> None:
    hall.desk.publish(b"room:a")
    now = hall.desk.now()
    guest = hall.open("alice", b"room:a")
    (greeting,) = greet(guest, now, now.decode())
    assert (greeting["position"], greeting["recovered"]) == (now.decode(), True)
    assert hall.feed.reader.reads == 0


def test_what_was_missed_on_all_durable_channels_the_personal_one_too(hall: Hall, greet: Greet) -> None:
    since = hall.desk.now()
    sent = [number(hall.desk.publish(name)) for name in (b"room:a", b"@alice", b"room:b", b"room:a")]
    now = hall.desk.now()
    hall.desk.publish(b"room:a")
    guest = hall.open("alice", b"room:a", b"room:b", b"live:a")
    greeting, *_ = greet(guest, now, since.decode())
    assert (greeting["position"], greeting["recovered"]) == (since.decode(), True)
    assert guest.numbers() == sent
    assert hall.feed.reader.reads == 3
    assert not hall.requests.held


def test_no_request_is_handled_before_all_is_sent(hall: Hall) -> None:
    since = hall.desk.now()
    hall.desk.publish(b"room:a")
    guest = hall.open("alice", b"room:a")
    hall.desk.is_prompt = False
    Welcome(hall, "w").greet(guest.session, hall.desk.now(), since.decode(), b"")
    hall.work()
    assert hall.requests.held == {guest.session}
    hall.desk.is_prompt = True
    hall.desk.answer()
    hall.settle(guest)
    assert not hall.requests.held


def test_a_stream_has_its_head_before_anything_can_end_it(hall: Hall) -> None:
    since = hall.desk.now()
    hall.desk.publish(b"room:a")
    guest = hall.open("alice", b"room:a", codec=sse)
    hall.desk.is_prompt = False
    Welcome(hall, "w").greet(guest.session, hall.desk.now(), since.decode(), b"HEAD\n")
    hall.work()
    hall.desk.fail(Unconfirmed("cut"))
    hall.settle(guest)
    assert guest.data.startswith(b"HEAD\n")
    assert b"event: close" in guest.data
    assert guest.session.fd == CLOSED


def test_a_channel_that_is_behind_can_be_cut_anywhere(hall: Hall, greet: Greet) -> None:
    """From a position that says that one channel lags, to the last message, one connection a message."""
    start = hall.desk.place()
    names = [b"room:late", b"room:on"]
    sent: dict[bytes, list[int]] = {name: [] for name in names}
    for n in range(20):
        sent[names[n % 2]].append(number(hall.desk.publish(names[n % 2])))
    middle = hall.desk.place()
    for n in range(10):
        sent[names[n % 2]].append(number(hall.desk.publish(names[n % 2])))
    asked = str(middle.but(b"room:late", start.id))
    heard: dict[str, list[int]] = {"room:late": [], "room:on": []}
    for _ in range(100):
        guest = hall.open("alice", *names)
        _, *messages = greet(guest, hall.desk.now(), asked)
        if not messages:
            break
        first, asked = messages[0], str(messages[0]["position"])
        at = parse(asked)
        assert isinstance(at, Position)
        heard[str(first["channel"])].append(at.of(str(first["channel"]).encode()).number)
    assert heard["room:late"] == sent[b"room:late"]
    assert heard["room:on"] == [n for n in sent[b"room:on"] if n > middle.id.number]


def test_what_comes_meanwhile_is_behind(hall: Hall) -> None:
    since = hall.desk.now()
    hall.desk.publish(b"room:a")
    guest = hall.open("alice", b"room:a")
    Welcome(hall, "w").greet(guest.session, hall.desk.now(), since.decode(), b"")
    guest.session.offer(lines.message(Message(b"message", b"room:a", since[:9] + b"9-9", b',"data":1')))
    hall.settle(guest)
    assert [each["op"] for each in guest.heard()] == ["connected", "message", "message"]
    assert guest.numbers() == [1, 9]
