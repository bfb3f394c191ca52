"""docs/guarantees.md on real servers: what was answered is delivered once and in order, or the client is told."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from harness import Json, Server, wait_until

from router import position
from router.embedded import Embedded

pytestmark = pytest.mark.xdist_group("guarantees")  # one server for most of them

NAMESPACES = """
[[namespace]]
prefix = "few"
history_messages_max = 5

[[namespace]]
prefix = "brief"
history_seconds_max = 1

[[namespace]]
prefix = "live"
durable = false
"""
ROOMS = [f"room:g{n}" for n in range(3)]
COUNT = 350  # more than three pages of the journal


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("config") / "moorage.toml"
    file.write_text(NAMESPACES)
    return file


@pytest.fixture(scope="module")
def server(config: Path) -> Iterator[Server]:
    with Server(["--workers", "2", "--config", str(config)]) as made:
        yield made


def publish_many(server: Server, channels: list[str]) -> None:
    """Publish numbers from 0 on over `channels`, and wait until each is answered."""
    with server.joined("speaker") as speaker:
        sent = [{"op": "publish", "id": n, "channel": channels[n % len(channels)], "data": n} for n in range(COUNT)]
        speaker.send(*sent)
        assert [speaker.expect("published")["id"] for _ in sent] == list(range(COUNT))


@pytest.mark.parametrize("cuts", [[], [1], [99, 100, 101], [40, 220, 349]], ids=str)
def test_what_was_missed_comes_once_and_in_order_however_often_one_is_cut_off(server: Server, cuts: list[int]) -> None:
    with server.joined("cut", *ROOMS) as client:
        at = client.connected["position"]
    publish_many(server, ROOMS)
    heard: list[int] = []
    for stop in [*cuts, COUNT]:
        with server.joined("cut", *ROOMS, position=at) as client:
            assert (client.connected["position"], client.connected["recovered"]) == (at, True)
            while len(heard) < stop:
                message = client.expect("message")
                heard.append(message["data"])
                at = message["position"]
    assert heard == list(range(COUNT))


def test_a_stream_resumes_as_lines_do(server: Server) -> None:
    stream = server.event_client("user=watcher&channel=" + "&channel=".join(ROOMS))
    at = stream.expect("connected")["position"]
    stream.close()
    publish_many(server, ROOMS)
    for half in (range(COUNT // 2), range(COUNT // 2, COUNT)):
        stream = server.event_client("user=watcher&channel=" + "&channel=".join(ROOMS), Last_Event_ID=at)
        assert stream.expect("connected")["recovered"] is True
        for number in half:
            message = stream.expect("message")
            assert message["data"] == number
            at = message["position"]
        stream.close()


def test_what_is_published_while_one_comes_back_is_behind_what_was_missed(server: Server) -> None:
    with server.joined("seam", *ROOMS) as client:
        at = client.connected["position"]
    publish_many(server, ROOMS)
    with server.joined("speaker") as speaker, server.line_client() as client:
        connect = {"op": "connect", "user": "seam", "channels": ROOMS, "position": at}
        sent = [{"op": "publish", "id": n, "channel": ROOMS[n % 3], "data": COUNT + n} for n in range(COUNT)]
        client.send(connect)
        speaker.send(*sent)
        assert [m["data"] for m in client.messages(2 * COUNT)] == list(range(2 * COUNT))


def test_a_subscription_from_a_position_can_be_cut_anywhere(server: Server) -> None:
    """Its channel catches up while another goes on: the positions on the way say both."""
    with server.joined("late", "room:main") as client:
        at = client.connected["position"]
    for n in range(20):
        server.publish("room:side", n)
    main = server.publish("room:main", "before")
    for cut in (1, 10, 20):
        with server.joined("late", "room:main", position=at) as client:
            assert client.expect("message", data="before")["position"] == main
            client.send({"op": "subscribe", "id": 1, "channel": "room:side", "position": at})
            client.expect("subscribed", recovered=True)
            heard = client.messages(cut)
        last = heard[-1]["position"]
        with server.joined("late", "room:main", "room:side", position=last) as client:
            assert client.connected["recovered"] is True
            server.publish("room:main", "fence")
            while heard[-1]["data"] != "fence":
                heard.append(client.expect("message"))
        assert [m["data"] for m in heard if m["channel"] == "room:side"] == list(range(20))
        assert {m["data"] for m in heard if m["channel"] == "room:main"} == {"fence"}


def back(server: Server, at: str, *channels: str) -> tuple[Json, list[Json]]:
    """Resume; return `connected` and everything that comes behind it, up to a fence."""
    with server.joined("back", *channels, position=at) as client:
        fence = f"fence of {client.connected['session']}"
        client.send({"op": "publish", "id": 1, "channel": "@back", "data": fence})
        heard: list[Json] = []
        while (message := client.receive()) is not None and message.get("data") != fence:
            if message["op"] != "published" and message["channel"] != "@back":
                heard.append(message)
        assert message is not None
        return client.connected, heard


def test_a_channel_that_was_quiet_is_recovered_and_one_that_was_trimmed_is_not(server: Server) -> None:
    channels = ["room:quiet", "few:full", "few:over"]
    with server.joined("back", *channels) as client:
        at = client.connected["position"]
    for n in range(5):
        server.publish("few:full", n)
    connected, heard = back(server, at, *channels)
    assert connected["recovered"] is True
    assert [m["data"] for m in heard] == list(range(5))
    for n in range(6):
        server.publish("few:over", n)
    connected, heard = back(server, at, *channels)
    assert (connected["position"], connected["recovered"]) == (at, False)
    assert [m["channel"] for m in heard if m["op"] == "gap"] == ["few:over"]
    assert [m["data"] for m in heard if m["channel"] == "few:full"] == list(range(5))
    assert [m["data"] for m in heard if m["channel"] == "few:over" and m["op"] == "message"] == list(range(1, 6))


def test_what_has_expired_is_told(server: Server) -> None:
    with server.joined("back", "brief:a", "brief:quiet") as client:
        at = client.connected["position"]
    server.publish("brief:a", 1)
    path = "/api/channels/brief:a/history"
    wait_until(lambda: not server.request("GET", path, admin=True)[1]["messages"], "it has expired")
    connected, heard = back(server, at, "brief:a", "brief:quiet")
    assert connected["recovered"] is False
    assert [(m["op"], m["channel"]) for m in heard] == [("gap", "brief:a")]


def test_a_live_only_message_is_not_kept(server: Server) -> None:
    with server.joined("back", "live:a") as client:
        at = client.connected["position"]
    assert not server.publish("live:a", 1)
    connected, heard = back(server, at, "live:a")
    assert (connected["recovered"], heard) == (True, [])


# What breaks.


def pipes_of(operator: redis.Redis, worker: str) -> list[str]:
    """Return the ids of a worker's connections to Redis."""
    return [each["id"] for each in operator.client_list() if f"{each['name']}:".startswith(f"{worker}:")]


def test_a_cut_of_the_bus_is_repaired_without_a_gap(start_server: Callable[..., Server], valkey: Embedded) -> None:
    listening, speaking = (start_server("--workers", "1", "--redis", valkey.url) for _ in range(2))
    client = listening.joined("reader", *ROOMS)
    with redis.Redis.from_url(valkey.url) as operator, speaking.joined("speaker") as speaker:
        name = "moorage:" + client.connected["session"].rsplit("-", 1)[0]
        for n in range(COUNT):
            if n % 100 == 50:
                pipes = wait_until(lambda: len(found := pipes_of(operator, name)) == 2 and found, "both pipes are up")
                for pipe in pipes:
                    operator.client_kill_filter(_id=pipe)
            speaker.send({"op": "publish", "id": n, "channel": ROOMS[n % 3], "data": n})
            speaker.expect("published", id=n)
    heard: list[int] = []
    while not heard or heard[-1] != COUNT - 1:
        message = client.receive()
        assert message is not None
        assert message["op"] == "message"
        heard.append(message["data"])
    assert heard == list(range(COUNT))
    assert wait_until(lambda: listening.stats()["total"]["bus_reconnects"], "it was cut") >= 1


def test_a_redis_that_has_lost_everything_is_told(start_server: Callable[..., Server], valkey: Embedded) -> None:
    server = start_server("--workers", "2", "--redis", valkey.url)
    client = server.joined("reader", "room:a")
    at = server.publish("room:a", 1)
    client.expect("message", position=at)
    reconnects = server.stats()["total"]["bus_reconnects"]
    valkey.restart()
    wait_until(lambda: server.stats()["total"]["bus_reconnects"] >= reconnects + 2, "every worker is back")
    assert {client.expect("gap")["channel"] for _ in range(2)} == {"@reader", "room:a"}
    after = server.publish("room:a", 2)
    client.expect("message", position=after)
    found, lost = position.parse(after), position.parse(at)
    assert found
    assert lost
    assert found.epoch != lost.epoch
    with server.joined("reader", "room:a", position=at) as again:
        assert again.connected["recovered"] is False
        begin = position.parse(again.connected["position"])
        assert begin
        assert (begin.epoch, begin.id.number) == (found.epoch, found.id.number)


def test_who_is_cut_off_between_two_gaps_of_a_new_epoch_is_told_again(
    start_server: Callable[..., Server], valkey: Embedded
) -> None:
    """Whatever channel it is told of first: what it was told does not vouch for the others."""
    server = start_server("--workers", "1", "--redis", valkey.url)
    with server.joined("reader", "room:a", "room:b") as client:
        valkey.restart()
        *gaps, last = [client.expect("gap") for _ in range(3)]
    assert {gap["channel"] for gap in gaps} == {"room:a", "room:b"}
    for gap in gaps:
        with server.joined("reader", "room:a", "room:b", position=gap["position"]) as again:
            assert again.connected["recovered"] is False
    after = server.publish("room:b", 1)
    with server.joined("reader", "room:a", "room:b", position=last["position"]) as again:
        assert again.connected["recovered"] is True
        again.expect("message", position=after)


def test_presence_forgets_a_worker_that_has_died(start_server: Callable[..., Server]) -> None:
    server = start_server("--workers", "2")
    clients = [server.joined("u0", "room:a")]
    while len({client.connected["session"].split("-")[1] for client in clients}) < 2:
        clients.append(server.joined(f"u{len(clients)}", "room:a"))
    killed = clients[0].connected["session"].split("-")[1]
    left = {c.connected["user"]: 1 for c in clients if c.connected["session"].split("-")[1] != killed}
    os.kill(server.workers()[int(killed)].pid, signal.SIGKILL)

    def found() -> object:
        return server.request("GET", "/api/channels/room:a/presence", admin=True)

    wait_until(lambda: found() == (200, {"channel": "room:a", "users": left}), "they are gone", seconds=10)
