"""History over the wire: in pages, of what may be read, in the order of everything else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness import Json, LineClient, Server

pytestmark = pytest.mark.xdist_group("resume")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(["--workers", "1"]) as made:
        yield made


@pytest.fixture
def client(server: Server) -> Iterator[LineClient]:
    with server.joined("alice", "room:h") as client:
        yield client


def ask(client: LineClient, channel: str, **members: object) -> Json:
    client.send({"op": "history", "id": "h", "channel": channel, **members})
    return client.expect("history", id="h", channel=channel)


def publish(client: LineClient, channel: str, *data: object) -> list[str]:
    client.send(*({"op": "publish", "id": n, "channel": channel, "data": each} for n, each in enumerate(data)))
    return [client.expect("published")["position"] for _ in data]


def test_pages_from_any_position_meet(client: LineClient) -> None:
    start = client.connected["position"]
    positions = publish(client, "room:pages", *range(25))
    at, found = start, list[object]()
    while page := (answer := ask(client, "room:pages", after=at, limit=7))["messages"]:
        found += [each["data"] for each in page]
        assert answer["position"] == page[-1]["position"]
        at = answer["position"]
    assert found == list(range(25))
    assert [each["data"] for each in ask(client, "room:pages", after=positions[20])["messages"]] == [21, 22, 23, 24]
    assert [each["data"] for each in ask(client, "room:pages", limit=3)["messages"]] == [22, 23, 24]


def test_what_is_kept_is_what_was_sent(client: LineClient) -> None:
    said = [None, {"a": [1, "\u2028", '"']}, "x" * 60_000, 1e300, "👩‍👩‍👧"]
    publish(client, "room:h", *said)
    live = client.messages(0)
    kept = ask(client, "room:h")["messages"]
    assert [each["data"] for each in kept] == said
    assert all(set(each) == {"channel", "position", "from", "at", "data"} for each in kept)
    assert live == []


def test_a_large_page_is_no_reason_to_be_called_slow(client: LineClient) -> None:
    publish(client, "room:large", *["x" * 60_000 for _ in range(40)])
    assert len(ask(client, "room:large", limit=40)["messages"]) == 40
    client.send({"op": "ping", "id": 1})
    client.expect("pong", id=1)


def test_many_large_pages_asked_for_at_once_are_sent_as_they_are_read(client: LineClient) -> None:
    publish(client, "room:large", *["x" * 60_000 for _ in range(60)])
    client.send(*({"op": "history", "id": n, "channel": "room:large", "limit": 60} for n in range(8)))
    client.send({"op": "publish", "id": 8, "channel": "room:h", "data": 1})
    assert [len(client.expect("history", id=n)["messages"]) for n in range(8)] == [60] * 8
    client.expect("message", channel="room:h")
    client.send({"op": "ping", "id": 10})
    client.expect("pong", id=10)


def test_large_messages_make_small_pages(server: Server, client: LineClient) -> None:
    """All of a worker wait behind an answer, and whoever does not read it has it held for her."""
    start = client.connected["position"]
    publish(client, "room:larger", *[f"{n:03}{'x' * 60_000}" for n in range(100)])
    numbers, at = list[int](), start
    while page := (answer := ask(client, "room:larger", after=at, limit=1000))["messages"]:
        assert len(page) < 70
        numbers += [int(each["data"][:3]) for each in page]
        at = answer["position"]
    assert numbers == list(range(100))
    newest = [int(each["data"][:3]) for each in ask(client, "room:larger", limit=1000)["messages"]]
    assert 60 < len(newest) < 70
    assert newest == list(range(100))[-len(newest) :]
    status, answer = server.request("GET", "/api/channels/room%3Alarger/history?limit=1000", admin=True)
    assert (status, len(answer["messages"])) == (200, len(newest))


def test_a_page_and_what_follows_it_live_is_everything(client: LineClient) -> None:
    """History, and then a subscription from where it ends: the way to begin with the past."""
    publish(client, "room:begin", *range(10))
    page = ask(client, "room:begin", limit=4)
    publish(client, "room:begin", "between")
    client.send({"op": "subscribe", "id": 1, "channel": "room:begin", "position": page["position"]})
    client.expect("subscribed", recovered=True)
    publish(client, "room:begin")
    assert [each["data"] for each in (*page["messages"], *client.messages(1))] == [6, 7, 8, 9, "between"]


@pytest.mark.parametrize("after", ["garbage", "0123abcd-1-1", "ffffffff-1-1~cm9v-1-1"])
def test_behind_a_position_that_is_not_known(client: LineClient, after: str) -> None:
    client.send({"op": "history", "id": 1, "channel": "room:h", "after": after})
    client.expect("error", id=1, code=4004, field="after")


def test_of_what_is_not_ones_own(client: LineClient) -> None:
    client.send({"op": "history", "id": 1, "channel": "@bob"}, {"op": "history", "id": 2, "channel": "$control"})
    client.expect("error", id=1, code=4003)
    client.expect("error", id=2, code=4003)
    assert ask(client, "@alice")["messages"] == []
