"""Peers that break the protocol, stop in the middle, never read, or vanish: each is told, and nothing leaks."""

from __future__ import annotations

import json
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import psutil
import pytest
import redis
from harness import DEADLINE_SECONDS, EventClient, Json, LineClient, Server, wait_until

from router.embedded import Embedded

pytestmark = pytest.mark.xdist_group("peers")  # one server for most of them

CONNECT = b'{"op":"connect","user":"churn","channels":["room:churn","room:other"]}\n'
EVENTS = b"GET /events?user=churn&channel=room:churn&channel=room:other HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def valkey() -> Iterator[Embedded]:
    with Embedded() as embedded:
        yield embedded


@pytest.fixture(scope="module")
def server(valkey: Embedded) -> Iterator[Server]:
    options = ["--workers", "1", "--handshake-seconds", "1", "--heartbeat-seconds", "0.5", "--redis", valkey.url]
    with Server(options) as made:
        yield made


def held(server: Server) -> list[int]:
    """What connections hold, of the worker."""
    total = server.stats()["total"]
    return [total[name] for name in ("connections", "handshaking", "subscriptions", "backlogged_connections")]


def wait_empty(server: Server) -> None:
    wait_until(lambda: held(server) == [0, 0, 0, 0], "everything that connections held is given back")


def read_all(sock: socket.socket) -> bytes:
    try:
        return b"".join(iter(lambda: sock.recv(65536), b""))
    except ConnectionResetError:
        return b""


def test_a_thousand_that_never_finish_are_told_at_the_deadline(server: Server) -> None:
    wait_empty(server)
    failed = server.stats()["total"]["handshake_failures"].get("handshake_timeout", 0)
    fds = server.stats()["total"]["open_fds"]
    starts = [
        (server.tcp, b""), (server.tcp, b"\n\n"), (server.tcp, b'{"op":"connect","user":"ne'),
        (server.http, b""), (server.http, b"GET /events?us"), (server.http, b"GET /events HTTP/1.1\r\nHost: x\r\n"),
    ]  # fmt: skip
    with ExitStack() as stack:
        socks = []
        for number in range(1000):
            address, first = starts[number % len(starts)]
            sock = stack.enter_context(socket.create_connection(address, timeout=20))
            sock.sendall(first)
            socks.append((sock, address == server.tcp))
        with server.joined("polite", "room:polite") as client:  # is served meanwhile
            client.send({"op": "publish", "id": 1, "channel": "room:polite", "data": 1})
            client.expect("message")
        for sock, is_tcp in socks:
            told = read_all(sock)
            if is_tcp:
                close = json.loads(told)
                assert (close["op"], close["code"], close["reconnect"]) == ("close", 4002, False)
            else:
                assert told.startswith(b"HTTP/1.1 408 ")
                assert b'"code":4002' in told
    wait_empty(server)
    assert server.stats()["total"]["handshake_failures"]["handshake_timeout"] == failed + 1000
    wait_until(lambda: server.stats()["total"]["open_fds"] <= fds, "every descriptor is closed")


def test_a_drip_is_no_way_around_the_deadline(server: Server) -> None:
    for address, text in ((server.tcp, b'{"op":"connect",'), (server.http, b"GET /events?user=")):
        with socket.create_connection(address, timeout=20) as sock:
            sock.sendall(text)
            told = threading.Event()

            def drip(sock: socket.socket = sock, told: threading.Event = told) -> None:
                while not told.wait(0.05):
                    try:
                        sock.send(b"x")
                    except OSError:
                        return

            dripping = threading.Thread(target=drip)
            dripping.start()
            answer = sock.recv(65536)
            told.set()
            dripping.join()
            assert b"4002" in answer


@pytest.mark.parametrize("seed", range(3))
def test_garbage_gets_an_answer_and_nothing_else_happens(server: Server, seed: int) -> None:
    chance = random.Random(seed)
    words = [
        b"GET ",
        b"/events",
        b" HTTP/1.1\r\n",
        b"Host: x\r\n",
        b"\r\n\r\n",
        b"\n",
        b'{"op":',
        b'"connect"',
        b"}\n",
        b"\x00",
    ]
    for _ in range(60):
        address = chance.choice([server.tcp, server.http])
        pieces = [
            chance.choice([chance.randbytes(chance.randrange(1, 50)), *words]) for _ in range(chance.randrange(1, 12))
        ]
        with socket.create_connection(address, timeout=20) as sock:
            sock.sendall(b"".join(pieces))
            sock.shutdown(socket.SHUT_WR)
            answer = read_all(sock)
            if address == server.tcp and b"".join(pieces).strip(b"\r\n"):
                assert json.loads(answer)["op"] == "close", (pieces, answer)
            elif address == server.http:
                assert answer.startswith(b"HTTP/1."), (pieces, answer)
    assert server.process.poll() is None
    assert server.stats()["total"]["restarts"] == 0
    wait_empty(server)


@pytest.mark.parametrize(
    ("text", "field"),
    [(b'{"op":"connect","user":"a"}', "line"), (b"{", "line"), (b"GET /events?user=a HTTP/1.1\r\n", "head")],
)
def test_a_half_closed_peer_is_told_that_its_request_is_not_finished(server: Server, text: bytes, field: str) -> None:
    with socket.create_connection(server.tcp if field == "line" else server.http, timeout=20) as sock:
        sock.sendall(text)
        sock.shutdown(socket.SHUT_WR)
        told = read_all(sock)
    fault = json.loads(told) if field == "line" else json.loads(told.partition(b"\r\n\r\n")[2])["error"]
    assert (fault["code"], fault["field"]) == (4000, field)


def come_and_go(server: Server, chance: random.Random) -> None:
    """Connect in one of many ways, and leave in one of many."""
    address, text = chance.choice([(server.tcp, CONNECT), (server.http, EVENTS)])
    text = chance.choice([text, text, text[: chance.randrange(len(text))], b""])
    with socket.create_connection(address, timeout=20) as sock:
        sock.sendall(text)
        way = chance.randrange(4)
        if way == 0 and text.endswith(b"\n"):
            sock.recv(65536)
        elif way == 1:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close() sends a reset
        elif way == 2:
            sock.shutdown(socket.SHUT_WR)


def test_coming_and_going_leaks_nothing(server: Server, valkey: Embedded) -> None:
    wait_empty(server)
    worker = psutil.Process(server.stats()["workers"][0]["pid"])
    chance = random.Random(1)
    fds, settled = worker.num_fds(), list[int]()
    with redis.Redis.from_url(valkey.url) as client:
        for _ in range(4):
            for _ in range(400):
                come_and_go(server, chance)
            wait_empty(server)
            settled.append(worker.memory_full_info().uss)
        wait_until(lambda: worker.num_fds() <= fds, "every descriptor is closed")
        wait_until(
            lambda: all(name.startswith(b"moorage:$") for name in client.pubsub_channels()),
            "nothing is subscribed in Redis but what the worker itself needs",
        )
    assert settled[-1] - settled[1] < 512 * 1024, settled
    errors = [line for line in server.log if "Traceback" in line or "internal error" in line]
    assert not errors


# Those who do not read.


class Reader(threading.Thread):
    """Reads in the background."""

    def __init__(self, read: Callable[[], int]) -> None:
        super().__init__(daemon=True)
        self._read = read
        self.heard: list[int] = []
        self.fault: BaseException | None = None

    def run(self) -> None:
        try:
            while (number := self._read()) >= 0:
                self.heard.append(number)
        except BaseException as error:
            self.fault = error


def narrow(address: tuple[str, int]) -> socket.socket:
    """A connection whose buffer stays small; made so later, it would lose what fills it, and get that again when TCP pleases."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
    sock.settimeout(DEADLINE_SECONDS)
    sock.connect(address)
    return sock


def test_a_slow_reader_is_bounded_and_told_and_the_others_are_unhurt(start_server: Callable[..., Server]) -> None:
    limit, count, data = 131_072, 150, "x" * 8_000
    server = start_server("--workers", "1", "--send-buffer-bytes", "16384", "--backlog-bytes-max", str(limit))
    lines = [server.joined(f"fast{n}", "room:big") for n in range(3)]
    events = [server.event_client(f"user=fast{n}&channel=room:big") for n in range(3, 6)]
    readers = [Reader(lambda c=c: c.messages(1)[0]["data"]["n"]) for c in lines]  # type: ignore[misc]
    readers += [Reader(lambda c=c: c.expect("message")["data"]["n"]) for c in events]  # type: ignore[misc]
    slow_lines = LineClient(server.tcp, narrow)
    slow_lines.send({"op": "connect", "user": "slow", "channels": ["room:big"]})
    slow_events = EventClient(server.http, "user=slow&channel=room:big", {}, narrow)
    for slow in (slow_lines, slow_events):
        slow.expect("connected")
    for reader in readers:
        reader.start()
    with server.joined("publisher") as publisher:
        for number in range(count):
            publisher.send({"op": "publish", "id": 1, "channel": "room:big", "data": {"n": number, "data": data}})
            publisher.expect("published")
            if number == 20:
                waiting = wait_until(
                    lambda: server.stats()["total"]["backlog_bytes"], "something waits for the slow ones"
                )
                assert waiting <= 2 * limit
        publisher.send({"op": "publish", "id": 1, "channel": "room:big", "data": {"n": -1}})
    for reader in readers:
        reader.join(20)
        assert reader.fault is None
        assert reader.heard == list(range(count))

    def is_settled() -> bool:
        total = server.stats()["total"]
        return total["closed"].get("3002") == 2 and total["backlog_bytes"] == total["backlogged_connections"] == 0

    wait_until(is_settled, "both are closed, and nothing is held for anybody")
    heard: list[Json] = []
    while (message := slow_lines.receive()) is not None:
        heard.append(message)
    assert [m["data"]["n"] for m in heard[:-1]] == list(range(len(heard) - 1))
    assert (heard[-1]["op"], heard[-1]["code"], heard[-1]["reconnect"]) == ("close", 3002, True)
    assert heard[-1]["after_ms"] > 0
    seen = list(slow_events.events())
    assert json.loads(seen[-1]["data"])["code"] == 3002
    assert (seen[-1]["event"], seen[-1]["retry"].isdigit()) == ("close", True)
    assert [json.loads(event["data"])["data"]["n"] for event in seen[:-1]] == list(range(len(seen) - 1))
    slow_lines.close()
    slow_events.close()


def test_messages_that_come_in_one_go_are_cut_off_between_two_of_them(start_server: Callable[..., Server]) -> None:
    """A burst is one write, which may be many times what a peer may have waiting."""
    server = start_server(
        "--workers", "1", "--send-buffer-bytes", "4096", "--message-bytes-max", "4000", "--backlog-bytes-max", "8192"
    )  # fmt: skip
    slow: list[LineClient | EventClient] = [server.joined("slow", "room:burst")]
    slow.append(server.event_client("user=slow&channel=room:burst"))
    with server.joined("publisher") as publisher:
        publisher.send(*[{"op": "publish", "id": n, "channel": "room:burst", "data": "x" * 3900} for n in range(100)])
        for number in range(100):
            publisher.expect("published", id=number)
        wait_until(lambda: server.stats()["total"]["closed"].get("3002") == 2, "both are closed")
        assert slow[0].expect("close")["code"] == 3002
        assert slow[1].expect("close")["code"] == 3002
        publisher.send({"op": "subscribe", "id": 1, "channel": "room:burst"})
        publisher.send({"op": "publish", "id": 2, "channel": "room:burst", "data": "after"})
        assert publisher.messages(1)[0]["data"] == "after"
    assert server.stats()["total"]["bus_reconnects"] == 0


def test_a_publisher_that_does_not_read_its_answers_is_cut_off(start_server: Callable[..., Server]) -> None:
    server = start_server(
        "--workers", "1", "--send-buffer-bytes", "4096", "--message-bytes-max", "100", "--backlog-bytes-max", "8192"
    )  # fmt: skip
    with server.joined("mute") as mute, server.joined("other", "room:other") as other:
        line = b'{"op":"publish","id":1,"channel":"room:mute","data":1}\n'
        with suppress(OSError):
            for _ in range(100):
                mute.sock.sendall(line * 500)
        wait_until(lambda: server.stats()["total"]["closed"].get("3002") == 1, "it is closed")
        other.send({"op": "publish", "id": 1, "channel": "room:other", "data": 1})
        other.expect("message")
