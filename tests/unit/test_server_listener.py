"""Those who come, and those who are there."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from typing import cast

import pytest

from server import limits
from server.config import Config
from server.listener import Listener, configure
from server.pool import Events, Pool
from server.stats import Stats


class Other:
    """Somebody who is served already."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.fd = self.ours.fileno()
        self.reacted = 0

    def react(self, _events: int) -> None:
        self.reacted += 1
        self.ours.recv(100)


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=128) as made:
        made.setblocking(False)
        yield made


def test_many_who_come_at_once_do_not_keep_others_waiting(sock: socket.socket) -> None:
    """Each of them takes half a millisecond, as one does whose token is verified on a busy machine."""
    now = 0.0
    welcomed: list[int] = []

    def welcome(fd: int) -> None:
        nonlocal now
        now += 0.0005
        welcomed.append(fd)

    pool = Pool(Stats(), cast(Events, None), clock=lambda: now)  # who is told of sessions, of which there are none
    other = Other()
    Listener(sock, pool, welcome).open()
    pool.put(other, select.EPOLLIN)
    crowd = [socket.create_connection(sock.getsockname()) for _ in range(30)]
    turns = 0
    while len(welcomed) < len(crowd):
        turns += 1
        before = now
        other.theirs.send(b"ping")
        while pool.turn():
            pass
        assert other.reacted == turns
        assert now - before <= 2 * limits.TURN_SECONDS_MAX
    assert turns > 3
    for each in (*crowd, other.ours, other.theirs, *(socket.socket(fileno=fd) for fd in welcomed)):
        each.close()


@pytest.mark.parametrize(("heartbeat", "idle"), [(0.1, 120), (25.0, 120), (60.0, 120), (60.1, 121), (3600.0, 7200)])
def test_no_keepalive_is_sent_while_heartbeats_are(sock: socket.socket, heartbeat: float, idle: int) -> None:
    """The kernel gives up at the first keepalive that gets lost, because there is a TCP_USER_TIMEOUT."""
    configure(sock, Config(heartbeat_seconds=heartbeat))
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == idle
