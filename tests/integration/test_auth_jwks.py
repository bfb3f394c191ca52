"""Key sets at a URL, served by a real server: fetched, rotated, withdrawn, out of reach, slow, asked for in a storm."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from server import auth, keys
from server.auth import KeyUnknown, Verifier
from server.close import Close, PeerError

KEYS = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("old", "new", "stray")}


def key_set(*names: str) -> bytes:
    algorithm: Any = jwt.get_algorithm_by_name("ES256")
    members = [json.loads(algorithm.to_jwk(KEYS[name].public_key())) | {"kid": name} for name in names]
    return json.dumps({"keys": members}).encode()


def token(name: str, user: str = "alice", **claims: object) -> str:
    return jwt.encode({"sub": user, "exp": time.time() + 60} | claims, KEYS[name], "ES256", {"kid": name})


class Issuer:
    """A web server that publishes a key set; what it answers, when, and how often it was asked is in its attributes."""

    def __init__(self) -> None:
        self.body = key_set("old")
        self.status = 200
        self.headers: dict[str, str] = {}
        self.asked: list[float] = []
        self.open = asyncio.Event()
        self.open.set()
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(time.monotonic())
        await self.open.wait()
        return web.Response(body=self.body, status=self.status, headers=self.headers)


async def serve(issuer: Issuer, context: ssl.SSLContext | None = None) -> web.AppRunner:
    app = web.Application()
    app.router.add_get("/{any:.*}", issuer.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    port = runner.addresses[0][1]
    issuer.url = f"{'https' if context else 'http'}://127.0.0.1:{port}/jwks.json"
    return runner


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    one = Issuer()
    runner = await serve(one)
    yield one
    one.open.set()
    await runner.cleanup()


@pytest.fixture
def verifier(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> Verifier:
    """Return a verifier of the issuer's tokens that may fetch as often as it likes."""
    monkeypatch.setattr(auth, "FETCH_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(auth, "FETCH_SECONDS_MAX", 1.0)
    return Verifier.from_config(None, issuer.url)


def verify(verifier: Verifier, text: str) -> str:
    return verifier.verify(text, time.time()).user


def refusal(verifier: Verifier, text: str) -> PeerError:
    with pytest.raises(PeerError) as caught:
        verify(verifier, text)
    return caught.value


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def sign_in(verifier: Verifier, text: str) -> str:
    """Do what a door does: an unknown key is looked for once."""
    try:
        return verify(verifier, text)
    except KeyUnknown:
        await verifier.refresh()
        return verify(verifier, text)


async def test_keys_are_fetched_before_the_first_token(verifier: Verifier, issuer: Issuer) -> None:
    assert refusal(verifier, token("old")).code is Close.KEYS_UNAVAILABLE
    assert await sign_in(verifier, token("old")) == "alice"
    assert await sign_in(verifier, token("old", "bob")) == "bob"
    assert len(issuer.asked) == 1


async def test_a_new_key_is_looked_for_and_a_withdrawn_one_forgotten(verifier: Verifier, issuer: Issuer) -> None:
    remembered = token("old")
    await sign_in(verifier, remembered)
    issuer.body = key_set("old", "new")
    assert await sign_in(verifier, token("new")) == "alice"
    assert await sign_in(verifier, remembered) == "alice"
    issuer.body = key_set("new")
    await verifier.refresh()
    error = refusal(verifier, remembered)
    assert isinstance(error, KeyUnknown)
    assert error.code is Close.UNAUTHORIZED


async def test_the_same_keys_again_leave_what_is_remembered(verifier: Verifier, issuer: Issuer) -> None:
    text = token("old")
    await sign_in(verifier, text)
    first = verifier.verify(text, time.time())
    await verifier.refresh()
    assert verifier.verify(text, time.time()) is first
    assert len(issuer.asked) == 2


async def test_a_key_nobody_has_is_refused_for_good(verifier: Verifier) -> None:
    with pytest.raises(KeyUnknown) as caught:
        await sign_in(verifier, token("stray"))
    assert caught.value.code is Close.UNAUTHORIZED
    assert caught.value.reason == "kid stray found, wanted one of the key set"


async def test_a_storm_is_one_fetch(verifier: Verifier, issuer: Issuer) -> None:
    issuer.open.clear()
    waiting = [asyncio.create_task(sign_in(verifier, token("old", f"user{number}"))) for number in range(200)]
    await until(lambda: len(issuer.asked) == 1)
    waiting[0].cancel()  # one who gives up does not stop it for the others
    issuer.open.set()
    assert await asyncio.gather(*waiting[1:]) == [f"user{number}" for number in range(1, 200)]
    assert len(issuer.asked) == 1


async def test_made_up_keys_cannot_make_it_fetch_often(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "FETCH_INTERVAL_SECONDS", 0.3)
    verifier = Verifier.from_config(None, issuer.url)
    await verifier.refresh()
    issuer.body = key_set("old", "new")
    began = time.monotonic()
    while time.monotonic() - began < 1.0:
        with pytest.raises(KeyUnknown):
            await sign_in(verifier, token("stray"))
    gaps = [later - earlier for earlier, later in zip(issuer.asked, issuer.asked[1:], strict=False)]
    assert len(issuer.asked) >= 3
    assert min(gaps) > 0.25, gaps
    assert verify(verifier, token("new")), "those who waited were answered with fresh keys"


def status(issuer: Issuer) -> None:
    issuer.status = 503


def redirect(issuer: Issuer) -> None:
    issuer.status = 302
    issuer.headers = {"Location": issuer.url + "/elsewhere"}


def not_json(issuer: Issuer) -> None:
    issuer.body = b"<html>"


def no_keys(issuer: Issuer) -> None:
    issuer.body = b'{"keys":[]}'


def endless(issuer: Issuer) -> None:
    issuer.body = b" " * (keys.KEY_FILE_BYTES_MAX + 1)


def silent(issuer: Issuer) -> None:
    issuer.open.clear()


FAILURES = [
    (status, "found status 503, wanted 200"),
    (redirect, "found status 302, wanted 200"),
    (not_json, "found what is not JSON"),
    (no_keys, "found no usable key"),
    (endless, "found more than 1048576 bytes"),
    (silent, "TimeoutError"),
]


@pytest.mark.parametrize(("fail", "said"), FAILURES)
async def test_keys_are_kept_while_none_can_be_had(
    fail: Callable[[Issuer], None], said: str, verifier: Verifier, issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    await verifier.refresh()
    fail(issuer)
    with caplog.at_level(logging.WARNING, "server.auth"):
        await verifier.refresh()
    assert said in caplog.text
    assert "the ones at hand stay in use" in caplog.text
    assert verify(verifier, token("old")) == "alice"
    error = refusal(verifier, token("new"))
    assert error.code is Close.KEYS_UNAVAILABLE, "it may be in the key set that cannot be had: come back"
    issuer.open.set()
    issuer.status, issuer.body = 200, key_set("new")
    assert await sign_in(verifier, token("new")) == "alice"


async def test_nobody_listens(unused_tcp_port: int, caplog: pytest.LogCaptureFixture) -> None:
    verifier = Verifier.from_config(None, f"http://user:hunter2@127.0.0.1:{unused_tcp_port}/")
    await verifier.refresh()
    assert "cannot fetch the keys from http://user:***@127.0.0.1" in caplog.text
    assert "hunter2" not in caplog.text
    assert "none are at hand" in caplog.text
    assert refusal(verifier, token("old")).code is Close.KEYS_UNAVAILABLE


async def test_the_loop_runs_on_while_an_issuer_is_silent(verifier: Verifier, issuer: Issuer) -> None:
    issuer.open.clear()
    fetching = asyncio.create_task(verifier.refresh())
    await until(lambda: bool(issuer.asked))
    longest, before = 0.0, time.monotonic()
    for _ in range(100):
        await asyncio.sleep(0.001)
        longest, before = max(longest, time.monotonic() - before), time.monotonic()
    assert not fetching.done()
    assert longest < 0.2, longest
    issuer.open.set()
    await fetching


async def test_a_published_secret_is_not_used(
    verifier: Verifier, issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "0123456789abcdef0123456789abcdef"
    algorithm: Any = jwt.get_algorithm_by_name("HS256")
    issuer.body = json.dumps({"keys": [json.loads(algorithm.to_jwk(secret))]}).encode()
    await verifier.refresh()
    assert "a shared secret, which a published key set must not hold" in caplog.text
    assert refusal(verifier, jwt.encode({"sub": "alice"}, secret)).code is Close.KEYS_UNAVAILABLE


async def test_a_certificate_that_nobody_vouches_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now, private, file = datetime.now(UTC), KEYS["old"], tmp_path / "both.pem"
    builder = x509.CertificateBuilder(
        name, name, private.public_key(), x509.random_serial_number(), now, now + timedelta(1)
    )
    pem = builder.sign(private, hashes.SHA256()).public_bytes(Encoding.PEM)
    file.write_bytes(pem + private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(file)
    issuer = Issuer()
    runner = await serve(issuer, context)
    try:
        verifier = Verifier.from_config(None, issuer.url)
        await verifier.refresh()
    finally:
        await runner.cleanup()
    assert "certificate verify failed" in caplog.text
    assert not issuer.asked


async def test_keys_stay_fresh_by_themselves(
    verifier: Verifier, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "KEYS_SECONDS", 0.05)
    monkeypatch.setattr(auth, "FETCH_INTERVAL_SECONDS", 0.01)
    keeping = asyncio.create_task(verifier.keep_fresh())
    await until(lambda: len(issuer.asked) >= 2)
    issuer.status = 500
    failed_at = len(issuer.asked) + 1
    await until(lambda: len(issuer.asked) >= failed_at + 2)
    issuer.status, issuer.body = 200, key_set("new")
    fresh_at = len(issuer.asked) + 1
    await until(lambda: len(issuer.asked) > fresh_at)
    assert verify(verifier, token("new")) == "alice"
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    await until(lambda: verifier._fetching is None or verifier._fetching.done())
