"""`Forwarded` (RFC 7239) and `X-Forwarded-For`: who asked a chain of HTTP proxies. Sans-I/O.

Every proxy appends the address it was asked from. Only what a trusted one has written may be believed, so the chain is
walked from its end: the first address that is not a trusted proxy's is the client's, and what stands before it may be the
client's own invention. A proxy passes on the header that it does not know as it came. So where both are given they
have to agree; otherwise a client could choose its address by sending the other one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from ipaddress import IPv6Address, ip_address

from server.close import Close, PeerError

# One parameter with what ends it: RFC 7239, 4. Possessive, so that a bad header is found out in one pass.
_PARAMETER = re.compile(
    r"""[ \t]*+(?:([!#$%&'*+.^_`|~\w-]++)=(?:"((?:[^"\\]|\\.)*+)"|([!#$%&'*+.^_`|~\w-]*+)))?[ \t]*+([;,]|\Z)""",
    re.ASCII,
)
_HEADERS = re.compile(r"\n(Forwarded|X-Forwarded-For):([^\r]*)", re.ASCII | re.IGNORECASE)


def client(peer: str, forwarded: Sequence[str], x_forwarded_for: Sequence[str], trusts: Callable[[str], bool]) -> str:
    """Return the address of who asked the first trusted proxy; `peer`, of the last one, while there is nothing more.

    The values are those of all headers of that name, in order. `trusts` tells a trusted proxy by its address.
    Raises: PeerError when they cannot be read or contradict each other.
    """
    if not trusts(peer):
        return peer
    found = [
        _walk(peer, nodes, trusts) for nodes in (_forwarded(forwarded), _x_forwarded_for(x_forwarded_for)) if nodes
    ]
    if len(set(found)) > 1:
        reason = (
            f"found {found[0]} there and {found[1]} in X-Forwarded-For: let the proxy drop the one it does not write"
        )
        raise PeerError(Close.BAD_REQUEST, reason, "Forwarded")
    return found[0] if found else peer


def in_head(head: bytes) -> tuple[list[str], list[str]]:
    """Return the values of `Forwarded` and of `X-Forwarded-For` in the head of a request whose syntax has been checked."""
    found: dict[str, list[str]] = {"forwarded": [], "x-forwarded-for": []}
    for name, value in _HEADERS.findall(head[: head.find(b"\r\n\r\n")].decode("latin-1")):
        found[name.lower()].append(value)
    return found["forwarded"], found["x-forwarded-for"]


@lru_cache(maxsize=4096)  # proxies and busy clients repeat
def plain(text: str) -> str | None:
    """Return an IP address in its one usual form, a v4-mapped IPv6 one as the IPv4 one it means; None if it is none."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        address = address.ipv4_mapped or IPv6Address(address.packed)  # a scope means nothing on another machine
    return str(address)


def _walk(peer: str, nodes: list[str], trusts: Callable[[str], bool]) -> str:
    """Return the first address from the end that is not trusted, or the last one known."""
    for node in reversed(nodes):
        address = _address(node)
        if address is None:  # "unknown", "_hidden", or nonsense
            return peer
        peer = address
        if not trusts(peer):
            return peer
    return peer


def _address(node: str) -> str | None:
    """Return the address of `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1` or `[2001:db8::1]:80`; None for a name."""
    if node.startswith("["):
        host, bracket, _ = node[1:].partition("]")
        return plain(host) if bracket else None
    return plain(node.partition(":")[0] if node.count(":") == 1 else node)


def _x_forwarded_for(values: Sequence[str]) -> list[str]:
    return [node.strip(" \t") for value in values for node in value.split(",")]


def _forwarded(values: Sequence[str]) -> list[str]:
    """Return the `for` of every element, "" where it has none. Raises: PeerError."""
    nodes: list[str] = []
    for value in values:
        at, node = 0, ""
        while True:
            found = _PARAMETER.match(value, at)
            if found is None:
                raise PeerError(Close.BAD_REQUEST, f"not as RFC 7239 has it: {value[at : at + 32]!r}", "Forwarded")
            name, quoted, token, end = found.groups("")
            if name.lower() == "for":
                node = re.sub(r"\\(.)", r"\1", quoted) or token
            if end != ";":
                nodes.append(node)
                node = ""
            if not end:
                break
            at = found.end()
    return nodes
