"""Ports of loopback for servers that are told theirs."""

from __future__ import annotations

import random
import socket
from pathlib import Path

PORT_MIN, PORT_MAX = 10_000, 65_535  # below are those that servers of the system have
_claims: list[socket.socket] = []


def free_port() -> int:
    """Return a port that nobody listens on, below those that outgoing connections are given (ip(7), ip_local_port_range).

    So it stays free while its server is yet to start, or is dead for a while; and no other test is given it while this process
    lives. Where outgoing connections may have nearly all ports, it may be one of theirs.
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.SystemRandom().randrange(PORT_MIN, lowest if lowest > 2 * PORT_MIN else PORT_MAX)
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", port))
                _claims.append(_claimed(port))
            except OSError:
                continue
            return port


def _claimed(port: int) -> socket.socket:
    """Claim a port before all processes of the tests, by a name that only one can have, unix(7). Raises: OSError."""
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        claim.bind(f"\0moorage tests port {port}")
    except OSError:
        claim.close()
        raise
    return claim
