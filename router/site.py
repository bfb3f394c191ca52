"""A cluster, as a URL names it: `redis+cluster://[user:password@]host:port[,host:port...][?shards=8&tls=true&ssl_...]`."""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qsl, urlencode

from router import slots
from router.journal import SHARDED, Keys
from router.slots import Address

if TYPE_CHECKING:
    from router.topology import Node

SCHEME = "redis+cluster"
SHARDS = 8
SEEDS_MAX = 64
PORT = 6379
OPTIONS = frozenset({"password", "shards", "tls", "username"})  # of the URL, besides those of TLS


class Site(NamedTuple):
    """The nodes that are asked for the others, and what they have in common: user, password, TLS."""

    seeds: tuple[Address, ...]
    shards: int
    common: Node

    @property
    def address(self) -> str:
        """What a person reads in a log."""
        return ",".join(map(str, self.seeds))

    @property
    def tls(self) -> bool:
        """Whether connections are encrypted."""
        return self.common.tls

    def keys(self, prefix: str) -> list[Keys]:
        """Return where the journal of each shard is kept."""
        return [Keys(f"{prefix}{{{tag.decode()}}}", SHARDED) for tag in slots.tags(self.shards)]

    def node(self, at: Address) -> Node:
        """Return how to reach a node."""
        return self.common._replace(host=at.host, port=at.port)


def is_site(url: str) -> bool:
    """Tell whether `url` is that of a cluster."""
    return url.startswith(f"{SCHEME}://")


def parse(url: str, node: Callable[[str, Set[str]], Node]) -> Site:
    """Read the URL of a cluster; `node` reads that of one server, and is told which options there are besides those of TLS.

    Raises: ValueError, with what was found and what is wanted, never with a password.
    """
    rest, _, query = url.removeprefix(f"{SCHEME}://").partition("?")
    place, _, path = rest.partition("/")
    if "#" in url or "@" in path + query:
        raise ValueError("found a '#', or an '@' behind the hosts; want %23 and %40, and %2F and %3F in a password")
    user, at, hosts = place.rpartition("@")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if path or "db" in options:
        raise ValueError("found a database, want none: a cluster has only one")
    shards = _shards(options.pop("shards", str(SHARDS)))
    tls = options.pop("tls", "false")
    if tls not in ("true", "false"):
        raise ValueError(f"tls: found {tls!r}, want true or false")
    seeds = tuple(Address.parse(host, PORT) for host in hosts.split(","))
    if len(seeds) > SEEDS_MAX:
        raise ValueError(f"found {len(seeds)} hosts, want {SEEDS_MAX} at the most: they know the others")
    # Any host does: the rest is read as that of one server is.
    common = f"{'rediss' if tls == 'true' else 'redis'}://{user}{at}localhost"
    return Site(seeds, shards, node(f"{common}?{urlencode(options)}" if options else common, OPTIONS))


def prefix_fault(url: str | None, prefix: str) -> tuple[str, str] | None:
    """Return what was found and what is wanted of the prefix of all keys on the bus at `url`; None when nothing is wrong."""
    if is_site(url or "") and ("{" in prefix or "}" in prefix):
        return repr(prefix), "no braces in a cluster, where those of the shard come first in a key"
    return None


def _shards(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= slots.SHARDS_MAX):
        raise ValueError(f"shards: found {text!r:.40}, want 1 to {slots.SHARDS_MAX}")
    return int(text)
