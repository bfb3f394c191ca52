"""Which keys are taken, and what is said of those that are not."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa, x25519
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from server import keys
from server.keys import from_file, from_jwks, from_pem, from_secret

EC = ec.generate_private_key(ec.SECP256R1())
SHORT = rsa.generate_private_key(65537, 1024)
SECRET = "0123456789abcdef0123456789abcdef"


def pem(public: PublicKeyTypes) -> bytes:
    text: bytes = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return text


def jwk(name: str, key: object, **members: object) -> dict[str, object]:
    algorithm: Any = jwt.get_algorithm_by_name(name)
    found: dict[str, object] = json.loads(algorithm.to_jwk(key))
    return found | members


def jwks(*members: object) -> bytes:
    return json.dumps({"keys": members}).encode()


GOOD = jwk("ES256", EC.public_key(), kid="good")


def test_a_secret_has_32_bytes() -> None:
    assert from_secret(SECRET).keys[0].name == "HS256"
    assert from_secret("é" * 16).keys[0].material == ("é" * 16).encode()
    with pytest.raises(ValueError, match=r"found a secret of 31 bytes, wanted at least 32 \(openssl rand -hex 32\)"):
        from_secret(SECRET[1:])


def test_a_key_is_no_secret() -> None:
    with pytest.raises(ValueError, match="found a key file's text as the secret"):
        from_secret(pem(EC.public_key()).decode())


@pytest.mark.parametrize(
    ("public", "reason"),
    [
        (ec.generate_private_key(ec.SECP384R1()).public_key(), "found an EC key on secp384r1, wanted P-256"),
        (ec.generate_private_key(ec.SECP256K1()).public_key(), "found an EC key on secp256k1, wanted P-256"),
        (SHORT.public_key(), "found an RSA key of 1024 bits, wanted 2048 or more"),
        (ed448.Ed448PrivateKey.generate().public_key(), "found a key of type Ed448PublicKey, wanted an RSA key"),
        (x25519.X25519PrivateKey.generate().public_key(), "found a key of type X25519PublicKey, wanted an RSA key"),
    ],
)
def test_keys_of_other_kinds_are_named(public: PublicKeyTypes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        from_pem(pem(public))


def test_a_private_key_is_refused() -> None:
    for kind in (PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL):
        with pytest.raises(ValueError, match="found a private key, wanted the public one"):
            from_pem(EC.private_bytes(Encoding.PEM, kind, NoEncryption()))


def test_one_key_in_pem() -> None:
    with pytest.raises(ValueError, match="found 2 keys, wanted one in PEM, or several as a JWKS"):
        from_pem(pem(EC.public_key()) * 2)
    with pytest.raises(ValueError, match="found no keys"):
        from_pem(b"hello")
    with pytest.raises(ValueError, match="found PEM that cannot be read"):
        from_pem(b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")


def test_other_shapes_of_pem() -> None:
    strong = rsa.generate_private_key(65537, 2048)
    assert from_pem(strong.public_key().public_bytes(Encoding.PEM, PublicFormat.PKCS1)).keys[0].name == "RS256"
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "issuer")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, EC.public_key(), x509.random_serial_number(), now, now + timedelta(1))
        .sign(EC, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )
    assert from_pem(certificate).keys[0].name == "ES256"


def test_a_file_is_either(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes(b"\n " + jwks(GOOD))
    assert from_file(file).named
    file.write_text(json.dumps(GOOD))
    assert [key.kid for key in from_file(file).keys] == ["good"]
    file.write_bytes(pem(EC.public_key()))
    assert not from_file(file).named
    file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=f"{file}: found no keys"):
        from_file(file)
    file.write_bytes(b"{" * (keys.KEY_FILE_BYTES_MAX + 1))
    with pytest.raises(ValueError, match="found more than 1048576 bytes"):
        from_file(file)


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (5, "key 0: not an object"),
        (GOOD | {"kid": 5}, "key 0: kid is not a string"),
        (GOOD | {"use": "enc"}, "key 0: not for verifying signatures"),
        (GOOD | {"key_ops": ["sign"]}, "key 0: not for verifying signatures"),
        (GOOD | {"key_ops": "verify"}, "key 0: not for verifying signatures"),
        (GOOD | {"alg": "ES384"}, "key 0: kty EC P-256 alg ES384"),
        (GOOD | {"alg": "HS256"}, "key 0: kty EC P-256 alg HS256"),
        (GOOD | {"alg": "none"}, "key 0: kty EC P-256 alg none"),
        (GOOD | {"kty": "RSA"}, "key 0: broken"),
        (GOOD | {"kty": "oct", "alg": "ES256"}, "key 0: kty oct alg ES256"),
        (GOOD | {"x": "AAAA"}, "key 0: broken"),
        (GOOD | {"x": 5}, "key 0: broken"),
        ({"kty": "oct"}, "key 0: broken"),
        ({"kty": "oct", "k": "c2hvcnQ"}, "key 0: found a secret of 5 bytes"),
        (jwk("ES256", EC), "key 0: a private key"),
        (jwk("RS256", SHORT.public_key()), "key 0: found an RSA key of 1024 bits"),
        ({"kty": "RSA", "n": "AQ", "e": "AQAB"}, "key 0: "),
        ({"kty": "OKP", "crv": "Ed448", "x": "AA"}, "key 0: kty OKP Ed448 alg None"),
        ({"kty": ["RSA"], "crv": {}}, "key 0: kty"),
    ],
)
def test_of_no_use_and_why(member: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        from_jwks(jwks(member))
    kept = from_jwks(jwks(member, GOOD, 7))
    assert [key.kid for key in kept.keys] == ["good"]


DEEP = (b"kty", b"crv", b"alg")  # may hold as many arrays in each other as JSON may, and Python does not print


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "not JSON"),
        (b"[]", 'JSON without a list "keys"'),
        (b"{}", 'JSON without a list "keys"'),
        (b'{"keys":{}}', 'JSON without a list "keys"'),
        (b'{"keys":[]}', r"no usable key \(the list is empty\)"),
        (jwks(*[GOOD] * 101), "found 101 keys, wanted at most 100"),
        *((b'{"kty":"EC","%b":%b%b}' % (name, b"[" * 1000, b"]" * 1000), "key 0: kty") for name in DEEP),
    ],
)
def test_what_is_no_key_set(text: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        from_jwks(text)


def test_a_shared_secret_is_taken_from_a_file_only() -> None:
    text = jwks(jwk("HS256", SECRET, kid="s"))
    assert from_jwks(text).keys[0].name == "HS256"
    with pytest.raises(ValueError, match="a shared secret, which a published key set must not hold"):
        from_jwks(text, published=True)


def test_the_first_of_two_with_one_name_counts() -> None:
    other = jwk("EdDSA", ed25519.Ed25519PrivateKey.generate().public_key(), kid="good")
    twin = jwk("ES256", ec.generate_private_key(ec.SECP256R1()).public_key(), kid="good")
    kept = from_jwks(jwks(GOOD, twin, other)).keys
    assert [key.name for key in kept] == ["ES256", "EdDSA"]
    assert kept[0].material == EC.public_key()


MEMBERS = ["kty", "crv", "x", "y", "n", "e", "k", "kid", "use", "alg", "key_ops", "d", "oth"]
VALUES = (
    st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.sampled_from(["RSA", "EC", "OKP", "oct"])
    | st.sampled_from(["P-256", "Ed25519", "AQAB", "AA", "====", "verify", "sig"]) | st.lists(st.integers(), max_size=2)
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(MEMBERS), VALUES), st.booleans())
def test_odd_keys_are_left_out_and_never_crash(odd: dict[str, object], mixed: bool) -> None:
    kept = from_jwks(jwks(GOOD | odd if mixed else odd, GOOD))
    assert "good" in [key.kid for key in kept.keys]
