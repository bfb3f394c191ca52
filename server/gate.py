"""Who may use the admin port: whoever holds its key; without a key, this machine, and no web page that is not ours.

On loopback a browser is the way in. A page of another site can POST to 127.0.0.1 (it sends its own `Origin`), and
a name of its owner's can be made to resolve to 127.0.0.1 (DNS rebinding: to the browser the page then is of our origin,
but the request still has that name in its `Host`).
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from server.close import Close, PeerError

CHALLENGE = 'Bearer realm="moorage admin", Basic realm="moorage admin: the key is the password"'
"""WWW-Authenticate of a refusal: with Basic a browser asks for the key, so that the dashboard can be opened."""

_SAFE_METHODS = {"GET", "HEAD"}


class Gate(NamedTuple):
    """Decides over one request by its method and headers. `host` is the configured name or address of the port."""

    host: str
    key: str | None

    def check(self, method: str, headers: Mapping[str, str]) -> None:
        """Raises: PeerError(UNAUTHORIZED) without the key; PeerError(FORBIDDEN) from where nobody may come."""
        if self.key is None:
            self._check_host(headers.get("Host", ""))
        else:
            _check_key(self.key, headers.get("Authorization", ""))
        if method not in _SAFE_METHODS:
            _check_origin(headers)

    def _check_host(self, found: str) -> None:
        name = _hostname(found)
        if name not in ("localhost", self.host) and not _is_loopback(name):
            raise PeerError(Close.FORBIDDEN, f"found {found[:80]!r}, want a loopback address or an admin_key", "Host")


def _check_key(key: str, authorization: str) -> None:
    scheme, _, given = authorization.partition(" ")
    given = given.strip(" ")
    if scheme.lower() == "basic":
        given = _password(given)
    elif scheme.lower() != "bearer":
        raise PeerError(Close.UNAUTHORIZED, "want `Authorization: Bearer` and the admin key", "Authorization")
    # Bytes: compare_digest takes no text beyond ASCII. Headers are decoded with surrogates for what is not UTF-8.
    if not hmac.compare_digest(given.encode(errors="surrogateescape"), key.encode(errors="surrogateescape")):
        raise PeerError(Close.UNAUTHORIZED, "not the admin key", "Authorization")


def _password(encoded: str) -> str:
    """The password of Basic credentials (RFC 7617); the user's name says nothing here."""
    try:
        credentials = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise PeerError(Close.UNAUTHORIZED, "not Base64", "Authorization") from None
    return credentials.partition(b":")[2].decode(errors="surrogateescape")


def _check_origin(headers: Mapping[str, str]) -> None:
    """Refuse what a page of another origin sends; what is no browser sends neither header."""
    origin, host = headers.get("Origin"), headers.get("Host", "")
    site = headers.get("Sec-Fetch-Site", "same-origin")
    if (origin is not None and origin.partition("://")[2] != host) or site not in ("same-origin", "none"):
        raise PeerError(Close.FORBIDDEN, f"found {(origin or site)[:80]!r}, want the origin of this port", "Origin")


def _hostname(host: str) -> str:
    """The name or address in a Host header, in lower case, without port and brackets; "" if it is not one."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
