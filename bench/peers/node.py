"""Servers from npm, on Node.js: `ws` (WebSockets) and `aedes` (an MQTT broker), one process each.

Their packages are pinned in programs/node and installed by `moorage bench peers --install` into a cache directory.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from bench.peers.hubs import PROGRAMS
from bench.peers.mqtt import Mqtt
from bench.peers.peer import Peer, PeerError, Program, absent, found, free_port, said
from bench.peers.wire import Step, Wire, http_get

NODE = PROGRAMS / "node"
INSTALL_SECONDS_MAX = 120.0
TEXT, MASKED = 0x81, 0x80
_UPGRADE = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==")


@dataclass(frozen=True, slots=True)
class WebSocket(Wire):
    """RFC 6455: user and room in the URL; a frame is `R message` or `U user message`."""

    refusals = (b"HTTP/1.1 4", b"HTTP/1.1 5")

    def subscribe(self, user: str, room: str) -> tuple[Step, ...]:
        """Upgrade; the server has subscribed before it answers."""
        target = f"/?user={user}&room={room}"
        return (Step(http_get(target, *_UPGRADE, "Sec-WebSocket-Version: 13"), b"\r\n\r\n"),)

    def speak(self, user: str, room: str) -> tuple[Step, ...]:
        """Upgrade."""
        return self.subscribe("", "")

    def to_room(self, room: str, message: bytes) -> bytes:
        """Send to the room, which is not answered."""
        return _frame(b"R " + message)

    def to_user(self, user: str, message: bytes) -> bytes:
        """Send to a user."""
        return _frame(b"U %b %b" % (user.encode(), message))


def _frame(text: bytes) -> bytes:
    """Return a text frame with the mask 0, which changes nothing."""
    size = len(text)
    length = bytes([MASKED | size]) if size < 126 else bytes([MASKED | 126]) + size.to_bytes(2, "big")
    return bytes([TEXT]) + length + b"\0\0\0\0" + text


@dataclass
class NodeServer(Peer):
    """A program in programs/node. One process: several would need something between them."""

    name: str
    about: str
    wire: Wire
    package: str

    def missing(self) -> str | None:
        """Return why it cannot run here."""
        if reason := absent("node", package="nodejs"):
            return reason
        here = (cache() / "node_modules" / self.package).is_dir()
        return None if here else f"not installed: {self.package} from npm (moorage bench peers --install)"

    def versions(self) -> dict[str, str]:
        """Return the versions of Node.js and of the package."""
        manifest = json.loads((cache() / "node_modules" / self.package / "package.json").read_text())
        return {"node": said(r"v(\S+)", found("node") or "", "--version"), self.package: manifest["version"]}

    def start(self, workers: int, home: Path) -> Program:
        """Start it: one process, whatever `workers` is."""
        port = free_port()
        environ = {"NODE_PATH": str(cache() / "node_modules"), "NODE_ENV": "production"}
        return Program([found("node") or "", str(NODE / f"{self.package}.cjs"), str(port)], home, port, environ)


def websockets() -> NodeServer:
    """Return the WebSocket server."""
    return NodeServer("ws", "WebSocket server (Node.js), 1 process", WebSocket(), "ws")


def aedes() -> NodeServer:
    """Return the MQTT broker."""
    return NodeServer("aedes", "MQTT broker (Node.js), 1 process", Mqtt(), "aedes")


def cache() -> Path:
    """Return the directory that holds the packages, named after what is pinned."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256((NODE / "package-lock.json").read_bytes()).hexdigest()[:12]
    return home / "moorage-bench" / f"node-{digest}"


def install() -> None:
    """Install the pinned packages, without running scripts of theirs. Raises: PeerError."""
    npm = found("npm")
    if npm is None:
        raise PeerError("not installed: npm (Debian: npm)")
    home = cache()
    home.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(NODE / name, home / name)
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    try:
        done = subprocess.run(
            command, cwd=home, capture_output=True, text=True, timeout=INSTALL_SECONDS_MAX, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise PeerError(f"{' '.join(command)}: not done within {INSTALL_SECONDS_MAX:g} s") from error
    if done.returncode:
        raise PeerError(f"{' '.join(command)}: {done.stderr[-500:]}")
