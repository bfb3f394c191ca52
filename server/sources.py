"""Where connections come from: what the socket, a PROXY header or the headers of HTTP proxies say, as far as trusted.

An address is found when something asks for it, and kept by nobody: limits have tables of their own.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import cast

from server import forwarded, proxy
from server.close import Close, PeerError

UNKNOWN = "unknown"  # the address of a connection whose peer has gone meanwhile

Network = IPv4Network | IPv6Network


class Sources:
    """Tells addresses. `trusted` are the networks of the balancers, `mode` the PROXY protocol that is spoken by them."""

    def __init__(self, mode: str, trusted: Sequence[Network]) -> None:
        self.speaks_proxy = mode != "off"
        self.has_trusted = bool(trusted)
        self._mode = cast(proxy.Mode, mode)
        self._trusted = trusted
        self.trusts = lru_cache(maxsize=4096)(self._trusts)  # balancers are few, and ask often

    def arrival(self, fd: int, data: bytes) -> tuple[str, bytes] | None:
        """Return whose a connection is that began with `data`, and what is behind its PROXY header; None: not all is there.

        A trusted peer has to send a header, or may in the mode `auto`. Everybody else comes as itself, without one.
        Raises: PeerError.
        """
        begins = proxy.begins(data)
        if begins is None:
            return None
        peer = of_socket(fd)
        trusted = self.trusts(peer)
        if not begins:
            if trusted and self._mode != "auto":
                raise PeerError(Close.PROXY_MISSING, f"found {data[:12]!r} from {peer}, want a header: {self._mode}")
            return peer, data
        if not trusted:
            raise PeerError(Close.PROXY_UNTRUSTED, f"{peer} may not send a PROXY header: it is not in proxy_trusted")
        header = proxy.parse(data, self._mode)
        if header is None:
            return None
        # LOCAL, or of a kind it cannot tell: the balancer's own
        return header.source[0] if header.source else peer, data[header.consumed :]

    def of_head(self, peer: str, head: bytes) -> str:
        """Return who sent a request that came from `peer`. Raises: PeerError."""
        if not self.trusts(peer):
            return peer
        return forwarded.client(peer, *forwarded.in_head(head), self.trusts)

    def of_headers(self, peer: str, forwarded_for: Sequence[str], x_forwarded_for: Sequence[str]) -> str:
        """Do the same with the values of the two headers."""
        return forwarded.client(peer, forwarded_for, x_forwarded_for, self.trusts)

    def _trusts(self, address: str) -> bool:
        if address == UNKNOWN:
            return False
        ip = ip_address(address)
        return any(ip in network for network in self._trusted)


def of_socket(fd: int) -> str:
    """Return the address of a connected socket's peer, or UNKNOWN."""
    # With a family it need not be asked for, and the addresses of this one have room for those of the other.
    sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, fileno=fd)
    try:
        return forwarded.plain(sock.getpeername()[0]) or UNKNOWN
    except (OSError, IndexError):  # a Unix socket's peer has no name
        return UNKNOWN
    finally:
        sock.detach()
