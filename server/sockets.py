"""Every listening socket of the server. The supervisor makes them before its first fork, and closes them last.

Closing a listener resets everybody in its queue. So before the end it takes no newcomers for a moment, in which its worker empties
the queue: what begins a connection is dropped, and the rest of a handshake under way let pass. Whoever is dropped tries again
after a second, as TCP does with a lost packet, and finds the port closed, or a successor.

A filter on the socket does that (socket(7), SO_ATTACH_FILTER). Newer kernels want CAP_NET_ADMIN for one on TCP. Without it the
listener asks for a TTL that only neighbours can have who begin with 255 (ip(7), IP_MINTTL), and next to nobody does. The kernel
applies that to a handshake's first packet and not to its last; who comes out of one meanwhile is not heard any more, but told.

Sockets that were passed to us stay open in whoever passed them, and what waits in their queues outlives us: no filter there.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from server.config import Address, Config
from server.inherited import Inherited, share_out
from server.listener import address_of, configure, listen


class Group(NamedTuple):
    """The sockets of one address: one a worker, by number, unless they were passed to us."""

    sockets: list[socket.socket]
    is_inherited: bool = False

    @property
    def address(self) -> Address:
        """Where they listen."""
        return address_of(self.sockets[0])

    def of(self, number: int, count: int) -> list[socket.socket]:
        """Those of one of `count` workers: every socket has a worker, and every worker a socket, maybe with others."""
        return self.sockets[number::count] or [self.sockets[number % len(self.sockets)]]


_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
# Classic BPF on the TCP header: byte 13 holds the flags, 2 is SYN. Drop what has it, keep the rest whole.
_NO_SYN = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),  # ldb [13]
        (0x45, 0, 1, 2),  # jset #2, next, over the next
        (0x06, 0, 0, 0),  # ret #0
        (0x06, 0, 0, 0xFFFFFFFF),  # ret #-1
    )
)


@dataclass(frozen=True, slots=True)
class Sockets:
    """One group for every address of each transport, for `count` workers."""

    tcp: list[Group]
    http: list[Group]
    admin: Group
    count: int

    @classmethod
    def open(cls, config: Config, count: int, passed: Iterable[Inherited] = ()) -> Sockets:
        """Listen on every address, with a socket for each of `count` workers where none was passed.

        Raises: OSError, ValueError when one was passed that no option names.
        """
        found = share_out(passed, (*config.tcp, *config.http, config.admin))

        def group(address: Address, count: int) -> Group:
            if address not in found:
                return Group(listen(address, count, config))
            for sock in found[address]:
                configure(sock, config)
                sock.listen(config.listen_backlog)
            return Group(found[address], is_inherited=True)

        tcp = [group(address, count) for address in config.tcp]
        http = [group(address, count) for address in config.http]
        return cls(tcp, http, group(config.admin, 1), count)

    def of(self, number: int) -> tuple[list[socket.socket], list[socket.socket]]:
        """Return the sockets of one worker, TCP and HTTP."""
        tcp, http = (
            [sock for group in groups for sock in group.of(number, self.count)] for groups in (self.tcp, self.http)
        )
        return tcp, http

    def ports(self) -> set[int]:
        """Return the public ports."""
        return {group.address.port for group in (*self.tcp, *self.http)}

    def lines(self) -> Iterator[str]:
        """Say where each transport listens."""
        for transport, groups in (("tcp", self.tcp), ("http", self.http), ("admin", [self.admin])):
            yield from (f"{transport} {group.address}" for group in groups)

    def hold_off(self) -> None:
        """Let no connection begin on the public ports from now on."""
        for group in (*self.tcp, *self.http):
            for sock in group.sockets if not group.is_inherited else ():
                _drop_syn(sock)


_MINTTL = {
    socket.AF_INET: (socket.IPPROTO_IP, 21),  # IP_MINTTL, linux/in.h
    socket.AF_INET6: (socket.IPPROTO_IPV6, 73),  # IPV6_MINHOPCOUNT, linux/in6.h
}


def _drop_syn(sock: socket.socket) -> None:
    try:
        _attach_filter(sock)
    except PermissionError:
        sock.setsockopt(*_MINTTL[sock.family], 255)


def _attach_filter(sock: socket.socket) -> None:
    instructions = ctypes.create_string_buffer(_NO_SYN)
    program = struct.pack("HP", len(_NO_SYN) // 8, ctypes.addressof(instructions))  # struct sock_fprog
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
