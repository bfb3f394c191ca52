"""A cluster that wants TLS and a password: Debian's Redis 7.0, which is also the oldest that will do."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from clusters import Cluster, Member, one_per_shard
from harness import Server, wait_until

from router import embedded

pytestmark = pytest.mark.skipif(
    not (shutil.which("redis-server") and shutil.which("openssl")), reason="no redis-server or openssl"
)

SHARDS = 8
PASSWORD = "s/cret"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where a certificate for 127.0.0.1 is, and its key."""
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=test -addext subjectAltName=IP:127.0.0.1"
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    return tmp_path


@pytest.fixture
def cluster(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setattr(embedded, "binary", lambda: Path(shutil.which("redis-server") or ""))
    monkeypatch.setattr(embedded, "_ping", lambda _path: b"+PONG")  # it would want the password
    certificate = str(directory / "cert.pem")

    class TlsMember(Member):
        def __init__(self) -> None:
            super().__init__()
            self.client = redis.Redis("127.0.0.1", self.port, ssl=True, ssl_ca_certs=certificate, password=PASSWORD)

        def _arguments(self) -> list[str]:
            settings = {
                "port": "0", "tls-port": str(self.port), "tls-cluster": "yes", "tls-auth-clients": "no",
                "tls-cert-file": certificate, "tls-key-file": str(directory / "key.pem"),
                "tls-ca-cert-file": certificate, "requirepass": PASSWORD,
            }  # fmt: skip
            return [*super()._arguments(), *(word for name, value in settings.items() for word in (f"--{name}", value))]

        def start(self) -> None:
            super().start()
            wait_until(self._answers, "it answers")

        def _answers(self) -> bool:
            try:
                return bool(self.client.ping())
            except redis.ConnectionError:
                return False

    with Cluster(masters=2, replicas=0, kind=TlsMember) as cluster:
        yield cluster


def test_a_cluster_with_tls_and_a_password(
    cluster: Cluster, directory: Path, start_server: Callable[..., Server]
) -> None:
    url = cluster.url.replace("://", "://:s%2Fcret@") + f"?tls=true&ssl_ca_certs={directory}/cert.pem"
    server = start_server("--workers", "2", "--redis", url)
    rooms = one_per_shard("room:tls", SHARDS)
    alice, bob = server.joined("alice", *rooms), server.joined("bob")
    at = alice.connected["position"]
    for room in rooms:
        bob.send({"op": "publish", "id": 1, "channel": room, "data": room})
        bob.expect("published")
    assert {message["data"] for message in alice.messages(SHARDS)} == {*rooms}
    again = server.joined("alice", *rooms, position=at)
    assert again.connected["recovered"] is True
    assert {message["data"] for message in again.messages(SHARDS)} == {*rooms}
    status, answer = server.request("GET", f"/api/channels/{rooms[0]}/presence", admin=True)
    assert (status, answer["users"]) == (200, {"alice": 2})
    assert PASSWORD not in "".join(server.log)
