"""`moorage token`: what it prints gets in at a server with the same options, and what is wrong is named."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from commands import token
from server import config
from server.auth import Verifier
from server.claims import LEEWAY_SECONDS

SECRET = "0123456789abcdef0123456789abcdef"
NONE = NoEncryption()

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in an empty directory; return its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def call(*argv: str, **environ: str) -> tuple[int, str, str]:
        parser = argparse.ArgumentParser()
        token.add_arguments(parser)
        code = token.run(parser.parse_args(argv), environ)
        said = capsys.readouterr()
        return code, said.out.removesuffix("\n"), said.err.removesuffix("\n")

    return call


def pem(private: PrivateKeyTypes, passphrase: KeySerializationEncryption = NONE) -> bytes:
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, passphrase)


def public_pem(private: PrivateKeyTypes) -> bytes:
    return private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def test_a_token_for_a_secret(run: Run) -> None:
    code, text, err = run("--user", "alice", "--auth-secret", SECRET)
    assert (code, err) == (0, "")
    claims = Verifier.from_config(SECRET, None).verify(text, time.time())
    assert (claims.user, claims.subscribe, claims.publish) == ("alice", None, None)
    assert claims.expires_at
    assert claims.expires_at - time.time() == pytest.approx(3600 + LEEWAY_SECONDS, abs=5)


@pytest.mark.parametrize(
    ("private", "algorithm"),
    [
        (rsa.generate_private_key(65537, 2048), "RS256"),
        (ec.generate_private_key(ec.SECP256R1()), "ES256"),
        (ed25519.Ed25519PrivateKey.generate(), "EdDSA"),
    ],
)
def test_a_token_for_a_key(private: PrivateKeyTypes, algorithm: str, run: Run, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "private.pem", tmp_path / "public.pem"
    ours.write_bytes(pem(private))
    theirs.write_bytes(public_pem(private))
    code, text, _ = run("--user", "alice", "--auth-key", str(ours))
    assert code == 0
    assert jwt.get_unverified_header(text)["alg"] == algorithm
    assert Verifier.from_config(None, str(theirs)).verify(text, time.time()).user == "alice"


def test_what_it_allows_and_for_whom(run: Run) -> None:
    _, text, _ = run(
        "--user", "alice", "--ttl", "7d", "--auth-secret", SECRET, "--audience", "chat", "--issuer", "me",
        "--subscribe", "room:*", "--subscribe", "news", "--publish", "room:a",
    )  # fmt: skip
    claims = Verifier.from_config(SECRET, None, "chat", "me").verify(text, time.time())
    assert (claims.subscribe, claims.publish) == (("room:*", "news"), ("room:a",))
    payload = jwt.decode(text, SECRET, ["HS256"], audience="chat", issuer="me")
    assert payload["exp"] - payload["iat"] == 7 * 86_400


def test_the_servers_own_options_are_enough(run: Run, tmp_path: Path) -> None:
    assert run("--user", "alice", MOORAGE_AUTH_SECRET=SECRET)[0] == 0
    (tmp_path / "moorage.toml").write_text(f'auth_secret = "{SECRET}"\nauth_audience = "chat"\n')
    _, text, _ = run("--user", "alice")
    assert jwt.decode(text, SECRET, ["HS256"], audience="chat")["sub"] == "alice"
    _, text, _ = run("--user", "alice", "--auth-secret", SECRET[::-1])
    assert jwt.decode(text, SECRET[::-1], ["HS256"], audience="chat")["sub"] == "alice"
    other = tmp_path / "other.toml"
    other.write_text(f'auth_secret = "{SECRET[::-1]}"\n')
    _, text, _ = run("--user", "alice", "--config", str(other))
    assert jwt.decode(text, SECRET[::-1], ["HS256"])["sub"] == "alice"


def test_a_private_key_goes_over_the_servers_public_one(run: Run, tmp_path: Path) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "public.pem").write_bytes(public_pem(private))
    (tmp_path / "private.pem").write_bytes(pem(private))
    (tmp_path / "moorage.toml").write_text('auth_key = "public.pem"\nauth_issuer = "me"\n')
    code, _, err = run("--user", "alice")
    assert code == 2
    assert err.startswith("public.pem: found a public key or certificate, want the private key")
    code, text, _ = run("--user", "alice", "--auth-key", "private.pem")
    assert code == 0
    options = config.load({}, {}, str(tmp_path / "moorage.toml"))
    verifier = Verifier.from_config(options.auth_secret, options.auth_key, options.auth_audience, options.auth_issuer)
    assert verifier.verify(text, time.time()).user == "alice"


@pytest.mark.parametrize(("text", "wanted"), [("90s", 90), ("15m", 900), ("1h", 3600), ("7d", 604_800)])
def test_times(text: str, wanted: int) -> None:
    assert token.seconds(text) == wanted


@pytest.mark.parametrize(
    "text", ["", "5", "0s", "-1h", "1.5h", "1 h", "1w", "h", "3651d", "9" * 13 + "s", "٣h", "1h\n"]
)
def test_what_is_no_time(text: str, run: Run) -> None:
    code, out, err = run("--user", "alice", f"--ttl={text}", "--auth-secret", SECRET)
    assert (code, out) == (2, "")
    assert err == f"--ttl: found {text!r}, want a time from 1s to 3650d, such as 90s, 15m, 1h or 7d"


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["--user", "alice"], "found no secret or key, want --auth-secret, --auth-key or MOORAGE_AUTH_SECRET"),
        (["--user", "alice", "--auth-secret", "short"], "at least 32 bytes of text, not 5"),
        (["--user", "al ice", "--auth-secret", SECRET], "--user: U+0020 at character"),
        (["--user", "", "--auth-secret", SECRET], "--user: "),
        (["--user", "alice", "--auth-secret", SECRET, "--publish", "a b"], "channels.publish: U+0020 at character"),
        (["--user", "alice", "--auth-secret", SECRET, *["--publish", "a"] * 65], "65 globs found, wanted at most 64"),
        (
            ["--user", "alice", "--auth-secret", SECRET, *["--publish", "a" * 200] * 64],
            "bytes of token, want at most 8192",
        ),
        (["--user", "alice", "--auth-key", "none.pem"], "auth_key (flag --auth-key): found 'none.pem'"),
        (["--user", "alice", "--auth-key", "https://issuer.example/keys"], "found the URL https://issuer.example/keys"),
        (["--user", "alice", "--config", "none.toml"], "config (none.toml): found No such file"),
    ],
)
def test_what_is_wrong_is_named(argv: list[str], reason: str, run: Run) -> None:
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert reason in err
    assert SECRET not in err


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"hello", "found no PEM, want the private key"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "found PEM that cannot be read"),
        (pem(ec.generate_private_key(ec.SECP256R1()), BestAvailableEncryption(b"x")), "found a key with a passphrase"),
        (pem(ed448.Ed448PrivateKey.generate()), "found a key of type Ed448PublicKey, wanted an RSA key"),
        (pem(rsa.generate_private_key(65537, 1024)), "found an RSA key of 1024 bits, wanted 2048 or more"),
        (json.dumps({"keys": []}).encode(), "found no PEM, want the private key"),
    ],
)
def test_a_file_that_cannot_sign(content: bytes, reason: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_bytes(content)
    code, out, err = run("--user", "alice", "--auth-key", "key.pem")
    assert (code, out) == (2, "")
    assert err.startswith("key.pem: ")
    assert reason in err


def test_a_secret_and_a_key_are_one_too_many(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run("--user", "alice", "--auth-secret", SECRET, "--auth-key", "key.pem")
    assert ended.value.code == 2
    assert "not allowed with" in capsys.readouterr().err
