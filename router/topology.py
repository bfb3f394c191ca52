"""Where the message bus is: one Redis or Valkey, the master that sentinels know, or a cluster, read from a URL."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Set
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

from redis.asyncio.connection import RedisSSLContext, parse_url

from router import sentinel, site
from router.sentinel import Sentinels
from router.site import Site
from router.slots import Address

SENTINEL = "redis+sentinel"
SCHEMES = ("redis", "rediss", "unix", SENTINEL, site.SCHEME)
PORT = 6379
MASK = "***"

SSL = "ssl_"
_OPTIONS = {"db", "username", "password"}
_SSL_OPTIONS = {
    "ssl_ca_certs", "ssl_ca_path", "ssl_ca_data", "ssl_cert_reqs", "ssl_certfile", "ssl_check_hostname",
    "ssl_ciphers", "ssl_keyfile", "ssl_min_version", "ssl_password",
}  # fmt: skip
_CERT_REQS = ("required", "optional", "none")
_SENTINEL_OPTIONS = {"sentinel_username", "sentinel_password", "tls"}


class Node(NamedTuple):
    """One server of the bus: `path` of a unix socket, or `host` and `port`.

    `tls_options` are named as in redis-py's URLs, without their prefix `ssl_`.
    """

    host: str
    port: int
    path: str | None = None
    tls: bool = False
    username: str | None = None
    password: str | None = None
    database: int = 0
    tls_options: Mapping[str, Any] = MappingProxyType({})

    @property
    def address(self) -> str:
        """What a person reads in a log: the socket's path or HOST:PORT."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return self.path or f"{host}:{self.port}"

    async def locate(self) -> Node:
        """It is where it is."""
        return self

    def __repr__(self) -> str:
        user = "" if self.username is None else f", username={self.username!r}"
        secret = "" if self.password is None else f", password={MASK!r}"
        return f"Node({self.address!r}, tls={self.tls}, database={self.database}{user}{secret})"


Place: TypeAlias = Node | Sentinels | Site


def parse(url: str) -> Place:
    """Read `redis://[user:password@]host[:port][/db]`, `rediss://` with redis-py's `ssl_` options, `unix://path?db=`.

    And `redis+sentinel://[user:password@]host[:port][,host[:port]...]/master[/db]`: see `_parse_sentinel`; and
    `redis+cluster://`: see `router.site`. Raises: ValueError, with what was found and what is wanted, never with a password.
    """
    if url.startswith(f"{SENTINEL}://"):
        return _parse_sentinel(url)
    if site.is_site(url):
        return site.parse(url, _one)
    return _one(url)


def _one(url: str, options: Set[str] = frozenset(_OPTIONS)) -> Node:
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        accepted = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise ValueError(f"found the scheme {parts.scheme!r}, want one of {accepted}")
    _check_secrets(url, parts.path + parts.query)
    _check_place(parts)
    _check_options(parts.query, options | _SSL_OPTIONS if parts.scheme == "rediss" else options)
    try:
        found = parse_url(url)
    except ValueError as error:
        raise ValueError(f"{error} Want a whole number, or true or false") from None
    return _node(parts.scheme, dict(found))


def _parse_sentinel(url: str) -> Sentinels:
    """Read the URL of a master that sentinels know. User, password and database are the master's.

    `sentinel_username` and `sentinel_password` are for the sentinels, `tls=true` and the `ssl_` options for both.
    """
    rest, _, query = url.removeprefix(f"{SENTINEL}://").partition("?")
    place, _, path = rest.partition("/")
    _check_secrets(url, path + query)
    user, at, hosts = place.rpartition("@")
    master, _, database = path.partition("/")
    if not master:
        raise ValueError("found no name of a master, want it as in redis+sentinel://host:26379/NAME")
    options = dict(parse_qsl(query, keep_blank_values=True))
    tls = options.pop("tls", "false")
    if tls not in ("true", "false"):
        raise ValueError(f"tls: found {tls!r}, want true or false")
    allowed = _OPTIONS | _SENTINEL_OPTIONS
    _check_options(query, allowed | _SSL_OPTIONS if tls == "true" else allowed)
    sign_in = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    if sign_in["username"] and not sign_in["password"]:
        raise ValueError("found sentinel_username and no sentinel_password, want both")
    scheme = "rediss" if tls == "true" else "redis"
    node = parse(f"{scheme}://{user}{at}master/{database}{'?' if options else ''}{urlencode(options)}")
    assert isinstance(node, Node)
    return Sentinels(_hosts(hosts), unquote(master), node, sign_in)


def _hosts(text: str) -> list[Address]:
    found = [Address.parse(each, sentinel.PORT) for each in text.split(",")]
    if len(set(found)) != len(found):
        raise ValueError("found a sentinel twice")
    if len(found) > sentinel.SENTINELS_MAX:
        raise ValueError(f"found {len(found)} sentinels, want {sentinel.SENTINELS_MAX} at the most")
    return found


def _check_secrets(url: str, behind: str) -> None:
    """Refuse what is most likely the rest of a password, `behind` the host: it must not be shown."""
    if "#" in url or "@" in behind:
        raise ValueError("found a '#', or an '@' behind the host; want %23 and %40, and %2F and %3F in a password")


def _node(scheme: str, found: Mapping[str, Any]) -> Node:
    database = found.get("db", 0)
    if database < 0:
        raise ValueError(f"db: found {database}, want 0 or more")
    return Node(
        found.get("host", "localhost"),
        found.get("port", PORT),
        found.get("path"),
        scheme == "rediss",
        found.get("username"),
        found.get("password"),
        database,
        {name.removeprefix(SSL): value for name, value in found.items() if name.startswith(SSL)},
    )


def _check_place(parts: SplitResult) -> None:
    """Refuse what redis-py would read as something else without a word."""
    place = parts.netloc.rpartition("@")[2]
    path = unquote(parts.path)
    if parts.scheme == "unix":
        if place or len(path) < 2:
            raise ValueError("found no absolute path of a socket, want it as in unix:///run/valkey.sock")
        return
    if not path.lstrip("/").isdecimal() and path not in ("", "/"):
        raise ValueError(f"found the database {path[1:]!r}, want a number: redis://host:6379/0")
    try:
        port = parts.port
    except ValueError:  # its text may be the rest of a password
        port = 0
    if port == 0:
        raise ValueError(
            "found a port out of range or not a number, want 1 to 65535 (in a password / is %2F and ? is %3F)"
        )


def _check_options(query: str, allowed: Set[str]) -> None:
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in allowed:
            raise ValueError(f"found the option {name!r}, want one of {', '.join(sorted(allowed))}")
        if not value:
            raise ValueError(f"{name}: found nothing, want a value")
        if name == "ssl_cert_reqs" and value not in _CERT_REQS:
            raise ValueError(f"{name}: found {value!r}, want one of {', '.join(_CERT_REQS)}")


def ssl_context(place: Place) -> ssl.SSLContext:
    """The context that redis-py would use for `place`, for a pipe that is not redis-py's. Reads certificate files.

    Raises: ValueError naming what could not be used.
    """
    node = place.common if isinstance(place, Site) else place
    options = {"cert_reqs": "required", "check_hostname": True, **node.tls_options}
    for name in ("ca_certs", "ca_path", "certfile", "keyfile"):
        if (path := options.get(name)) and not Path(path).exists():
            raise ValueError(f"{SSL}{name}: found no file {path!r}")
    try:
        return RedisSSLContext(**options).get()
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ValueError(f"TLS options {', '.join(SSL + name for name in node.tls_options)}: {error}") from error
