"""Clients of a peer against a scripted server: a handshake of several steps, and answers that are counted."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread

import pytest

from bench.pairs import Pair, Work
from bench.peers.clients import Conversations, PeerPlan, Subscribers
from bench.peers.ejabberd import Xmpp
from bench.peers.hubs import HubWire
from bench.peers.nats import NatsWire
from bench.peers.wire import Lane, Wire, payload

Script = Callable[[socket.socket], None]


@contextmanager
def serving(script: Script) -> Iterator[tuple[str, int]]:
    """Accept one connection and play the script."""
    listener = socket.create_server(("127.0.0.1", 0))

    def play() -> None:
        connection, _ = listener.accept()
        connection.settimeout(10)
        with connection:
            script(connection)

    thread = Thread(target=play)
    thread.start()
    try:
        yield listener.getsockname()
    finally:
        thread.join(10)
        listener.close()


def read_until(connection: socket.socket, end: bytes) -> bytes:
    heard = b""
    while not heard.endswith(end):
        chunk = connection.recv(4096)
        assert chunk, heard
        heard += chunk
    return heard


def plan(server: tuple[str, int], wire: Wire) -> PeerPlan:
    return PeerPlan("", server, 7, 1, sources=(("127.0.0.1", 1),), lane=Lane(wire, "r"))


@pytest.fixture
def clients(request: pytest.FixtureRequest) -> Iterator[Subscribers]:
    made: Subscribers = request.param
    yield made
    made.close()
    made.epoll.close()


@pytest.mark.parametrize("clients", [Subscribers(NatsWire())], indirect=True)
def test_a_handshake_may_begin_with_the_server_and_end_with_a_message(clients: Subscribers) -> None:
    def script(connection: socket.socket) -> None:
        connection.sendall(b"INFO {}\r")
        connection.sendall(b"\n")
        assert b"SUB user.u7 1\r\n" in read_until(connection, b"PING\r\n")
        connection.sendall(b"PONG\r\nMSG room.r 2 100\r\n" + payload(0)[:50])
        connection.sendall(payload(0)[50:] + b"\r\n")
        assert connection.recv(1) == b"", "the client closes"

    with serving(script) as server:
        tally = clients.open(plan(server, NatsWire()), 10)
        assert (tally.live, dict(tally.faults)) == (1, {})
        assert clients.await_number(1, 10).received == 1
        assert not clients.check(1).faults
        clients.close()


@pytest.mark.parametrize("clients", [Subscribers(Xmpp())], indirect=True)
def test_a_refusal_is_told_at_once(clients: Subscribers) -> None:
    def script(connection: socket.socket) -> None:
        read_until(connection, b"'1.0'>")
        connection.sendall(b"<stream:stream><stream:features></stream:features>")
        read_until(connection, b"</auth>")
        connection.sendall(b"<failure><not-authorized/></failure>")
        assert connection.recv(1) == b""

    with serving(script) as server:
        tally = clients.open(plan(server, Xmpp()), 60)
    assert tally.live == 0
    assert [text for text in tally.faults if text.startswith("refused: <failure>")]


@pytest.mark.parametrize("clients", [Subscribers(HubWire())], indirect=True)
def test_a_message_missing_or_doubled_is_a_fault(clients: Subscribers) -> None:
    clients.feed(5, payload(0) + payload(2))
    assert dict(clients.faults) == {"messages 0... were wanted, 0...2 came": 1}
    clients.faults.clear()
    clients.feed(5, payload(2))
    assert dict(clients.faults) == {"messages 3... were wanted, 2...2 came": 1}


@pytest.mark.parametrize("wire", [HubWire(), NatsWire()], ids=["answered", "not answered"])
def test_a_pair_is_answered_or_its_receiver_is_the_answer(wire: Wire) -> None:
    clients = Conversations(wire)
    sender, receiver = socket.socketpair(), socket.socketpair()
    for end in (sender[0], receiver[0]):
        end.setblocking(False)
        clients.state[end.fileno()] = 3
        clients.epoll.register(end.fileno(), 1)
    with sender[1], receiver[1]:
        clients.pair_up([Pair(sender[0].fileno(), receiver[0].fileno(), "@u9")])

        def relay() -> None:
            heard = b""
            while heard.count(b"~~") < 20:
                heard += sender[1].recv(65536)
                sender[1].sendall(wire.answer[:1])
                sender[1].sendall(wire.answer[1:])
            sender[1].sendall(wire.answer * 20)
            receiver[1].sendall(b"".join(payload(number) for number in range(20)))

        thread = Thread(target=relay)
        thread.start()
        outcome = clients.talk(Work(20, 0.0, 20))
        thread.join(10)
    assert (outcome.sent, outcome.received, len(outcome.latencies_ns)) == (20, 20, 20)
    assert outcome.answered >= 20
    clients.epoll.close()
    for end in (sender[0], receiver[0]):
        end.close()
