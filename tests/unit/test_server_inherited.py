"""Sockets that were passed to us: whose they are, and what is said of those that are nobody's."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from harness import UNPRIVILEGED

from server import inherited
from server.config import Address, load
from server.inherited import Inherited
from server.listener import address_of
from server.sockets import Group, Sockets


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def listening(stack: ExitStack, host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return stack.enter_context(socket.create_server((host, port), family=family, reuse_port=True))


def test_nothing_was_passed() -> None:
    assert inherited.take({}) == []
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b", "OTHER": "x"}
    assert inherited.take(environ) == [], "to another process"
    assert environ == {"OTHER": "x"}, "and not to a child either"


def test_a_count_that_is_none() -> None:
    with pytest.raises(ValueError, match="LISTEN_FDS: found 'two', want a number"):
        inherited.take({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "two"})


def test_what_was_passed_is_taken_with_its_name(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = listening(stack), listening(stack, "::1")
    fds = [os.dup(one.fileno()), os.dup(other.fileno())]
    os.set_inheritable(fds[0], True)
    monkeypatch.setattr(inherited, "_fds", lambda count: fds[:count])
    found = inherited.take({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "moorage.socket"})
    assert [name for _, name in found] == ["moorage.socket", "unknown"]
    assert [address_of(sock) for sock, _ in found] == [address_of(one), address_of(other)]
    assert not any(sock.get_inheritable() or sock.getblocking() for sock, _ in found)
    for sock, _ in found:
        sock.close()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("datagram", "found AF_INET SOCK_DGRAM, want a TCP socket that listens"),
        ("unix", "found AF_UNIX SOCK_STREAM, want a TCP socket that listens"),
        ("silent", "found AF_INET SOCK_STREAM, want a TCP socket that listens"),
        ("file", "want a socket"),
        ("closed", "want a socket"),
    ],
)
def test_what_is_no_listening_socket_is_refused(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, kind: str, said: str
) -> None:
    families = {"datagram": (socket.AF_INET, socket.SOCK_DGRAM), "unix": (socket.AF_UNIX, socket.SOCK_STREAM)}
    if kind == "closed":
        fd = os.dup(0)
        os.close(fd)
    elif kind == "file":
        fd = os.open(os.devnull, os.O_RDONLY)
        stack.callback(os.close, fd)
    else:
        fd = socket.socket(*families.get(kind, (socket.AF_INET, socket.SOCK_STREAM))).detach()
    monkeypatch.setattr(inherited, "_fds", lambda count: [fd])
    with pytest.raises(ValueError, match=rf"descriptor {fd} \(web\) that was passed.*{said}"):
        inherited.take({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "web"})


def test_a_socket_belongs_to_the_option_with_its_address(stack: ExitStack) -> None:
    tcp, again, http = listening(stack), None, listening(stack, "::1")
    again = listening(stack, port=address_of(tcp).port)
    named = Address("localhost", address_of(tcp).port)
    passed = [Inherited(sock, "moorage.socket") for sock in (tcp, http, again)]
    found = inherited.share_out(passed, [named, address_of(http), Address("127.0.0.1", 1)])
    assert found == {named: [tcp, again], address_of(http): [http]}


def test_every_socket_that_fits_no_option_is_named(stack: ExitStack) -> None:
    tcp, one, other = listening(stack), listening(stack), listening(stack)
    passed = [Inherited(tcp, "a"), Inherited(one, "b"), Inherited(other, "c")]
    with pytest.raises(ValueError, match="want an address that an option names") as raised:
        inherited.share_out(passed, [address_of(tcp)])
    for sock, name in ((one, "b"), (other, "c")):
        assert f"descriptor {sock.fileno()} ({name}) that was passed listens on {address_of(sock)}" in str(raised.value)
    assert f"({address_of(tcp)})" in str(raised.value)


@pytest.mark.parametrize(
    ("sockets", "workers", "shares"),
    [
        (4, 4, [[0], [1], [2], [3]]),
        (1, 3, [[0], [0], [0]]),
        (2, 5, [[0], [1], [0], [1], [0]]),
        (5, 2, [[0, 2, 4], [1, 3]]),
    ],
)
def test_every_socket_has_a_worker_and_every_worker_a_socket(
    stack: ExitStack, sockets: int, workers: int, shares: list[list[int]]
) -> None:
    made = [listening(stack) for _ in range(sockets)]
    group = Group(made)
    assert [[made.index(sock) for sock in group.of(number, workers)] for number in range(workers)] == shares


def test_what_was_not_passed_is_opened_here(stack: ExitStack) -> None:
    passed = listening(stack)
    config = load(
        {"tcp": str(address_of(passed)), "http": "127.0.0.1:0", "admin": "127.0.0.1:0", "listen_backlog": "7"}, {}
    )
    sockets = Sockets.open(config, 3, [Inherited(passed, "moorage.socket")])
    for sock in (*sockets.http[0].sockets, *sockets.admin.sockets):
        stack.enter_context(sock)
    assert sockets.tcp == [Group([passed], is_inherited=True)]
    assert len(sockets.http[0].sockets) == 3
    assert sockets.of(1) == ([passed], [sockets.http[0].sockets[1]])
    assert passed.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    assert next(sockets.lines()) == f"tcp {address_of(passed)}"


@pytest.mark.parametrize("privileges", ["", UNPRIVILEGED], ids=["as we are", "unprivileged"])
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_before_the_end_no_connection_begins_but_on_what_was_passed(
    stack: ExitStack, host: str, privileges: str
) -> None:
    passed = listening(stack)
    config = load({"tcp": str(address_of(passed)), "http": f"{host}:0", "admin": "127.0.0.1:0"}, {})
    sockets = Sockets.open(config, 1, [Inherited(passed, "moorage.socket")])
    (own,) = sockets.http[0].sockets
    stack.enter_context(own)
    stack.enter_context(sockets.admin.sockets[0])
    waiting = stack.enter_context(socket.create_connection(own.getsockname()[:2], timeout=5))

    def hold_off() -> None:  # in a thread of its own, which alone loses its privileges
        exec(privileges)
        sockets.hold_off()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(hold_off).result()
    stack.enter_context(socket.create_connection(passed.getsockname(), timeout=5))
    stack.enter_context(socket.create_connection(sockets.admin.sockets[0].getsockname(), timeout=5))
    with pytest.raises(TimeoutError):
        socket.create_connection(own.getsockname()[:2], timeout=0.2)
    own.setblocking(True)
    own.settimeout(5)
    accepted = stack.enter_context(own.accept()[0])
    waiting.sendall(b"there")
    assert accepted.recv(10) == b"there", "who was in the queue is served"
