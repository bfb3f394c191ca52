"""Signing in with tokens: what they allow, when they end, and keys that change under a running server."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from harness import ROOT, Json, LineClient, Server, wait_until

pytestmark = pytest.mark.xdist_group("auth")  # one server for most of them

SECRET = "0123456789abcdef0123456789abcdef"
StartServer = Callable[..., Server]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(["--workers", "2"], env={"MOORAGE_AUTH_SECRET": SECRET}) as made:
        yield made


def token(user: str = "alice", ttl: float = 60, secret: str = SECRET, **claims: Any) -> str:
    return jwt.encode({"sub": user, "exp": time.time() + ttl, **claims}, secret, "HS256")


def deep(name: str) -> str:
    """Return a token whose header has so many arrays in each other as JSON may, and Python does not print."""
    head = f'{{"alg":"HS256","{name}":{"[" * 1000}{"]" * 1000}}}'
    return ".".join(base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in (head, "{}", ""))


def moorage_token(*options: str, **environ: str) -> str:
    """Return what `moorage token` prints."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MOORAGE_")}
    ran = subprocess.run(
        [sys.executable, "-m", "commands", "token", *options],
        cwd=ROOT, env={**kept, **environ}, capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    return ran.stdout.strip()


def connect(server: Server, **connect: Any) -> LineClient:
    return server.line_client(**connect)


def test_a_good_token_signs_in_everywhere(server: Server) -> None:
    good = moorage_token("--user", "alice", "--ttl", "1m", MOORAGE_AUTH_SECRET=SECRET)
    with connect(server, token=good, channels=["room:a"], user="mallory") as client:
        assert client.expect("connected")["user"] == "alice", "the token's word, not the client's"
        with server.event_client(f"token={good}&channel=room:a") as by_query:
            assert by_query.expect("connected")["user"] == "alice"
        with server.event_client("channel=room:a&user=mallory", Authorization=f"Bearer {good}") as by_header:
            assert by_header.expect("connected")["user"] == "alice"
        body = {"channel": "room:a", "data": 1}
        assert server.request("POST", f"/publish?token={good}", body)[0] == 200
        assert server.request("POST", "/publish", body, headers={"Authorization": f"Bearer {good}"})[0] == 200
        assert [m["from"] for m in client.messages(2)] == ["alice", "alice"]


BAD: dict[str, tuple[Callable[[], str], int, str]] = {
    "missing": (lambda: "", 4001, "missing"),
    "garbage": (lambda: "garbage", 4001, "found 1 parts"),
    "another secret": (lambda: token(secret=SECRET[::-1]), 4001, "signature"),
    "no algorithm": (lambda: jwt.encode({"sub": "alice", "exp": 9e9}, "", "none"), 4001, "alg none"),
    "no user": (lambda: jwt.encode({"exp": time.time() + 60}, SECRET), 4001, "sub"),
    "no end": (lambda: jwt.encode({"sub": "alice"}, SECRET), 4001, "exp"),
    "not yet": (lambda: token(nbf=time.time() + 60), 4001, "not valid for another"),
    "expired": (lambda: token(ttl=-60), 3003, "expired 6"),
    "deep": (lambda: deep("kid"), 4001, "kid"),
    "huge": (lambda: "x" * 9000, 4005, "9000 characters"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_token_is_refused_with_the_reason(server: Server, name: str) -> None:
    make, code, reason = BAD[name]
    bad = make()
    with connect(server, token=bad or None, user="alice", op="connect") as client:
        close = client.expect("close", code=code, reconnect=code < 4000)
        assert reason in close["reason"]
        assert ("after_ms" in close) == (code < 4000)
        if code != 3003:
            assert close["field"] == "token"
    if name == "huge":
        return
    query = f"token={bad}" if bad else "user=alice"
    status, answer = server.request("POST", f"/publish?{query}", {"channel": "room:a", "data": 1})
    assert (status, answer["error"]["code"]) == (401, code)
    with server.event_client(query) as stream:
        if code < 4000:  # to be retried: browsers give up for good on anything but 200
            assert stream.status == 200
            event = stream.receive()
            assert event is not None
            assert event["event"] == "close"
        else:
            assert stream.status == 401
            assert stream.headers["www-authenticate"] == "Bearer"


def test_globs_narrow_what_a_token_allows(server: Server) -> None:
    narrow = moorage_token(
        "--user", "alice", "--subscribe", "room:*", "--publish", "room:own", MOORAGE_AUTH_SECRET=SECRET
    )  # fmt: skip
    with connect(server, token=narrow, channels=["news:a"]) as client:
        client.expect("close", code=4003, field="channels")
    with connect(server, token=narrow, channels=["room:own"]) as client:
        client.expect("connected", channels=["@alice", "room:own"])
        client.send({"op": "subscribe", "id": 1, "channel": "room:other"})
        client.expect("subscribed", id=1)
        client.send({"op": "subscribe", "id": 2, "channel": "news:a"})
        client.expect("error", id=2, code=4003, field="channel")
        client.send({"op": "publish", "id": 3, "channel": "room:other", "data": 1})
        assert client.expect("error", id=3, code=4003, field="channel")["reason"] == "not allowed to publish"
        client.send({"op": "publish", "id": 4, "channel": "room:own", "data": 1})
        client.expect("published", id=4)
    status, answer = server.request("POST", f"/publish?token={narrow}", {"channel": "room:other", "data": 1})
    assert (status, answer["error"]["code"], answer["error"]["field"]) == (403, 4003, "channel")
    mute = token(channels={"publish": []})
    with connect(server, token=mute, channels=["room:a"]) as client:
        client.expect("connected")
        client.send({"op": "publish", "id": 1, "channel": "@alice", "data": 1})
        client.expect("error", id=1, code=4003)


def test_a_session_ends_with_its_token(server: Server) -> None:
    # Clocks may differ by 5 s, so a token is good for so much longer.
    short, long = token("short", ttl=-4), token("short", ttl=60)
    with (
        connect(server, token=short) as client, connect(server, token=long) as other,
        server.event_client(f"token={short}") as stream,
    ):  # fmt: skip
        client.expect("connected")
        stream.expect("connected")
        other.expect("connected")
        close = client.expect("close", code=3003, reconnect=True)
        assert close["after_ms"] > 0
        assert client.receive() is None
        assert stream.expect("close")["code"] == 3003
        other.send({"op": "ping", "id": 1})
        other.expect("pong", id=1)
    wait_until(lambda: server.stats()["total"]["closed"].get("3003") == 2, "counted")


# Keys in files.


def write_pair(directory: Path, name: str) -> tuple[Path, Path]:
    """Make a private and a public key."""
    private = Ed25519PrivateKey.generate()
    secret_file, public_file = directory / f"{name}.pem", directory / f"{name}.pub"
    secret_file.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    public_file.write_bytes(
        private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return secret_file, public_file


def signs_in(server: Server, token: str) -> bool:
    with connect(server, token=token) as client:
        answer = client.receive()
        assert answer is not None
        return bool(answer["op"] == "connected")


def everywhere(server: Server, token: str, wanted: bool) -> bool:
    """Tell whether `wanted` is the answer of every worker: of many connections in a row."""
    return all(signs_in(server, token) is wanted for _ in range(16))


def test_a_key_is_reread_on_sighup(start_server: StartServer, tmp_path: Path) -> None:
    old, old_public = write_pair(tmp_path, "old")
    new, new_public = write_pair(tmp_path, "new")
    key = tmp_path / "key.pub"
    key.write_bytes(old_public.read_bytes())
    server = start_server("--workers", "2", "--auth-key", str(key))
    by_old = moorage_token("--user", "alice", "--auth-key", str(old))
    by_new = moorage_token("--user", "alice", "--auth-key", str(new))
    held = connect(server, token=by_old)
    held.expect("connected")
    assert everywhere(server, by_old, True)
    assert everywhere(server, by_new, False)

    # A file that is no key leaves the old one in use, and says so.
    key.write_text("oops")
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: sum("the key stays as it was" in line for line in server.log) == 2, "both workers say so")
    assert everywhere(server, by_old, True)

    key.write_bytes(new_public.read_bytes())
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: everywhere(server, by_new, True), "the new key is in use")
    assert everywhere(server, by_old, False)
    held.send({"op": "ping", "id": 1})
    held.expect("pong", id=1)

    # Whoever replaces a worker has the new key too, although the supervisor began with the old one.
    killed = server.workers()[0]
    killed.kill()
    wait_until(lambda: (p := server.workers().get(0)) and p.pid != killed.pid, "it is replaced")
    wait_until(lambda: server.stats()["total"]["ready"] == 2, "both are ready")
    assert everywhere(server, by_new, True)
    assert everywhere(server, by_old, False)
    total: Json = server.stats()["total"]
    assert total["restarts"] == 1


def test_a_token_that_waits_for_the_keys_and_is_bad_costs_only_who_has_it(start_server: StartServer) -> None:
    is_open = threading.Event()
    algorithm: Any = jwt.get_algorithm_by_name("EdDSA")
    body = json.dumps(algorithm.to_jwk(Ed25519PrivateKey.generate().public_key(), as_dict=True)).encode()

    class Issuer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_open.wait(10)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Issuer) as issuer:
        threading.Thread(target=issuer.serve_forever, daemon=True).start()
        server = start_server("--workers", "1", "--auth-key", f"http://127.0.0.1:{issuer.server_port}/jwks")
        with connect(server, token=deep("alg")) as client:
            wait_until(lambda: server.stats()["total"]["handshaking"] == 1, "it waits for the keys")
            is_open.set()
            assert "alg" in client.expect("close", code=4001)["reason"]
        issuer.shutdown()
    assert server.stats()["total"]["restarts"] == 0
