"""A bare asyncio.Protocol on uvloop: the least that a server of that kind is. Speaks `bench.peers.hubs.HubWire`."""

import asyncio
import sys
from typing import cast

import uvloop

ROOM: set[asyncio.Transport] = set()
USERS: dict[bytes, asyncio.Transport] = {}


class Member(asyncio.Protocol):
    """A connection; lines are never cut, because every client waits for its answer or writes little."""

    __slots__ = ("transport",)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but its bases

    def data_received(self, data: bytes) -> None:
        """Do what the lines say."""
        for line in data.splitlines():
            kind, rest = line[:1], line[2:]
            if kind == b"R":
                frame = rest + b"\n"
                for member in ROOM:
                    member.write(frame)
            elif kind == b"U":
                user, _, message = rest.partition(b" ")
                USERS[user].write(message + b"\n")
            elif kind == b"J":
                ROOM.add(self.transport)
            elif kind == b"I":
                USERS[rest] = self.transport
            self.transport.write(b"+\n")

    def connection_lost(self, error: Exception | None) -> None:
        """Forget it."""
        ROOM.discard(self.transport)
        del self.transport  # they point at each other


async def main(port: int) -> None:
    """Serve for ever."""
    server = await asyncio.get_running_loop().create_server(Member, "127.0.0.1", port, backlog=65535)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
