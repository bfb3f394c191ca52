"""Limits on newcomers, on both transports: as many as allowed get in, the others are sent away politely."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness import DEADLINE_SECONDS, LineClient, Server, wait_until

StartServer = Callable[..., Server]
WIRES = ["tcp", "sse"]


class Caller:
    """One who asks to be let in, and is: `code` is None; or is told to come back later."""

    def __init__(self, server: Server, wire: str, user: str, header: bytes = b"", more: bytes = b"") -> None:
        self.sock = socket.create_connection(server.tcp if wire == "tcp" else server.http, timeout=DEADLINE_SECONDS)
        self.file = self.sock.makefile("rb")
        self._wire = wire
        asked = json.dumps({"op": "connect", "user": user}).encode() + b"\n"
        if wire == "sse":
            asked = f"GET /events?user={user} HTTP/1.1\r\nHost: h\r\n\r\n".encode()
        self.sock.sendall(header + asked + more)
        self.code, self.after_ms = self._answer()

    def _answer(self) -> tuple[int | None, int]:
        if self._wire == "sse":
            assert self.file.readline() == b"HTTP/1.1 200 OK\r\n", "browsers give up for good on anything else"
            while self.file.readline() != b"\r\n":
                pass
        retry = 0
        while line := self.file.readline():
            if line.startswith(b"retry: "):
                retry = int(line[7:])
            if line.startswith((b"data: ", b"{")):
                said: dict[str, Any] = json.loads(line.removeprefix(b"data: "))
                if "code" not in said:
                    return None, 0
                assert said["reconnect"] is True
                assert self._wire == "tcp" or retry == said["after_ms"]
                return said["code"], said["after_ms"]
        pytest.fail("the connection ended without an answer")

    def ends(self) -> None:
        """Check that the stream ends, and not by a reset, while this side goes on talking."""
        self.sock.sendall(b"\n" * 10)
        assert self.file.read().strip() == b""
        self.sock.sendall(b"\n" * 10)

    def close(self) -> None:
        self.file.close()
        self.sock.close()


@pytest.fixture
def call() -> Iterator[Callable[..., Caller]]:
    callers: list[Caller] = []

    def call(*args: Any, **kwargs: Any) -> Caller:
        callers.append(Caller(*args, **kwargs))
        return callers[-1]

    yield call
    for caller in callers:
        caller.close()


Call = Callable[..., Caller]


def refusals(server: Server) -> dict[str, int]:
    found: dict[str, int] = server.stats()["total"]["handshake_failures"]
    return found


def proxied(address: str) -> bytes:
    return f"PROXY TCP{6 if ':' in address else 4} {address} {address} 4711 7400\r\n".encode()


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize(
    ("option", "code", "reason"),
    [
        ("--connections-max", 3013, "full"),
        ("--connections-per-address-max", 3014, "address_full"),
        ("--connections-per-user-max", 3015, "user_full"),
    ],
)
def test_so_many_and_no_more_on_the_whole_host(
    start_server: StartServer, call: Call, wire: str, option: str, code: int, reason: str
) -> None:
    """Three workers, among which the kernel spreads them: what counts is their sum."""
    server = start_server("--workers", "3", option, "10")
    callers = [call(server, wire, "alice", more=b"\n" * 3) for _ in range(30)]
    assert Counter(caller.code for caller in callers) == {None: 10, code: 20}
    refused = [caller for caller in callers if caller.code]
    for caller in refused:
        caller.ends()
    assert min(caller.after_ms for caller in refused) >= 5_000
    assert len({caller.after_ms for caller in refused}) > 10, "not all at once again"
    wait_until(lambda: refusals(server).get(reason) == 20, "counted by reason")
    assert server.stats()["total"]["sessions_refused"] == 20
    wait_until(lambda: any(f"times: {reason}" in line for line in server.log), "in the log")
    assert server.request("GET", "/readyz")[0] == 200, "health checks are no connections"
    assert server.request("POST", "/publish?user=alice", {"channel": "room:a", "data": 1})[0] == 200

    for caller in [caller for caller in callers if not caller.code][:4]:
        caller.close()
    wait_until(lambda: server.stats()["total"]["connections"] == 6, "they have left")
    again = [call(server, wire, "alice") for _ in range(8)]
    assert Counter(caller.code for caller in again) == {None: 4, code: 4}


def test_a_worker_that_died_leaves_no_count_behind(start_server: StartServer, call: Call) -> None:
    server = start_server("--workers", "2", "--connections-max", "12")
    assert Counter(call(server, "tcp", f"u{n}").code for n in range(20)) == {None: 12, 3013: 8}
    wait_until(lambda: server.stats()["total"]["connections"] == 12, "all show")
    before = server.workers()[0]
    before.kill()
    wait_until(lambda: server.stats()["workers"][0]["pid"] not in (0, before.pid), "a replacement")
    wait_until(lambda: server.stats()["workers"][0]["ready"], "it is ready")
    left = server.stats()["workers"][1]["connections"]
    assert 0 < left < 12
    assert Counter(call(server, "tcp", f"v{n}").code for n in range(20)) == {None: 12 - left, 3013: 8 + left}


def test_addresses_are_those_behind_the_balancer(start_server: StartServer, call: Call) -> None:
    server = start_server(
        "--workers", "2", "--connections-per-address-max", "2", "--proxy-protocol", "auto", "--proxy-trusted", "127.0.0.1"
    )  # fmt: skip
    for wire, net in (("tcp", 113), ("sse", 114)):
        for address in (f"203.0.{net}.1", f"203.0.{net}.2", f"2001:db8:{net}::1"):
            callers = [call(server, wire, "u", proxied(address)) for _ in range(4)]
            assert [caller.code for caller in callers] == [None, None, 3014, 3014]
            callers[-1].ends()
    assert call(server, "tcp", "u", proxied("2001:db8:113::ffff:1")).code == 3014, "of the same subnet"
    assert call(server, "sse", "u", proxied("2001:db8:113:1::1")).code is None
    forwarded = [server.event_client("user=x", X_Forwarded_For="198.51.100.1, 203.0.113.77").expect for _ in range(3)]
    assert [expect("connected")["user"] for expect in forwarded[:2]] == ["x", "x"]
    assert forwarded[2]("close")["code"] == 3014


@pytest.mark.parametrize("wire", WIRES)
def test_who_comes_too_fast_comes_later(start_server: StartServer, call: Call, wire: str) -> None:
    server = start_server("--workers", "1", "--accepts-per-second", "5")
    began = time.monotonic()
    more = b"x" * 60_000 if wire == "sse" else b'{"op":"ping"}\n' * 5_000  # unread, it would make the kernel reset
    callers = [call(server, wire, f"u{number}", more=more) for number in range(40)]
    lasted = time.monotonic() - began
    served = sum(caller.code is None for caller in callers)
    assert 5 <= served <= 5 + 5 * lasted + 1
    refused = [caller for caller in callers if caller.code]
    assert {caller.code for caller in refused} == {3012}
    for caller in refused:
        caller.ends()
    wait_until(lambda: refusals(server) == {"accept_rate": 40 - served}, "counted")
    assert server.request("GET", "/readyz")[0] == 200
    wait_until(lambda: call(server, wire, "late").code is None, "room again")


# Publishing.


def test_publishes_that_come_too_fast_are_refused_one_by_one(start_server: StartServer) -> None:
    server = start_server("--workers", "1", "--publishes-per-second", "10")
    alice, bob = server.joined("alice"), server.joined("bob")
    publishes = [{"op": "publish", "id": n, "channel": "room:a", "data": n} for n in range(30)]
    alice.send(*publishes)
    said = [alice.receive() for _ in range(30)]
    taken = [m["id"] for m in said if m and m["op"] == "published"]
    refused = [m for m in said if m and m["op"] == "error"]
    assert len(taken) + len(refused) == 30
    assert set(range(20)) <= set(taken), "what two seconds allow may come at once"
    assert refused
    for error in refused:
        assert (error["code"], error["id"] in range(20, 30)) == (3016, True)
        assert 0 < error["after_ms"] <= 125
    bob.send({"op": "publish", "id": 1, "channel": "room:a", "data": 1})
    bob.expect("published", id=1)
    alice.send({"op": "ping", "id": "end"})
    alice.expect("pong", id="end")
    assert server.stats()["total"]["closed"] == {}
    wait_until(lambda: server.stats()["total"]["publishes_limited"] == len(refused), "counted")
    wait_until(lambda: any("publish_rate; the last: alice" in line for line in server.log), "in the log")


def test_who_does_not_stop_is_stopped(start_server: StartServer) -> None:
    server = start_server("--workers", "1", "--publishes-per-second", "10")
    alice = server.joined("alice")
    alice.send(*[{"op": "publish", "id": n, "channel": "room:a", "data": n} for n in range(200)])
    assert alice.expect("close")["code"] == 3016
    assert alice.ends()


def test_publishes_over_http_are_paced_by_address_and_user(start_server: StartServer) -> None:
    server = start_server("--workers", "1", "--publishes-per-second", "1", "--proxy-trusted", "127.0.0.1")

    def publish(user: str, address: str) -> int:
        headers = {"X-Forwarded-For": address}
        status, body = server.request(
            "POST", f"/publish?user={user}", {"channel": "room:a", "data": 1}, headers=headers
        )
        assert status == 200 or body["error"]["code"] == 3016
        return status

    assert [publish("alice", "203.0.113.1") for _ in range(4)] == [200, 200, 429, 429]
    assert publish("alice", "203.0.113.2") == publish("bob", "203.0.113.1") == 200


# Age, and those who wait for us.


def test_connections_do_not_grow_old(start_server: StartServer) -> None:
    server = start_server("--workers", "1", "--connection-seconds-max", "2")
    began = time.monotonic()
    clients = [server.joined(f"u{number}") for number in range(20)]
    stream = server.event_client("user=s")
    ends = []
    for client in clients:
        said = client.expect("close")
        assert (said["code"], said["reconnect"]) == (3017, True)
        ends.append(said["after_ms"])
    assert stream.expect("close")["code"] == 3017
    assert 1.8 <= time.monotonic() - began < 8
    assert len(set(ends)) > 10, "each with its own delay"
    wait_until(lambda: server.stats()["total"]["closed"] == {"3017": 21}, "counted")


@pytest.mark.parametrize("wire", WIRES)
def test_who_waits_for_a_bus_that_stalls_may_come_again(start_server: StartServer, wire: str) -> None:
    """It has said who it is in time: the deadline that passes is not its own."""
    server = start_server("--workers", "1", "--handshake-seconds", "1")
    valkey = server.redis()
    valkey.send_signal(signal.SIGSTOP)
    try:
        if wire == "tcp":
            client = server.line_client(user="alice")
            said = client.expect("close")
        else:
            said = server.event_client("user=alice").expect("close")
        assert (said["code"], said["reconnect"]) == (3005, True)
        silent = LineClient(server.tcp)
        assert silent.expect("close")["code"] == 4002
        silent.close()
    finally:
        valkey.send_signal(signal.SIGCONT)
    server.joined("alice")
