"""mosquitto: a broker of MQTT in C, one process with one thread."""

from __future__ import annotations

from pathlib import Path

from bench.peers.mqtt import Mqtt
from bench.peers.peer import Peer, Program, absent, found, free_port, said

CONFIG = """\
listener {port} 127.0.0.1
max_connections -1
allow_anonymous true
persistence false
set_tcp_nodelay true
max_queued_messages 0
max_inflight_messages 0
log_type error
log_dest stderr
"""


class Mosquitto(Peer):
    """It has no option for more processes, nor for the length of the accept queue (100)."""

    name = "mosquitto"
    about = "MQTT broker (C), 1 process"
    wire = Mqtt()

    def missing(self) -> str | None:
        """Return why it cannot run here."""
        return absent("mosquitto", package="mosquitto")

    def versions(self) -> dict[str, str]:
        """Return its version."""
        return {"mosquitto": said(r"version (\S+)", found("mosquitto") or "", "-h")}

    def start(self, workers: int, home: Path) -> Program:
        """Start it: one process, whatever `workers` is."""
        port = free_port()
        (home / "mosquitto.conf").write_text(CONFIG.format(port=port))
        return Program([found("mosquitto") or "", "-c", "mosquitto.conf"], home, port)
