"""Every listening socket of the server. The supervisor makes them before its first fork, and closes them last.

Closing a listener resets everybody in its queue. So before the end it takes no newcomers for a moment, in which its worker empties
the queue: a filter on the socket (socket(7), SO_ATTACH_FILTER) drops what begins a connection, and lets pass the rest of a
handshake under way. Whoever is dropped tries again after a second, as TCP does with a lost packet, and finds the port closed, or a
successor.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from server.config import Config
from server.listener import address_of, listen

Group = list[socket.socket]
"""The sockets of one address: one a worker, by number."""

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


class Sockets(NamedTuple):
    """One group for every address of each transport."""

    tcp: list[Group]
    http: list[Group]
    admin: Group

    @classmethod
    def open(cls, config: Config, count: int) -> Sockets:
        """Listen on every address, with a socket for each of `count` workers. Raises: OSError."""
        tcp = [listen(address, count, config) for address in config.tcp]
        http = [listen(address, count, config) for address in config.http]
        return cls(tcp, http, listen(config.admin, 1, config))

    def of(self, number: int) -> tuple[list[socket.socket], list[socket.socket]]:
        """Return the sockets of one worker, TCP and HTTP."""
        return [group[number] for group in self.tcp], [group[number] for group in self.http]

    def ports(self) -> set[int]:
        """Return the public ports."""
        return {address_of(group[0]).port for group in (*self.tcp, *self.http)}

    def lines(self) -> Iterator[str]:
        """Say where each transport listens."""
        for transport, groups in (("tcp", self.tcp), ("http", self.http), ("admin", [self.admin])):
            yield from (f"{transport} {address_of(group[0])}" for group in groups)

    def hold_off(self) -> None:
        """Let no connection begin on the public ports from now on."""
        for group in (*self.tcp, *self.http):
            for sock in group:
                _drop_syn(sock)


def _drop_syn(sock: socket.socket) -> None:
    instructions = ctypes.create_string_buffer(_NO_SYN)
    program = struct.pack("HP", len(_NO_SYN) // 8, ctypes.addressof(instructions))  # struct sock_fprog
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
