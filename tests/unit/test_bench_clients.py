"""The clients of the bench against a scripted server: what it sends is known byte by byte."""

import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from bench.clients import Clients, Plan
from bench.wire import publish_line

TCP_HELLO = b'{"op":"connected","user":"u0","session":"s","heartbeat_s":25,"position":"0"}\n'
SSE_HELLO = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\nretry: 1000\n\n"
    b'event: connected\nid: 0\ndata: {"op":"connected","user":"u0","position":"0"}\n\n'
)


def tcp_frame(number: int) -> bytes:
    return publish_line(0, "room:a", number).replace(b'"op":"publish"', b'"op":"message"')


def sse_frame(number: int) -> bytes:
    return b"id: %d\ndata: " % number + publish_line(0, "room:a", number) + b"\n"


class Spoken(NamedTuple):
    """What a server says in one wire format."""

    wire: str
    hello: bytes
    frame: Callable[[int], bytes]


WIRES = [Spoken("tcp", TCP_HELLO, tcp_frame), Spoken("sse", SSE_HELLO, sse_frame)]
each_wire = pytest.mark.parametrize("spoken", WIRES, ids=lambda spoken: spoken.wire)


class Script:
    """A listener that answers every connection's first bytes with `hello`, and keeps the sockets."""

    def __init__(self) -> None:
        self.hello = TCP_HELLO
        self.peers: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.address: tuple[str, int] = self._listener.getsockname()
        self._thread = threading.Thread(target=self._answer)
        self._thread.start()

    def _answer(self) -> None:
        while True:
            peer, _ = self._listener.accept()
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.peers.append(peer)
            if peer.recv(4096) == b"stop":
                return
            peer.sendall(self.hello)

    def close(self) -> None:
        with socket.create_connection(self.address) as last:
            last.sendall(b"stop")
            self._thread.join()
        self._listener.close()
        for peer in self.peers:
            peer.close()


@pytest.fixture
def script() -> Iterator[Script]:
    script = Script()
    yield script
    script.close()


@pytest.fixture
def clients() -> Iterator[Clients]:
    clients = Clients()
    yield clients
    clients.close()
    clients.epoll.close()


def plan(script: Script, count: int = 1, wire: str = "tcp", **others: float) -> Plan:
    sources = (("127.0.0.1", count),)
    return Plan(wire, script.address, 0, count, sources, rooms=("room:a",), **others)  # type: ignore[arg-type]


def pump_until(clients: Clients, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not done():
        assert time.monotonic() < deadline
        clients.pump(0.05)


@each_wire
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_messages_are_counted_exactly_however_the_bytes_are_cut(
    script: Script, clients: Clients, spoken: Spoken, size: int
) -> None:
    script.hello = spoken.hello
    assert clients.open(plan(script, wire=spoken.wire)).live == 1
    (fd,) = clients.descriptors()
    stream = b"".join(map(spoken.frame, range(5)))
    for at in range(0, len(stream), size):
        clients.feed(fd, stream[at : at + size])
    tally = clients.check(5)
    assert tally.received == 5
    assert not tally.faults
    assert not clients.rest


@each_wire
def test_messages_that_follow_the_answer_at_once_are_counted(script: Script, clients: Clients, spoken: Spoken) -> None:
    script.hello = spoken.hello + spoken.frame(0) + spoken.frame(1)
    clients.open(plan(script, count=3, wire=spoken.wire))
    tally = clients.await_number(2, 10)
    assert (tally.live, tally.received, dict(tally.faults)) == (3, 6, {})


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        ([0, 2], "messages 0... were wanted, 0...2 came"),
        ([0, 0, 1], "messages 0... were wanted, 0...1 came"),
        ([1, 0], "messages 0... were wanted, 1...0 came"),
    ],
    ids=["missing", "doubled", "out of order"],
)
def test_what_is_missing_doubled_or_out_of_order_is_a_fault(
    script: Script, clients: Clients, sent: list[int], text: str
) -> None:
    clients.open(plan(script))
    script.peers[0].sendall(b"".join(map(tcp_frame, sent)))
    pump_until(clients, lambda: clients.received == len(sent))
    assert clients.faults == {text: 1}


def test_a_message_that_never_comes_is_a_fault_of_every_connection_that_wants_it(
    script: Script, clients: Clients
) -> None:
    clients.open(plan(script, count=2))
    script.peers[0].sendall(tcp_frame(0))
    assert clients.await_number(1, 0.2).received == 1
    assert clients.check(1).faults == {"messages missing or doubled: wanted next is 0, not 1": 1}


def test_a_connection_opened_later_wants_what_comes_later(script: Script, clients: Clients) -> None:
    clients.open(plan(script, number=7))
    script.peers[0].sendall(tcp_frame(7))
    tally = clients.await_number(8, 10)
    assert (tally.received, dict(tally.faults)) == (1, {})


def test_heartbeats_are_counted_and_not_answered(script: Script, clients: Clients) -> None:
    clients.open(plan(script))
    peer = script.peers[0]
    peer.sendall(b"\n")
    pump_until(clients, lambda: clients.heartbeats == 1)
    peer.setblocking(False)
    with pytest.raises(BlockingIOError):
        peer.recv(1)
    assert not clients.faults


@pytest.mark.parametrize(
    ("wire", "answer", "text"),
    [
        ("tcp", b'{"op":"error","code":4001,"reason":"not signed in"}\n', "not signed in"),
        ("tcp", b'{"op":"close","code":3001,"reason":"draining","reconnect":true}\n', "draining"),
        ("sse", b'HTTP/1.1 401 Unauthorized\r\n\r\n{"error":{"code":4001,"reason":"not signed in"}}', "not signed in"),
    ],
)
def test_a_refusal_is_a_fault_with_the_servers_words(
    script: Script, clients: Clients, wire: str, answer: bytes, text: str
) -> None:
    script.hello = answer
    tally = clients.open(plan(script, wire=wire))
    assert tally.live == 0
    assert [reason for reason in tally.faults if reason.startswith("refused: ") and text in reason]


def test_being_cut_off_is_a_fault_and_the_descriptor_is_given_back(script: Script, clients: Clients) -> None:
    clients.open(plan(script, count=2))
    script.peers[0].close()
    pump_until(clients, lambda: clients.live == 1)
    assert clients.faults == {"lost: closed by the server": 1}
    assert len(clients.descriptors()) == 1


def test_a_close_from_the_server_is_told_in_its_words(script: Script, clients: Clients) -> None:
    clients.open(plan(script))
    script.peers[0].sendall(b'{"op":"close","code":3002,"reason":"too slow","reconnect":true}\n')
    pump_until(clients, lambda: bool(clients.faults))
    assert "too slow" in next(iter(clients.faults))


def test_a_server_that_does_not_answer_is_given_up(script: Script, clients: Clients) -> None:
    script.hello = b""
    tally = clients.open(plan(script, count=3), seconds_max=0.2)
    assert tally.faults == {"not answered within 0.2 s": 3}
    assert not any(clients.state)


def test_nobody_there_is_a_fault_and_no_exception(clients: Clients) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    tally = clients.open(Plan("tcp", address, 0, 2, (("127.0.0.1", 2),)))
    assert sum(tally.faults.values()) == 2
    assert "refused" in str(tally.faults).lower()


def test_arrivals_are_paced(script: Script, clients: Clients) -> None:
    began = time.monotonic()
    assert clients.open(plan(script, count=21, rate=100.0)).live == 21
    assert time.monotonic() - began >= 0.2


def test_no_more_than_the_flight_is_under_way(script: Script, clients: Clients) -> None:
    script.hello = b""
    clients.open(plan(script, count=10, flight=3), seconds_max=0.2)
    assert len(script.peers) == 3


def test_connections_come_from_the_addresses_of_the_plan(script: Script, clients: Clients) -> None:
    sources = (("127.9.0.1", 2), ("127.9.0.2", 1))
    assert clients.open(Plan("tcp", script.address, 0, 3, sources)).live == 3
    assert sorted(peer.getpeername()[0] for peer in script.peers) == ["127.9.0.1", "127.9.0.1", "127.9.0.2"]


def test_a_command_that_arrives_ends_the_wait(script: Script) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        clients = Clients(theirs.fileno())
        clients.open(plan(script))
        ours.send(b"x")
        clients.await_number(1, 60)
        assert clients.interrupted
        clients.close()
        clients.epoll.close()


def test_a_connection_costs_the_client_next_to_nothing(script: Script, clients: Clients) -> None:
    clients.open(plan(script, count=50))
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    clients.open(plan(script, count=300))
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown / 300 < 400, "bytes each, the script's own socket objects included"
