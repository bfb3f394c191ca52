"""Listening sockets that were opened by whoever started us: sd_listen_fds(3).

A socket belongs to the option whose address it listens on. The service manager keeps it: what waits in its queue outlives us.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, MutableMapping
from typing import NamedTuple

from server.config import Address

FIRST_FD = 3  # SD_LISTEN_FDS_START


class Inherited(NamedTuple):
    """A socket that was passed, and what it is called."""

    sock: socket.socket
    name: str


def take(environ: MutableMapping[str, str]) -> list[Inherited]:
    """Return what was passed to this process, and take the variables out of `environ`. Raises: ValueError, OSError."""
    pid, count, names = (environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if not count or pid != str(os.getpid()):
        return []
    if not count.isdecimal():
        raise ValueError(f"LISTEN_FDS: found {count!r}, want a number")
    called = names.split(":") if names else []
    found, faults = [], []
    for index, fd in enumerate(_fds(int(count))):
        name = called[index] if index < len(called) else "unknown"
        try:
            found.append(Inherited(_take(fd), name))
        except ValueError as fault:
            faults.append(f"descriptor {fd} ({name}) that was passed: {fault}")
    if faults:
        for sock, _ in found:
            sock.close()
        raise ValueError("; ".join(faults))
    return found


def _fds(count: int) -> Iterable[int]:
    return range(FIRST_FD, FIRST_FD + count)


def _take(fd: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise ValueError(f"{error.strerror}, want a socket") from None
    is_ours = sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_STREAM
    if not is_ours or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        found = f"{sock.family.name} {sock.type.name}"
        sock.close()
        raise ValueError(f"found {found}, want a TCP socket that listens (ListenStream=HOST:PORT, Accept=no)")
    sock.set_inheritable(False)
    sock.setblocking(False)
    return sock


def share_out(passed: Iterable[Inherited], addresses: Iterable[Address]) -> dict[Address, list[socket.socket]]:
    """Return the sockets of each address that has any. Raises: ValueError, naming every one that fits no address."""
    wanted = {_resolved(address): address for address in addresses}
    found: dict[Address, list[socket.socket]] = {}
    strays = []
    for sock, name in passed:
        at = sock.getsockname()[:2]
        if at in wanted:
            found.setdefault(wanted[at], []).append(sock)
        else:
            strays.append(f"descriptor {sock.fileno()} ({name}) that was passed listens on {Address(*at)}")
    if strays:
        options = ", ".join(map(str, wanted.values()))
        raise ValueError(f"{'; '.join(strays)}: want an address that an option names ({options})")
    return found


def _resolved(address: Address) -> tuple[str, int]:
    """As getsockname(2) says it."""
    where = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][4]
    return str(where[0]), int(where[1])
