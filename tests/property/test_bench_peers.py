"""Messages among whatever a protocol puts around them: any split of the bytes gives the same count."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.peers.clients import Subscribers
from bench.peers.nats import NatsWire
from bench.peers.wire import HEAD_BYTES, payload

# Framing of any kind; the mark is two of one byte, which so never comes twice.
framing = st.binary(max_size=20).map(lambda noise: noise.replace(b"~~", b"~"))


@pytest.fixture(scope="module")
def clients() -> Iterator[Subscribers]:
    """One set for all examples: what it knows of a descriptor is put back before each."""
    made = Subscribers(NatsWire())
    yield made
    made.epoll.close()


@given(parts=st.lists(framing, min_size=1, max_size=5), cuts=st.lists(st.integers(0, 700), max_size=8))
def test_any_split_gives_the_same_messages(clients: Subscribers, parts: list[bytes], cuts: list[int]) -> None:
    clients.rest.clear()
    clients.faults.clear()
    clients.next[9] = clients.received = 0
    # A single `~` before a mark would move it; protocols put quotes, lengths, tags and line ends there.
    stream = b"".join(part.rstrip(b"~") + payload(number) for number, part in enumerate(parts)) + b"\r\n"
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    for begin, end in pairwise(edges):
        clients.feed(9, stream[begin:end])
    assert clients.received == clients.next[9] == len(parts)
    assert not clients.faults
    assert len(clients.rest.get(9, b"")) < HEAD_BYTES
