"""PROXY headers of any kind come through whole, a byte at a time and with anything behind them; the rest is refused."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

from hypothesis import given
from hypothesis import strategies as st

from server.close import PeerError
from server.proxy import Header, Mode, crc32c, parse

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
PORTS = st.integers(0, 65535)
MODES: st.SearchStrategy[Mode] = st.sampled_from(["v1", "v2", "auto"])
TLVS = st.lists(
    st.tuples(st.integers(0, 255).filter(lambda kind: kind not in (3, 4)), st.binary(max_size=20)), max_size=5
)


def is_plain_ipv6(address: IPv4Address | IPv6Address) -> bool:
    return isinstance(address, IPv6Address) and address.ipv4_mapped is None


IPV6 = st.ip_addresses(v=6).filter(is_plain_ipv6)


def outcome(buffer: bytes, mode: Mode = "auto") -> Header | PeerError | None:
    try:
        return parse(buffer, mode)
    except PeerError as error:
        return error


def check(whole: bytes, wanted: Header, behind: bytes) -> None:
    assert parse(whole) == parse(whole + behind) == wanted
    assert wanted.consumed == len(whole)
    assert {parse(whole[:size]) for size in range(len(whole))} == {None}


def with_checksum(header: bytes) -> bytes:
    """Append a CRC32c TLV to a version 2 header."""
    length = int.from_bytes(header[14:16], "big") + 7
    unsummed = header[:14] + length.to_bytes(2, "big") + header[16:] + b"\3\0\4\0\0\0\0"
    return unsummed[:-4] + crc32c(unsummed).to_bytes(4, "big")


@given(st.ip_addresses(v=4), st.ip_addresses(v=4), PORTS, PORTS, st.binary(max_size=40))
def test_v1_over_ipv4(source: IPv4Address, destination: IPv4Address, port: int, to: int, behind: bytes) -> None:
    whole = f"PROXY TCP4 {source} {destination} {port} {to}\r\n".encode()
    check(whole, Header(len(whole), (str(source), port), (str(destination), to), ()), behind)


@given(IPV6, IPV6, PORTS, st.booleans(), st.binary(max_size=40))
def test_v1_over_ipv6(source: IPv6Address, destination: IPv6Address, port: int, exploded: bool, behind: bytes) -> None:
    text = source.exploded.upper() if exploded else source.compressed
    whole = f"PROXY TCP6 {text} {destination} {port} 1\r\n".encode()
    check(whole, Header(len(whole), (str(source), port), (str(destination), 1), ()), behind)


@given(st.ip_addresses(v=4), PORTS, st.booleans(), st.binary(max_size=40))
def test_a_v4_mapped_address_is_the_ipv4_one(source: IPv4Address, port: int, binary: bool, behind: bytes) -> None:
    if binary:
        mapped = bytes(10) + b"\xff\xff" + source.packed
        whole = SIGNATURE + b"\x21\x21\0\x24" + mapped + mapped + struct.pack("!HH", port, port)
    else:
        whole = f"PROXY TCP6 ::ffff:{source} ::ffff:{source} {port} {port}\r\n".encode()
    check(whole, Header(len(whole), (str(source), port), (str(source), port), ()), behind)


@given(st.ip_addresses(v=4) | IPV6, PORTS, TLVS, st.booleans(), st.binary(max_size=40))
def test_v2(
    address: IPv4Address | IPv6Address, port: int, tlvs: list[tuple[int, bytes]], summed: bool, behind: bytes
) -> None:
    block = address.packed * 2 + struct.pack("!HH", port, 1)
    block += b"".join(struct.pack("!BH", kind, len(value)) + value for kind, value in tlvs)
    family = 0x11 if address.version == 4 else 0x21
    whole = SIGNATURE + struct.pack("!BBH", 0x21, family, len(block)) + block
    if summed:
        whole = with_checksum(whole)
        tlvs = [*tlvs, (3, whole[-4:])]
    check(whole, Header(len(whole), (str(address), port), (str(address), 1), tuple(tlvs)), behind)


@given(
    st.binary() | st.binary().map(lambda b: b"PROXY " + b) | st.binary(max_size=300).map(lambda b: SIGNATURE + b), MODES
)
def test_arbitrary_bytes_never_raise_anything_but_a_peer_error(buffer: bytes, mode: Mode) -> None:
    found = outcome(buffer, mode)
    if isinstance(found, Header):
        assert 0 < found.consumed <= len(buffer)
        assert outcome(buffer[: found.consumed], mode) == found


@given(st.text(alphabet="PROXYTCP46 UNKNOWN.:0123f\r\n", max_size=120).map(lambda t: f"PROXY TCP{t}\r\n".encode()))
def test_almost_a_line_is_a_header_or_a_peer_error(buffer: bytes) -> None:
    assert isinstance(outcome(buffer), Header | PeerError)


@given(st.binary(min_size=4, max_size=60), st.integers(0, 60))
def test_almost_a_block_never_counts_bytes_that_are_not_there(block: bytes, length: int) -> None:
    buffer = SIGNATURE + b"\x21\x11" + length.to_bytes(2, "big") + block
    found = outcome(buffer)
    assert (found is None) == (length > len(block))
