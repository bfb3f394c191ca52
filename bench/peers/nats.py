"""nats-server: publish and subscribe over lines of text, in Go, one process with a thread a core."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.peers.peer import Peer, Program, absent, found, free_port, said
from bench.peers.wire import Step, Wire

CONFIG = """\
host: "127.0.0.1"
port: {port}
max_connections: 1000000
ping_interval: "1h"
write_deadline: "30s"
logtime: false
"""
_CONNECT = (
    b'CONNECT {"verbose":false,"pedantic":false,"tls_required":false,"lang":"bench","version":"1","protocol":1,'
    b'"echo":false}\r\n'
)


@dataclass(frozen=True, slots=True)
class NatsWire(Wire):
    """The client protocol of NATS: a user and a room are a subject each. PING and PONG end what must be through."""

    refusals = (b"-ERR",)

    def subscribe(self, user: str, room: str) -> tuple[Step, ...]:
        """Wait for the server's INFO, then connect and subscribe in one write, as its client libraries do."""
        asked = _CONNECT + b"SUB user.%b 1\r\n" % user.encode()
        if room:
            asked += b"SUB room.%b 2\r\n" % room.encode()
        return Step(b"", b"\r\n"), Step(asked + b"PING\r\n", b"PONG\r\n")

    def speak(self, user: str, room: str) -> tuple[Step, ...]:
        """Connect."""
        return Step(b"", b"\r\n"), Step(_CONNECT + b"PING\r\n", b"PONG\r\n")

    def to_room(self, room: str, message: bytes) -> bytes:
        """Publish, which is not answered."""
        return b"PUB room.%b %d\r\n%b\r\n" % (room.encode(), len(message), message)

    def to_user(self, user: str, message: bytes) -> bytes:
        """Publish to the user's subject."""
        return b"PUB user.%b %d\r\n%b\r\n" % (user.encode(), len(message), message)


class Nats(Peer):
    """Core NATS, without JetStream: at most once, nothing stored."""

    name = "nats"
    about = "NATS server (Go), 1 process, a thread a core"
    wire = NatsWire()

    def missing(self) -> str | None:
        """Return why it cannot run here."""
        return absent("nats-server", package="nats-server")

    def versions(self) -> dict[str, str]:
        """Return its version."""
        return {"nats-server": said(r"v(\d\S*)", found("nats-server") or "", "--version")}

    def start(self, workers: int, home: Path) -> Program:
        """Start it with as many threads that run Go as there are to be workers."""
        port = free_port()
        (home / "nats.conf").write_text(CONFIG.format(port=port))
        command = [found("nats-server") or "", "-c", "nats.conf"]
        return Program(command, home, port, {"GOMAXPROCS": str(workers)})
