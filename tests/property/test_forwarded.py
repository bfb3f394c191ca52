"""Whatever a client puts into the headers, the trusted proxy's word stands, or the request is refused."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from hypothesis import given
from hypothesis import strategies as st

from server.close import PeerError
from server.forwarded import client, plain

PROXY = "10.0.0.1"
TEXT = st.text(st.characters(max_codepoint=255), max_size=40)
NASTY = st.text('for=";, \\[]:127.0', max_size=40)
ADDRESSES = st.ip_addresses().filter(lambda address: plain(str(address)) != PROXY)


def outcome(forwarded: list[str], x_forwarded_for: list[str]) -> str | None:
    try:
        return client(PROXY, forwarded, x_forwarded_for, PROXY.__eq__)
    except PeerError:
        return None


@given(TEXT | NASTY, ADDRESSES)
def test_nobody_chooses_an_address_in_x_forwarded_for(said: str, true: IPv4Address | IPv6Address) -> None:
    assert outcome([], [f"{said}, {true}"]) == outcome([], [said, str(true)]) == plain(str(true))


@given(TEXT | NASTY, ADDRESSES)
def test_nobody_chooses_an_address_in_forwarded(said: str, true: IPv4Address | IPv6Address) -> None:
    node = f'"[{true}]:4711"' if isinstance(true, IPv6Address) else str(true)
    for values in ([f"{said}, for={node};proto=http"], [said, f"for={node};proto=http"]):
        assert outcome(values, []) in (plain(str(true)), None)


@given(TEXT | NASTY, ADDRESSES)
def test_nor_by_the_header_that_the_proxy_does_not_write(said: str, true: IPv4Address | IPv6Address) -> None:
    assert outcome([said], [str(true)]) in (plain(str(true)), None)
    node = f'"[{true}]"' if isinstance(true, IPv6Address) else str(true)
    assert outcome([f"for={node}"], [said]) in (plain(str(true)), None)


@given(TEXT | NASTY, st.binary(max_size=40))
def test_garbage_is_read_or_refused(said: str, more: bytes) -> None:
    outcome([said, more.decode("latin-1")], [])
    outcome([], [said, more.decode("latin-1")])
