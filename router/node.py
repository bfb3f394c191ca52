"""One Redis or Valkey as the bus sees it: where it is, and how a pipe to it is opened."""

from __future__ import annotations

import asyncio
import ssl
from typing import Protocol

from router.outcome import Refused
from router.pipe import Pipe, Reply

VERSION_MIN = 7  # of Redis: the scripts ask for the time before they write; all of Valkey is newer


class Locator(Protocol):
    """Where Redis is to be found: what `topology.parse` returns."""

    @property
    def address(self) -> str:
        """What a person reads in a log."""

    async def locate(self) -> Node:
        """Find out where it is now. Raises: Refused."""


class Node(Protocol):
    """Where a Redis is."""

    @property
    def address(self) -> str:
        """What a person reads in a log."""

    @property
    def host(self) -> str:
        """A name or an address."""

    @property
    def port(self) -> int:
        """Of TCP."""

    @property
    def path(self) -> str | None:
        """Of a unix socket, in place of host and port."""

    @property
    def username(self) -> str | None:
        """Who signs in where there is a password; None: "default"."""

    @property
    def password(self) -> str | None:
        """None: nobody signs in."""

    @property
    def database(self) -> int:
        """The number that is SELECTed."""


async def has_moved(locator: Locator) -> bool:
    """Tell whether another is the master now: one that refuses writes may have been cut off from its replicas."""
    before = locator.address
    try:
        await locator.locate()
    except Refused:
        return False
    return locator.address != before


async def open_pipe(pipe: Pipe, node: Node, tls: ssl.SSLContext | None, name: str, *, replica_too: bool = False) -> int:
    """Connect `pipe` to `node` and sign in; `name` is how the connection shows in Redis's CLIENT LIST. Return its id there.

    Raises: OSError; ValueError for a host that cannot be one; Refused, also by one that is too old or no master; Unconfirmed.
    """
    loop = asyncio.get_running_loop()
    if node.path:
        await loop.create_unix_connection(lambda: pipe, node.path)
    else:
        await loop.create_connection(lambda: pipe, node.host, node.port, ssl=tls)
    auth = ("AUTH", node.username or "default", node.password) if node.password else ()
    hello = await pipe.ask("HELLO", 3, *auth, "SETNAME", name)
    check_version(hello)
    if not replica_too:
        check_role(hello)
    if node.database:
        await pipe.ask("SELECT", node.database)
    id = hello.get(b"id") if isinstance(hello, dict) else None
    return id if isinstance(id, int) else 0


def check_version(hello: Reply) -> None:
    """Raise Refused when the server that said `hello` is too old."""
    version = hello.get(b"version", b"") if isinstance(hello, dict) else b""
    major = version.partition(b".")[0]
    if major.isdigit() and int(major) < VERSION_MIN:
        raise Refused(f"found Redis {version.decode()}, want Redis {VERSION_MIN} or newer, or Valkey")


def check_role(hello: Reply) -> None:
    """Raise Refused when the server that said `hello` takes no writes: what is published on a replica reaches nobody else."""
    said = hello if isinstance(hello, dict) else {}
    if said.get(b"mode") == b"sentinel":
        raise Refused("found a Sentinel, want redis+sentinel://host:port/NAME to be led to its master")
    if said.get(b"role", b"master") != b"master":
        raise Refused(f"found a {said[b'role'].decode()}, want the master")
