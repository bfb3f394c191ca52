"""Clients that leave and come back, against a real listener that answers by a thread."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from bench.clients import Plan
from bench.visitors import Nappers, Visitors

HELLO = b'{"op":"connected","user":"u","session":"s","heartbeat_s":25,"position":"7","recovered":%b}\n'


class Host:
    """Answers every first line, keeps the requests it has seen and the sockets."""

    def __init__(self) -> None:
        self.recovered = b"true"
        self.requests: list[bytes] = []
        self.peers: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.address: tuple[str, int] = self._listener.getsockname()
        self._thread = threading.Thread(target=self._answer)
        self._thread.start()

    def _answer(self) -> None:
        while True:
            peer, _ = self._listener.accept()
            self.peers.append(peer)
            request = peer.recv(4096)
            if request == b"stop":
                return
            self.requests.append(request)
            peer.sendall(HELLO % self.recovered)

    def close(self) -> None:
        with socket.create_connection(self.address) as last:
            last.sendall(b"stop")
            self._thread.join()
        for each in (self._listener, *self.peers):
            each.close()


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.close()


@pytest.fixture(params=[Visitors, Nappers])
def visitors(request: pytest.FixtureRequest) -> Iterator[Visitors]:
    visitors = request.param()
    yield visitors
    visitors.close()
    visitors.epoll.close()


def plan(host: Host, count: int, **more: object) -> Plan:
    return Plan("tcp", host.address, 0, count, (("127.0.0.1", 100),), rooms=("room:a",), **more)  # type: ignore[arg-type]


def test_those_who_left_come_back_as_who_they_were(host: Host, visitors: Visitors) -> None:
    assert visitors.open(plan(host, 3)).live == 3
    assert visitors.leave(2).live == 1
    tally = visitors.come_back(plan(host, 2, position="7", timed=True), 10)
    assert (tally.live, dict(tally.faults)) == (3, {})
    first, again = host.requests[:3], host.requests[3:]
    assert len(again) == 2
    assert all(b'"position":"7"' in request for request in again)
    assert {request.split(b'"user":')[1][:4] for request in again} <= {
        request.split(b'"user":')[1][:4] for request in first
    }
    assert len(visitors.times) == 2
    assert not visitors.away


def test_who_is_not_recovered_is_a_fault(host: Host, visitors: Visitors) -> None:
    visitors.open(plan(host, 1))
    visitors.leave(1)
    host.recovered = b"false"
    assert visitors.come_back(plan(host, 1, position="7"), 10).faults == {"resumed, and was not told `recovered`": 1}


def test_churn_replaces_connections_while_the_others_stay(host: Host, visitors: Visitors) -> None:
    visitors.open(plan(host, 4))
    tally = visitors.hold(0.3, plan(host, 3, rate=100.0))
    assert (tally.live, dict(tally.faults)) == (4, {})
    assert len(host.requests) == 4 + 3


def test_heartbeats_are_answered_when_that_is_wanted(host: Host, visitors: Visitors) -> None:
    visitors.open(plan(host, 1))
    visitors.answer_heartbeats(True)
    (peer,) = host.peers
    peer.sendall(b"\n")
    deadline = time.monotonic() + 10
    while visitors.heartbeats == 0:
        assert time.monotonic() < deadline
        visitors.pump(0.05)
    peer.settimeout(10)
    assert peer.recv(10) == b"\n"
