"""Small servers of our own making, for comparison: each a program beside this module, run as a process of its own.

`floor` is what the kernel takes: sockets in an epoll set and a loop of send(2), nothing else. `uvloop` is a bare
asyncio.Protocol on uvloop, `aiohttp` an SSE handler as one writes it in an hour. All three are one process: with more
they would need something between them, and be another kind of server.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from bench.peers.peer import Peer, Program, free_port
from bench.peers.wire import Step, Wire, http_get, http_post

PROGRAMS = Path(__file__).parent / "programs"


@dataclass(frozen=True, slots=True)
class HubWire(Wire):
    """A letter and what belongs to it, one a line: `J` join the room, `I user` be a user, `R message`, `U user message`."""

    answer = b"+\n"

    def subscribe(self, user: str, room: str) -> tuple[Step, ...]:
        """Join the room, of which there is one, or be a user who can be sent to."""
        return (Step(b"J\n" if room else b"I %b\n" % user.encode(), b"+\n"),)

    def speak(self, user: str, room: str) -> tuple[Step, ...]:
        """Say something that has an answer, so that the connection is through."""
        return (Step(b"H\n", b"+\n"),)

    def to_room(self, room: str, message: bytes) -> bytes:
        """Send to the room."""
        return b"R %b\n" % message

    def to_user(self, user: str, message: bytes) -> bytes:
        """Send to a user."""
        return b"U %b %b\n" % (user.encode(), message)


@dataclass(frozen=True, slots=True)
class EventsWire(Wire):
    """SSE with the least of everything: `GET /events?user=&room=`, `POST /publish?to=`."""

    answer = b"HTTP/1.1 204"
    refusals = (b"HTTP/1.1 4", b"HTTP/1.1 5")

    def subscribe(self, user: str, room: str) -> tuple[Step, ...]:
        """Open a stream of events."""
        return (Step(http_get(f"/events?user={user}&room={room}", "Accept: text/event-stream"), b": hello\n\n"),)

    def speak(self, user: str, room: str) -> tuple[Step, ...]:
        """Ask for nothing, so that the connection is through."""
        return (Step(http_get("/nothing"), b"\r\n\r\n"),)

    def to_room(self, room: str, message: bytes) -> bytes:
        """Publish."""
        return http_post(f"/publish?to={room}", message)

    def to_user(self, user: str, message: bytes) -> bytes:
        """Publish to the user."""
        return http_post(f"/publish?to={user}", message)


@dataclass
class Hub(Peer):
    """One of these programs."""

    name: str
    about: str
    wire: Wire
    program: str
    packages: tuple[str, ...] = ()
    is_reference: bool = False

    def missing(self) -> str | None:
        """Return None: what it needs is what we need."""
        return None

    def versions(self) -> dict[str, str]:
        """Return the versions of Python and of what it is built on."""
        python = ".".join(map(str, sys.version_info[:3]))
        return {"python": python, **{name: version(name) for name in self.packages}}

    def start(self, workers: int, home: Path) -> Program:
        """Start it: one process, whatever `workers` is."""
        port = free_port()
        return Program([sys.executable, str(PROGRAMS / self.program), str(port)], home, port)


def floor() -> Hub:
    """Return the floor."""
    return Hub("floor", "epoll and send(2), no server", HubWire(), "floor.py", is_reference=True)


def uvloop_hub() -> Hub:
    """Return the bare Protocol."""
    return Hub("uvloop", "bare Protocol (Python), 1 process", HubWire(), "uvloop_hub.py", ("uvloop",))


def aiohttp_hub() -> Hub:
    """Return the SSE handler."""
    return Hub("aiohttp", "SSE handler (Python), 1 process", EventsWire(), "aiohttp_hub.py", ("aiohttp", "uvloop"))
