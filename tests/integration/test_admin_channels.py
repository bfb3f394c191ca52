"""What backends do with channels through the admin port: publish by the rules of a namespace, history, presence."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pytest
from harness import Json, LineClient, Server, wait_until

from router import clients, position
from router.embedded import Embedded
from router.journal import Keys
from router.namespaces import Namespaces
from router.note import UNANSWERED
from server import backend
from server.backend import Backend
from server.close import Close, PeerError

pytestmark = pytest.mark.xdist_group("admin_channels")  # one server for most of them

NAMESPACES = """
[[namespace]]
prefix = "short"
history_messages_max = 2

[[namespace]]
prefix = "typing"
durable = false
presence = false

[[namespace]]
prefix = "news"
publish = "server"
subscribe = "server"

[[namespace]]
prefix = "closed"
publish = "nobody"
subscribe = "nobody"
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    file = tmp_path_factory.mktemp("config") / "moorage.toml"
    file.write_text(NAMESPACES)
    with Server(["--workers", "2", "--config", str(file)]) as made:
        yield made


def read(server: Server, channel: str, what: str) -> tuple[int, Json]:
    return server.request("GET", f"/api/channels/{quote(channel, safe='')}/{what}", admin=True)


# History.


@pytest.mark.parametrize("channel", ["room:told", "@told", "плот:ß/?#%41+\"'\\", "room:{a}"])
def test_history_is_the_one_that_clients_get(server: Server, channel: str) -> None:
    with server.joined("told") as client:
        for n in range(3):
            client.send({"op": "publish", "id": n, "channel": channel, "data": {"n": n, "text": "é\n\u2028"}})
            client.expect("published")
        positions = [server.publish(channel, n) for n in range(3)]
        client.send({"op": "history", "id": 1, "channel": channel, "limit": 5})
        theirs = client.expect("history")
    status, answer = read(server, channel, "history?limit=5")
    assert status == 200
    assert list(answer) == ["channel", "messages", "position"]
    assert answer == {name: theirs[name] for name in answer}
    assert [message["from"] for message in answer["messages"]] == ["told"] * 2 + [None] * 3
    assert [message["position"] for message in answer["messages"]][2:] == positions
    assert answer["position"] == positions[-1]


def test_history_in_pages(server: Server) -> None:
    channel = "room:pages"
    begin = read(server, channel, "history")[1]
    assert begin["messages"] == []
    for n in range(60):
        server.publish(channel, n)
    assert [m["data"] for m in read(server, channel, "history")[1]["messages"]] == list(range(10, 60)), "the newest 50"
    got, at = [], begin["position"]
    while page := (answer := read(server, channel, f"history?after={at}&limit=25")[1])["messages"]:
        got += [message["data"] for message in page]
        at = answer["position"]
    assert got == list(range(60))
    assert answer["position"] == at


@pytest.mark.parametrize(
    ("channel", "query", "status", "code", "field"),
    [
        ("room:a", "limit=0", 400, 4000, "limit"),
        ("room:a", "limit=1001", 400, 4000, "limit"),
        ("room:a", "limit=-1", 400, 4000, "limit"),
        ("room:a", "limit=1.0", 400, 4000, "limit"),
        ("room:a", "limit=%D9%A1", 400, 4000, "limit"),
        ("room:a", "limit=" + "9" * 5000, 400, 4000, "limit"),
        ("room:a", "limit=1&limit=2", 400, 4000, "limit"),
        ("room:a", "after=%22", 400, 4000, "after"),
        ("room:a", "after=nonsense", 404, 4004, "after"),
        ("room:a", "after=ffffffff-1-1", 404, 4004, "after"),
        ("typing:a", "", 400, 4000, "channel"),
        ("closed:a", "", 403, 4003, "channel"),
        ("$control", "", 403, 4003, "channel"),
        ("a b", "", 400, 4000, "channel"),
        ("x" * 256, "", 400, 4000, "channel"),
    ],
)
def test_a_bad_question_for_history(
    server: Server, channel: str, query: str, status: int, code: int, field: str
) -> None:
    found, answer = read(server, channel, f"history?{query}")
    assert (found, answer["error"]["code"], answer["error"]["field"]) == (status, code, field)
    assert answer["error"]["reason"]


# Presence.


def test_presence_counts_the_connections_of_every_worker(server: Server) -> None:
    lines: list[LineClient] = []
    while len({line.connected["session"].split("-")[1] for line in lines}) < 2 or len(lines) % 2:
        lines.append(server.joined(f"p{len(lines) % 2}", "room:there"))
    stream = server.event_client("user=p0&channel=room:there")
    stream.expect("connected")
    half = len(lines) // 2
    users = {"p0": half + 1, "p1": half}
    assert read(server, "room:there", "presence") == (200, {"channel": "room:there", "users": users})
    assert read(server, "@p1", "presence") == (200, {"channel": "@p1", "users": {"p1": half}})
    stream.close()
    for line in lines[1:]:
        line.close()
    wait_until(lambda: read(server, "room:there", "presence")[1]["users"] == {"p0": 1}, "the others have left")
    lines[0].close()
    wait_until(lambda: read(server, "room:there", "presence")[1]["users"] == {}, "nobody is there")


def test_nobody_was_ever_there(server: Server) -> None:
    assert read(server, "room:never", "presence") == (200, {"channel": "room:never", "users": {}})


def test_many_questions_at_a_time(server: Server) -> None:
    with server.joined("asked", "room:asked"), ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda _: read(server, "room:asked", "presence"), range(120)))
    assert answers == [(200, {"channel": "room:asked", "users": {"asked": 1}})] * 120


@pytest.mark.parametrize(
    ("channel", "status", "code"),
    [("typing:a", 400, 4000), ("closed:a", 403, 4003), ("$x", 403, 4003), ("", 404, 4004)],
)
def test_a_bad_question_for_presence(server: Server, channel: str, status: int, code: int) -> None:
    found, answer = read(server, channel, "presence")
    assert (found, answer["error"]["code"]) == (status, code)


# Publishing by the rules of the namespace.


def test_a_live_only_channel_has_no_positions(server: Server) -> None:
    with server.joined("reader", "typing:a", "room:a") as client:
        status, answer = server.request("POST", "/api/publish", {"channel": "typing:a", "data": 1}, admin=True)
        assert (status, answer) == (200, {"position": None})
        client.expect("message", channel="typing:a", data=1)
        body = {"channels": ["typing:a", "room:a"], "data": 2}
        status, answer = server.request("POST", "/api/publish", body, admin=True)
        assert answer["positions"]["typing:a"] is None
        assert client.expect("message", data=2)["channel"] == "typing:a"
        client.expect("message", channel="room:a", position=answer["positions"]["room:a"])


def test_a_channel_keeps_what_its_namespace_says(server: Server) -> None:
    for n in range(5):
        server.publish("short:a", n)
    assert [m["data"] for m in read(server, "short:a", "history")[1]["messages"]] == [3, 4]


def test_who_may_publish(server: Server) -> None:
    server.publish("news:today", 1)
    for body, field in (
        ({"channel": "closed:a"}, "channel"),
        ({"channels": ["room:a", "closed:a"]}, "channels"),
    ):
        status, answer = server.request("POST", "/api/publish", {**body, "data": 1}, admin=True)
        assert (status, answer["error"]["code"], answer["error"]["field"]) == (403, 4003, field)
    assert read(server, "news:today", "history")[0] == 200


def test_one_idempotency_key_is_one_message(server: Server) -> None:
    with server.joined("reader", "room:once", "room:twice") as client:
        first = server.publish("room:once", "first", idempotency="é 1")
        assert server.publish("room:once", "again", idempotency="é 1") == first
        body = {"channels": ["room:once", "room:twice"], "data": "rest", "idempotency": "é 1"}
        status, answer = server.request("POST", "/api/publish", body, admin=True)
        assert (status, answer["positions"]["room:once"]) == (200, first)
        server.publish("room:once", "other", idempotency="2")
        # A client's keys are its own.
        client.send({"op": "publish", "id": 1, "channel": "room:once", "data": "mine", "idempotency": "2"})
        assert [m["data"] for m in client.messages(4)] == ["first", "rest", "other", "mine"]


@pytest.mark.parametrize("key", ["", 7, "x" * 256, ["a"]])
def test_a_bad_idempotency_key(server: Server, key: object) -> None:
    body = {"channel": "room:a", "data": 1, "idempotency": key}
    status, answer = server.request("POST", "/api/publish", body, admin=True)
    assert (status, answer["error"]["code"], answer["error"]["field"]) == (400, 4000, "idempotency")


# When the bus is not well. No worker runs here.

PREFIX = "test:"


@pytest.fixture
async def redis(valkey: Embedded) -> AsyncIterator[clients.Client]:
    client = clients.client(valkey.url, timeout_seconds=1.0)
    yield client
    await client.aclose()


@pytest.fixture
def bus(redis: clients.Client) -> Backend:
    return Backend(redis, PREFIX, Namespaces())


async def refusal(asked: object) -> tuple[PeerError, float]:
    """Return why it was refused, and after how many seconds."""
    began = time.monotonic()
    with pytest.raises(PeerError) as caught:
        await asked  # type: ignore[misc]
    return caught.value, time.monotonic() - began


async def test_history_before_anything_was_published(bus: Backend) -> None:
    found = await bus.history("room:a", None, 50)
    assert found.startswith(b',"messages":[],"position":"')
    at = found.split(b'"')[-2]
    assert position.parse(at)
    sent = (await bus.publish(("room:a",), b"1", None, "channel"))["room:a"]
    assert sent
    assert (await bus.history("room:a", at.decode(), 50)).endswith(b'"position":"%b"' % sent.encode())


PATIENCE_SECONDS = 1.0  # with who is silent; who answers is to need less, however busy the machine


async def test_a_worker_that_does_not_answer_is_told_of_in_time(
    bus: Backend, redis: clients.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "BUS_SECONDS_MAX", PATIENCE_SECONDS)
    async with redis.pubsub() as silent:
        await silent.subscribe(PREFIX + "room:a")
        await silent.get_message(timeout=None)
        error, seconds = await refusal(bus.presence("room:a"))
        assert error.code is Close.UNCONFIRMED
        assert 0.9 * PATIENCE_SECONDS < seconds < 3 * PATIENCE_SECONDS
        assert await bus.presence("room:b") == {}
    async with redis.pubsub() as silent, redis.pubsub() as workers:
        await workers.subscribe(PREFIX + "$control")
        await silent.subscribe(PREFIX + "room:a")
        for each in (silent, workers):
            await each.get_message(timeout=None)
        await refusal(bus.presence("room:a"))
        told = await workers.get_message(timeout=None)
        assert told["data"] == UNANSWERED, "they look for whoever is gone"
    assert await redis.pubsub_channels(PREFIX + "*") == [], "nothing stays subscribed"


async def test_more_questions_than_are_asked_at_a_time(
    bus: Backend, redis: clients.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "BUS_SECONDS_MAX", PATIENCE_SECONDS)
    async with redis.pubsub() as silent:
        await silent.subscribe(PREFIX + "room:a")
        await silent.get_message(timeout=None)
        asked = [refusal(bus.presence("room:a")) for _ in range(backend.QUESTIONS_MAX * 4)]
        answers = await asyncio.gather(*asked)
    assert {error.code for error, _ in answers} == {Close.UNCONFIRMED, Close.OVERLOADED}
    assert max(seconds for _, seconds in answers) < 3 * PATIENCE_SECONDS


async def test_an_answer_to_another_question_is_not_counted(bus: Backend, redis: clients.Client) -> None:
    keys = Keys(PREFIX)
    async with redis.pubsub() as worker:
        await worker.subscribe(keys.channel(b"room:a"))
        await worker.get_message(timeout=None)
        asked = asyncio.create_task(bus.presence("room:a"))
        for counts in (b"2", b'{"alice":2}'):  # how many, then who
            question = (await worker.get_message(timeout=None))["data"]
            reply_name, number, _most = question[1:].split(b" ")
            for answer in (b"99 . 1", number + b"0 . 1", number + b" . " + counts):
                await redis.publish(keys.channel(reply_name), answer)
        assert await asked == {"alice": 2}


async def test_a_redis_that_is_not_there(tmp_path: Path) -> None:
    client = clients.client(f"unix://{tmp_path}/none.sock", timeout_seconds=1.0)
    bus = Backend(client, PREFIX, Namespaces())
    for asked in (bus.history("room:a", None, 1), bus.presence("room:a")):
        error, seconds = await refusal(asked)
        assert error.code is Close.BUS_DOWN
        assert seconds < 1.0
    await client.aclose()


async def test_a_redis_that_is_frozen(valkey: Embedded, bus: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "BUS_SECONDS_MAX", PATIENCE_SECONDS)
    assert await bus.presence("room:a") == {}
    assert valkey.pid
    os.kill(valkey.pid, signal.SIGSTOP)
    try:
        answers = [await refusal(asked) for asked in (bus.presence("room:a"), bus.history("room:a", None, 1))]
    finally:
        os.kill(valkey.pid, signal.SIGCONT)
    assert {error.code for error, _ in answers} <= {Close.UNCONFIRMED, Close.BUS_DOWN}
    assert max(seconds for _, seconds in answers) < 3 * PATIENCE_SECONDS
    assert await bus.presence("room:a") == {}
