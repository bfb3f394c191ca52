"""Coming back to a real server: from any position, at any moment, at any speed."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

import pytest
import redis
from harness import Json, LineClient, Server, wait_until

pytestmark = pytest.mark.xdist_group("resume")  # one server for most of them

CONFIG = """
[[namespace]]
prefix = "few"
history_messages_max = 5

[[namespace]]
prefix = "live"
durable = false
"""
BIG = "x" * 60_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    file = tmp_path_factory.mktemp("config") / "moorage.toml"
    file.write_text(CONFIG)
    with Server(["--workers", "2", "--config", str(file)]) as made:
        yield made


def start(server: Server, user: str, *channels: str) -> str:
    """Return a position to come back to."""
    with server.joined(user, *channels) as client:
        found: str = client.connected["position"]
        return found


def publish(server: Server, channel: str, *data: object, **members: object) -> list[str]:
    """Publish, and return the positions."""
    with server.joined("speaker") as speaker:
        for n, each in enumerate(data):
            speaker.send({"op": "publish", "id": n, "channel": channel, "data": each, **members})
        return [speaker.expect("published")["position"] for _ in data]


def insist(client: LineClient, channel: str, data: object) -> None:
    """Publish, again with the same key while the bus is down."""
    request = {"op": "publish", "id": 1, "channel": channel, "data": data, "idempotency": str(data)}
    client.send(request)
    while (answer := client.receive()) is not None and answer["op"] != "published":
        if answer["op"] == "error":
            assert answer["code"] in (3005, 3006)
            client.send(request)


def back(server: Server, user: str, position: str, *channels: str) -> LineClient:
    return server.joined(user, *channels, position=position)


def back_at_last(server: Server, user: str, position: str, *channels: str) -> LineClient:
    """Come back, again while the bus of the worker is down."""

    def attempt() -> LineClient | None:
        client = server.line_client(user=user, channels=list(channels), position=position)
        answer = client.receive()
        assert answer is not None
        client.connected = answer
        return client if answer["op"] == "connected" else None

    found: LineClient = wait_until(attempt, "the bus is back")
    return found


def data(messages: list[Json]) -> list[object]:
    return [message["data"] for message in messages]


@pytest.mark.parametrize("position", ["garbage", "0123abcd-1-1", "x" * 1024, "ffffffff-1-1~cm9v-1-1"])
def test_a_position_that_is_none_of_ours_is_told(server: Server, position: str) -> None:
    with server.joined("alice", "room:none", position=position) as client:
        assert client.connected["recovered"] is False
        assert client.connected["position"] != position
        publish(server, "room:none", "new")
        assert data(client.messages(1)) == ["new"]


def test_a_position_ahead_of_the_server_is_told(server: Server) -> None:
    epoch, ms, number = start(server, "alice").split("-")
    with back(server, "alice", f"{epoch}-{ms}-{int(number) + 1_000_000}", "room:ahead") as client:
        assert client.connected["recovered"] is False


def test_large_messages_to_a_peer_that_reads_late(server: Server) -> None:
    """More than the kernel holds between two sockets."""
    at = start(server, "slow", "room:big")
    publish(server, "room:big", *[f"{n} {BIG}" for n in range(150)])
    with server.line_client() as client:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.send({"op": "connect", "user": "slow", "channels": ["room:big"], "position": at})
        publish(server, "room:big", "new")
        wait_until(lambda: server.stats()["total"]["backlogged_connections"] == 1, "it waits for its peer")
        assert server.stats()["total"]["backlog_bytes"] < 1_000_000
        assert client.expect("connected")["recovered"] is True
        heard = [str(each).split(" ")[0] for each in data(client.messages(151))]
    assert heard == [*map(str, range(150)), "new"]


def test_requests_in_the_same_packet_are_answered_behind_what_was_missed(server: Server) -> None:
    at = start(server, "hasty", "room:hasty")
    publish(server, "room:hasty", *range(250))
    publish(server, "room:other", *range(150))
    with server.line_client() as client:
        client.send(
            {"op": "connect", "user": "hasty", "channels": ["room:hasty"], "position": at},
            {"op": "ping", "id": 1},
            {"op": "subscribe", "id": 2, "channel": "room:other", "position": at},
            {"op": "publish", "id": 3, "channel": "room:other", "data": "mine"},
            {"op": "history", "id": 4, "channel": "room:other", "limit": 1},
        )
        client.expect("connected", recovered=True)
        assert data(client.messages(250)) == list(range(250))
        assert client.receive() == {"op": "pong", "id": 1}
        answer = client.receive()
        assert answer is not None
        assert (answer["op"], answer["id"], answer["recovered"]) == ("subscribed", 2, True)
        assert data(client.messages(150)) == list(range(150))
        rest = [client.receive() for _ in range(3)]
        assert sorted(str(each and each["op"]) for each in rest) == ["history", "message", "published"]


def test_a_subscription_cut_right_behind_its_answer_has_lost_nothing(server: Server) -> None:
    """The answer's position is one to come back to: it says that the channel is behind the others."""
    at = start(server, "late", "room:main")
    publish(server, "room:side", *range(5))
    with server.joined("late", "room:main") as client:
        client.send({"op": "subscribe", "id": 1, "channel": "room:side", "position": at})
        answered = client.expect("subscribed", recovered=True)["position"]
    publish(server, "room:main", "new")
    with back(server, "late", answered, "room:main", "room:side") as client:
        assert client.connected["recovered"] is True
        assert data(client.messages(6)) == [*range(5), "new"]


def test_a_subscription_from_a_position_of_which_something_is_gone(server: Server) -> None:
    """Also from a position that is itself one of a channel that is behind."""
    at = start(server, "late", "room:main")
    publish(server, "room:main", 1)
    publish(server, "few:side", *range(9))
    with server.joined("late") as client:
        client.send({"op": "subscribe", "id": 1, "channel": "room:main", "position": at})
        behind = client.expect("message")["position"]
        assert "~" in behind
        client.send({"op": "subscribe", "id": 2, "channel": "few:side", "position": at})
        client.expect("subscribed", recovered=False)
        assert client.expect("gap")["channel"] == "few:side"
        assert data(client.messages(5)) == [4, 5, 6, 7, 8]
    with server.joined("late") as client:
        client.send({"op": "subscribe", "id": 3, "channel": "room:main", "position": behind})
        client.expect("subscribed", recovered=True)
        client.send({"op": "subscribe", "id": 4, "channel": "few:side", "position": behind})
        client.expect("subscribed", recovered=True)


def test_a_subscription_from_a_position_of_another_epoch_is_not_recovered(server: Server) -> None:
    """However well its number fits: there it is another message's."""
    at = start(server, "late", "room:main")
    with server.joined("late") as client:
        for position, recovered in ((f"00000bad{at[8:]}", False), (at, True)):
            client.send({"op": "subscribe", "id": 1, "channel": "room:epochs", "position": position})
            assert client.expect("subscribed")["recovered"] is recovered
            client.send({"op": "unsubscribe", "id": 2, "channel": "room:epochs"})
            client.expect("unsubscribed")


@pytest.mark.parametrize("worker", range(3))  # whichever worker it comes to
def test_a_live_only_message_is_no_step_back(server: Server, worker: int) -> None:
    user = f"live{worker}"
    at = start(server, user, "room:quiet", "live:a")
    publish(server, "room:quiet", "missed")
    with back(server, user, at, "room:quiet", "live:a") as client:
        client.expect("message", data="missed")
        client.send({"op": "publish", "id": 1, "channel": "live:a", "data": "typing"})
        at = client.expect("message", data="typing")["position"]
    with back(server, user, at, "room:quiet", "live:a") as client:
        client.send({"op": "ping", "id": 2})
        answer = client.receive()
        assert answer is not None
        assert answer["op"] == "pong", "nothing comes again"


def test_ones_personal_channel_is_resumed_on_every_connection(server: Server) -> None:
    at = start(server, "bob")
    publish(server, "@bob", "one", "two")
    for _ in range(3):
        with back(server, "bob", at) as client:
            assert client.connected["recovered"] is True
            assert data(client.messages(2)) == ["one", "two"]


def test_a_retry_with_the_same_key_is_one_message(server: Server) -> None:
    with server.joined("alice", "room:once") as client:
        for n in range(3):
            client.send({"op": "publish", "id": n, "channel": "room:once", "data": n, "idempotency": "k"})
        first = [client.expect("published")["position"] for _ in range(3)]
        assert len(set(first)) == 1
        with server.joined("bob") as bob:
            bob.send({"op": "publish", "id": 9, "channel": "room:once", "data": "his", "idempotency": "k"})
            assert bob.expect("published")["position"] != first[0]
    status, answer = server.request(
        "POST", "/publish?user=alice", {"channel": "room:once", "data": "http", "idempotency": "k"}
    )
    assert (status, answer) == (200, {"position": first[0]})
    with server.joined("late") as client:
        client.send({"op": "history", "id": 1, "channel": "room:once"})
        assert data(client.expect("history")["messages"]) == [0, "his"]


def test_peers_that_come_and_go_in_the_middle_of_it_leave_nothing(server: Server) -> None:
    at = start(server, "crowd", "room:crowd")
    publish(server, "room:crowd", *[f"{n} {BIG}" for n in range(30)])
    rng = random.Random(1)
    for n in range(60):
        if n % 2:
            query = f"user=crowd&channel=room:crowd&position={at}"
            sock = socket.create_connection(server.http)
            sock.sendall(f"GET /events?{query} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        else:
            client = LineClient(server.tcp)
            client.send({"op": "connect", "user": "crowd", "channels": ["room:crowd"], "position": at})
            sock = client.sock
        sock.settimeout(5)
        for _ in range(rng.randrange(4)):
            sock.recv(rng.choice([1, 1000, 100_000]))
        sock.close()
    with back(server, "crowd", at, "room:crowd") as client:
        assert len(client.messages(30)) == 30
    wait_until(lambda: server.stats()["total"]["backlogged_connections"] == 0, "no backlog is left")
    total = server.stats()["total"]
    assert (total["backlog_bytes"], total["restarts"]) == (0, 0)


def test_without_redis_one_is_asked_to_come_again_and_loses_nothing(server: Server) -> None:
    at = start(server, "patient", "room:patient")
    publish(server, "room:patient", *range(3))
    frozen = server.redis()
    frozen.suspend()
    try:
        wait_until(lambda: server.stats()["total"]["bus_connected"] == 0, "the bus is down")
        with server.line_client(user="patient", channels=["room:patient"], position=at) as client:
            closed = client.receive()
            assert closed is not None
            assert (closed["op"], closed["code"], closed["reconnect"]) == ("close", 3005, True)
            assert closed["after_ms"] > 0
        with server.event_client(f"user=patient&channel=room:patient&position={at}") as stream:
            assert stream.status == 200
            assert stream.expect("close")["code"] == 3005
    finally:
        frozen.resume()
    wait_until(lambda: server.stats()["total"]["bus_connected"] == 2, "the bus is back")
    with back_at_last(server, "patient", at, "room:patient") as client:
        assert client.connected["recovered"] is True
        assert data(client.messages(3)) == [0, 1, 2]


def test_a_worker_that_is_cut_off_from_redis_goes_on_where_it_was(server: Server) -> None:
    """Everybody connected gets what was missed, once; who comes back too."""
    listeners = [server.joined(f"l{n}", "room:cut") for n in range(4)]
    at = listeners[0].connected["position"]
    sock = next(arg for arg in server.redis().cmdline()[0].split() if arg.endswith("valkey.sock"))
    with redis.Redis.from_url(f"unix://{sock}") as operator, server.joined("speaker") as speaker:
        for n in range(5):
            insist(speaker, "room:cut", n)
            operator.client_kill_filter(_type="pubsub")
    for listener in listeners:
        assert data(listener.messages(5)) == list(range(5))
    with back_at_last(server, "l9", at, "room:cut") as client:
        assert data(client.messages(5)) == list(range(5))
