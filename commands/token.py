"""`moorage token`: a token that signs a user in, made with the secret or private key of the server's own options."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from jwt.algorithms import AllowedPrivateKeys

from router.namespaces import user_fault
from server import claims, config, keys, limits
from server.close import PeerError

SECONDS_OF = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
TTL_SECONDS_MAX = 3650 * 86_400
FLAGS = ("auth_secret", "auth_key", "auth_audience", "auth_issuer")


class Signer(NamedTuple):
    """What signs: a secret or a private key, and the one algorithm it is for."""

    material: bytes | AllowedPrivateKeys
    algorithm: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add whom the token is for, what it allows, and what signs it."""
    parser.epilog = "Secret, key, audience and issuer are also read from MOORAGE_AUTH_* and the server's file."
    parser.add_argument("--user", metavar="NAME", required=True, help="whom it signs in")
    parser.add_argument(
        "--ttl", metavar="TIME", default="1h", help="how long it is good: 90s, 15m, 1h, 7d (default: 1h)"
    )
    for name in ("subscribe", "publish"):
        about = f"narrow what it may {name} to channels such as room:* (may repeat; default: not narrowed)"
        parser.add_argument(f"--{name}", metavar="GLOB", action="append", help=about)
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--auth-secret", metavar="SECRET", help="the shared secret (HS256); a flag shows in ps")
    either.add_argument("--auth-key", metavar="FILE", help="the private key, PEM: RSA, EC P-256 or Ed25519")
    parser.add_argument(
        "--audience", "--auth-audience", metavar="AUD", dest="auth_audience", help="the service it is for (aud)"
    )
    parser.add_argument("--issuer", "--auth-issuer", metavar="ISS", dest="auth_issuer", help="who made it (iss)")
    parser.add_argument("--config", metavar="FILE", help=f"TOML file (default: {config.FILE}; MOORAGE_CONFIG)")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Print the token; 2 when one of the things it is made of is wrong."""
    flags = {name: value for name in FLAGS if (value := getattr(args, name)) is not None}
    now = int(time.time())
    try:
        options = config.load(flags, environ, args.config)
        payload = {"sub": checked_user(args.user), "iat": now, "exp": now + seconds(args.ttl)}
        payload |= {"aud": options.auth_audience} if options.auth_audience else {}
        payload |= {"iss": options.auth_issuer} if options.auth_issuer else {}
        globs = {"subscribe": args.subscribe, "publish": args.publish}
        if narrowed := {name: given for name, given in globs.items() if given is not None}:
            payload["channels"] = narrowed
        token = sign(payload, signer(options), now)
    except (config.ConfigError, ValueError, OSError, PeerError) as error:
        print(error, file=sys.stderr)
        return 2
    print(token)
    return 0


def seconds(text: str) -> int:
    """Return the seconds that `90s`, `15m`, `1h` or `7d` say. Raises: ValueError, with what was found and is wanted."""
    parts = re.fullmatch(r"([0-9]{1,12})([smhd])", text)
    count = int(parts[1]) * SECONDS_OF[parts[2]] if parts else 0
    if not 0 < count <= TTL_SECONDS_MAX:
        raise ValueError(f"--ttl: found {text!r}, want a time from 1s to 3650d, such as 90s, 15m, 1h or 7d")
    return count


def checked_user(name: str) -> str:
    """Return `name`. Raises: ValueError when no user can have it."""
    if fault := user_fault(name):
        raise ValueError(f"--user: {fault}")
    return name


def signer(options: config.Config) -> Signer:
    """Return what the options sign with.

    Raises: ValueError, with what was found and what is wanted; OSError when the key file cannot be read.
    """
    if options.auth_secret is not None:
        return Signer(keys.from_secret(options.auth_secret).keys[0].material, "HS256")
    if options.auth_key is None:
        raise ValueError(
            "found no secret or key, want --auth-secret, --auth-key or MOORAGE_AUTH_SECRET"
            " (a server without one runs in open mode and needs no tokens)"
        )
    if "://" in options.auth_key:
        raise ValueError(f"auth_key: found the URL {options.auth_key}, want --auth-key with the file of a private key")
    return _private_key(Path(options.auth_key))


def sign(payload: Mapping[str, object], by: Signer, now: float) -> str:
    """Return the token. Raises: PeerError when the server would refuse it; ValueError when it is too long for it."""
    claims.from_payload(dict(payload), now)
    token = jwt.encode(dict(payload), by.material, by.algorithm)
    if len(token) > limits.TOKEN_BYTES_MAX:
        raise ValueError(f"found globs that make {len(token)} bytes of token, want at most {limits.TOKEN_BYTES_MAX}")
    return token


def _private_key(path: Path) -> Signer:
    wanted = "want the private key that signs, as PEM without a passphrase"
    pem = path.read_bytes()
    if b"PRIVATE KEY-----" not in pem:
        found = "a public key or certificate" if b"-----BEGIN " in pem else "no PEM"
        raise ValueError(f"{path}: found {found}, {wanted}")
    try:
        private = load_pem_private_key(pem, password=None)
    except TypeError:
        raise ValueError(f"{path}: found a key with a passphrase, {wanted}") from None
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(f"{path}: found PEM that cannot be read ({error}), {wanted}") from error
    try:
        algorithm = keys.algorithm_of(private.public_key())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return Signer(private, algorithm)  # type: ignore[arg-type]  # algorithm_of takes three kinds only
