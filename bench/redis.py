"""What the Redis behind a server was asked: the calls and CPU of each command, by INFO commandstats."""

from __future__ import annotations

import re
import socket
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

ANSWER_SECONDS_MAX = 10.0
_LINE = re.compile(r"cmdstat_(\S+?):calls=(\d+),usec=(\d+)")


class Calls(NamedTuple):
    """How often a command was called, and the microseconds it took Redis."""

    calls: int
    us: int


def command_stats(url: str) -> dict[str, Calls]:
    """Return every command's calls so far, at the Redis of `url`: `unix://PATH` or `redis://HOST:PORT`, without TLS.

    Raises: OSError, ValueError for another kind of URL.
    """
    with _connect(url) as link, link.makefile("rb") as answer:
        secret = urlsplit(url).password
        if secret:
            link.sendall(_command("AUTH", unquote(secret)))
            answer.readline()
        link.sendall(_command("INFO", "commandstats"))
        size = answer.readline()
        if not size.startswith(b"$"):
            raise OSError(f"INFO commandstats: {size.decode(errors='replace').strip()}")
        return parse(answer.read(int(size[1:])).decode())


def parse(info: str) -> dict[str, Calls]:
    """Return the commands in the text of INFO commandstats."""
    return {name: Calls(int(calls), int(us)) for name, calls, us in _LINE.findall(info)}


def since(after: dict[str, Calls], before: dict[str, Calls]) -> dict[str, Calls]:
    """Return what was called in between."""
    zero = Calls(0, 0)
    found = {
        name: Calls(calls - before.get(name, zero).calls, us - before.get(name, zero).us)
        for name, (calls, us) in after.items()
    }
    return {name: each for name, each in found.items() if each.calls}


def _connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    if parts.scheme == "unix":
        link = socket.socket(socket.AF_UNIX)
        link.settimeout(ANSWER_SECONDS_MAX)
        link.connect(parts.path)
        return link
    if parts.scheme == "redis":
        return socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 6379), ANSWER_SECONDS_MAX)
    raise ValueError(f"calls are counted at a single Redis without TLS; found {parts.scheme}://")


def _command(*words: str) -> bytes:
    packed = [f"${len(word.encode())}\r\n{word}\r\n" for word in words]
    return f"*{len(words)}\r\n{''.join(packed)}".encode()
