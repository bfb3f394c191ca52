"""`moorage publish` against a real HTTP server that answers as the admin port does, or does not."""

from __future__ import annotations

import io
import json
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from commands import main
from commands.publish import read_data
from server.admin_client import admin_url


class Admin(HTTPServer):
    """Answers every POST with `status` and `answer`, and keeps what was asked."""

    def __init__(self) -> None:
        self.status, self.answer = 200, b'{"position":"7"}'
        self.asked: list[tuple[str, str | None, object]] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """One request."""

    def do_POST(self) -> None:
        assert isinstance(self.server, Admin)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, self.headers["Authorization"], body))
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(self.server.answer)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def admin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Admin]:
    monkeypatch.chdir(tmp_path)
    with Admin() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_the_position_is_printed(admin: Admin, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["publish", "room:a", '{"text":"é"}', "--admin", admin.address]) == 0
    assert capsys.readouterr().out == "7\n"
    assert admin.asked == [("/api/publish", None, {"channel": "room:a", "data": {"text": "é"}})]


def test_a_live_only_channel_has_none(admin: Admin, capsys: pytest.CaptureFixture[str]) -> None:
    admin.answer = b'{"position":null}'
    assert main(["publish", "typing:a", "true", "--admin", admin.address]) == 0
    assert capsys.readouterr().out == "\n"


def test_the_address_and_the_key_come_from_the_environment_too(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOORAGE_ADMIN", admin.address)
    monkeypatch.setenv("MOORAGE_ADMIN_KEY", "sesame")
    assert main(["publish", "room:a", "1"]) == 0
    assert main(["publish", "room:a", "1", "--admin-key", "other"]) == 0
    assert [key for _, key, _ in admin.asked] == ["Bearer sesame", "Bearer other"]


def test_a_url_may_have_a_path(admin: Admin) -> None:
    assert main(["publish", "room:a", "1", "--admin", f"http://{admin.address}/chat/"]) == 0
    assert admin.asked[0][0] == "/chat/api/publish"


def test_data_from_standard_input(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\nworld\n"))
    assert main(["publish", "room:a", "-", "--admin", admin.address]) == 0
    assert admin.asked[0][2] == {"channel": "room:a", "data": "hello\nworld"}


def test_data_that_is_not_utf_8(
    admin: Admin, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "DATA: found bytes that are not UTF-8, want JSON or text\n"
    for errors in ("strict", "surrogateescape"):  # how Python reads it in most locales, and in C
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), "utf-8", errors))
        assert main(["publish", "room:a", "-", "--admin", admin.address]) == 2
        assert capsys.readouterr().err == said
    assert main(["publish", "room:a", "\udcff", "--admin", admin.address]) == 2  # as an argument comes
    assert capsys.readouterr().err == said
    assert not admin.asked


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ('{"a": [1, null]}', {"a": [1, None]}),
        ('"quoted"', "quoted"),
        ("12", 12),
        ("hello", "hello"),
        ("{broken", "{broken"),
        ("NaN", "NaN"),
        ("-Infinity", "-Infinity"),
        ("", ""),
        ("[" * 200_000, "[" * 200_000),
    ],
)
def test_data_is_json_or_else_a_string(text: str, data: object) -> None:
    assert read_data(text) == data


@pytest.mark.parametrize(
    ("status", "answer", "said"),
    [
        (
            401,
            b'{"error":{"code":4001,"reason":"not the admin key"}}',
            "not published: 4001 not the admin key; say --admin-key",
        ),
        (
            403,
            b'{"error":{"code":4003,"reason":"not yours","field":"channel"}}',
            "not published: 4003 channel: not yours\n",
        ),
        (503, b'{"error":{"code":3005,"reason":"the message bus is down"}}', "3005 the message bus is down\n"),
        (404, b"<html>", "answered 404, not as an admin port does"),
        (200, b"[]", "answered 200, not as an admin port does"),
        (500, b'{"error":"no"}', "answered 500, not as an admin port does"),
    ],
)
def test_a_refusal_is_said(
    admin: Admin, capsys: pytest.CaptureFixture[str], status: int, answer: bytes, said: str
) -> None:
    admin.status, admin.answer = status, answer
    assert main(["publish", "room:a", "1", "--admin", admin.address]) == 1
    assert said in capsys.readouterr().err


def test_nothing_listening(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket() as bound:  # and not listening: nobody else gets the port
        bound.bind(("127.0.0.1", 0))
        assert main(["publish", "room:a", "1", "--admin", f"127.0.0.1:{bound.getsockname()[1]}"]) == 1
    assert "start the server (moorage serve)" in capsys.readouterr().err


def test_what_does_not_speak_http(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"220 smtp ready\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert main(["publish", "room:a", "1", "--admin", f"{host}:{port}"]) == 1
        thread.join()
    assert f"http://{host}:{port}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("127.0.0.1:7490", "http://127.0.0.1:7490"),
        ("0.0.0.0:7490", "http://127.0.0.1:7490"),
        ("[::]:7490", "http://[::1]:7490"),
        ("https://chat.example/admin/", "https://chat.example/admin"),
    ],
)
def test_where_the_admin_port_is(text: str, url: str) -> None:
    assert admin_url(text) == url


@pytest.mark.parametrize("text", ["7490", "127.0.0.1:0", "ftp://127.0.0.1", "http://", "http://h/?a=b"])
def test_what_is_no_admin_port(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["publish", "room:a", "1", "--admin", text]) == 2
    assert f"--admin: found {text!r}, want " in capsys.readouterr().err
