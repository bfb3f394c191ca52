"""Moorage itself as one of the peers: the same start as in all scenarios, the same clients as the others have."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.peers.peer import Peer, Running
from bench.peers.wire import Step, Wire
from bench.report import commit, versions
from bench.target import Target
from bench.wire import CONNECTED, PUBLISHED, REFUSED, REQUESTS, connect_line

# What most others do with a message: nothing is kept of it, and nobody is told who is there.
LIVE_ONLY = """\
[namespace_default]
durable = false
presence = false
[namespace_personal]
durable = false
presence = false
"""


@dataclass(frozen=True, slots=True)
class OurWire(Wire):
    """NDJSON over TCP to send, and that or SSE to receive. Every publish is answered once Redis has it."""

    transport: str
    answer = PUBLISHED
    refusals = REFUSED

    def subscribe(self, user: str, room: str) -> tuple[Step, ...]:
        """Sign in; the personal channel comes with it."""
        return (Step(REQUESTS[self.transport](user, [f"room:{room}"] if room else []), CONNECTED),)

    def speak(self, user: str, room: str) -> tuple[Step, ...]:
        """Sign in over TCP, with no channel but the personal one."""
        return (Step(connect_line(user, ()), CONNECTED),)

    def to_room(self, room: str, message: bytes) -> bytes:
        """Publish."""
        return _publish(f"room:{room}", message)

    def to_user(self, user: str, message: bytes) -> bytes:
        """Publish to the personal channel."""
        return _publish(f"@{user}", message)


def _publish(channel: str, message: bytes) -> bytes:
    return b'{"op":"publish","id":1,"channel":%b,"data":"%b"}\n' % (json.dumps(channel).encode(), message)


class Ours(Running):
    """A `Target` as a peer's server: supervisor, workers, admin process, and Redis."""

    def __init__(self, target: Target, transport: str) -> None:
        self._target = target
        self.address = target.listens(transport)
        self.speakers = target.listens("tcp")

    def pids(self) -> Sequence[int]:
        """Return all processes, Redis with them unless it is somebody else's."""
        return [*self._target.processes.server, *self._target.processes.redis]

    def helpers(self) -> Sequence[int]:
        """Return Redis."""
        return self._target.processes.redis

    def stop(self) -> None:
        """Stop it without a drain."""
        self._target.stop()


class Moorage(Peer):
    """Nothing but the defaults: open mode, durable channels, heartbeats, the Valkey it brings."""

    def __init__(self, name: str, transport: str, redis: str | None = None, *, config: str = "") -> None:
        self.name = name
        self.about = f"ours (Python), a process a core and Redis, {'SSE' if transport == 'sse' else 'TCP'}"
        if config:
            self.about += ", live-only"
        self.wire = OurWire(transport)
        self._transport = transport
        self._redis = redis
        self._config = config

    def missing(self) -> str | None:
        """Return None."""
        return None

    def versions(self) -> dict[str, str]:
        """Return the commit and the versions of what it is built on."""
        return {"commit": commit(), **{name: text for name, text in versions().items() if name != "moorage"}}

    def start(self, workers: int, home: Path) -> Ours:
        """Start it with `workers` workers."""
        environ = {}
        if self._config:
            (home / "moorage.toml").write_text(self._config)
            environ["MOORAGE_CONFIG"] = str(home / "moorage.toml")
        return Ours(Target(workers, self._redis, environ), self._transport)
