"""A master with replicas, watched by sentinels: real processes of the machine's redis-server, on an address of their own."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
import redis
from harness import wait_until

from router import embedded

REDIS_SERVER = shutil.which("redis-server") or ""
needs_redis_server = pytest.mark.skipif(not REDIS_SERVER, reason="no redis-server")

MASTER = "main"
# How often sentinels do what they do, in milliseconds: a tenth of what they are made for. And a machine that is busy
# must not make them think that their clock was set (tilt).
_HASTE = {
    "info-period": 200, "ping-period": 100, "ask-period": 100, "publish-period": 200, "election-timeout": 1000,
    "tilt-trigger": 20_000, "tilt-period": 1000, "min-link-reconnect-period": 500,
}  # fmt: skip


def spawn(*arguments: str, directory: Path, program: str = REDIS_SERVER) -> subprocess.Popen[bytes]:
    """Run a server that is killed when this process ends."""
    with (directory / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", embedded._LAUNCHER, str(os.getpid()), program, *arguments], cwd=directory, stdout=log
        )


def own_host() -> str:
    """An address of this machine that no other test uses: any port of it is free."""
    return "127." + ".".join(str(random.SystemRandom().randrange(1, 255)) for _ in range(3))


class Quorum:
    """`servers` by port: the first is the master at first. `options` are of redis-server, for all of them."""

    def __init__(self, directory: Path, *options: str, servers: int = 3, sentinels: int = 3) -> None:
        self.host = own_host()
        self.ports = [6379 + number for number in range(servers)]
        self.sentinel_ports = [26379 + number for number in range(sentinels)]
        self.servers: dict[int, subprocess.Popen[bytes]] = {}
        self._directory = directory
        self._options = options
        self._clients: dict[int, Any] = {}
        self._stack = contextlib.ExitStack()

    @property
    def url(self) -> str:
        """What `--redis` takes."""
        return f"redis+sentinel://{','.join(f'{self.host}:{port}' for port in self.sentinel_ports)}/{MASTER}"

    def client(self, port: int) -> Any:
        """A client of the server, or sentinel, on `port`."""
        if port not in self._clients:
            client = redis.Redis(self.host, port, protocol=3, decode_responses=True, socket_timeout=5)
            self._clients[port] = self._stack.enter_context(contextlib.closing(client))
        return self._clients[port]

    def start(self, port: int, master: int | None = None) -> None:
        """Start one of the servers, as a replica of that on port `master`, or of the first of all, unless it is that."""
        of = ("--replicaof", self.host, str(master or self.ports[0])) if self.servers else ()
        self.servers[port] = spawn(
            "--port", str(port), "--bind", self.host, "--save", "", "--repl-diskless-sync-delay", "0",
            "--dbfilename", f"{port}.rdb", "--repl-ping-replica-period", "1", "--replica-announce-ip", self.host,
            *of, *self._options, directory=self._directory,
        )  # fmt: skip
        self._stack.callback(stop, self.servers[port])

    def _start_sentinel(self, port: int) -> None:
        path = self._directory / f"sentinel-{port}.conf"
        path.write_text(
            f"port {port}\nbind {self.host}\nsentinel announce-ip {self.host}\n"
            f"sentinel monitor {MASTER} {self.host} {self.ports[0]} 2\n"
            f"sentinel down-after-milliseconds {MASTER} 1000\nsentinel failover-timeout {MASTER} 2000\n"
            f"sentinel parallel-syncs {MASTER} 2\n"
        )
        self._stack.callback(stop, spawn(str(path), "--sentinel", directory=self._directory))

    def __enter__(self) -> Quorum:
        for port in self.ports:
            self.start(port)
        self.wait_synced()
        for port in self.sentinel_ports:
            self._start_sentinel(port)
        for port in self.sentinel_ports:
            wait_until(lambda port=port: answers(self.client(port)), "the sentinel answers")
            haste = [text for name, value in _HASTE.items() for text in (name, str(value))]
            self.client(port).execute_command("SENTINEL", "DEBUG", *haste)
        for port in self.sentinel_ports:
            wait_until(lambda port=port: self._is_informed(port), "the sentinel knows all of them")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def wait_synced(self) -> None:
        """Wait until every server that runs has what the master has."""
        for port, process in self.servers.items():
            if process.poll() is None:
                wait_until(lambda port=port: answers(self.client(port)), "the server answers")
        wait_until(lambda: all(map(self._is_synced, self.running())), "the replicas are synced")

    def running(self) -> list[int]:
        """The ports of the servers that run."""
        return [port for port, process in self.servers.items() if process.poll() is None]

    def master_port(self) -> int:
        """Where the master is, say most of the sentinels."""
        ask = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)
        said = Counter(self.client(port).execute_command(*ask)[1] for port in self.sentinel_ports)
        return int(said.most_common(1)[0][0])

    def fail_over(self) -> None:
        """Let the sentinels promote a replica although the master is well; what it takes meanwhile is lost."""

        def is_accepted() -> bool:
            with contextlib.suppress(redis.ResponseError):  # it has not heard of the replicas for a while
                return bool(self.client(self.sentinel_ports[0]).execute_command("SENTINEL", "FAILOVER", MASTER))
            return False

        wait_until(is_accepted, "a replica to promote")

    def wait_moved(self, port: int) -> int:
        """Wait until the master is another than that on `port`; return where it is."""
        wait_until(lambda: self.master_port() != port, "another master", 60)  # an election that fails is held anew
        return self.master_port()

    def wait_followed(self) -> None:
        """Wait until all servers that run follow the master, and the sentinels have seen it."""

        def is_followed() -> bool:
            roles = [self.client(port).role()[0] for port in self.running()]
            return roles.count("master") == 1 and all(map(self._is_informed, self.sentinel_ports))

        self.wait_synced()
        wait_until(is_followed, "one master, and all know it", 40)

    def _is_synced(self, port: int) -> bool:
        said = self.client(port).info("replication")
        return said["role"] == "master" or said["master_link_status"] == "up"

    def _is_informed(self, port: int) -> bool:
        said = self.client(port).execute_command("SENTINEL", "MASTER", MASTER)
        replicas = self.client(port).execute_command("SENTINEL", "REPLICAS", MASTER)
        well = [each for each in replicas if each["flags"] == "slave" and each["master-link-status"] == "ok"]
        others = len(self.sentinel_ports) - 1
        is_quiet = said["flags"] == "master" and int(said["port"]) == self.master_port()  # no failover is under way
        return is_quiet and (int(said["num-other-sentinels"]), len(well)) == (others, len(self.ports) - 1)


def answers(client: Any) -> bool:
    """Whether a server answers, and has loaded its data."""
    with contextlib.suppress(redis.RedisError):
        return bool(client.ping())
    return False


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server that was spawned."""
    process.kill()
    process.wait()
