"""Connections by remote address, as the kernel counts them."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import pytest

from tuning import peers


def test_connections_are_counted_by_remote_address() -> None:
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        ports = [listener.getsockname()[1] for listener in listeners]
        other = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        for source, listener in [("127.0.0.9", 0)] * 3 + [("127.0.0.9", 1)] * 2 + [("127.0.0.8", 1)]:
            address = ("127.0.0.1", ports[listener])
            stack.enter_context(socket.create_connection(address, source_address=(source, 0)))
        stack.enter_context(socket.create_connection(other.getsockname()))
        found = peers.connected(ports)
    assert found.held == {"127.0.0.9": 5, "127.0.0.8": 1}
    assert found.destinations == 2


def test_both_families() -> None:
    with ExitStack() as stack:
        try:
            listener = stack.enter_context(socket.create_server(("::1", 0), family=socket.AF_INET6))
        except OSError:
            pytest.skip("no IPv6 here")
        stack.enter_context(socket.create_connection(listener.getsockname()[:2]))
        found = peers.connected([listener.getsockname()[1]])
    assert found.held == {"::1": 1}


def test_nobody_is_nobody() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert peers.connected([listener.getsockname()[1]]) == peers.Peers({}, 1)


def test_what_waits_in_a_buffer_is_counted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(listener.getsockname()) as client, listener.accept()[0] as ours:
            before = peers.connected([port]).buffer_bytes
            client.sendall(b"x" * 50_000)
            ours.recv(1, socket.MSG_PEEK)
            assert peers.connected([port]).buffer_bytes >= before + 50_000
