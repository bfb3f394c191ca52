"""Whose a connection is: who has to send a PROXY header, who may, and who may not."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import ip_network

import pytest

from server.close import Close, PeerError
from server.sources import UNKNOWN, Sources, of_socket

V1 = b"PROXY TCP4 203.0.113.9 10.0.0.1 4711 7400\r\n"
V2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes([203, 0, 113, 9, 10, 0, 0, 1, 18, 103, 28, 232])
LOCAL = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"
UNKNOWN_V1 = b"PROXY UNKNOWN\r\n"
LINE = b'{"op":"connect"}\n'
LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))


@pytest.fixture(params=["127.0.0.1", "::1", "mapped"])
def accepted(request: pytest.FixtureRequest) -> Iterator[tuple[int, str]]:
    """A connection's descriptor, and its peer's address."""
    mapped = request.param == "mapped"
    family = socket.AF_INET if request.param == "127.0.0.1" else socket.AF_INET6
    where = ("::" if mapped else request.param, 0)
    with (
        socket.create_server(where, family=family, dualstack_ipv6=mapped) as listener,
        socket.create_connection(("127.0.0.1" if mapped else request.param, listener.getsockname()[1])),
    ):
        ours, _ = listener.accept()
        with ours:
            yield ours.fileno(), "127.0.0.1" if mapped else request.param


def test_the_address_of_a_socket(accepted: tuple[int, str]) -> None:
    fd, address = accepted
    assert of_socket(fd) == address
    socket.fromfd(fd, socket.AF_INET6, socket.SOCK_STREAM).close()  # it is still open


def test_a_peer_that_is_gone_has_none() -> None:
    with socket.socket() as sock:
        assert of_socket(sock.fileno()) == UNKNOWN
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert of_socket(ours.fileno()) == UNKNOWN
    assert Sources("v2", LOOPBACK).trusts(UNKNOWN) is False


@pytest.mark.parametrize(("mode", "header"), [("v1", V1), ("v2", V2), ("auto", V1), ("auto", V2)])
def test_a_trusted_peer_says_whose_it_is(accepted: tuple[int, str], mode: str, header: bytes) -> None:
    sources = Sources(mode, LOOPBACK)
    assert sources.arrival(accepted[0], header + LINE) == ("203.0.113.9", LINE)
    for size in range(len(header)):
        assert sources.arrival(accepted[0], header[:size]) is None


@pytest.mark.parametrize(("mode", "header"), [("v2", LOCAL), ("v1", UNKNOWN_V1), ("auto", LOCAL), ("auto", UNKNOWN_V1)])
def test_the_balancers_own_connection_is_its_own(accepted: tuple[int, str], mode: str, header: bytes) -> None:
    fd, address = accepted
    assert Sources(mode, LOOPBACK).arrival(fd, header + LINE) == (address, LINE)


@pytest.mark.parametrize(("mode", "found"), [("v1", LINE), ("v2", LINE), ("v2", b"GET / HTTP/1.1\r\n")])
def test_a_trusted_peer_has_to_send_one(accepted: tuple[int, str], mode: str, found: bytes) -> None:
    with pytest.raises(PeerError) as caught:
        Sources(mode, LOOPBACK).arrival(accepted[0], found)
    assert caught.value.code is Close.PROXY_MISSING
    assert mode in caught.value.reason


@pytest.mark.parametrize(("mode", "found"), [("v1", V2), ("v2", V1), ("auto", V1.replace(b"4711", b"x"))])
def test_a_wrong_one_is_refused(accepted: tuple[int, str], mode: str, found: bytes) -> None:
    with pytest.raises(PeerError) as caught:
        Sources(mode, LOOPBACK).arrival(accepted[0], found)
    assert caught.value.code is Close.PROXY_MALFORMED


def test_auto_takes_those_without(accepted: tuple[int, str]) -> None:
    fd, address = accepted
    sources = Sources("auto", LOOPBACK)
    assert sources.arrival(fd, LINE) == (address, LINE)
    assert sources.arrival(fd, b"\r\n" + LINE) == (address, b"\r\n" + LINE)
    assert sources.arrival(fd, b"\r\n") is None, "both may follow"


@pytest.mark.parametrize("mode", ["v1", "v2", "auto"])
def test_who_is_not_trusted_comes_as_itself(accepted: tuple[int, str], mode: str) -> None:
    fd, address = accepted
    sources = Sources(mode, (ip_network("192.0.2.0/24"),))
    assert sources.arrival(fd, LINE) == (address, LINE)
    for header in (V1, V2, LOCAL):
        with pytest.raises(PeerError, match=address) as caught:
            sources.arrival(fd, header + LINE)
        assert caught.value.code is Close.PROXY_UNTRUSTED


def test_a_request_is_its_clients() -> None:
    sources = Sources("off", LOOPBACK)
    head = b"GET /events HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 198.51.100.1, 203.0.113.9\r\n\r\n"
    assert sources.of_head("127.0.0.1", head) == "203.0.113.9"
    assert sources.of_head("192.0.2.7", head) == "192.0.2.7"
    assert sources.of_headers("::1", ["for=203.0.113.9"], []) == "203.0.113.9"
