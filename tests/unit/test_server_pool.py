"""The pool over real sockets: nothing is lost, nobody gets another's events, and what is sent last can be read."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from server import limits, lines, sse
from server.close import Close
from server.lane import LINES, STREAM, Lane
from server.pool import DEAF, Pool, error_code
from server.session import CLOSED, Session
from server.stats import Stats

BACKLOG_BYTES_MAX = 50_000


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Told:
    """Keeps what the pool tells."""

    def __init__(self) -> None:
        self.received_: list[tuple[Session, bytes]] = []
        self.half_closed_: list[Session] = []
        self.lost_: list[tuple[Session, Close]] = []
        self.failed_: list[Session] = []
        self.on_received: Callable[[Session], None] = lambda session: None

    def received(self, session: Session, data: bytes) -> None:
        self.received_.append((session, data))
        self.on_received(session)

    def half_closed(self, session: Session) -> None:
        self.half_closed_.append(session)

    def lost(self, session: Session, code: Close) -> None:
        self.lost_.append((session, code))
        session.lane.pool.close(session)

    def drained(self, session: Session) -> None:
        raise AssertionError(session)

    def failed(self, session: Session) -> None:
        self.failed_.append(session)


class Bench:
    """A pool with lanes, and connections over loopback."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.told = Told()
        self.stats = Stats()
        self.pool = Pool(self.stats, self.told, backlog_bytes_max=BACKLOG_BYTES_MAX, clock=self.clock)
        self.lanes = {"tcp": Lane("tcp", lines, LINES, self.pool), "sse": Lane("sse", sse, STREAM, self.pool)}
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._peers: list[socket.socket] = []

    def connect(self, lane: str = "tcp", user: str = "u") -> tuple[Session, socket.socket]:
        """Return a session in the pool and the client's socket."""
        peer = socket.create_connection(self._listener.getsockname())
        peer.settimeout(5)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._peers.append(peer)
        ours, _ = self._listener.accept()
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        session = self.lanes[lane].session(ours.detach(), user, ())
        self.pool.put(session, self.lanes[lane].armed)
        return session, peer

    def turn(self, seconds: float = 5.0) -> None:
        """Wait for events and handle all of them."""
        assert select.select([self.pool.fileno()], [], [], seconds)[0], "nothing happens"
        while self.pool.turn():
            pass

    def is_quiet(self) -> bool:
        """True when the event loop would sleep."""
        return not select.select([self.pool.fileno()], [], [], 0.05)[0]

    def close(self) -> None:
        for peer in self._peers:
            peer.close()
        self._listener.close()
        for fd, peer_of_pool in enumerate(self.pool.peers):
            if peer_of_pool is not None:
                os.close(fd)
        self.pool.epoll.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


def read_all(peer: socket.socket) -> bytes:
    return b"".join(iter(lambda: peer.recv(65536), b""))


def fill(session: Session, frame: bytes) -> int:
    """Offer `frame` until some of it has to wait; return how often."""
    count = 0
    while session.backlog is None:
        assert session.offer(frame)
        count += 1
    return count


# Reading.


def test_lines_are_received_and_nothing_spins(bench: Bench) -> None:
    session, peer = bench.connect()
    assert bench.is_quiet()
    peer.sendall(b"hello")
    bench.turn()
    assert bench.told.received_ == [(session, b"hello")]
    assert bench.is_quiet()


def test_a_long_text_is_read_in_pieces_over_several_turns(bench: Bench) -> None:
    session, peer = bench.connect()
    text = os.urandom(3 * limits.READ_BYTES)
    peer.sendall(text)
    while sum(len(data) for _, data in bench.told.received_) < len(text):
        bench.turn()
    assert b"".join(data for _, data in bench.told.received_) == text
    assert max(len(data) for _, data in bench.told.received_) <= limits.READ_BYTES
    assert session.fd != CLOSED


@pytest.mark.parametrize("lane", ["tcp", "sse"])
def test_a_half_closed_peer_is_told_of_once(bench: Bench, lane: str) -> None:
    session, peer = bench.connect(lane)
    peer.shutdown(socket.SHUT_WR)
    bench.turn()
    assert bench.told.half_closed_ == [session]
    assert bench.is_quiet()
    assert session.offer(b"still\n\n")
    assert peer.recv(100) == b"still\n\n"
    peer.close()
    session.offer(b"?\n\n")  # answered with a reset
    bench.turn()
    assert bench.told.lost_ == [(session, Close.LEFT)]


def test_what_a_stream_says_is_not_read(bench: Bench) -> None:
    session, peer = bench.connect("sse")
    peer.sendall(b"x" * 1000)
    assert bench.is_quiet()
    peer.shutdown(socket.SHUT_WR)
    bench.turn()
    assert bench.told.half_closed_ == [session]
    assert bench.told.received_ == []
    assert bench.is_quiet()


def test_a_reset_is_lost(bench: Bench) -> None:
    session, peer = bench.connect()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
    bench.turn()
    assert bench.told.lost_ == [(session, Close.LEFT)]


def test_muted_until_unmuted(bench: Bench) -> None:
    session, peer = bench.connect()
    bench.pool.mute(session)
    peer.sendall(b"later")
    peer.shutdown(socket.SHUT_WR)
    assert bench.is_quiet()
    bench.pool.unmute(session)
    bench.turn()
    assert bench.told.received_ == [(session, b"later")]
    bench.turn()
    assert bench.told.half_closed_ == [session]


def test_an_exception_is_one_sessions_own(bench: Bench) -> None:
    first, one = bench.connect()
    second, two = bench.connect()

    def fail(session: Session) -> None:
        if session is first:
            raise RuntimeError("a bug")

    bench.told.on_received = fail
    one.sendall(b"1")
    two.sendall(b"2")
    while len(bench.told.received_) < 2:
        bench.turn()
    assert bench.told.failed_ == [first]
    assert bench.is_quiet()
    assert second.fd != CLOSED


# One turn.


def test_a_descriptor_closed_in_a_batch_is_not_given_out_within_it(bench: Bench) -> None:
    sessions = [bench.connect() for _ in range(4)]
    numbers = {session.fd for session, _ in sessions}
    opened: list[int] = []

    def close_the_others(session: Session) -> None:
        for other, _ in sessions:
            if other is not session and other.fd != CLOSED:
                bench.pool.close(other)
        opened.append(os.open(os.devnull, os.O_RDONLY))

    bench.told.on_received = close_the_others
    for _, peer in sessions:
        peer.sendall(b"x")
    bench.turn()
    assert len(bench.told.received_) == 1, "the events of those who were closed are dropped"
    assert opened[0] not in numbers
    reused = os.open(os.devnull, os.O_RDONLY)
    assert reused in numbers, "closed by now"
    os.close(reused)
    os.close(opened[0])


def test_a_turn_that_takes_too_long_is_cut_and_loses_nothing(bench: Bench) -> None:
    """Streams are armed edge-triggered: the kernel would not report the rest again."""
    sessions = [bench.connect("sse", f"u{number}") for number in range(40)]
    for _, peer in sessions:
        peer.shutdown(socket.SHUT_WR)
    half_closed = bench.told.half_closed_

    def slow(session: Session) -> None:
        half_closed.append(session)
        bench.clock.now += limits.TURN_SECONDS_MAX

    bench.told.half_closed = slow  # type: ignore[method-assign]
    assert bench.pool.turn() is True
    assert len(half_closed) == 1
    turns = 1
    while bench.pool.turn():
        turns += 1
    assert turns == 39
    assert {session.user for session in half_closed} == {session.user for session, _ in sessions}


# Writing.


@pytest.mark.parametrize("lane", ["tcp", "sse"])
def test_what_waits_is_sent_in_order_when_there_is_room(bench: Bench, lane: str) -> None:
    session, peer = bench.connect(lane)
    count = fill(session, b"x" * 999 + b"\n")
    while session.offer(b"%06d.........................\n\n" % count):  # hundreds, many more than one writev takes
        count += 1
    backlog = session.backlog
    assert backlog is not None
    assert len(backlog.frames) > 500
    assert bench.stats.backlogged_connections == 1
    assert bench.stats.backlog_bytes == backlog.bytes == sum(map(len, backlog.frames)) <= BACKLOG_BYTES_MAX
    got = b""
    while session.backlog is not None:
        got += peer.recv(65536)
        if select.select([bench.pool.fileno()], [], [], 0)[0]:
            bench.turn()
        elif session.backlog is not None and not select.select([peer], [], [], 2)[0]:
            pytest.fail(f"it stalls with {len(session.backlog.frames)} frames left")
    assert bench.stats.backlogged_connections == bench.stats.backlog_bytes == 0
    session.offer(b"end\n\n")
    while not got.endswith(b"end\n\n"):
        got += peer.recv(65536)
    numbers = [int(line[:6]) for line in got.split(b"\n") if line[:1].isdigit()]
    assert numbers == list(range(numbers[0], count))
    assert bench.is_quiet()


def test_the_backlog_is_bounded_to_the_byte(bench: Bench) -> None:
    session, _ = bench.connect()
    fill(session, b"x" * 999 + b"\n")
    backlog = session.backlog
    assert backlog is not None
    assert session.offer(b"y" * (BACKLOG_BYTES_MAX - backlog.bytes))
    assert backlog.bytes == BACKLOG_BYTES_MAX
    assert session.offer(b"z") is False
    assert backlog.bytes == BACKLOG_BYTES_MAX


def test_a_session_that_leaves_takes_its_backlog_out_of_the_count(bench: Bench) -> None:
    session, _ = bench.connect()
    fill(session, b"x" * 999 + b"\n")
    bench.pool.close(session)
    assert bench.stats.backlogged_connections == bench.stats.backlog_bytes == 0
    assert session.offer(b"nobody\n") is True


# Ending.


def test_a_farewell_is_read_although_bytes_were_unread(bench: Bench) -> None:
    session, peer = bench.connect()
    peer.sendall(b"x" * 5000)  # close() alone would answer that with a reset, which destroys what is under way
    bench.pool.farewell(session, b"bye\n")
    assert session.fd == CLOSED
    assert read_all(peer) == b"bye\n"
    bench.turn()
    peer.sendall(b"more")
    bench.turn()
    peer.close()
    bench.turn()
    assert all(each is None for each in bench.pool.peers)


@pytest.mark.parametrize("half_closed", [False, True])
def test_a_farewell_comes_behind_the_frame_that_had_begun(bench: Bench, half_closed: bool) -> None:
    session, peer = bench.connect()
    frame = b"x" * 20_000 + b"\n"
    fill(session, frame)
    assert session.offer(b"never sent\n")
    if half_closed:
        peer.shutdown(socket.SHUT_WR)
    bench.pool.farewell(session, b"bye\n")
    assert bench.stats.backlogged_connections == bench.stats.backlog_bytes == 0
    got = b""
    while True:
        if select.select([bench.pool.fileno()], [], [], 0)[0]:
            bench.turn()
        data = peer.recv(65536)
        if not data:
            break
        got += data
    *frames, last, rest = got.split(b"\n")
    assert set(frames) == {frame[:-1]}
    assert (last, rest) == (b"bye", b"")
    peer.close()
    while any(bench.pool.peers):
        bench.turn()


@pytest.mark.parametrize(
    ("lane", "message"), [("tcp", b"x" * 5000 + b"\n"), ("sse", b"data: a\ndata: " + b"x" * 5000 + b"\n\n")]
)
def test_a_write_of_many_messages_is_cut_between_two(bench: Bench, lane: str, message: bytes) -> None:
    session, peer = bench.connect(lane)
    assert session.offer(message * 1000) is False
    bench.pool.farewell(session, b"bye\n")
    got = b""
    while not got.endswith(b"bye\n"):
        if select.select([bench.pool.fileno()], [], [], 0)[0]:
            bench.turn()
        got += peer.recv(65536)
    assert got == message * (len(got) // len(message)) + b"bye\n"


def test_who_does_not_read_the_farewell_is_closed_in_the_end(bench: Bench) -> None:
    session, _ = bench.connect()
    fill(session, b"x" * 20_000 + b"\n")
    bench.pool.farewell(session, b"bye\n")
    bench.pool.expire()
    assert any(bench.pool.peers)
    bench.clock.now += limits.LINGER_SECONDS_MAX
    bench.pool.expire()
    assert not any(bench.pool.peers)


def test_a_released_descriptor_is_somebody_elses(bench: Bench) -> None:
    session, peer = bench.connect()
    fd = bench.pool.release(session)
    assert session.fd == CLOSED
    peer.sendall(b"x")
    assert bench.is_quiet()
    assert os.read(fd, 10) == b"x"
    os.close(fd)


def test_the_last_descriptors_are_reserved(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.pool.resource.getrlimit", lambda _: (1000, 1000))
    pool = Pool(Stats(), bench.told)
    assert not pool.is_reserved(1000 - limits.DESCRIPTORS_RESERVED - 1)
    assert pool.is_reserved(1000 - limits.DESCRIPTORS_RESERVED)
    pool.epoll.close()


def test_the_error_of_a_socket_is_read_and_cleared() -> None:
    with socket.socket() as sock:
        sock.setblocking(False)
        with socket.create_server(("127.0.0.1", 0)) as server:
            nowhere = server.getsockname()
        sock.connect_ex(nowhere)
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        poll.poll(5000)
        assert error_code(sock.fileno()) == errno.ECONNREFUSED
        assert error_code(sock.fileno()) == 0


def test_deaf_is_no_arming_for_reading_or_leaving() -> None:
    assert not DEAF & (select.EPOLLIN | select.EPOLLRDHUP)


# Without a watch.


def spend(bench: Bench) -> None:
    """Have the kernel refuse a watch."""
    assert bench.pool.reserve.spend(OSError(errno.ENOSPC, ""))


def test_who_leaves_gives_its_watch_to_others_and_can_read_what_was_said(bench: Bench) -> None:
    session, peer = bench.connect()
    peer.sendall(b"unread")
    fd = session.fd
    spend(bench)
    bench.pool.farewell(session, b"goodbye\n")
    with pytest.raises(FileNotFoundError):
        bench.pool.epoll.unregister(fd)
    assert read_all(peer) == b"goodbye\n"
    bench.pool.expire()
    os.fstat(fd)  # it may still send
    peer.close()
    while bench.pool.lingering:
        bench.pool.expire()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_long_farewell_is_finished_without_a_watch(bench: Bench) -> None:
    session, peer = bench.connect()
    spend(bench)
    frame = b"x" * 100_000 + b"\n"
    bench.pool.farewell(session, frame)
    peer.setblocking(False)
    heard = bytearray()
    while len(heard) < len(frame):
        with suppress(BlockingIOError):
            heard += peer.recv(65536)
        bench.pool.expire()
    assert heard == frame


def test_who_does_not_leave_without_a_watch_is_closed_all_the_same(bench: Bench) -> None:
    session, _peer = bench.connect()
    fd = session.fd
    spend(bench)
    bench.pool.farewell(session, b"goodbye\n")
    bench.clock.now += limits.LINGER_SECONDS_MAX
    bench.pool.expire()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
