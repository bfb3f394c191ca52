"""Who is connected to a server's ports, by remote address, and what their buffers take: sock_diag(7).

psutil has no such count: `net_connections` looks every descriptor of every process up, which takes minutes at a million.
The kernel's own dump takes about a second there.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

NETLINK_SOCK_DIAG = 4  # linux/netlink.h
SOCK_DIAG_BY_FAMILY = 20
REQUEST_DUMP = 0x1 | 0x300  # NLM_F_REQUEST | NLM_F_DUMP
MESSAGE_ERROR, MESSAGE_DONE = 2, 3  # NLMSG_*
ESTABLISHED = 1 << 1  # of TCP's states
MEMINFO = 1  # INET_DIAG_MEMINFO: receive queue, send queue, allocated ahead, ...; in bytes
RECEIVE_BYTES = 1 << 18
TIMEOUT_SECONDS = 5.0

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, pid
_ATTRIBUTE = struct.Struct("=HH")  # struct rtattr: length, type
_MEMINFO = struct.Struct("=III")
_MESSAGE_BYTES = 88  # nlmsghdr and inet_diag_msg; attributes follow
_REQUEST = struct.Struct("=BBBBI48x")  # struct inet_diag_req_v2: family, protocol, extensions, pad, states, socket id
# struct inet_diag_msg behind the header: family, state, timer, retrans, then the socket id: ports and addresses.
_PORT, _LOCAL, _REMOTE = slice(20, 22), slice(24, 40), slice(40, 56)


@dataclass(frozen=True, slots=True)
class Peers:
    """Connections by remote address."""

    held: Mapping[str, int]
    destinations: int = 1  # of our addresses and ports, those that the remote address with most connections uses
    buffer_bytes: int = 0  # in the kernel, of our ends together


def connected(ports: Collection[int]) -> Peers:
    """Count what is established to local TCP `ports`, both families, in this network namespace.

    Raises: OSError where the kernel has no sock_diag, or does not answer.
    """
    wanted = {port.to_bytes(2, "big") for port in ports}
    held: Counter[str] = Counter()
    destinations: Counter[str] = Counter()
    buffer_bytes = 0
    for family, size in ((socket.AF_INET, 4), (socket.AF_INET6, 16)):
        found, buffers = _count(family, wanted)
        buffer_bytes += buffers
        for (_, _, remote), count in found.items():
            address = str(ipaddress.ip_address(remote[:size]))
            held[address] += count
            destinations[address] += 1
    fullest = max(held, key=held.__getitem__, default="")
    return Peers(dict(held), max(1, destinations[fullest]), buffer_bytes)


def _count(family: int, ports: Collection[bytes]) -> tuple[Counter[tuple[bytes, bytes, bytes]], int]:
    """Connections by local port, local address and remote address; and the bytes of their buffers."""
    found: Counter[tuple[bytes, bytes, bytes]] = Counter()
    buffers = 0
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as link:
        link.settimeout(TIMEOUT_SECONDS)
        body = _REQUEST.pack(family, socket.IPPROTO_TCP, 1 << (MEMINFO - 1), 0, ESTABLISHED)
        link.send(_HEADER.pack(_HEADER.size + len(body), SOCK_DIAG_BY_FAMILY, REQUEST_DUMP, 1, 0) + body)
        while True:
            for kind, message in _messages(link.recv(RECEIVE_BYTES)):
                if kind == MESSAGE_DONE:
                    return found, buffers
                if kind == MESSAGE_ERROR:
                    code = -int.from_bytes(message[16:20], "little", signed=True)
                    raise OSError(code, "sock_diag")
                if (port := message[_PORT]) in ports:
                    found[port, message[_LOCAL], message[_REMOTE]] += 1
                    buffers += _buffers(message)


def _buffers(message: bytes) -> int:
    """Bytes that a socket holds for what it received, what it sends, and what comes next."""
    at = _MESSAGE_BYTES
    while at + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, at)
        if kind == MEMINFO:
            return sum(_MEMINFO.unpack_from(message, at + _ATTRIBUTE.size))
        at += (max(length, _ATTRIBUTE.size) + 3) & ~3
    return 0


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and bytes of each netlink message, its header included."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, at)
        yield kind, data[at : at + length]
        at += (max(length, _HEADER.size) + 3) & ~3
