"""`moorage` as a process: exit codes, streams, signals, terminals."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECONDS_MAX = 30.0


@pytest.fixture
def environ(tmp_path: Path) -> Mapping[str, str]:
    """An environment without MOORAGE_* in which the checkout is importable."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MOORAGE_")}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}


def moorage(*argv: str) -> list[str]:
    return [sys.executable, "-m", "commands", *argv]


def run(environ: Mapping[str, str], cwd: Path, *argv: str, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        moorage(*argv), cwd=cwd, env={**environ, **changes}, capture_output=True, text=True, check=False,
        timeout=SECONDS_MAX, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture
def listener() -> socket.socket:
    """A server's listening socket on a port of its own."""
    made = socket.create_server(("127.0.0.1", 0))
    made.settimeout(SECONDS_MAX)
    return made


def test_bad_input_exits_with_2_and_says_everything_on_stderr(environ: Mapping[str, str], tmp_path: Path) -> None:
    ran = run(environ, tmp_path, "serve", "--check-config", "--workers", "x", MOORAGE_ADMIN="nowhere")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert [line.partition(" ")[0] for line in ran.stderr.splitlines()] == ["admin", "workers"]


def test_a_reader_that_leaves_early_gives_no_traceback(environ: Mapping[str, str], tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    ran = subprocess.run(
        moorage("serve", "--check-config"), cwd=tmp_path, env=environ, stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert (ran.returncode, ran.stderr) == (1, b"")


@pytest.mark.parametrize("unbuffered", ["", "1"])  # the write fails at the end, or in the middle of the command
def test_a_full_disk_is_said(environ: Mapping[str, str], tmp_path: Path, unbuffered: str) -> None:
    with open("/dev/full", "wb") as full:
        ran = subprocess.run(
            moorage("token", "--user", "alice", "--auth-secret", "s" * 32), cwd=tmp_path, stdout=full,
            env={**environ, "PYTHONUNBUFFERED": unbuffered}, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert ran.returncode == 1
    assert ran.stderr == "moorage token: the output could not be written: No space left on device\n"


def test_a_letter_that_the_terminal_lacks_is_escaped(environ: Mapping[str, str], tmp_path: Path) -> None:
    ran = run(environ, tmp_path, "serve", "--check-config", "--redis-prefix", "é:", PYTHONIOENCODING="ascii")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert r'redis_prefix = "\xe9:"' in ran.stdout


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_may_be_closed(environ: Mapping[str, str], tmp_path: Path, closed: str) -> None:
    options = ["--workers", "1", "--tcp", "127.0.0.1:0", "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *moorage("serve", *options)]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(tmp_path / "told"))
        told.settimeout(SECONDS_MAX)
        server = subprocess.Popen(shell, cwd=tmp_path, env={**environ, "NOTIFY_SOCKET": str(tmp_path / "told")})
        try:
            while b"READY=1" not in told.recv(4096):
                pass
            server.send_signal(signal.SIGTERM)
            assert server.wait(SECONDS_MAX) == 0
        finally:
            server.kill()
            server.wait()


def test_chat_with_nothing_listening(environ: Mapping[str, str], tmp_path: Path, listener: socket.socket) -> None:
    address = "{}:{}".format(*listener.getsockname())
    listener.close()
    ran = run(environ, tmp_path, "chat", "--user", "alice", "--server", address)
    assert (ran.returncode, ran.stderr) == (1, "")
    assert ran.stdout.startswith(f"! {address}: ")
    assert "moorage serve" in ran.stdout


def sign_in(listener: socket.socket) -> tuple[socket.socket, dict[str, object]]:
    """Accept one client and answer its connect."""
    connection, _ = listener.accept()
    connection.settimeout(SECONDS_MAX)
    hello = json.loads(connection.makefile().readline())
    user = hello.get("user", "somebody")
    answer = {"op": "connected", "user": user, "heartbeat_s": 25, "position": "p", "recovered": False, "channels": []}
    connection.sendall(json.dumps(answer).encode() + b"\n")
    return connection, hello


def test_chat_in_a_pipe(environ: Mapping[str, str], tmp_path: Path, listener: socket.socket) -> None:
    with (
        listener,
        subprocess.Popen(
            moorage("chat", "--server", "{}:{}".format(*listener.getsockname()), "room:a"),
            cwd=tmp_path, env={**environ, "MOORAGE_TOKEN": "t"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as client,
    ):  # fmt: skip
        assert client.stdin
        client.stdin.write("hello\n")
        client.stdin.close()
        connection, hello = sign_in(listener)
        with connection:
            assert hello == {"op": "connect", "token": "t", "channels": ["room:a"]}
            published = json.loads(connection.makefile().readline())
            assert published == {"op": "publish", "id": 1, "channel": "room:a", "data": {"text": "hello"}}
            message = {"op": "message", "channel": "room:a", "position": "q", "from": "bob", "at": 1, "data": "hi"}
            answer = {"op": "published", "id": 1, "channel": "room:a", "position": "q"}
            connection.sendall(json.dumps(message).encode() + b"\n" + json.dumps(answer).encode() + b"\n")
            assert client.wait(SECONDS_MAX) == 0
            assert client.stdout
            assert client.stdout.read().splitlines()[1:] == ['room:a bob: "hi"']


def test_chat_on_a_terminal_is_left_with_control_c(
    environ: Mapping[str, str], tmp_path: Path, listener: socket.socket
) -> None:
    terminal, end = pty.openpty()
    with (
        listener,
        subprocess.Popen(
            moorage("chat", "--user", "alice", "--server", "{}:{}".format(*listener.getsockname())),
            cwd=tmp_path, env=environ, stdin=end, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as client,
    ):  # fmt: skip
        os.close(end)
        connection, hello = sign_in(listener)
        with connection:
            assert hello["channels"] == ["room:lobby"]
            os.write(terminal, b"typed\n")
            assert json.loads(connection.makefile().readline())["data"] == {"text": "typed"}
            client.send_signal(signal.SIGINT)
            assert client.wait(SECONDS_MAX) == 130
            assert client.stderr
            assert client.stderr.read() == ""
    os.close(terminal)
