"""Debian's redis-server over TLS, with certificates for both sides, and a user who may do no more than the manual says."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import redis
from certificates import Authority
from harness import ROOT, Server, wait_until
from quorum import needs_redis_server, own_host, spawn, stop

pytestmark = needs_redis_server

StartServer = Callable[..., Server]

_MANUAL = (ROOT / "docs/configuration.md").read_text()
RIGHTS = re.search(r"keys and channels below the prefix and `([^`]+)`", _MANUAL)


class Secured(NamedTuple):
    """A Redis that wants TLS, a client's certificate, and a password."""

    host: str
    authority: Authority

    def url(self, user: str = "moorage:hush", **options: object) -> str:
        """What `--redis` takes; `options` replace those that are right, None leaves one out."""
        client = self.authority.sign("client")
        right = {"ssl_ca_certs": self.authority.path, "ssl_certfile": client.certificate, "ssl_keyfile": client.key}
        query = "&".join(f"{name}={value}" for name, value in {**right, **options}.items() if value is not None)
        return f"rediss://{user}@{self.host}:6379?{query}"


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[Secured]:
    host, authority = own_host(), Authority(tmp_path)
    mine = authority.sign("server", host)
    assert RIGHTS is not None
    rights = ["resetkeys", "~moorage:*", "resetchannels", "&moorage:*", "-@all", *RIGHTS[1].split()]
    process = spawn(
        "--port", "0", "--tls-port", "6379", "--bind", host, "--save", "",
        "--tls-cert-file", str(mine.certificate), "--tls-key-file", str(mine.key),
        "--tls-ca-cert-file", str(authority.path), "--tls-auth-clients", "yes",
        "--user", "moorage", "on", ">hush", *rights,
        directory=tmp_path,
    )  # fmt: skip
    found = Secured(host, authority)
    client = redis.Redis.from_url(found.url("default:"))
    try:
        wait_until(lambda: _answers(client), "it answers")
        yield found
    finally:
        client.close()
        stop(process)


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def readiness(server: Server) -> tuple[int, object]:
    return server.request("GET", "/readyz")


def test_with_the_right_authority_certificate_and_user(secured: Secured, start_server: StartServer) -> None:
    server = start_server("--workers", "2", "--redis", secured.url())
    wait_until(lambda: readiness(server)[0] == 200, "ready")
    listener, speaker = server.joined("listener", "room:a"), server.joined("speaker")
    speaker.send({"op": "publish", "id": 1, "channel": "room:a", "data": "one", "idempotency": "k"})
    first = speaker.expect("published")["position"]
    assert server.request("POST", "/api/publish", {"channel": "room:a", "data": "two"}, admin=True)[0] == 200
    assert [message["data"] for message in listener.messages(2)] == ["one", "two"]
    again = server.joined("again", "room:a", position=first)
    assert (again.connected["recovered"], again.expect("message")["data"]) == (True, "two")
    listener.send({"op": "presence", "id": 2, "channel": "room:a"}, {"op": "history", "id": 3, "channel": "room:a"})
    assert listener.expect("presence", id=2)["users"] == {"listener": 1, "again": 1}
    assert len(listener.expect("history", id=3)["messages"]) == 2
    assert server.request("GET", "/api/channels/room:a/presence", admin=True)[0] == 200
    assert "NOPERM" not in "".join(server.log)
    assert "hush" not in "".join(server.log)


@pytest.mark.parametrize(
    ("user", "options", "why"),
    [
        ("moorage:hush", {"ssl_ca_certs": "other"}, "certificate verify failed"),
        ("moorage:hush", {"ssl_certfile": None, "ssl_keyfile": None}, "tlsv13 alert certificate required"),
        ("moorage:wrong", {}, "WRONGPASS"),
    ],
    ids=["another authority", "no certificate of ours", "a wrong password"],
)
def test_what_is_wrong_is_told_and_shows(
    secured: Secured, start_server: StartServer, tmp_path: Path, user: str, options: dict[str, object], why: str
) -> None:
    if "ssl_ca_certs" in options:
        options = {"ssl_ca_certs": Authority(tmp_path, "other").path}
    http = own_host(), 7480
    place = f"{http[0]}:{http[1]}"
    server = start_server("--workers", "1", "--http", place, "--redis", secured.url(user, **options), wait=False)
    wait_until(lambda: re.search(f"bus at .*{why}", "".join(server.log)), why)
    assert "ready\n" not in server.log
    server.addresses["http"] = [http]
    assert readiness(server)[0] == 503
    assert server.request("GET", "/healthz")[0] == 200
    assert not re.search("hush|wrong", "".join(server.log))
