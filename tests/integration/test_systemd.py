"""systemd's own programs beside a real server: socket activation, notification, and the unit files."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from harness import ROOT, LineClient, Server, wait_until
from ports import free_port

from server import limits
from server.config import Config
from workers import BAD_CONFIG

StartServer = Callable[..., Server]


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (package systemd)")
    return found


class Activated:
    """A server behind `systemd-socket-activate`, which passes it sockets on the first connection."""

    def __init__(self, listen: list[str], options: list[str]) -> None:
        flags = [part for address in listen for part in ("--listen", address)]
        path = f"--setenv=PATH={os.environ['PATH']}"
        serve = [sys.executable, "-m", "commands", "serve", *options]
        self.log: list[str] = []
        self.process = subprocess.Popen(
            [program("systemd-socket-activate"), *flags, path, *serve],
            cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        wait_until(lambda: sum("Listening on" in line for line in self.log) == len(listen), f"it listens: {self.log}")

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)

    def stop(self, signum: signal.Signals = signal.SIGTERM) -> int:
        """Tell the server, which is the same process by now, and return its exit code."""
        self.process.send_signal(signum)
        try:
            return self.process.wait(20)
        finally:
            self.process.kill()
            self._reader.join(5)
            assert self.process.stderr is not None
            self.process.stderr.close()


@contextmanager
def connected(address: tuple[str, int], user: str) -> Iterator[LineClient]:
    with LineClient(address) as client:
        client.send({"op": "connect", "user": user})
        client.connected = client.expect("connected")
        yield client


def test_sockets_are_passed_and_those_that_were_not_are_opened() -> None:
    tcp, http, admin = free_port(), free_port(), free_port()
    options = [
        "--workers", "3", "--drain-seconds", "1", "--tcp", f"localhost:{tcp}", "--http", f"127.0.0.1:{http}",
        "--admin", f"127.0.0.1:{admin}",
    ]  # fmt: skip
    server = Activated([f"127.0.0.1:{tcp}", f"127.0.0.1:{http}"], options)
    with ExitStack() as stack:
        first = stack.enter_context(connected(("127.0.0.1", tcp), "first"))  # waited while the server started
        clients = [first, *(stack.enter_context(connected(("127.0.0.1", tcp), f"u{n}")) for n in range(40))]
        with socket.create_connection(("127.0.0.1", http), timeout=20) as sock:
            sock.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert b'{"status":"ready"}' in sock.makefile("rb").read()
        workers = {client.connected["session"].split("-")[1] for client in clients}
        assert workers <= {"0", "1", "2"}
        wait_until(lambda: "ready\n" in server.log, "it says so")
        assert server.stop() == 0
        for client in clients:
            client.expect("close", code=3001)


def test_several_sockets_of_one_address_are_shared_out() -> None:
    tcp, http, admin = free_port(), free_port(), free_port()
    with ExitStack() as stack:
        # systemd-socket-activate knows no ReusePort=: what it would pass with that is passed by hand.
        listening = [
            stack.enter_context(socket.create_server(("127.0.0.1", port), reuse_port=True)) for port in (tcp, tcp, http)
        ]
        pass_on = (
            "import os, sys\n"
            "fds = [os.dup(int(fd)) for fd in sys.argv[1].split(',')]\n"
            "fds = [os.dup2(fd, 3 + index) for index, fd in enumerate(os.dup2(fd, 100 + fd) for fd in fds)]\n"
            "os.environ |= {'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': str(len(fds))}\n"
            "os.execv(sys.executable, [sys.executable, '-m', 'commands', 'serve', *sys.argv[2:]])"
        )
        fds = [sock.fileno() for sock in listening]
        options = [
            "--workers",
            "2",
            "--tcp",
            f"127.0.0.1:{tcp}",
            "--http",
            f"127.0.0.1:{http}",
            "--admin",
            f"127.0.0.1:{admin}",
        ]
        process = subprocess.Popen(
            [sys.executable, "-c", pass_on, ",".join(map(str, fds)), *options],
            cwd=ROOT, pass_fds=fds, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        stack.callback(process.kill)
        clients = [stack.enter_context(connected(("127.0.0.1", tcp), f"u{number}")) for number in range(40)]
        workers = [client.connected["session"].split("-")[1] for client in clients]
        assert {workers.count("0") > 5, workers.count("1") > 5} == {True}, "the kernel spreads them: a queue a worker"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        # Whoever passed the sockets holds them still: who comes now waits, and is not refused.
        stack.enter_context(socket.create_connection(("127.0.0.1", tcp), timeout=5))
        assert process.stderr is not None
        process.stderr.close()


@pytest.mark.parametrize("listen", ["127.0.0.1", "127.0.0.2"])
def test_a_socket_that_no_option_names_is_no_boot(listen: str) -> None:
    passed, tcp = free_port(), free_port()
    options = ["--workers", "1", "--tcp", f"127.0.0.1:{tcp}", "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
    server = Activated([f"{listen}:{passed}"], options)
    with socket.create_connection((listen, passed), timeout=5):
        assert server.process.wait(20) == 3
    server.stop()
    text = "".join(server.log)
    assert (
        f"descriptor 3 (unknown) that was passed listens on {listen}:{passed}: want an address that an option names"
        in text
    )
    assert f"(127.0.0.1:{tcp}, 127.0.0.1:0)" in text


def test_the_service_manager_is_told(start_server: StartServer, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(tmp_path / "notify"))
        heard.settimeout(20)
        variables = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1000000"}
        server = start_server("--workers", "2", "--drain-seconds", "3", env=variables)

        def next_with(line: str) -> str:
            while line not in (message := heard.recv(4096).decode()).split("\n"):
                pass
            return message

        ready = next_with("READY=1")
        assert f"STATUS=2 workers: tcp 127.0.0.1:{server.tcp[1]}, http 127.0.0.1:{server.http[1]}" in ready
        for _ in range(3):
            next_with("WATCHDOG=1")
        server.process.send_signal(signal.SIGHUP)
        assert re.search(r"^MONOTONIC_USEC=\d+$", next_with("RELOADING=1"), re.MULTILINE)
        next_with("READY=1")
        client = server.joined("alice")
        wait_until(lambda: server.stats()["total"]["connections"] == 1, "it shows")
        server.process.send_signal(signal.SIGTERM)
        stopping = next_with("STOPPING=1")
        assert "STATUS=draining 1 sessions" in stopping
        (extended,) = re.findall(r"^EXTEND_TIMEOUT_USEC=(\d+)$", stopping, re.MULTILINE)
        assert int(extended) >= (3 + limits.DRAIN_EXTRA_SECONDS + limits.STOP_SECONDS_MAX) * 1e6 - 1
        client.expect("close", code=3001)
        client.close()
        next_with("WATCHDOG=1")
        assert server.process.wait(20) == 0


# The unit files.


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(ROOT / "deploy" / name)
    return parser


def test_the_units_are_what_systemd_takes(tmp_path: Path) -> None:
    for name in ("moorage.service", "moorage.socket"):
        text = (ROOT / "deploy" / name).read_text()
        (tmp_path / name).write_text(text.replace("/opt/moorage/bin/moorage", shutil.which("true") or "/bin/true"))
    verify = [program("systemd-analyze"), "verify", str(tmp_path / "moorage.service"), str(tmp_path / "moorage.socket")]
    found = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout + found.stderr) == (0, "")


def test_the_unit_gives_a_drain_its_time_and_fits_the_server() -> None:
    service = unit("moorage.service")["Service"]
    assert (
        int(service["TimeoutStopSec"])
        > Config().drain_seconds + limits.DRAIN_EXTRA_SECONDS + limits.STOP_SECONDS_MAX + 1
    )
    assert service["Type"] == "notify"
    assert int(service["RestartPreventExitStatus"]) == BAD_CONFIG
    assert service["KillMode"] == "mixed"
    assert "-HUP" in service["ExecReload"]


def test_the_socket_listens_on_the_ports_of_the_server() -> None:
    text = (ROOT / "deploy" / "moorage.socket").read_text()
    ports = {int(line.rpartition(":")[2]) for line in text.splitlines() if line.startswith("ListenStream=")}
    assert ports == {Config().tcp[0].port, Config().http[0].port}
