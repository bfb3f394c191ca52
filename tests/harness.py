"""A Moorage server in processes of its own, and small clients that speak its wire protocols over real sockets."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import pytest
from nursery import Born, nursery

ROOT = Path(__file__).parent.parent
DEADLINE_SECONDS = 20.0

Json = dict[str, Any]

# The server dies with the thread that has started it, so that a pytest that is killed leaves none behind: prctl(2). A
# preexec_fn would run in a copy of a process that has threads. Whoever starts one in another thread may end that earlier.
_BOUND = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL
if os.getppid() != {parent}:
    sys.exit("its test has ended")
"""

# And it runs as it does in an image or under systemd, wherever the tests run: a thread's capabilities, of which it keeps
# none, are those of all that it forks: capset(2), capabilities(7).
UNPRIVILEGED = """
import ctypes
assert ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()) == 0
"""


def wait_until(condition: Callable[[], Any], what: str, seconds: float = DEADLINE_SECONDS) -> Any:
    """Return the first truthy result of `condition`; fail the test after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.02)


class Server:
    """`moorage serve` on ports of its own: started, awaited, and stopped without leftovers.

    `before` is Python that runs in its process first: to lower a limit that no option changes. `alone`: in a process
    that shares no memory with others, so that what it uses is its own.
    """

    def __init__(
        self,
        options: Sequence[str] = (),
        *,
        env: dict[str, str] | None = None,
        wait: bool = True,
        before: str = "",
        unprivileged: bool = True,
        alone: bool = False,
    ) -> None:
        self.options = list(options)
        self.addresses: dict[str, list[tuple[str, int]]] = {"tcp": [], "http": [], "admin": []}
        self.log: list[str] = []
        self._env = env or {}
        self._clients: list[LineClient | EventClient] = []
        self._wait = wait
        self._program = (
            f"{UNPRIVILEGED if unprivileged else ''}import sys\n{before}\nfrom commands import main\nsys.exit(main())"
        )
        self._is_alone = alone or bool(before)  # nothing has been imported yet that is made of what it changes
        self._is_ready = threading.Event()

    def __enter__(self) -> Server:
        ports = [
            f
            for name in ("tcp", "http", "admin")
            if f"--{name}" not in self.options
            for f in (f"--{name}", "127.0.0.1:0")
        ]
        environ = {k: v for k, v in os.environ.items() if not k.startswith("MOORAGE_")} | self._env
        self.process = self._start(["serve", *ports, *self.options], environ)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if self._wait:
            self.wait_ready()
        return self

    def _start(self, arguments: list[str], environ: dict[str, str]) -> subprocess.Popen[str] | Born:
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and not self._is_alone:
            return nursery(str(ROOT)).bear(self._program, arguments, environ)
        program = (_BOUND.format(parent=os.getpid()) if is_main else "") + self._program
        return subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            cwd=ROOT, env=environ, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._clients:
            client.close()
        if self.process.poll() is None:
            family = self.family()
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            _gone, alive = psutil.wait_procs(family, timeout=5)
            for process in alive:
                process.kill()
            assert not alive, f"left running: {alive}"
        self._reader.join(5)
        assert self.process.stderr is not None
        self.process.stderr.close()
        if value is not None:
            print("".join(self.log))

    def _read(self) -> None:
        assert self.process.stderr is not None
        with contextlib.suppress(ValueError):
            for line in self.process.stderr:
                self.log.append(line)
                name, _, rest = line.strip().partition(" ")
                if name in self.addresses and not self._is_ready.is_set():
                    host, _, port = rest.rpartition(":")
                    self.addresses[name].append((host.strip("[]"), int(port)))
                elif line == "ready\n":
                    self._is_ready.set()

    def wait_ready(self, seconds: float = DEADLINE_SECONDS) -> None:
        """Wait for the line `ready`."""
        wait_until(lambda: self._is_ready.is_set() or self.process.poll() is not None, f"ready: {self.log}", seconds)
        assert self._is_ready.is_set(), f"exit code {self.process.returncode}: {''.join(self.log)}"

    # What it is made of.

    @property
    def tcp(self) -> tuple[str, int]:
        return self.addresses["tcp"][0]

    @property
    def http(self) -> tuple[str, int]:
        return self.addresses["http"][0]

    @property
    def admin(self) -> tuple[str, int]:
        return self.addresses["admin"][0]

    def family(self) -> list[psutil.Process]:
        """All processes of the server, the supervisor first."""
        with contextlib.suppress(psutil.NoSuchProcess):
            supervisor = psutil.Process(self.process.pid)
            return [supervisor, *supervisor.children(recursive=True)]
        return []

    def workers(self) -> dict[int, psutil.Process]:
        """The workers by number."""
        found = {}
        for process in self.family()[1:]:
            with contextlib.suppress(psutil.Error, IndexError):
                title = process.cmdline()[0]
                if title.startswith("moorage: worker "):
                    found[int(title.rsplit(" ", 1)[1])] = process
        return found

    def kill_worker(self, rng: random.Random) -> None:
        """SIGKILL one of the workers, if there is one just now."""
        workers = list(self.workers().values())
        if workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                rng.choice(workers).kill()

    def redis(self, *, but: psutil.Process | None = None) -> psutil.Process | None:
        """The embedded Valkey, `but` not that one: None while there is none."""
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):  # it may end while we look
                if process.name() == "valkey-server" and process != but:
                    return process
        return None

    # Speaking to it.

    def line_client(self, **connect: Any) -> LineClient:
        """Open a TCP connection, and connect when there are any `connect` members."""
        client = LineClient(self.tcp)
        self._clients.append(client)
        if connect:
            client.send({"op": "connect", **connect})
        return client

    def joined(self, user: str, *channels: str, **connect: Any) -> LineClient:
        """Return a client that has been answered `connected`."""
        client = self.line_client(user=user, channels=list(channels), **connect)
        client.connected = client.expect("connected")
        return client

    def event_client(self, query: str, **headers: str) -> EventClient:
        """Open `/events?query`."""
        client = EventClient(self.http, query, headers)
        self._clients.append(client)
        return client

    def request(
        self, method: str, path: str, body: Any = None, *, admin: bool = False, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """Send one HTTP request; return status and JSON (or text)."""
        connection = http.client.HTTPConnection(*(self.admin if admin else self.http), timeout=10)
        try:
            content = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, content, {"Content-Type": "application/json", **(headers or {})})
            response = connection.getresponse()
            text = response.read().decode()
            is_json = (response.getheader("Content-Type") or "").startswith("application/json")
            return response.status, json.loads(text) if is_json else text
        finally:
            connection.close()

    def publish(self, channel: str, data: object, **more: str) -> str:
        """Publish as a backend does; return the position."""
        body = {"channel": channel, "data": data, **more}
        status, answer = self.request("POST", "/api/publish", body, admin=True)
        assert status == 200, answer
        found: str = answer["position"]
        return found

    def stats(self) -> Json:
        """`GET /api/stats`."""
        return self.request("GET", "/api/stats", admin=True)[1]


def dial(address: tuple[str, int]) -> socket.socket:
    """Open a TCP connection."""
    return socket.create_connection(address, timeout=DEADLINE_SECONDS)


class LineClient:
    """A raw TCP client: JSON objects, one a line. Heartbeats are counted and skipped. `dial` opens its connection."""

    def __init__(self, address: tuple[str, int], dial: Callable[[tuple[str, int]], socket.socket] = dial) -> None:
        self.sock = dial(address)
        self.heartbeats = 0
        self.connected: Json = {}
        self._rest = b""

    def send(self, *messages: Json | bytes) -> None:
        """Send messages in one packet; bytes go as they are."""
        self.sock.sendall(b"".join(m if isinstance(m, bytes) else json.dumps(m).encode() + b"\n" for m in messages))

    def receive(self, seconds: float = DEADLINE_SECONDS) -> Json | None:
        """Return the next message; None at the end of the stream. Fails when nothing comes."""
        self.sock.settimeout(seconds)
        while True:
            line, newline, rest = self._rest.partition(b"\n")
            if newline:
                self._rest = rest
                if line:
                    found: Json = json.loads(line)
                    return found
                self.heartbeats += 1
                continue
            data = self.sock.recv(65536)
            if not data:
                return None
            self._rest += data

    def expect(self, op: str, **members: Any) -> Json:
        """Return the next message that is an `op`, and check the members named; others before it are skipped."""
        while (message := self.receive()) is not None:
            if message["op"] == op:
                assert {name: message.get(name) for name in members} == members
                return message
        pytest.fail(f"the connection ended without {op}")

    def messages(self, count: int) -> list[Json]:
        """Return the next `count` messages."""
        return [self.expect("message") for _ in range(count)]

    def ends(self) -> bool:
        """True when the stream ends; what still comes before is thrown away."""
        with contextlib.suppress(ConnectionResetError):
            while self.receive() is not None:
                pass
        return True

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()

    def __enter__(self) -> LineClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class EventClient:
    """An SSE client that keeps every event as a dict of its fields; comments are counted."""

    def __init__(
        self,
        address: tuple[str, int],
        query: str,
        headers: dict[str, str],
        dial: Callable[[tuple[str, int]], socket.socket] = dial,
    ) -> None:
        self.sock = dial(address)
        named = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        self.sock.sendall(f"GET /events?{query} HTTP/1.1\r\nHost: {address[0]}\r\n{named}\r\n".encode())
        self._file = self.sock.makefile("rb")
        self.comments = 0
        status = self._file.readline().decode()
        self.status = int(status.split()[1]) if status else 0
        self.headers = {}
        while line := self._file.readline().decode().rstrip("\r\n"):
            name, _, value = line.partition(": ")
            self.headers[name.lower()] = value

    def body(self) -> bytes:
        """Return all there is until the end."""
        return self._file.read()

    def receive(self) -> dict[str, str] | None:
        """Return the next event; None at the end of the stream."""
        event: dict[str, str] = {}
        for raw in self._file:
            line = raw.decode().rstrip("\r\n")
            if line.startswith(":"):
                self.comments += 1
            elif line:
                name, _, value = line.partition(": ")
                event[name] = value
            elif event:
                return event
        return None

    def events(self) -> Iterator[dict[str, str]]:
        """Yield events until the end."""
        while (event := self.receive()) is not None:
            yield event

    def expect(self, name: str) -> Json:
        """Return the data of the next event called `name` ("message" for those without a name)."""
        for event in self.events():
            if event.get("event", "message") == name and "data" in event:
                found: Json = json.loads(event["data"])
                assert event.get("id", found.get("position")) == found.get("position")
                return found
        pytest.fail(f"the stream ended without {name}")

    def close(self) -> None:
        """Close the socket."""
        self._file.close()
        self.sock.close()

    def __enter__(self) -> EventClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
