"""What was said and who is there, as members of an answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from journals import Desk

from router import vector
from router.embedded import Embedded
from router.outcome import Unconfirmed
from router.replay import Reader
from server.close import Close, PeerError
from server.lookups import Done, Lookups


class Feed:
    """As much of a feed as a lookup needs; it is its own presence."""

    def __init__(self, desk: Desk) -> None:
        self.reader = Reader(desk, desk.keys)
        self.head = self.newest = desk.now()
        self.presence = self
        self.there: dict[str, int] | int | Exception = {}

    def read(self, text: vector.Text) -> vector.Vector | None:
        return vector.parse(text, 1)

    def ask(self, name: bytes, done: Any) -> None:
        done(self.there)

    def write(self, users: dict[str, int], done: Any) -> None:
        done(orjson.dumps(users))


@pytest.fixture(scope="module")
def server() -> Iterator[Embedded]:
    with Embedded() as embedded:
        yield embedded


@pytest.fixture
def feed(server: Embedded) -> Iterator[Feed]:
    desk = Desk(server)
    for n in range(10):
        desk.publish(b"room:a", b"%d" % n)
    yield Feed(desk)
    desk.close()


def history(feed: Feed, after: str | None, limit: int, channel: str = "room:a") -> dict[str, Any]:
    found: list[bytes | Exception] = []
    done: Done = found.append
    Lookups(feed).history(channel, after, limit, done)  # type: ignore[arg-type]
    if isinstance(found[0], Exception):
        raise found[0]
    answer: dict[str, Any] = orjson.loads(b'{"op":"history"' + found[0] + b"}")
    return answer


def test_the_newest_in_order(feed: Feed) -> None:
    answer = history(feed, None, 3)
    assert [each["data"] for each in answer["messages"]] == [7, 8, 9]
    assert answer["position"] == answer["messages"][-1]["position"]
    assert set(answer["messages"][0]) == {"channel", "position", "from", "at", "data"}


def test_page_by_page_to_the_end(feed: Feed) -> None:
    at = f"{feed.head.decode()[:9]}0-0"
    found: list[int] = []
    while True:
        answer = history(feed, at, 4)
        found += [each["data"] for each in answer["messages"]]
        if not answer["messages"]:
            break
        at = answer["position"]
    assert found == list(range(10))
    assert answer["position"] == at


def test_a_channel_that_is_behind_has_its_own_place(feed: Feed) -> None:
    first = history(feed, f"{feed.head.decode()[:9]}0-0", 1)["messages"][0]["position"]
    encoded = "cm9vbTph"  # room:a
    assert [each["data"] for each in history(feed, f"{feed.head.decode()}~{encoded}-{first[9:]}", 2)["messages"]] == [
        1,
        2,
    ]
    assert history(feed, f"{feed.head.decode()}~{encoded}-{first[9:]}", 2, "room:b")["messages"] == []


def test_a_channel_without_messages_goes_on_from_now(feed: Feed) -> None:
    assert history(feed, None, 5, "room:never") == {"op": "history", "messages": [], "position": feed.head.decode()}


@pytest.mark.parametrize("after", ["", "garbage", "ffffffff-1-1", '"}'])
def test_a_position_that_is_not_known(feed: Feed, after: str) -> None:
    with pytest.raises(PeerError) as caught:
        history(feed, after, 5)
    assert (caught.value.code, caught.value.field) == (Close.NOT_FOUND, "after")


def test_a_journal_that_cannot_be_read(feed: Feed) -> None:
    desk: Any = feed.reader._bus
    desk.is_prompt = False
    found: list[bytes | Exception] = []
    Lookups(feed).history("room:a", None, 5, found.append)  # type: ignore[arg-type]
    desk.fail(Unconfirmed("cut"))
    assert isinstance(found[0], Unconfirmed)


def test_who_is_there(feed: Feed) -> None:
    found: list[bytes | Exception] = []
    for feed.there in ({"alice": 2, 'b"ob': 1}, {}, 12_000, Unconfirmed("late")):
        Lookups(feed).presence("room:a", found.append)  # type: ignore[arg-type]
    assert found[:3] == [b',"users":{"alice":2,"b\\"ob":1}', b',"users":{}', b',"connections":12000']
    assert isinstance(found[3], Unconfirmed)
