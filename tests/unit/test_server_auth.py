"""Tokens: what gets in, what does not and why, and what is remembered. PyJWT makes the tokens."""

from __future__ import annotations

import base64
import functools
import json
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from server import auth, limits
from server.auth import Claims, KeyUnknown, Verifier
from server.claims import LEEWAY_SECONDS
from server.close import Close, PeerError
from server.keys import KeySet, from_jwks, from_pem, from_secret

SECRET = "0123456789abcdef0123456789abcdef"
NOW = 1_800_000_000.0
PAYLOAD = {"sub": "alice", "exp": int(NOW) + 3600}
ALGORITHMS = ("HS256", "RS256", "ES256", "EdDSA")


@functools.cache
def private_key(name: str, number: int = 0) -> Any:  # str, or one of three classes that share no base
    if name == "HS256":
        return SECRET if number == 0 else SECRET[::-1]
    if name == "RS256":
        return rsa.generate_private_key(65537, 2048)
    return ec.generate_private_key(ec.SECP256R1()) if name == "ES256" else ed25519.Ed25519PrivateKey.generate()


def public_pem(name: str, number: int = 0) -> bytes:
    public = private_key(name, number).public_key()
    pem: bytes = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem


def key_set(name: str) -> KeySet:
    return from_secret(SECRET) if name == "HS256" else from_pem(public_pem(name))


def jwk(name: str, number: int = 0, **members: object) -> dict[str, object]:
    algorithm: Any = jwt.get_algorithm_by_name(name)
    key = private_key(name, number)
    found: dict[str, object] = json.loads(algorithm.to_jwk(key if name == "HS256" else key.public_key()))
    return found | members


def jwks(*members: dict[str, object]) -> bytes:
    return json.dumps({"keys": members}).encode()


def token(name: str = "HS256", number: int = 0, head: dict[str, Any] | None = None, **claims: object) -> str:
    payload = {key: value for key, value in (PAYLOAD | claims).items() if value is not None}
    return jwt.encode(payload, private_key(name, number), name, head)


def compact(head: object, payload: object, signature: bytes = b"") -> str:
    parts = [json.dumps(head).encode(), json.dumps(payload).encode(), signature]
    return b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts).decode()


def verifier(name: str = "HS256", **options: str) -> Verifier:
    return Verifier(key_set(name), **options)  # type: ignore[arg-type]


def refusal(of: Verifier, text: str, now: float = NOW) -> PeerError:
    with pytest.raises(PeerError) as caught:
        of.verify(text, now)
    assert caught.value.field == "token"
    return caught.value


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_token_of_each_algorithm_gets_in(name: str) -> None:
    assert verifier(name).verify(token(name), NOW) == Claims("alice", NOW + 3600 + LEEWAY_SECONDS, None, None)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_another_key_does_not(name: str) -> None:
    error = refusal(verifier(name), token(name, number=1))
    assert (error.code, error.reason) == (Close.UNAUTHORIZED, "the signature does not match")


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("wanted", ALGORITHMS)
def test_the_key_says_the_algorithm(name: str, wanted: str) -> None:
    if name != wanted:
        assert refusal(verifier(wanted), token(name)).reason == f"alg {name} found, wanted {wanted}"


def test_a_public_key_is_no_secret() -> None:
    """The classic confusion: HS256 with the PEM text that everybody may read as the secret."""
    algorithm = jwt.get_algorithm_by_name("HS256")
    text = compact({"alg": "HS256"}, PAYLOAD).rpartition(".")[0].encode()
    forged = text + b"." + base64.urlsafe_b64encode(algorithm.sign(text, public_pem("RS256"))).rstrip(b"=")
    assert refusal(verifier("RS256"), forged.decode()).reason == "alg HS256 found, wanted RS256"


@pytest.mark.parametrize("name", ["none", "None", "NONE", "", None, 5, ["HS256"], {"HS256": 1}, "hs256"])
@pytest.mark.parametrize("kind", ["HS256", "RS256"])
def test_no_algorithm_is_not_one(name: object, kind: str) -> None:
    found = "no alg" if name is None else f"alg {name}"
    assert refusal(verifier(kind), compact({"alg": name}, PAYLOAD)).reason == f"{found} found, wanted {kind}"


def test_keys_that_a_header_brings_along_are_not_used() -> None:
    head = {"jwk": jwk("RS256", 1), "jku": "https://evil.example/", "x5u": "https://evil.example/"}
    assert refusal(verifier("RS256"), token("RS256", 1, head)).reason == "the signature does not match"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "found 1 parts, wanted the three of a signed JWT"),
        ("a.b", "found 2 parts, wanted the three of a signed JWT"),
        ("a.b.c.d.e", "found 5 parts, wanted the three of a signed JWT"),
        ("a.b.c", "the header is not base64url without padding"),
        ("..", "the header is not JSON"),
        ("aGk.e30.", "the header is not JSON"),
        ("W10.e30.", "the header is not a JSON object"),
        ("e30=.e30.", "the header is not base64url without padding"),
        ("e31.e30.", "the header is not base64url without padding"),  # the last letter has bits that mean nothing
        ("e3\n0.e30.", "the header is not base64url without padding"),
        (compact({"alg": "HS256"}, PAYLOAD) + "!", "the signature is not base64url without padding"),
        ("ключ", "found letters that are not ASCII, wanted a JWT"),
        ("a" * (limits.TOKEN_BYTES_MAX + 1), "found 8193 bytes, wanted at most 8192"),
        (compact({"alg": "HS256", "kid": 7}, PAYLOAD), "kid 7 found, wanted a string"),
        (compact({"alg": "HS256"}, PAYLOAD), "the signature does not match"),
        (compact({"alg": "HS256", "b64": False}, PAYLOAD), "found crit or b64 in the header, wanted neither"),
        (compact({"alg": "HS256", "crit": ["exp"]}, PAYLOAD), "found crit or b64 in the header, wanted neither"),
    ],
)
def test_what_is_not_a_token_is_told(text: str, reason: str) -> None:
    error = refusal(verifier(), text)
    assert (error.code, error.reason) == (Close.UNAUTHORIZED, reason)


def test_both_base64_alphabets_are_not_mixed() -> None:
    for number in range(200):
        text = token(sub=f"user{number}")
        swapped = text.replace("-", "+").replace("_", "/")
        if swapped != text:
            assert "is not base64url" in refusal(verifier(), swapped).reason


def test_a_payload_that_is_no_object() -> None:
    signed = jwt.api_jws.encode(b"[]", SECRET)
    assert refusal(verifier(), signed).reason == "the payload is not a JSON object"
    signed = jwt.api_jws.encode(b'{"sub":"\xff"}', SECRET)
    assert refusal(verifier(), signed).reason == "the payload is not JSON"


def test_an_expired_token_may_come_back_fresh() -> None:
    error = refusal(verifier(), token(exp=int(NOW) - 12))
    assert (error.code, error.reason) == (Close.EXPIRED, "expired 12 s ago")
    assert error.code.reconnect


def test_leeway_at_both_ends() -> None:
    assert verifier().verify(token(exp=NOW - LEEWAY_SECONDS + 0.5, nbf=NOW + LEEWAY_SECONDS - 0.5), NOW)
    assert refusal(verifier(), token(exp=NOW - LEEWAY_SECONDS)).code is Close.EXPIRED
    assert refusal(verifier(), token(nbf=NOW + 30)).reason == "not valid for another 30 s"


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ("chat", None),
        (["web", "chat"], None),
        ("chat2", "aud chat2 found, wanted chat"),
        ([], "aud [] found, wanted chat"),
        (None, "no aud found, wanted chat"),
        ({"chat": 1}, "aud {'chat': 1} found, wanted chat"),
        ([["chat"], 5], "aud [['chat'], 5] found, wanted chat"),
    ],
)
def test_the_audience_is_checked_where_one_is_configured(found: object, reason: str | None) -> None:
    algorithm = jwt.get_algorithm_by_name("HS256")
    text = compact({"alg": "HS256"}, PAYLOAD | ({} if found is None else {"aud": found})).rpartition(".")[0].encode()
    signed = (text + b"." + base64.urlsafe_b64encode(algorithm.sign(text, SECRET.encode())).rstrip(b"=")).decode()
    assert verifier().verify(signed, NOW).user == "alice"
    if reason is None:
        assert verifier(audience="chat").verify(signed, NOW).user == "alice"
    else:
        assert refusal(verifier(audience="chat"), signed).reason == reason


def test_the_issuer_is_checked_where_one_is_configured() -> None:
    assert verifier(issuer="me").verify(token(iss="me"), NOW)
    assert refusal(verifier(issuer="me"), token(iss="you")).reason == "iss you found, wanted me"
    assert refusal(verifier(issuer="me"), token()).reason == "no iss found, wanted me"


def test_a_token_names_its_key() -> None:
    keys = from_jwks(jwks(jwk("RS256", 0, kid="a"), jwk("RS256", 1, kid="b"), jwk("ES256", 0, kid="b")))
    both = Verifier(keys)
    for name, number, kid in (("RS256", 0, "a"), ("RS256", 1, "b"), ("ES256", 0, "b")):
        assert both.verify(token(name, number, {"kid": kid}), NOW).user == "alice"
    assert refusal(both, token("RS256", 0, {"kid": "b"})).reason == "the signature does not match"
    assert refusal(both, token("ES256", 0, {"kid": "a"})).reason == "alg ES256 found, wanted RS256"
    assert refusal(both, token("RS256")).reason == "no kid found, wanted one: the key set has 2 keys for RS256"
    assert refusal(both, token("HS256")).reason == "alg HS256 found, wanted ES256 or RS256"
    assert both.verify(token("ES256"), NOW), "the only key of its algorithm needs no name"


def test_an_unknown_key_is_told_apart() -> None:
    named = Verifier(from_jwks(jwks(jwk("RS256", kid="a"))))
    error = refusal(named, token("RS256", head={"kid": "b"}))
    assert isinstance(error, KeyUnknown)
    assert (error.code, error.reason) == (Close.UNAUTHORIZED, "kid b found, wanted one of the key set")
    assert verifier("RS256").verify(token("RS256", head={"kid": "any"}), NOW), "a PEM key has no name"


def test_before_the_first_fetch_clients_are_asked_to_come_back() -> None:
    remote = Verifier.from_config(None, "https://issuer.example/jwks.json")
    error = refusal(remote, token("RS256"))
    assert isinstance(error, KeyUnknown)
    assert error.code is Close.KEYS_UNAVAILABLE
    assert error.code.reconnect


def test_what_a_peer_sent_is_clipped_and_printable() -> None:
    reason = refusal(verifier(), compact({"alg": "x" * 1000}, PAYLOAD)).reason
    assert len(reason) < 120
    assert refusal(verifier(), compact({"alg": "a\n\x1b[31m"}, PAYLOAD)).reason.isprintable()


def test_a_verified_token_is_remembered_until_it_expires() -> None:
    one, text = verifier(), token(exp=int(NOW) + 10)
    first = one.verify(text, NOW)
    assert one.verify(text, NOW + 10) is first
    assert refusal(one, text, NOW + 10 + LEEWAY_SECONDS).reason == "expired 5 s ago"
    assert not one._verified
    assert refusal(one, text, NOW + 20).reason == "expired 10 s ago"


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "VERIFIED_TOKENS_MAX", 3)
    one = verifier()
    first, *others = [token(sub=f"user{number}") for number in range(6)]
    one.verify(first, NOW)
    for text in others:
        one.verify(text, NOW)
        assert one.verify(text, NOW).user.startswith("user")
    assert len(one._verified) == 3
    assert one.verify(first, NOW).user == "user0"


def test_a_refused_token_is_not_remembered() -> None:
    one = verifier()
    refusal(one, token(number=1))
    assert not one._verified


def test_equal_globs_are_kept_once() -> None:
    one = verifier()
    claims = [one.verify(token(sub=name, channels={"subscribe": ["room:*"]}), NOW) for name in ("a", "b")]
    assert claims[0].subscribe is claims[1].subscribe


@pytest.mark.parametrize("secret", [SECRET, None])
def test_one_source_of_keys_is_wanted(secret: str | None, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"found {'both' if secret else 'neither'}, wanted a secret or a key"):
        Verifier.from_config(secret, "file.pem" if secret else None)


def test_the_options_say_where_the_keys_are(tmp_path: Path) -> None:
    pem, keys = tmp_path / "key.pem", tmp_path / "keys.json"
    pem.write_bytes(public_pem("ES256"))
    keys.write_bytes(jwks(jwk("EdDSA", kid="a")))
    assert Verifier.from_config(SECRET, None).verify(token(), NOW)
    assert Verifier.from_config(None, str(pem)).verify(token("ES256"), NOW)
    both = Verifier.from_config(None, str(keys), "chat", "me")
    assert both.verify(token("EdDSA", head={"kid": "a"}, aud="chat", iss="me"), NOW)
    with pytest.raises(ValueError, match="found a secret of 31 bytes, wanted at least 32"):
        Verifier.from_config(SECRET[1:], None)
    with pytest.raises(OSError, match="No such file"):
        Verifier.from_config(None, str(tmp_path / "none.pem"))


async def test_there_is_nothing_to_refresh_for_other_sources() -> None:
    one = verifier()
    await one.refresh()
    await one.keep_fresh()
    assert one.verify(token(), NOW)


SIGNED = {name: token(name, channels={"publish": ["a"]}) for name in ALGORITHMS}


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_change_to_a_token_survives(data: st.DataObject) -> None:
    """Whatever is done to a good token's text, it is refused, as PyJWT refuses it."""
    name = data.draw(st.sampled_from(ALGORITHMS))
    text = SIGNED[name]
    at, cut = data.draw(st.integers(0, len(text))), data.draw(st.integers(0, 2))
    letters = st.sampled_from("ABab09-_.+/= é\0")
    changed = text[:at] + "".join(data.draw(st.lists(letters, max_size=2))) + text[at + cut :]
    if changed == text:
        return
    one = verifier(name)
    refusal(one, changed)
    key = SECRET if name == "HS256" else public_pem(name)
    options: Any = {"verify_exp": False}
    if "=" not in changed:  # PyJWT takes padding, which RFC 7515 does not
        with pytest.raises(jwt.PyJWTError):
            jwt.decode(changed, key, [name], options)


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=6,
    ),
    st.sampled_from(["sub", "exp", "nbf", "aud", "iss", "channels"]),
)
def test_odd_claims_are_refused_or_fine_but_never_crash(found: object, claim: str) -> None:
    text = json.dumps(PAYLOAD | {claim: found}).encode()
    one = verifier()
    try:
        claims = one.verify(jwt.api_jws.encode(text, SECRET), NOW)
    except PeerError:
        return
    assert claims.user
    assert claims.expires_at
