"""A session as data: what it sends at once, what waits, and what it weighs."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from typing import cast

import pytest

from server.lane import Lane
from server.session import CLOSED, Backlog, Session


class Holder:
    """Keeps what a session could not send."""

    def __init__(self) -> None:
        self.held: list[bytes] = []
        self.has_room = True

    def hold(self, session: Session, rest: bytes) -> bool:
        session.backlog = session.backlog or Backlog()
        self.held.append(rest)
        return self.has_room


class FakeLane:
    def __init__(self, pool: Holder) -> None:
        self.pool = pool


@pytest.fixture
def holder() -> Holder:
    return Holder()


@pytest.fixture
def pair(holder: Holder) -> Iterator[tuple[Session, socket.socket]]:
    """A session on one end of a pair of sockets."""
    ours, peer = socket.socketpair()
    ours.setblocking(False)

    class Ours(Session):
        __slots__ = ()
        lane = cast(Lane, FakeLane(holder))

    yield Ours(ours.fileno(), "alice", ()), peer
    ours.close()
    peer.close()


def test_a_frame_is_sent_at_once(pair: tuple[Session, socket.socket], holder: Holder) -> None:
    session, peer = pair
    assert session.offer(b"frame\n") is True
    assert peer.recv(100) == b"frame\n"
    assert holder.held == []
    assert session.backlog is None


def test_what_the_kernel_does_not_take_is_held_in_order(pair: tuple[Session, socket.socket], holder: Holder) -> None:
    session, peer = pair
    whole = os.urandom(1_000_000)
    assert session.offer(whole) is True
    assert session.offer(b"second") is True
    first, second = holder.held
    assert 0 < len(first) < len(whole)
    assert second == b"second", "nothing overtakes what waits"
    sent = b""
    while len(sent) + len(first) < len(whole):
        sent += peer.recv(1_000_000)
    assert sent + first == whole


def test_no_room_is_reported(pair: tuple[Session, socket.socket], holder: Holder) -> None:
    session, _ = pair
    holder.has_room = False
    assert session.offer(os.urandom(1_000_000)) is False


def test_a_peer_that_is_gone_is_not_our_business(pair: tuple[Session, socket.socket], holder: Holder) -> None:
    session, peer = pair
    peer.close()
    assert session.offer(b"frame\n") is True
    session.fd = CLOSED
    assert session.offer(b"frame\n") is True
    assert holder.held == []


def test_a_backlog_is_dropped_by_bytes() -> None:
    backlog = Backlog()
    for frame in (b"abc", b"defg", b"h"):
        backlog.append(frame)
    assert backlog.bytes == 8
    backlog.drop(0)
    backlog.drop(4)
    assert (backlog.bytes, list(backlog.frames)) == (4, [b"efg", b"h"])
    backlog.drop(3)
    assert (backlog.bytes, list(backlog.frames)) == (1, [b"h"])
    backlog.drop(1)
    assert (backlog.bytes, list(backlog.frames)) == (0, [])


def test_an_idle_session_is_small(pair: tuple[Session, socket.socket]) -> None:
    session, _ = pair
    assert not hasattr(session, "__dict__")
    assert sys.getsizeof(session) <= 72
