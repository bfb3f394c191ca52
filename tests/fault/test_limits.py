"""A worker that runs out of descriptors, or of watches: those who are there are served on, those who come are told or wait."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import psutil
import pytest
import redis
from harness import LineClient, Server, wait_until

from router.embedded import Embedded
from server import reserve

StartServer = Callable[..., Server]

DESCRIPTORS = 200
LOWERED = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({DESCRIPTORS}, {DESCRIPTORS}))"


WATCHES = 100
SCARCE = f"""
import errno, glob, os, select
import server.reserve

class Scarce:
    # Refuses one watch more as the kernel does at fs.epoll.max_user_watches, which is all of the host's: here, one of this process.
    # What is watched is the kernel's own count, the event loop's set included.
    def __init__(self, set_=select.epoll):
        self._set = set_()

    def __getattr__(self, name):
        return getattr(self._set, name)

    def register(self, fd, events):
        watched = 0
        for path in glob.glob("/proc/self/fdinfo/*"):
            try:
                watched += open(path).read().count("tfd:")
            except OSError:
                pass
        if watched >= {WATCHES}:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._set.register(fd, events)

select.epoll = Scarce
server.reserve.RESTORE_SECONDS = 0.5
"""


def fill(server: Server) -> list[LineClient]:
    """Join until the server says that it is full."""
    joined: list[LineClient] = []
    while True:
        client = server.line_client(user=f"user{len(joined)}", channels=["room:full"])
        answer = client.receive()
        assert answer is not None
        if answer["op"] == "connected":
            joined.append(client)
            continue
        assert (answer["op"], answer["code"], answer["reconnect"]) == ("close", 3004, True)
        assert answer["after_ms"] > 0
        client.close()
        return joined


def is_let_in(server: Server) -> bool:
    with server.line_client(user="newcomer") as client:
        answer = client.receive()
        assert answer is not None
        return answer["op"] == "connected"


def check_served(server: Server, clients: list[LineClient], data: object) -> None:
    clients[0].send({"op": "publish", "id": 1, "channel": "room:full", "data": data})
    for client in clients:
        assert client.messages(1)[0]["data"] == data


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_a_worker_without_descriptors_serves_on(
    start_server: StartServer, valkey: Embedded, closing: ExitStack
) -> None:
    options = ("--workers", "1", "--redis", valkey.url, "--handshake-seconds", "3", "--heartbeat-seconds", "1")
    server = start_server(*options, before=LOWERED)
    assert server.stats()["total"]["fd_limit"] == DESCRIPTORS
    clients = fill(server)
    assert DESCRIPTORS - 64 - 40 < len(clients) < DESCRIPTORS - 64
    check_served(server, clients, "full")

    # Full, and nobody means harm: the next ones are told when to come back, health checks get their answer.
    with server.event_client("user=late") as stream:
        assert stream.status == 200
        event = stream.receive()
        assert event is not None
        assert (event["event"], json.loads(event["data"])["code"]) == ("close", 3004)
        assert int(event["retry"]) > 0
    assert server.request("GET", "/readyz") == (200, {"status": "ready"})
    assert server.stats()["total"]["accept_pauses"] == 0
    wait_until(lambda: server.stats()["total"]["sessions_refused"] >= 2, "counted")

    # Full, and more come who say nothing: what is left is kept for us, and nothing spins.
    silent = [closing.enter_context(socket.create_connection(address)) for address in [server.tcp, server.http] * 60]
    wait_until(lambda: server.stats()["total"]["accept_pauses"] >= 2, "accepting pauses at both ports")
    worker = psutil.Process(server.stats()["workers"][0]["pid"])
    cpu, at = sum(worker.cpu_times()[:2]), time.monotonic()
    with redis.Redis.from_url(valkey.url) as operator:
        operator.client_kill_filter(_type="pubsub")  # the bus needs two descriptors for its way back
    wait_until(lambda: server.stats()["total"]["bus_reconnects"] == 1, "the bus is back")
    check_served(server, clients, "still")
    assert worker.num_fds() < DESCRIPTORS
    wait_until(lambda: time.monotonic() - at > 1.0, "a second of measuring")
    assert (sum(worker.cpu_times()[:2]) - cpu) / (time.monotonic() - at) < 0.3
    assert sum("accepting pauses" in line for line in server.log) <= 2, "once for each port"

    # Those who said nothing are told so, and when somebody leaves somebody can come.
    assert b"4002" in silent[0].recv(1000)
    for sock in silent:
        sock.close()
    for client in clients[1:11]:
        client.close()
    del clients[1:11]
    wait_until(lambda: server.stats()["total"]["handshaking"] == 0, "nobody is at the door")
    clients += fill(server)
    check_served(server, clients, "again")


def test_kept_alive_connections_do_not_take_the_last_descriptors(
    start_server: StartServer, valkey: Embedded, closing: ExitStack
) -> None:
    server = start_server("--workers", "1", "--redis", valkey.url, before=LOWERED)
    host, port = server.http
    connections = [http.client.HTTPConnection(host, port, timeout=20) for _ in range(DESCRIPTORS)]
    kept = 0
    for connection in connections:
        closing.callback(connection.close)
        connection.request("GET", "/healthz")
        response = connection.getresponse()
        assert response.status == 200
        kept += response.getheader("Connection") != "close"
        response.read()
    assert kept < DESCRIPTORS - 64
    assert server.stats()["total"]["accept_pauses"] == 0
    for connection in connections:
        connection.close()
    wait_until(lambda: server.stats()["total"]["open_fds"] < 40, "all are closed")
    server.joined("alice")


def test_a_worker_for_whom_the_kernel_watches_no_more_serves_on(
    start_server: StartServer, valkey: Embedded, closing: ExitStack
) -> None:
    options = ("--workers", "1", "--redis", valkey.url, "--heartbeat-seconds", "1")
    server = start_server(*options, before=SCARCE)
    clients = fill(server)
    assert WATCHES - 40 < len(clients) < WATCHES
    check_served(server, clients, "full")

    # Who comes is told when to come back, whether it has said something or not; health checks get their answer.
    for _ in range(2 * reserve.WATCHES):
        with socket.create_connection(server.tcp, timeout=10) as silent:
            assert json.loads(silent.recv(1000))["code"] == 3004
        with server.event_client("user=late") as stream:
            event = stream.receive()
            assert event is not None
            assert (event["event"], json.loads(event["data"])["code"]) == ("close", 3004)
        assert server.request("GET", "/readyz") == (200, {"status": "ready"})
    with redis.Redis.from_url(valkey.url) as operator:
        operator.client_kill_filter(_type="pubsub")  # the bus needs two for its way back
    wait_until(lambda: server.stats()["total"]["bus_reconnects"] == 1, "the bus is back")
    check_served(server, clients, "still")

    # Of those who are served by the event loop there are only as many as it has watches for.
    statuses = []
    for _ in range(2 * reserve.WATCHES):
        sock = closing.enter_context(socket.create_connection(server.http, timeout=10))
        sock.sendall(b"POST /publish?user=a HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n")
        statuses.append(sock.recv(1000).split()[1])
    assert statuses == [b"100"] * (reserve.WATCHES // 2) + [b"503"] * (2 * reserve.WATCHES - reserve.WATCHES // 2)
    closing.close()
    wait_until(lambda: server.request("GET", "/readyz")[0] == 200, "there is room again")

    # When enough have left there is room for others.
    for client in clients[1:50]:
        client.close()
    del clients[1:50]
    wait_until(lambda: is_let_in(server), "somebody is")
    clients += fill(server)
    check_served(server, clients, "again")
    assert server.stats()["total"]["restarts"] == 0
    assert any(
        "the kernel watches no more descriptors for us: fs.epoll.max_user_watches" in line for line in server.log
    )


def test_more_listeners_than_descriptors_is_no_boot(start_server: StartServer) -> None:
    """Listening sockets are the supervisor's, for all workers."""
    lowered = LOWERED.replace(str(DESCRIPTORS), "40")
    server = start_server("--workers", "40", "--redis", "redis://127.0.0.1:1", before=lowered, wait=False)
    assert server.process.wait(20) == 3
    wait_until(lambda: "Too many open files" in "".join(server.log), "it says why")
