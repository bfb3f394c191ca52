"""Where the message bus is: one Redis or Valkey, read from a URL, and a redis-py client of it for low-rate work."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeAlias
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import RedisSSLContext, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from router.bus import BusDown
from router.pipe import Refused, Unconfirmed

SCHEMES = ("redis", "rediss", "unix")
PORT = 6379
CLIENT_SECONDS_MAX = 3.0
CLIENT_CONNECTIONS_MAX = 16
MASK = "***"

_SSL = "ssl_"
_OPTIONS = {"db", "username", "password"}
_SSL_OPTIONS = {
    "ssl_ca_certs", "ssl_ca_path", "ssl_ca_data", "ssl_cert_reqs", "ssl_certfile", "ssl_check_hostname",
    "ssl_ciphers", "ssl_keyfile", "ssl_min_version", "ssl_password",
}  # fmt: skip
_CERT_REQS = ("required", "optional", "none")


Client: TypeAlias = Redis


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

    def __repr__(self) -> str:
        user = "" if self.username is None else f", username={self.username!r}"
        secret = "" if self.password is None else f", password={MASK!r}"
        return f"Node({self.address!r}, tls={self.tls}, database={self.database}{user}{secret})"


def parse(url: str) -> Node:
    """Read `redis://[user:password@]host[:port][/db]`, `rediss://` with redis-py's `ssl_` options, `unix://path?db=`.

    Raises: ValueError, with what was found and what is wanted, never with a password.
    """
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        accepted = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise ValueError(f"found the scheme {parts.scheme!r}, want one of {accepted}")
    if "#" in url or "@" in parts.path + parts.query:  # most likely the rest of a password: it must not be shown
        raise ValueError("found a '#', or an '@' behind the host; want %23 and %40, and %2F and %3F in a password")
    _check_place(parts)
    _check_options(parts)
    try:
        found = parse_url(url)
    except ValueError as error:
        raise ValueError(f"{error} Want a whole number, or true or false") from None
    return _node(parts.scheme, dict(found))


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
        {name.removeprefix(_SSL): value for name, value in found.items() if name.startswith(_SSL)},
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


def _check_options(parts: SplitResult) -> None:
    allowed = _OPTIONS | _SSL_OPTIONS if parts.scheme == "rediss" else _OPTIONS
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in allowed:
            raise ValueError(f"found the option {name!r}, want one of {', '.join(sorted(allowed))}")
        if not value:
            raise ValueError(f"{name}: found nothing, want a value")
        if name == "ssl_cert_reqs" and value not in _CERT_REQS:
            raise ValueError(f"{name}: found {value!r}, want one of {', '.join(_CERT_REQS)}")


def ssl_context(node: Node) -> ssl.SSLContext:
    """The context that redis-py would use for `node`, for a pipe that is not redis-py's. Reads certificate files.

    Raises: ValueError naming what could not be used.
    """
    options = {"cert_reqs": "required", "check_hostname": True, **node.tls_options}
    for name in ("ca_certs", "ca_path", "certfile", "keyfile"):
        if (path := options.get(name)) and not Path(path).exists():
            raise ValueError(f"{_SSL}{name}: found no file {path!r}")
    try:
        return RedisSSLContext(**options).get()
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ValueError(f"TLS options {', '.join(_SSL + name for name in node.tls_options)}: {error}") from error


def client(
    url: str, *, timeout_seconds: float = CLIENT_SECONDS_MAX, connections_max: int = CLIENT_CONNECTIONS_MAX
) -> Client:
    """A redis-py client of `url`, connected when first used; `await client.aclose()` when done.

    It never sends a command twice: after a cut nobody knows whether a publish arrived, so the caller must be told.
    More than `connections_max` commands at a time wait for one another.

    Raises: ValueError as `parse` does.
    """
    parse(url)
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=connections_max,
        timeout=timeout_seconds,
        socket_timeout=timeout_seconds,
        socket_connect_timeout=timeout_seconds,
        retry=Retry(NoBackoff(), 0),
    )
    return Redis.from_pool(pool)


class Ask(Protocol):
    """Sends one command and returns the reply, bytes and integers as Redis sent them."""

    async def __call__(self, *command: bytes | str | int) -> Any:  # noqa: ANN401  # what comes depends on the command
        """Raises what `reaching` turns into its own."""


@asynccontextmanager
async def reaching(redis: Client, seconds: float) -> AsyncIterator[Ask]:
    """One live connection of `redis`, for commands that take at most `seconds` together.

    Connecting is a step of its own, so that it is known whether anything was sent.

    Raises: BusDown, Refused, Unconfirmed; with several commands inside, of the one that failed.
    """
    deadline = asyncio.get_running_loop().time() + seconds
    try:
        async with asyncio.timeout_at(deadline):
            connection = await redis.connection_pool.get_connection()  # type: ignore[no-untyped-call]
    except (RedisError, OSError) as error:  # TimeoutError is an OSError
        raise BusDown(str(error) or f"no connection to Redis in {seconds:g} s") from error

    async def ask(*command: bytes | str | int) -> Any:  # noqa: ANN401
        await connection.send_command(*command)
        return await connection.read_response()  # on any error, a deadline too, the connection is closed

    try:
        async with asyncio.timeout_at(deadline):
            yield ask
    except ResponseError as error:
        raise Refused(str(error)) from error
    except (RedisError, OSError) as error:
        raise Unconfirmed(str(error) or f"no answer in {seconds:g} s") from error
    finally:
        await redis.connection_pool.release(connection)
