"""HAProxy and nginx before two Moorage nodes on one Redis, run from the files in deploy/.

Of those files only addresses, ports, paths, the user and the number of connections are replaced, and each of them has to
be there. Every process listens on a loopback address that this test process made up, so that a port which is free once
stays free for a node that is to come back to it.
"""

from __future__ import annotations

import contextlib
import csv
import getpass
import io
import itertools
import os
import resource
import shutil
import socket
import ssl
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from harness import DEADLINE_SECONDS, ROOT, LineClient, Server, wait_until

Address = tuple[str, int]

NAME = "chat.test"
_hosts = itertools.count(1)


def loopback_host() -> str:
    """Return an address of this machine that nobody else uses: 127, a number, and the process id."""
    pid = os.getpid()
    return f"127.{64 + (pid >> 16 & 31) + 32 * (next(_hosts) % 5)}.{pid >> 8 & 255}.{pid & 255}"


def free_ports(host: str, count: int) -> list[int]:
    """Return ports that are free on `host`."""
    socks = [socket.create_server((host, 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in socks]
    for sock in socks:
        sock.close()
    return ports


def descriptors() -> int:
    """Return how many descriptors a balancer may have here: enough for 5,000 clients, where the machine allows it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return 20_000 if hard == resource.RLIM_INFINITY else min(20_000, hard)


def replaced(text: str, changes: Mapping[str, str]) -> str:
    """Return `text` with each key of `changes` replaced, all of which must be in it."""
    for old, new in changes.items():
        assert old in text, f"not in the shipped file: {old}"
        text = text.replace(old, new)
    return text


class Certificate(NamedTuple):
    """A certificate of `NAME` that signs itself: PEM files, and a client's side that trusts nothing else."""

    chain: Path
    key: Path
    both: Path

    @classmethod
    def make(cls, directory: Path) -> Certificate:
        """Make one, on P-256."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        chain = certificate.public_bytes(serialization.Encoding.PEM)
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        made = cls(directory / "moorage.pem", directory / "moorage.key", directory / "both.pem")
        made.chain.write_bytes(chain)
        made.key.write_bytes(secret)
        made.both.write_bytes(chain + secret)
        return made

    def trusted(self) -> ssl.SSLContext:
        """Return a client's context."""
        return ssl.create_default_context(cafile=str(self.chain))


class Node:
    """A Moorage server on addresses that it keeps when it is started again."""

    def __init__(self, *options: str) -> None:
        self.host = loopback_host()
        ports = free_ports(self.host, 4)
        self.tcp, self.http = ports[:2], ports[2:]
        self.options = options
        self.server: Server | None = None

    def start(self) -> Server:
        """Start it, or start it again."""
        assert self.server is None
        listen = [("--tcp", port) for port in self.tcp] + [("--http", port) for port in self.http]
        flags = [word for flag, port in listen for word in (flag, f"{self.host}:{port}")]
        self.server = Server([*flags, *self.options]).__enter__()
        return self.server

    def stop(self) -> None:
        """Stop it, if it runs; nothing of it is left."""
        if self.server is not None:
            server, self.server = self.server, None
            server.__exit__(None, None, None)


class Balancer:
    """A balancer in the foreground, and nodes a and b behind it, which trust it and nobody else.

    `with` starts and stops all three.
    """

    program: str
    file: str
    proxy_protocol: str  # what the file says the nodes are to be told

    def __init__(self, directory: Path, redis: str, *options: str) -> None:
        if shutil.which(self.program) is None:
            pytest.skip(f"no {self.program} on this machine")
        self.directory = directory
        self.certificate = Certificate.make(directory)
        self.trusted = self.certificate.trusted()
        host = loopback_host()
        lines, web = free_ports(host, 2)
        self.lines: Address = (host, lines)
        self.web: Address = (host, web)
        self.sources = [loopback_host(), loopback_host()]
        trust = ("--proxy-protocol", self.proxy_protocol, "--proxy-trusted", ",".join(self.sources))
        self.a, self.b = (Node("--redis", redis, *trust, *options) for _ in range(2))
        self._log = (directory / f"{self.program}.log").open("w+")

    @property
    def configuration(self) -> Path:
        """Where its file is."""
        return self.directory / self.file

    def changes(self) -> dict[str, str]:
        """What is replaced in the shipped file."""
        found: dict[str, str] = {}
        for host, node in zip(("10.0.0.11", "10.0.0.12"), (self.a, self.b), strict=True):
            for shipped, port in zip((7400, 7401, 7480, 7481), (*node.tcp, *node.http), strict=True):
                found[f" {host}:{shipped} "] = f" {node.host}:{port} "
        return found

    def check(self) -> subprocess.CompletedProcess[str]:
        """What the program itself says of the file."""
        raise NotImplementedError

    def command(self) -> list[str]:
        """What runs it."""
        raise NotImplementedError

    def text(self) -> str:
        """The shipped file, replaced."""
        return replaced((ROOT / "deploy" / self.file).read_text(), self.changes())

    def __enter__(self) -> Balancer:
        self.configuration.write_text(self.text())
        checked = self.check()
        assert checked.returncode == 0, checked.stderr
        with contextlib.ExitStack() as stack:
            for node in (self.a, self.b):  # first, so that neither of them is down for it to begin with
                stack.callback(node.stop)
                node.start()
            self.process = subprocess.Popen(self.command(), stdout=self._log, stderr=self._log, start_new_session=True)
            stack.callback(self._stop)
            wait_until(self._listens, f"{self.program} listens")
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        if value is not None:
            print(self._said())
        self._log.close()

    def _stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _said(self) -> str:
        return Path(self._log.name).read_text()[-4000:]

    def _listens(self) -> bool:
        assert self.process.poll() is None, self._said()
        try:
            for address in (self.lines, self.web):
                socket.create_connection(address, timeout=1).close()
        except OSError:
            return False
        return True

    def memory_bytes(self) -> int:
        """What its processes take of memory, each page counted once (PSS)."""
        master = psutil.Process(self.process.pid)
        return sum(each.memory_full_info().pss for each in (master, *master.children(recursive=True)))

    # Speaking through it.

    def dial(self, address: Address, source: str = "") -> ssl.SSLSocket:
        """Open a connection with TLS, from `source`."""
        sock = socket.create_connection(address, DEADLINE_SECONDS, source_address=(source, 0) if source else None)
        return self.trusted.wrap_socket(sock, server_hostname=NAME)

    def line_client(self, source: str = "", **connect: Any) -> LineClient:
        """Return a client over TLS that has asked to connect."""
        client = LineClient(self.lines, lambda address: self.dial(address, source))
        client.send({"op": "connect", **connect})
        return client

    def joined(self, user: str, *channels: str, source: str = "", **connect: Any) -> LineClient:
        """Return a client over TLS that has been answered `connected`."""
        client = self.line_client(source, user=user, channels=list(channels), **connect)
        client.connected = client.expect("connected")
        return client


class Haproxy(Balancer):
    """HAProxy."""

    program, file, proxy_protocol = "haproxy", "haproxy.cfg", "v2"

    def changes(self) -> dict[str, str]:
        return {
            **super().changes(),
            " source 10.0.0.2 ": f" source {self.sources[0]} ",
            " source 10.0.0.3 ": f" source {self.sources[1]} ",
            "bind :7443 ": "bind {}:{} ".format(*self.lines),
            "bind :443 ": "bind {}:{} ".format(*self.web),
            "\n    user haproxy\n    group haproxy": f"\n    uid {os.getuid()}\n    gid {os.getgid()}",
            "/etc/haproxy/moorage.pem": str(self.certificate.both),
            "/run/haproxy/admin.sock": str(self.directory / "admin.sock"),
            "\n    maxconn 200000": f"\n    maxconn {descriptors() * 4 // 9}",
        }

    def check(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["haproxy", "-c", "-f", self.configuration], capture_output=True, text=True)

    def command(self) -> list[str]:
        return ["haproxy", "-db", "-f", str(self.configuration)]

    def ask(self, command: str) -> str:
        """What it answers on its own socket."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self.directory / "admin.sock"))
            sock.sendall(command.encode() + b"\n")
            return b"".join(iter(lambda: sock.recv(65536), b"")).decode()

    def servers(self, name: str, backend: str = "moorage_lines") -> list[dict[str, str]]:
        """The lines of node `name` in `backend`, as `show stat` has them."""
        rows = csv.DictReader(io.StringIO(self.ask("show stat").removeprefix("# ")))
        return [row for row in rows if row["pxname"] == backend and row["svname"].startswith(name)]

    def states(self, name: str) -> set[str]:
        """What it takes node `name` for, UP or DOWN, in all backends."""
        backends = ("moorage_lines", "moorage_events", "moorage_web")
        return {row["status"].split()[0] for each in backends for row in self.servers(name, each)}

    def sent(self, name: str) -> int:
        """How many connections and requests it has sent to node `name` since it began."""
        return sum(int(row["stot"]) for each in ("moorage_lines", "moorage_events") for row in self.servers(name, each))


class Nginx(Balancer):
    """nginx, with its stream module."""

    program, file, proxy_protocol = "nginx", "nginx.conf", "auto"

    def changes(self) -> dict[str, str]:
        held = self.directory / "nginx"
        held.mkdir(exist_ok=True)
        temporary = "".join(f"{each}_temp_path {held}/{each}; " for each in _TEMPORARY)
        return {
            **super().changes(),
            " 10.0.0.2;": f" {self.sources[0]};",
            " 10.0.0.3;": f" {self.sources[1]};",
            "listen 7443 ": "listen {}:{} ".format(*self.lines),
            "listen 443 ": "listen {}:{} ".format(*self.web),
            "/etc/nginx/moorage.pem": str(self.certificate.chain),
            "/etc/nginx/moorage.key": str(self.certificate.key),
            "/run/nginx.pid": str(self.directory / "nginx.pid"),
            "/var/log/nginx/error.log": "stderr",
            "/var/log/nginx/": f"{self.directory}/",
            "user www-data;": f"user {getpass.getuser()};",
            "worker_rlimit_nofile 200000;": f"worker_rlimit_nofile {descriptors()};",
            "worker_connections 100000;": f"worker_connections {descriptors() - 100};",
            "    access_log off;": f"    access_log off; {temporary}",
        }

    def check(self) -> subprocess.CompletedProcess[str]:
        if not any(Path("/etc/nginx/modules-enabled").glob("*stream.conf")):
            pytest.skip("nginx has no stream module on this machine")
        return subprocess.run(["nginx", "-t", "-c", self.configuration], capture_output=True, text=True)

    def command(self) -> list[str]:
        return ["nginx", "-c", str(self.configuration), "-g", "daemon off;"]


_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
