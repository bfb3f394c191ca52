"""Joins and leaves, and gaps of live-only channels, over two supervisors on one Redis."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from clusters import Cluster
from harness import LineClient, Server, wait_until

from router.embedded import Embedded

pytestmark = pytest.mark.xdist_group("joins")

SHORT = "import router.roster as r\nr.GRACE_SECONDS = 2.0"
CONFIG = """
[[namespace]]
prefix = "hall"
join_leave = true

[[namespace]]
prefix = "typing"
durable = false

[[namespace]]
prefix = "club"
publish = "members"
"""


@pytest.fixture(scope="module")
def valkey() -> Iterator[Embedded]:
    with Embedded() as embedded:
        yield embedded


@pytest.fixture(scope="module")
def servers(valkey: Embedded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    file: Path = tmp_path_factory.mktemp("joins") / "moorage.toml"
    file.write_text(CONFIG)
    options = ["--config", str(file), "--redis", valkey.url]
    with (
        Server(["--workers", "2", *options], before=SHORT) as one,
        Server(["--workers", "1", *options], before=SHORT) as other,
    ):
        yield [one, other]


def news(client: LineClient, op: str, count: int = 1) -> list[str]:
    return sorted(client.expect(op)["user"] for _ in range(count))


def is_quiet(client: LineClient) -> bool:
    """True when nothing has come up to here."""
    client.send({"op": "ping", "id": "q"})
    return client.receive() == {"op": "pong", "id": "q"}


def test_a_user_joins_once_and_leaves_once_however_many_connections_she_has(servers: list[Server]) -> None:
    witness = servers[0].joined("witness", "hall:a")
    assert news(witness, "join") == ["witness"]
    stream = servers[1].event_client("user=eve&channel=hall:a")
    stream.expect("connected")
    joined = witness.expect("join", channel="hall:a", user="eve")
    assert joined["position"]
    again = servers[0].joined("eve", "hall:a")
    away = servers[1].joined("away", "hall:a")
    assert news(witness, "join") == ["away"]
    assert [stream.expect("join")["user"] for _ in range(2)] == ["eve", "away"], "her own too"
    away.close()
    again.close()  # eve is still there
    with servers[0].joined("late", "hall:a"):
        assert news(witness, "join") == ["late"]
        back = servers[0].joined("away", "hall:a")  # elsewhere, in time
        wait_until(lambda: is_quiet(witness), "nobody has left")
    assert news(witness, "leave") == ["late"]
    assert stream.expect("join")["user"] == "late"
    assert stream.expect("leave")["user"] == "late"
    assert is_quiet(witness)
    back.close()


def test_unsubscribing_is_leaving(servers: list[Server]) -> None:
    witness = servers[1].joined("witness", "hall:u")
    assert news(witness, "join") == ["witness"]
    with servers[0].joined("bob") as bob:
        bob.send({"op": "subscribe", "id": 1, "channel": "hall:u"})
        bob.expect("subscribed")
        assert news(witness, "join") == ["bob"]
        bob.send({"op": "unsubscribe", "id": 2, "channel": "hall:u"})
        assert news(witness, "leave") == ["bob"]


def publish(server: Server, user: str, channel: str) -> tuple[int, Any]:
    return server.request("POST", f"/publish?user={user}", {"channel": channel, "data": 1})


def test_a_member_publishes_over_http(servers: list[Server]) -> None:
    """She is one while any connection of hers, on any worker or node, is subscribed."""
    reason = "not allowed to publish: none of your connections is subscribed"
    refused = (403, {"error": {"code": 4003, "reason": reason, "field": "channel"}})
    assert publish(servers[0], "alice", "club:a") == refused
    with servers[1].joined("alice", "club:b"):
        assert publish(servers[0], "alice", "club:a") == refused
        with servers[1].joined("alice", "club:a"):
            status, answer = publish(servers[0], "alice", "club:a")
            assert (status, list(answer)) == (200, ["position"])
            assert publish(servers[0], "bob", "club:a") == refused
        wait_until(lambda: publish(servers[0], "alice", "club:a") == refused, "she is gone")


def test_a_gap_of_a_live_only_channel_is_told_to_who_asked(servers: list[Server], valkey: Embedded) -> None:
    server = servers[1]
    asked = server.joined("asked", "typing:a", "room:a", gaps=True)
    asked.send({"op": "subscribe", "id": 1, "channel": "typing:b"})
    asked.expect("subscribed")
    one = server.joined("one", "typing:a")
    one.send({"op": "subscribe", "id": 1, "channel": "typing:b", "gaps": True})
    one.expect("subscribed")
    other = server.joined("other", "typing:a", "room:a")
    stream = server.event_client("user=stream&channel=typing:a&gaps=1")
    stream.expect("connected")
    with redis.Redis.from_url(valkey.url) as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    assert {asked.expect("gap")["channel"], asked.expect("gap")["channel"]} == {"typing:a", "typing:b"}
    assert one.expect("gap")["channel"] == "typing:b"
    gap = stream.expect("gap")
    assert (gap["channel"], bool(gap["position"])) == ("typing:a", True)
    with server.joined("speaker") as speaker:  # whose only worker is back
        for channel in ("room:a", "typing:a"):
            speaker.send({"op": "publish", "id": channel, "channel": channel, "data": 1})
            speaker.expect("published", id=channel)
    for client, count in ((asked, 2), (other, 2), (one, 1)):
        found = [client.receive() for _ in range(count)]
        assert [each and each["op"] for each in found] == ["message"] * count
        assert is_quiet(client)


@pytest.mark.parametrize(("query", "value"), [("gaps=yes", "yes"), ("gaps=", "")])
def test_a_bad_wish_for_gaps(servers: list[Server], query: str, value: str) -> None:
    stream = servers[0].event_client(f"user=a&{query}")
    assert stream.status == 400
    assert json.loads(stream.body())["error"]["field"] == "gaps"
    client = servers[0].line_client(user="a", gaps=1)
    assert client.expect("close", code=4000, field="gaps")


def test_a_crowd_is_counted_and_not_named(valkey: Embedded) -> None:
    with Server(["--workers", "2", "--redis", valkey.url, "--presence-connections-max", "3"]) as server:
        clients = [server.joined(f"u{n}", "room:crowd") for n in range(3)]
        for users in ({"users": {"u0": 1, "u1": 1, "u2": 1}}, {"connections": 4}):
            clients[0].send({"op": "presence", "id": 1, "channel": "room:crowd"})
            assert clients[0].receive() == {"op": "presence", "id": 1, "channel": "room:crowd", **users}
            status, answer = server.request("GET", "/api/channels/room:crowd/presence", admin=True)
            assert (status, answer) == (200, {"channel": "room:crowd", **users})
            clients.append(server.joined("u0", "room:crowd"))


def test_in_a_cluster(tmp_path: Path) -> None:
    """Each shard tells of its own channels: joins, a worker that is killed, and gaps."""
    file = tmp_path / "moorage.toml"
    file.write_text(CONFIG)
    channels = [f"hall:{n}" for n in range(6)]
    with (
        Cluster(masters=3, replicas=0) as cluster,
        Server(["--workers", "2", "--config", str(file), "--redis", cluster.url], before=SHORT) as server,
        Server(["--workers", "1", "--config", str(file), "--redis", cluster.url], before=SHORT) as other,
    ):
        witness = server.joined("witness", *channels, "typing:a", gaps=True)
        assert news(witness, "join", len(channels)) == ["witness"] * len(channels)
        stays = other.joined("stays", *channels)
        goes = other.joined("goes", *channels)
        assert news(witness, "join", 2 * len(channels)) == ["goes"] * len(channels) + ["stays"] * len(channels)
        for worker in other.workers().values():
            worker.kill()
        again = server.joined("stays", *channels)
        left = [witness.expect("leave", user="goes")["channel"] for _ in channels]
        assert sorted(left) == channels
        assert publish(server, "stays", "club:a")[0] == 403
        assert is_quiet(witness)
        for client in (stays, goes, again):
            client.close()
