"""The keys that verify tokens: a shared secret, a PEM file or a key set (JWKS, RFC 7517), read and checked once.

A key has one algorithm, which follows from its type; what a token's header says is compared with it and never
obeyed, so that no token can have an RSA key used as an HMAC secret, or ask for `none` (RFC 8725, 2.1 and 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jwt
import orjson
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import Algorithm

from server.claims import shown
from server.options import AUTH_SECRET_BYTES_MIN

WANTED = "an RSA key of 2048 bits or more, an EC key on P-256 or an Ed25519 key"
RSA_BITS_MIN = 2048  # RFC 7518, 3.3
KEYS_MAX = 100
KEY_FILE_BYTES_MAX = 1024 * 1024

_ALGORITHM_OF_TYPE = {
    ("RSA", ""): "RS256",
    ("EC", "P-256"): "ES256",
    ("OKP", "Ed25519"): "EdDSA",
    ("oct", ""): "HS256",
}


class Key(NamedTuple):
    """One key: its name in the key set, the algorithm it is for, and PyJWT's implementation with what that needs."""

    kid: str | None
    name: str
    algorithm: Algorithm
    material: Any

    def signed(self, text: bytes, signature: bytes) -> bool:
        """Tell whether `signature` is this key's under `text`."""
        return self.algorithm.verify(text, self.material, signature)


class KeySet(NamedTuple):
    """Keys to choose from. Those of a JWKS are `named`: a token says by its `kid` which one signed it."""

    keys: tuple[Key, ...]
    named: bool

    def candidates(self, kid: str | None) -> Sequence[Key]:
        """Return the keys that a token with this `kid` may be signed with, of any algorithm; empty: none known."""
        if not self.named or kid is None:
            return self.keys
        return [key for key in self.keys if key.kid == kid]


def from_secret(secret: str) -> KeySet:
    """Return the key of HS256 tokens.

    Raises: ValueError when it is short, or is a key of another kind given by mistake.
    """
    material = secret.encode(errors="surrogateescape")  # an environment variable need not be UTF-8
    return KeySet((_secret_key(None, material),), named=False)


def from_file(path: Path) -> KeySet:
    """Return the keys in a file: one public key or certificate in PEM, or a JWKS.

    Raises: ValueError that names the file, what was found and what is wanted. OSError when it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(KEY_FILE_BYTES_MAX + 1)
    try:
        if len(content) > KEY_FILE_BYTES_MAX:
            raise ValueError(f"found more than {KEY_FILE_BYTES_MAX} bytes, wanted a PEM file or a JWKS")
        return from_jwks(content) if content.lstrip()[:1] == b"{" else from_pem(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def from_pem(pem: bytes) -> KeySet:
    """Return the one public key in a PEM text. Raises: ValueError."""
    if b"PRIVATE KEY-----" in pem:
        raise ValueError("found a private key, wanted the public one (openssl pkey -in FILE -pubout)")
    count = pem.count(b"-----BEGIN ")
    if count != 1:
        raise ValueError(f"found {count or 'no'} keys, wanted one in PEM, or several as a JWKS")
    try:
        certificate = b"-----BEGIN CERTIFICATE" in pem
        public = x509.load_pem_x509_certificate(pem).public_key() if certificate else load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(f"found PEM that cannot be read ({error}), wanted {WANTED}") from error
    name = algorithm_of(public)
    return KeySet((Key(None, name, jwt.get_algorithm_by_name(name), public),), named=False)


def from_jwks(text: bytes, *, published: bool = False) -> KeySet:
    """Return the usable keys of a key set; those for other uses and algorithms are left out.

    `published` key sets may hold no shared secret: whoever can read them could sign.

    Raises: ValueError when there is no usable one, with why for each.
    """
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"found what is not JSON ({error}), wanted a JWKS") from error
    single = isinstance(found, dict) and "kty" in found
    members = [found] if single else found.get("keys") if isinstance(found, dict) else None
    if not isinstance(members, list):
        raise ValueError('found JSON without a list "keys", wanted a JWKS')
    if len(members) > KEYS_MAX:
        raise ValueError(f"found {len(members)} keys, wanted at most {KEYS_MAX}")
    keys: list[Key] = []
    faults: list[str] = []
    for number, member in enumerate(members):
        try:
            key = _from_jwk(member, published)
            if key.kid is not None and (key.kid, key.name) in {(other.kid, other.name) for other in keys}:
                raise ValueError("the kid of an earlier key")
            keys.append(key)
        except ValueError as error:
            faults.append(f"key {number}: {error}")
    if not keys:
        raise ValueError(f"found no usable key ({'; '.join(faults) or 'the list is empty'}), wanted {WANTED}")
    return KeySet(tuple(keys), named=True)


def algorithm_of(public: object) -> str:
    """Return the one algorithm a public key is used with. Raises: ValueError when it is of another kind, or weak."""
    if isinstance(public, RSAPublicKey):
        if public.key_size < RSA_BITS_MIN:
            raise ValueError(f"found an RSA key of {public.key_size} bits, wanted {RSA_BITS_MIN} or more")
        return "RS256"
    if isinstance(public, EllipticCurvePublicKey):
        if not isinstance(public.curve, SECP256R1):
            raise ValueError(f"found an EC key on {public.curve.name}, wanted P-256")
        return "ES256"
    if isinstance(public, Ed25519PublicKey):
        return "EdDSA"
    raise ValueError(f"found a key of type {type(public).__name__}, wanted {WANTED}")


def _secret_key(kid: str | None, material: bytes) -> Key:
    if len(material) < AUTH_SECRET_BYTES_MIN:
        raise ValueError(
            f"found a secret of {len(material)} bytes, wanted at least {AUTH_SECRET_BYTES_MIN} (openssl rand -hex 32)"
        )
    algorithm = jwt.get_algorithm_by_name("HS256")
    try:
        return Key(kid, "HS256", algorithm, algorithm.prepare_key(material))
    except jwt.InvalidKeyError as error:
        raise ValueError(f"found a key file's text as the secret, wanted a secret ({error})") from error


def _from_jwk(jwk: object, published: bool) -> Key:
    """Return the key that a member of a JWKS is. Raises: ValueError with why it is of no use here."""
    if not isinstance(jwk, dict):
        raise ValueError("not an object")
    kid, kind = jwk.get("kid"), shown(jwk.get("kty"))
    if kid is not None and not isinstance(kid, str):
        raise ValueError("kid is not a string")
    operations = jwk.get("key_ops", ["verify"])
    if jwk.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        raise ValueError("not for verifying signatures")
    curve = shown(jwk.get("crv")) if kind in {"EC", "OKP"} else ""
    name = _ALGORITHM_OF_TYPE.get((kind, curve))
    if name is None or jwk.get("alg", name) != name:
        raise ValueError(f"kty {kind} {curve} alg {shown(jwk.get('alg'))}".replace("  ", " "))
    if "d" in jwk:
        raise ValueError("a private key, which nobody but the signer should have")
    if kind == "oct" and published:
        raise ValueError("a shared secret, which a published key set must not hold")
    try:
        parsed = jwt.PyJWK(jwk, name)
    except (jwt.PyJWTError, UnsupportedAlgorithm, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"broken: {error}") from error
    if kind == "oct":
        return _secret_key(kid, parsed.key)
    algorithm_of(parsed.key)
    return Key(kid, name, parsed.Algorithm, parsed.key)
