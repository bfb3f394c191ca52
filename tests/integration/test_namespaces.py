"""Namespaces of a file, on a real server: what is kept, and who may do what."""

from __future__ import annotations

import time
from collections.abc import Iterator

import jwt
import pytest
from harness import LineClient, Server

pytestmark = pytest.mark.xdist_group("namespaces")

SECRET = "a secret of at least thirty-two bytes"
CONFIG = """
[namespace_default]
history_messages_max = 3

[namespace_personal]
publish = "members"

[[namespace]]
prefix = "live"
durable = false

[[namespace]]
prefix = "team"
subscribe = "members"
publish = "members"

[[namespace]]
prefix = "news"
publish = "server"

[[namespace]]
prefix = "closed"
subscribe = "nobody"
publish = "nobody"

[[namespace]]
prefix = "hidden"
presence = false
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    file = tmp_path_factory.mktemp("config") / "moorage.toml"
    file.write_text(CONFIG)
    with Server(["--workers", "1", "--auth-secret", SECRET, "--config", str(file)]) as made:
        yield made


def join(server: Server, user: str, *channels: str, globs: list[str] | None = None) -> LineClient:
    """Sign in with a token that names the channels of `globs`, or says nothing of channels."""
    claims = {} if globs is None else {"channels": {"subscribe": globs, "publish": globs}}
    token = jwt.encode({"sub": user, "exp": int(time.time()) + 60, **claims}, SECRET, "HS256")
    client = server.line_client(token=token, channels=list(channels))
    client.connected = client.expect("connected")
    return client


def try_to(client: LineClient, op: str, channel: str, **members: object) -> int | None:
    """Return the code of the refusal; None when it was done."""
    client.send({"op": op, "id": op, "channel": channel, **members})
    while (answer := client.receive()) is not None:
        if answer.get("id") == op:
            return answer.get("code")
    raise EOFError


def test_live_only(server: Server) -> None:
    with join(server, "alice", "live:a") as client:
        client.send({"op": "publish", "id": 1, "channel": "live:a", "data": "typing"})
        answers = [client.receive(), client.receive()]
        assert {"op": "published", "id": 1, "channel": "live:a"} in answers
        message = next(each for each in answers if each and each["op"] == "message")
        assert (message["data"], message["from"]) == ("typing", "alice")
        assert try_to(client, "history", "live:a") == 4000
        client.send({"op": "subscribe", "id": 2, "channel": "live:b", "position": client.connected["position"]})
        client.expect("subscribed", id=2)


def test_the_default_is_for_all_without_one_of_their_own(server: Server) -> None:
    with join(server, "alice") as client:
        for channel in ("lobby", "unknown:a"):
            for n in range(5):
                assert try_to(client, "publish", channel, data=n) is None
            client.send({"op": "history", "id": 1, "channel": channel})
            assert [each["data"] for each in client.expect("history")["messages"]] == [2, 3, 4]


def test_members_are_those_whose_token_names_it(server: Server) -> None:
    with join(server, "alice") as stranger, join(server, "bob", "team:a", globs=["team:*"]) as member:
        assert try_to(stranger, "subscribe", "team:a") == 4003
        assert try_to(stranger, "publish", "team:a", data=1) == 4003
        assert try_to(stranger, "history", "team:a") == 4003
        assert try_to(stranger, "presence", "team:a") == 4003
        assert try_to(member, "publish", "team:a", data=1) is None
        assert try_to(member, "publish", "team:b", data=1) == 4003, "who does not subscribe is no member"
        assert try_to(member, "subscribe", "team:b") is None
        assert try_to(member, "publish", "team:b", data=1) is None


def test_a_personal_channel_whose_members_publish_is_its_owners(server: Server) -> None:
    with join(server, "alice") as alice:
        assert try_to(alice, "publish", "@alice", data="a note") is None
        assert try_to(alice, "publish", "@bob", data="hello") == 4003
        assert try_to(alice, "subscribe", "@bob") == 4003


def test_news_come_from_the_server(server: Server) -> None:
    with join(server, "alice", "news:a") as client:
        assert try_to(client, "publish", "news:a", data=1) == 4003
        status, _ = server.request("POST", "/api/publish", {"channel": "news:a", "data": "today"}, admin=True)
        assert status == 200
        assert client.expect("message")["data"] == "today"


def test_nobody_is_nobody(server: Server) -> None:
    with join(server, "alice", globs=["*"]) as client:
        for op, members in (("subscribe", {}), ("publish", {"data": 1}), ("history", {}), ("presence", {})):
            assert try_to(client, op, "closed:a", **members) == 4003
    status, answer = server.request("POST", "/api/publish", {"channel": "closed:a", "data": 1}, admin=True)
    assert (status, answer["error"]["code"]) == (403, 4003)


def test_without_presence(server: Server) -> None:
    with join(server, "alice", "hidden:a") as client:
        assert try_to(client, "presence", "hidden:a") == 4000
