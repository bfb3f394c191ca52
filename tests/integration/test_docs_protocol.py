"""docs/protocol.md: its examples are played against a server, and its tables are what the code says.

`python tests/integration/test_docs_protocol.py` writes anew what is between its markers.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from harness import DEADLINE_SECONDS, ROOT, Server
from pages import DOCS, table, written_anew

from router import journal, presence, replay, roster, rosters
from router.embedded import Embedded
from server import admin, http, limits, lines
from server.close import Close, PeerError

PAGE = DOCS / "protocol.md"
LINE = re.compile(r"(\w+)([<>])(?: (.*))?")
POSITION = re.compile(r"\bP\d+\b")
OVER_HTTP = {  # what a request other than a stream can end with; the others are of connections
    Close.EXPIRED, Close.OVERLOADED, Close.BUS_DOWN, Close.UNCONFIRMED, Close.KEYS_UNAVAILABLE, Close.PUBLISH_RATE,
    Close.BAD_REQUEST, Close.UNAUTHORIZED, Close.FORBIDDEN, Close.NOT_FOUND, Close.TOO_LARGE,
}  # fmt: skip


# The tables.


def codes_table() -> str:
    def status(code: Close) -> str:
        if code is Close.OUR_FAULT:
            return "500"
        return str(http.fault(PeerError(code)).status) if code in OVER_HTTP else "-"

    def row(code: Close) -> tuple[str, ...]:
        return str(int(code)), f"`{code.name.lower()}`", code.reason, "yes" if code.reconnect else "no", status(code)

    return table(("Code", "Name", "Reason, unless it is said more precisely", "Reconnect", "HTTP"), *map(row, Close))


def limits_table() -> str:
    def size(bytes: int) -> str:
        return f"{bytes:,} bytes"

    each = [
        ("a line of raw TCP", size(limits.LINE_BYTES_MAX), "4005, closed", ""),
        ("`data`, as compact JSON", size(limits.MESSAGE_BYTES_MAX), "4005", "`message_bytes_max`"),
        ("a channel's name", size(limits.CHANNEL_BYTES_MAX), "4000", ""),
        ("a user's name", size(limits.USER_BYTES_MAX), "4000", ""),
        ("`idempotency`", size(limits.CHANNEL_BYTES_MAX), "4000", ""),
        ("how long its key is remembered", f"{journal.ONCE_SECONDS_MAX} s", "another message", ""),
        ("a position", f"{limits.POSITION_BYTES_MAX:,} characters", "4000", ""),
        ("a token", size(limits.TOKEN_BYTES_MAX), "4005", ""),
        (
            "channels of a connection, the personal one among them",
            str(limits.CHANNELS_PER_CONNECTION_MAX),
            "4006",
            "`channels_per_connection_max`",
        ),
        (
            "messages of one answer to `history`",
            f"{limits.HISTORY_PAGE_MESSAGES_MAX:,} ({lines.HISTORY_MESSAGES} without `limit`)",
            "4000",
            "",
        ),
        ("their `data` together", size(replay.NEWEST_BYTES_MAX), "fewer messages", ""),
        ("channels of one publish on the admin port", f"{admin.CHANNELS_PER_PUBLISH_MAX:,}", "4000", ""),
        ("the head of an HTTP request", size(limits.HEAD_BYTES_MAX), "4005, status 431", ""),
        ("its URL", size(limits.URL_BYTES_MAX), "4005, status 414", ""),
        ("its headers", str(limits.HEADERS_MAX), "4005, status 431", ""),
        ("its body", size(limits.BODY_BYTES_MAX), "4005, status 413", ""),
        ("until its body has come and it is answered", f"{limits.REQUEST_SECONDS_MAX:g} s", "refused", ""),
        ("until a connection has said who it is", f"{limits.HANDSHAKE_SECONDS_MAX:g} s", "4002", "`handshake_seconds`"),
        (
            "connections that an answer to `presence` names",
            f"{limits.PRESENCE_CONNECTIONS_MAX:,}",
            "their number",
            "`presence_connections_max`",
        ),
        ("names of a `join` or `leave` within 1 s", str(rosters.NAMES_MAX), "their number", ""),
        ("until a user who is gone has left", f"{roster.GRACE_SECONDS:g} s", "", ""),
        ("until all workers have answered `presence`", f"{presence.ANSWER_SECONDS_MAX:g} s", "3006", ""),
        ("what waits for a slow peer", size(limits.BACKLOG_BYTES_MAX), "3002, closed", "`backlog_bytes_max`"),
        (
            "how long a peer acknowledges nothing",
            f"{limits.USER_TIMEOUT_SECONDS:g} s",
            "3007, closed",
            "`user_timeout_seconds`",
        ),
        ("between heartbeats", f"{limits.HEARTBEAT_SECONDS:g} s", "", "`heartbeat_seconds`"),
    ]
    return table(("What", "At most", "Past it", "Option"), *each)


def parts() -> dict[str, str]:
    """Return what is generated, as the code has it now."""
    return {"codes": codes_table(), "limits": limits_table()}


def test_the_tables_are_what_the_code_says() -> None:
    page = PAGE.read_text()
    assert page == written_anew(page, parts()), (
        f"run: PYTHONPATH=tests .venv/bin/python {Path(__file__).relative_to(ROOT)}"
    )


# The examples.


def blocks(kind: str, text: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def chapters() -> Iterator[tuple[str, str]]:
    """Yield the title and the examples of every chapter that has some: they are one story."""
    for chapter in PAGE.read_text().split("\n## ")[1:]:
        if story := "".join(blocks("wire", chapter)):
            yield chapter.partition("\n")[0], story


class Wire:
    """A connection that is read line by line: raw TCP, or a stream when `head` is sent first."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.sock = socket.create_connection(address, timeout=DEADLINE_SECONDS)
        self.file = self.sock.makefile("rb")

    def send(self, text: str) -> None:
        self.sock.sendall(text.encode())

    def line(self) -> str | None:
        """Return the next line; None at the end."""
        line = self.file.readline().decode()
        return line.rstrip("\r\n") if line else None

    def close(self) -> None:
        self.file.close()
        self.sock.close()


class Story:
    """The connections of a chapter, and the positions that have been seen in it."""

    def __init__(self, server: Server, redis_url: str) -> None:
        self.server, self.redis_url = server, redis_url
        self.positions: dict[str, str] = {}
        self.wires: dict[str, Wire] = {}
        self.requests: dict[str, list[str]] = {}  # lines of a request that is not complete

    def play(self, text: str) -> None:
        for line in text.splitlines():
            found = LINE.fullmatch(line)
            assert found, f"not a line of an example: {line}"
            name, direction, said = found.groups("")
            if direction == ">":
                self.said(name, POSITION.sub(lambda match: self.positions[match[0]], said))
            else:
                self.check(line, said, self.heard(name))

    def said(self, name: str, text: str) -> None:
        if name == "redis":
            with redis.Redis.from_url(self.redis_url) as client:
                client.execute_command(*text.split(" "))
        elif name in ("sse", "http", "admin"):
            self.requests.setdefault(name, []).append(text)
        elif text == "(closes)":
            self.wires.pop(name).close()
        else:
            if name not in self.wires:
                self.wires[name] = Wire(self.server.tcp)
            self.wires[name].send(text + "\n")

    def heard(self, name: str) -> str:
        request = self.requests.pop(name, None)
        if name in ("http", "admin"):
            assert request
            return self.answer(request, is_admin=name == "admin")
        if request is not None:
            if name in self.wires:
                self.wires.pop(name).close()
            self.wires[name] = Wire(self.server.http)
            self.wires[name].send("\r\n".join(request) + "\r\n\r\n")
        while (line := self.wires[name].line()) is not None:
            if name == "sse" and line == ":":
                self.wires[name].line()  # the end of a heartbeat
            elif line or name == "sse":
                return line
        self.wires.pop(name).close()
        return "(closed)"

    def answer(self, request: list[str], *, is_admin: bool) -> str:
        method, path = request[0].split(" ")
        body = request[1].encode() if len(request) > 1 else None
        status, answer = self.server.request(method, path, body, admin=is_admin)
        return f"{status} {lines.answer(answer).decode().rstrip()}"

    def check(self, line: str, wanted: str, heard: str) -> None:
        """Compare, and learn the positions that are new."""
        pattern, new = "", set[str]()
        for part in re.split(rf"(…|{POSITION.pattern})", wanted):
            if part == "…":
                pattern += ".+?"
            elif POSITION.fullmatch(part) and part not in self.positions:
                pattern += f"(?P={part})" if part in new else rf"(?P<{part}>[0-9a-f]{{8}}-\d+-\d+)"
                new.add(part)
            else:
                pattern += re.escape(self.positions.get(part, part))
        found = re.fullmatch(pattern, heard)
        assert found, f"\nin the page: {line}\non the wire: {heard}\npositions: {self.positions}"
        self.positions |= found.groupdict()

    def end(self) -> None:
        """Close everything; nothing has come that the page does not show."""
        for name, wire in self.wires.items():
            if name != "sse":
                wire.send('{"op":"ping","id":"end"}\n')
                assert self.heard(name) == '{"op":"pong","id":"end"}'
            wire.close()


@pytest.mark.parametrize(("title", "text"), list(chapters()), ids=lambda value: value if len(value) < 40 else "")
def test_the_examples_are_what_happens(title: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / "moorage.toml"
    file.write_text("".join(blocks("toml", PAGE.read_text())))
    with Embedded() as valkey, Server(["--workers", "2", "--config", str(file), "--redis", valkey.url]) as server:
        story = Story(server, valkey.url)
        try:
            story.play(text)
            story.end()
        finally:
            for wire in story.wires.values():
                wire.close()


def test_every_op_has_an_example() -> None:
    story = "".join(text for _, text in chapters())
    sent = ("connect", "subscribe", "unsubscribe", "publish", "history", "presence", "ping")
    heard = ("connected", "subscribed", "unsubscribed", "published", "history", "presence", "pong")
    for op in sent:
        assert f'> {{"op":"{op}"' in story
    for op in (*heard, "message", "join", "leave", "gap", "error", "close"):
        assert f'< {{"op":"{op}"' in story
    with pytest.raises(PeerError, match=", ".join(sent)):  # all there are
        lines.parse(b'{"op":"?"}', 1)


if __name__ == "__main__":
    PAGE.write_text(written_anew(PAGE.read_text(), parts()))
