"""The floor: sockets in an epoll set and a loop of send(2). What a connection costs beyond this is its server's own.

It speaks the lines of `bench.peers.hubs.HubWire`, trusts its clients, and keeps of a connection its descriptor.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from array import array

READ_BYTES = 64 * 1024


def main(port: int) -> None:
    """Serve for ever."""
    listener = socket.create_server(("127.0.0.1", port), backlog=65535)
    listener.setblocking(False)
    listening, epoll = listener.fileno(), select.epoll()
    epoll.register(listening, select.EPOLLIN)
    room = array("i")
    users: dict[bytes, int] = {}
    while True:
        for fd, _ in epoll.poll():
            if fd == listening:
                accept(listener, epoll)
                continue
            try:
                data = os.read(fd, READ_BYTES)
            except ConnectionResetError:
                data = b""
            if data:
                hear(fd, data, room, users)
            else:
                os.close(fd)
                leave(fd, room, users)


def accept(listener: socket.socket, epoll: select.epoll) -> None:
    """Take what is waiting."""
    for _ in range(64):
        try:
            connection, _address = listener.accept()
        except BlockingIOError:
            return
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        epoll.register(connection.detach(), select.EPOLLIN)


def hear(fd: int, data: bytes, room: array[int], users: dict[bytes, int]) -> None:
    """Do what the lines in `data` say; a line is never cut, because every client waits for its answer or writes little."""
    for line in data.splitlines():
        kind, rest = line[:1], line[2:]
        if kind == b"R":
            for member in room:
                os.write(member, rest + b"\n")
        elif kind == b"U":
            user, _, message = rest.partition(b" ")
            os.write(users[user], message + b"\n")
        elif kind == b"J":
            room.append(fd)
        elif kind == b"I":
            users[rest] = fd
        os.write(fd, b"+\n")


def leave(fd: int, room: array[int], users: dict[bytes, int]) -> None:
    """Forget a connection. A crowd leaves in the order in which it came, so that each is found at the front of the room."""
    if fd in room:
        room.remove(fd)
    else:
        for user in [user for user, owner in users.items() if owner == fd]:
            del users[user]


if __name__ == "__main__":
    main(int(sys.argv[1]))
