"""What test_balancers_ports.py runs inside a network namespace of its own; prints what it saw as JSON.

A range of 200 local ports, HAProxy with one address, and 300 clients that each come from another address.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import tempfile
from pathlib import Path

from balancers import Haproxy
from harness import Json, LineClient
from tuning_in_namespace import bring_up, finding, sysctl

from router.embedded import Embedded

RANGE, FEW = "net.ipv4.ip_local_port_range", "10000 10199"
CLIENTS = 300
IP_BIND_ADDRESS_NO_PORT = 24  # ip(7)


class Narrow(Haproxy):
    """The shipped file with one address, and the lines of node a alone that are named here."""

    kept: tuple[str, ...] = ()

    def text(self) -> str:
        head, backend, tail = super().text().partition("backend moorage_lines\n")
        lines = [
            line for line in tail.splitlines() if not line.startswith("    server ") or line.split()[1] in self.kept
        ]
        return "\n".join([head + backend.rstrip("\n"), *lines]) + "\n"


class One(Narrow):
    """One address and port of the node."""

    kept = ("a1",)


class Two(Narrow):
    """Two."""

    kept = ("a1", "a2")


def client(balancer: Haproxy, number: int) -> LineClient | None:
    """Let a client in; None when the balancer has no way to the node for it."""

    def dial(address: tuple[str, int]) -> socket.socket:
        sock = socket.socket()
        sock.settimeout(20)
        sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((f"127.1.{number >> 8}.{number & 255}", 0))
        sock.connect(address)
        return balancer.trusted.wrap_socket(sock, server_hostname="chat.test")

    made = LineClient(balancer.lines, dial)
    made.send({"op": "connect", "user": f"u{number}"})
    with contextlib.suppress(OSError):
        if (answer := made.receive()) is not None and answer["op"] == "connected":
            return made
    made.close()
    return None


def fill(kind: type[Haproxy], directory: Path, redis: str) -> Json:
    """How many of the clients get in, and what the balancer says of it."""
    directory.mkdir()
    sysctl(RANGE, "32768 60999")  # the ports that are listened on are not to be among the few
    with kind(directory, redis, "--workers", "1") as balancer:
        sysctl(RANGE, FEW)
        made = [client(balancer, number) for number in range(CLIENTS)]
        held = [one for one in made if one is not None]
        rows = balancer.servers("a")
        for one in held:
            one.close()
        return {"held": len(held), "errors": sum(int(row["econ"]) for row in rows)}


def ports() -> Json:
    sysctl(RANGE, FEW)
    words = ("--connections", str(CLIENTS), "--workers", "1")

    def predicted(balancers: int, destinations: int) -> Json:
        flags = ("--balancers", str(balancers), "--destinations", str(destinations))
        return finding("balancer ports", *words, *flags)

    found: Json = {"predicted": predicted(1, 1)}
    with tempfile.TemporaryDirectory() as root, Embedded() as valkey:
        found["one"] = fill(One, Path(root, "one"), valkey.url)
        found["two"] = fill(Two, Path(root, "two"), valkey.url)
    found["with_two"], found["as_shipped"] = predicted(1, 2), predicted(2, 2)
    return found


if __name__ == "__main__":
    bring_up()
    json.dump(ports(), sys.stdout)
