"""nchan on nginx: publish and subscribe over HTTP, in C, a process a core; subscribers over SSE."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from bench.clients import raise_descriptor_limit
from bench.peers.peer import Peer, Program, absent, found, free_port, said
from bench.peers.wire import Step, Wire, http_get, http_post

MODULES = ("/usr/lib/nginx/modules/ngx_nchan_module.so", "/usr/share/nginx/modules/ngx_nchan_module.so")
# As long a memory as ours: 1,000 messages, an hour.
CONFIG = """\
load_module {module};
{user}
daemon off;
pid nginx.pid;
worker_processes {workers};
worker_rlimit_nofile {descriptors};
error_log stderr warn;
events {{ worker_connections {connections}; multi_accept on; }}
http {{
    access_log off;
    server_tokens off;
    tcp_nodelay on;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    nchan_max_reserved_memory 512M;
    nchan_message_buffer_length 1000;
    nchan_message_timeout 1h;
    server {{
        listen 127.0.0.1:{port} reuseport backlog=65535;
        location = /pub {{ nchan_publisher; nchan_channel_id $arg_id; nchan_channel_group bench; }}
        location = /nothing {{ return 204; }}
        location = /sub {{
            nchan_subscriber eventsource;
            nchan_subscriber_first_message newest;
            nchan_channel_id {ids};
            nchan_channel_group bench;
        }}
        location = /user {{
            nchan_subscriber eventsource;
            nchan_subscriber_first_message newest;
            nchan_channel_id $arg_user;
            nchan_channel_group bench;
        }}
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class NchanWire(Wire):
    """A user and a room are a channel each; one connection takes several channels. Publishing is a POST."""

    answer = b"HTTP/1.1 20"
    refusals = (b"HTTP/1.1 4", b"HTTP/1.1 5")

    def subscribe(self, user: str, room: str) -> tuple[Step, ...]:
        """Open a stream of events."""
        target = f"/sub?user={user}&room={room}" if room else f"/user?user={user}"
        return (Step(http_get(target, "Accept: text/event-stream"), b": hi\n\n"),)

    def speak(self, user: str, room: str) -> tuple[Step, ...]:
        """Ask for nothing, so that the connection is through: HTTP has no session."""
        return (Step(http_get("/nothing"), b"\r\n\r\n"),)

    def to_room(self, room: str, message: bytes) -> bytes:
        """Publish."""
        return http_post(f"/pub?id={room}", message)

    def to_user(self, user: str, message: bytes) -> bytes:
        """Publish to the user's channel."""
        return http_post(f"/pub?id={user}", message)


class Nchan(Peer):
    """Debian's build of the module, in memory only (it can also work with Redis)."""

    name = "nchan"
    about = "nginx module (C), a process a core, SSE"
    wire = NchanWire()

    def missing(self) -> str | None:
        """Return why it cannot run here."""
        return absent("nginx", package="nginx") or (
            None if _module() else "not installed: ngx_nchan_module.so (Debian: libnginx-mod-nchan)"
        )

    def versions(self) -> dict[str, str]:
        """Return the versions of nginx and, where Debian's package manager knows it, of the module."""
        nchan = said(r"(?:\d+:)?(\S+)", "dpkg-query", "-W", "-f", "${Version}", "libnginx-mod-nchan")
        return {"nginx": said(r"nginx/(\S+)", found("nginx") or "", "-v"), "nchan": nchan}

    def start(self, workers: int, home: Path) -> Program:
        """Start it."""
        port, limit = free_port(), raise_descriptor_limit()
        (home / "nginx.conf").write_text(
            CONFIG.format(
                module=_module(),
                user="user root;" if os.geteuid() == 0 else "",  # its workers could not write to our directory else
                workers=workers,
                descriptors=limit,
                connections=limit - 200,
                port=port,
                ids="$arg_room $arg_user",
            )
        )
        return Program([found("nginx") or "", "-p", str(home), "-c", str(home / "nginx.conf")], home, port)


def _module() -> str | None:
    return next((path for path in MODULES if Path(path).exists()), None)
