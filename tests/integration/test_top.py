"""`moorage top` beside a real server: in a pipe, as JSON, and on a terminal that changes its size."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness import ROOT, LineClient, Server, wait_until

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def command(server: Server, *flags: str) -> list[str]:
    return [sys.executable, "-m", "commands", "top", "{}:{}".format(*server.admin), *flags]


def environ() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("MOORAGE_") and k not in {"COLUMNS", "LINES"}}


def top(server: Server, *flags: str) -> str:
    run = subprocess.run(command(server, *flags), cwd=ROOT, env=environ(), capture_output=True, text=True, check=True)
    return run.stdout


@contextlib.contextmanager
def speech(client: LineClient) -> Iterator[None]:
    """Have a client publish for as long as it is looked at, however long that takes to begin."""
    has_ended = threading.Event()

    def speak() -> None:
        number = 0
        while not has_ended.is_set():
            client.send({"op": "publish", "id": number, "channel": "room:a", "data": number})
            client.expect("published", id=number)
            number += 1

    with ThreadPoolExecutor() as pool:
        speaking = pool.submit(speak)
        try:
            yield
        finally:
            has_ended.set()
            speaking.result()


def test_once_and_as_json(server: Server) -> None:
    tcp = [server.joined(f"u{number}", "room:a") for number in range(6)]
    stream = server.event_client("user=s&channel=room:a")
    stream.expect("connected")
    wait_until(lambda: server.stats()["total"]["connections"] == 7, "they show")
    text = top(server, "--once", "--interval", "0.3")
    assert "connections: 7 (6 tcp, 1 sse)" in text
    assert "redis: connected" in text
    assert "\x1b" not in text
    assert [line.split()[0] for line in text.splitlines()[-4:]] == ["WORKER", "0", "1", "all"]
    piped = top(server, "--interval", "0.3")
    assert piped.splitlines()[1] == text.splitlines()[1], "a pipe is as --once"
    assert len(piped.splitlines()) == len(text.splitlines())

    with speech(tcp[0]):
        (found,) = json.loads(top(server, "--json", "--interval", "2"))
    assert found["total"]["connections"] == 7
    assert found["total"]["tcp"] + found["total"]["sse"] == 7
    assert found["total"]["deliveries_per_second"] > 0
    assert found["drain"] is None
    assert {row["state"] for row in found["workers"]} == {"ready"}


def test_a_server_that_is_not_there(server: Server) -> None:
    nowhere = [sys.executable, "-m", "commands", "top", "127.0.0.1:1"]
    run = subprocess.run(nowhere, cwd=ROOT, env=environ(), capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (1, "")
    assert "nothing listens on http://127.0.0.1:1" in run.stderr
    both = top(server, "127.0.0.1:1", "--interval", "0.2")
    assert "nothing listens on http://127.0.0.1:1" in both
    assert "ready" in both


class Terminal:
    """A command on a terminal of its own, and what it has shown."""

    def __init__(self, argv: list[str], columns: int, lines: int) -> None:
        self.text = ""
        self._ours, theirs = pty.openpty()
        self.settings = termios.tcgetattr(theirs)
        self.resize(columns, lines)
        self.process = subprocess.Popen(
            argv, cwd=ROOT, env=environ() | {"TERM": "xterm"}, stdin=theirs, stdout=theirs, start_new_session=True
        )
        self._theirs = theirs
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            while data := os.read(self._ours, 65536):
                self.text += data.decode()
        except OSError:
            pass  # EIO: everybody has closed the other end

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def press(self, key: str) -> None:
        os.write(self._ours, key.encode())

    def page(self) -> list[str]:
        """The last page drawn completely."""
        return ESCAPES.sub("", self.text.split("\x1b[H")[-1].split("\x1b[J")[0]).split("\r\n")

    def wait(self) -> int:
        code = self.process.wait(10)
        assert termios.tcgetattr(self._theirs) == self.settings, "the terminal is as it was"
        os.close(self._theirs)
        self._reader.join(5)
        os.close(self._ours)
        return code


@pytest.mark.parametrize("end", ["q", "interrupt"])
def test_on_a_terminal(server: Server, end: str) -> None:
    terminal = Terminal(command(server, "--interval", "0.2"), 100, 30)
    wait_until(lambda: "all" in terminal.page()[-1], "a page")
    server.joined("alice")
    wait_until(lambda: any("connections: 1 (1 tcp" in line for line in terminal.page()), "it is live")
    terminal.resize(40, 7)
    wait_until(lambda: len(terminal.page()) == 7 and max(map(len, terminal.page())) <= 40, "it fits again")
    assert "more rows" in terminal.page()[-2]
    if end == "q":
        terminal.press("q")
    else:
        terminal.process.send_signal(signal.SIGINT)
    assert terminal.wait() == 0
    assert terminal.text.startswith("\x1b[?1049h")
    assert terminal.text.endswith("\x1b[?25h\x1b[?1049l")
