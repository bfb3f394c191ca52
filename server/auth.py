"""Who a connection is and what its token lets it do: JSON Web Tokens (RFC 7519), verified and remembered."""

from __future__ import annotations

import asyncio
import binascii
import logging
import math
import random
import time
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson

from server import claims, keys, limits
from server.claims import LEEWAY_SECONDS, Claims, expired, refused, shown, unlike
from server.close import Close, PeerError
from server.keys import Key, KeySet
from server.options import mask_password

__all__ = ["Claims", "KeyUnknown", "Verifier"]

VERIFIED_TOKENS_MAX = 4096  # about 1 MB a worker
KEYS_SECONDS = 600.0  # after which a key set is fetched again, so that a withdrawn key is not trusted for ever
FETCH_SECONDS_MAX = 4.0
FETCH_INTERVAL_SECONDS = 5.0

assert FETCH_INTERVAL_SECONDS + FETCH_SECONDS_MAX < limits.HANDSHAKE_SECONDS_MAX, "a token with a new key must get in"

log = logging.getLogger(__name__)

_FROM_URL = bytes.maketrans(b"-_+/=", b"+/\0\0\0")  # base64url to base64, whose own signs are wrong in it
_PADDING = (b"", b"", b"==", b"=")


class KeyUnknown(PeerError):
    """No key at hand can verify the token: `await refresh()` and verify it once more; then it stands as a refusal."""


class Verifier:
    """Verifies tokens with the keys of one source, and remembers those it has verified.

    Time is an argument: `now` in seconds since 1970. A key set at a URL is fetched by `refresh` and `keep_fresh`,
    in the worker's own loop; until it has been, every token is KeyUnknown.
    """

    def __init__(
        self,
        key_set: KeySet | None,
        *,
        url: str | None = None,
        audience: str | None = None,
        issuer: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys = key_set
        self._url: Final = url
        self._audience = audience
        self._issuer = issuer
        self._clock = clock
        self._verified: dict[bytes, Claims] = {}
        self._body = b""
        self._fetching: asyncio.Task[None] | None = None
        self._next_fetch = -math.inf
        self._fetch_failed = False

    @classmethod
    def from_config(
        cls,
        secret: str | None,
        key: str | None,
        audience: str | None = None,
        issuer: str | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> Verifier:
        """Return the verifier that the options ask for; `now` is the clock that spaces the fetches of a key set.

        Raises: ValueError that says what was found and what is wanted; OSError when the key file cannot be read.
        """
        if (secret is None) == (key is None):
            raise ValueError(f"found {'both' if secret else 'neither'}, wanted a secret or a key")
        if secret is not None:
            return cls(keys.from_secret(secret), audience=audience, issuer=issuer, clock=now)
        assert key is not None
        if key.startswith(("http://", "https://")):
            return cls(None, url=key, audience=audience, issuer=issuer, clock=now)
        return cls(keys.from_file(Path(key)), audience=audience, issuer=issuer, clock=now)

    def verify(self, token: str, now: float) -> Claims:
        """Return what `token` says. A token that was verified before costs 1 to 2 us.

        Raises: PeerError (UNAUTHORIZED, or EXPIRED: come back with a fresh one) with the precise reason; KeyUnknown.
        """
        try:
            text = token.encode("ascii")
        except UnicodeEncodeError:
            raise refused("found letters that are not ASCII, wanted a JWT") from None
        if len(text) > limits.TOKEN_BYTES_MAX:
            raise refused(f"found {len(text)} bytes, wanted at most {limits.TOKEN_BYTES_MAX}")
        # The digest, because tokens are long, and are secrets that should not lie about in memory.
        digest = blake2b(text, digest_size=16).digest()
        known = self._verified.get(digest)
        if known is None:
            known = self._check(text, now)
            self._remember(digest, known)
        elif known.expires_at is not None and now >= known.expires_at:
            del self._verified[digest]
            raise expired(known.expires_at - LEEWAY_SECONDS, now)
        return known

    async def refresh(self) -> None:
        """Fetch the key set at a URL again; nothing to do for other sources.

        Fetches are FETCH_INTERVAL_SECONDS apart: those who call meanwhile wait together for the next one. A key set
        that cannot be had leaves the one at hand in use.
        """
        if self._url is None:
            return
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.get_running_loop().create_task(self._fetch(self._url))
        await asyncio.shield(self._fetching)  # one who stops waiting does not stop the fetch for the others

    async def keep_fresh(self) -> None:
        """Fetch the key set at a URL now and every KEYS_SECONDS, sooner after a failure, until cancelled."""
        try:
            while self._url is not None:
                await self.refresh()
                pause = FETCH_INTERVAL_SECONDS if self._fetch_failed else KEYS_SECONDS
                await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # the workers not all at once
        finally:
            if self._fetching is not None:
                self._fetching.cancel()

    def _check(self, text: bytes, now: float) -> Claims:
        """Take the compact form (RFC 7515, 7.1) apart, check the signature, then what is signed.

        Not by jwt.decode, which examines the same key and base64 letter by letter again for each token: three quarters
        of its time for HS256. The signature itself is checked by PyJWT's Algorithm, and a test compares the two.
        """
        parts = text.split(b".")
        if len(parts) != 3:
            raise refused(f"found {len(parts)} parts, wanted the three of a signed JWT")
        head = _json(parts[0], "header")
        if "crit" in head or "b64" in head:
            raise refused("found crit or b64 in the header, wanted neither")  # RFC 7515, 4.1.11: not understood
        key = self._key(head.get("kid"), head.get("alg"))
        if not key.signed(text[: text.rindex(b".")], _decoded(parts[2], "signature")):
            raise refused("the signature does not match")
        payload = _json(parts[1], "payload")
        self._check_addressee(payload)
        return claims.from_payload(payload, now)

    def _key(self, kid: object, name: object) -> Key:
        if kid is not None and not isinstance(kid, str):
            raise unlike("kid", kid, "a string")
        if self._keys is None:
            raise KeyUnknown(Close.KEYS_UNAVAILABLE, field="token")
        candidates = self._keys.candidates(kid)
        if not candidates:
            # While the key set cannot be fetched, the key may well be in it: let the client come back.
            code = Close.KEYS_UNAVAILABLE if self._fetch_failed else Close.UNAUTHORIZED
            raise KeyUnknown(code, f"kid {shown(kid)} found, wanted one of the key set", "token")
        matching = [key for key in candidates if key.name == name]
        if not matching:
            wanted = " or ".join(sorted({key.name for key in candidates}))
            raise unlike("alg", name, wanted)
        if len(matching) > 1:
            raise unlike("kid", kid, f"one: the key set has {len(matching)} keys for {name}")
        return matching[0]

    def _check_addressee(self, payload: dict[str, Any]) -> None:
        if self._audience is not None:
            found = payload.get("aud")
            if self._audience not in (found if isinstance(found, list) else [found]):
                raise unlike("aud", found, self._audience)
        if self._issuer is not None and payload.get("iss") != self._issuer:
            raise unlike("iss", payload.get("iss"), self._issuer)

    def _remember(self, digest: bytes, known: Claims) -> None:
        if len(self._verified) >= VERIFIED_TOKENS_MAX:
            del self._verified[next(iter(self._verified))]
        self._verified[digest] = known

    async def _fetch(self, url: str) -> None:
        await asyncio.sleep(max(0.0, self._next_fetch - self._clock()))
        self._next_fetch = self._clock() + FETCH_INTERVAL_SECONDS
        try:
            body = await _body(url)
            if body != self._body:
                self._keys = keys.from_jwks(body, published=True)
                self._body = body
                self._verified.clear()  # a key may be gone, and what it signed with it
            self._fetch_failed = False
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            self._fetch_failed = True
            kept = "none are at hand" if self._keys is None else "the ones at hand stay in use"
            why = str(error) or type(error).__name__
            log.warning("cannot fetch the keys from %s: %s; %s", mask_password(url), why, kept)


async def _body(url: str) -> bytes:
    """Return what is at `url`. Raises: aiohttp.ClientError, TimeoutError; ValueError for another answer than 200."""
    timeout = aiohttp.ClientTimeout(total=FETCH_SECONDS_MAX)
    # No redirects: where keys come from is the operator's word alone.
    async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url, allow_redirects=False) as answer:
        if answer.status != 200:
            raise ValueError(f"found status {answer.status}, wanted 200")
        body = bytearray()
        async for chunk in answer.content.iter_any():
            body += chunk
            if len(body) > keys.KEY_FILE_BYTES_MAX:
                raise ValueError(f"found more than {keys.KEY_FILE_BYTES_MAX} bytes")
        return bytes(body)


def _json(segment: bytes, part: str) -> dict[str, Any]:
    try:
        found = orjson.loads(_decoded(segment, part))
    except orjson.JSONDecodeError:
        raise refused(f"the {part} is not JSON") from None
    if not isinstance(found, dict):
        raise refused(f"the {part} is not a JSON object")
    return found


def _decoded(segment: bytes, part: str) -> bytes:
    """Return the bytes of base64url without padding (RFC 7515, 2), in its one canonical spelling."""
    padded = segment.translate(_FROM_URL) + _PADDING[len(segment) % 4]
    try:
        raw = binascii.a2b_base64(padded)
    except binascii.Error:
        raw = b""
    if binascii.b2a_base64(raw, newline=False) != padded:
        raise refused(f"the {part} is not base64url without padding")
    return raw
