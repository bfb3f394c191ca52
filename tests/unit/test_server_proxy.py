"""The PROXY protocol: headers as HAProxy 2.6 sent them, and every way to get one wrong."""

from __future__ import annotations

import struct

import pytest

from server import proxy
from server.close import Close, PeerError
from server.proxy import Header, Mode, parse

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
LOOPBACK = bytes(15) + b"\1"
MAPPED = bytes(10) + b"\xff\xff"
V4 = b"\x0a\0\0\1\x0a\0\0\2" + struct.pack("!HH", 1111, 2222)


def v2(block: bytes = V4, *, command: int = 0x21, family: int = 0x11, length: int | None = None) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(block) if length is None else length) + block


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def refused(buffer: bytes, mode: Mode = "auto") -> tuple[Close, str | None]:
    with pytest.raises(PeerError) as caught:
        parse(buffer, mode)
    assert caught.value.reason
    return caught.value.code, caught.value.field


def parsed(buffer: bytes, mode: Mode = "auto") -> Header:
    header = parse(buffer, mode)
    assert header is not None
    return header


# What HAProxy 2.6 sends: taken from the wire


@pytest.mark.parametrize(
    ("sent", "source", "destination"),
    [
        (b"PROXY TCP4 127.0.0.1 127.0.0.1 39038 50781\r\n", ("127.0.0.1", 39038), ("127.0.0.1", 50781)),
        (b"PROXY TCP6 ::1 ::1 33310 34405\r\n", ("::1", 33310), ("::1", 34405)),
        (
            b"PROXY TCP6 ::ffff:127.0.0.1 ::ffff:127.0.0.1 50536 33427\r\n",
            ("127.0.0.1", 50536),
            ("127.0.0.1", 33427),
        ),
        (
            SIGNATURE + b"!\x11\0\x0c\x7f\0\0\1\x7f\0\0\1\xa0\xda\xc1\x97",
            ("127.0.0.1", 41178),
            ("127.0.0.1", 49559),
        ),
        (SIGNATURE + b"!!\0$" + LOOPBACK + LOOPBACK + b"\xdd@\xd7g", ("::1", 56640), ("::1", 55143)),
        (
            SIGNATURE + b"!!\0$" + (MAPPED + b"\x7f\0\0\1") * 2 + b"\x8b\xb0\xe9\x07",
            ("127.0.0.1", 35760),
            ("127.0.0.1", 59655),
        ),
    ],
)
def test_haproxys_headers(sent: bytes, source: proxy.Address, destination: proxy.Address) -> None:
    assert parse(sent + b"hello\n") == Header(len(sent), source, destination, ())


def test_haproxys_checksum_and_unique_id() -> None:
    sent = SIGNATURE + b"!\x11\0&\x7f\0\0\1\x7f\0\0\1\x92H\xeb\xf1\3\0\4\xe6\xe7\x0fw\5\0\x1015924-1795334941"
    tlvs = ((proxy.TLV_CRC32C, b"\xe6\xe7\x0fw"), (5, b"15924-1795334941"))
    assert parse(sent) == Header(54, ("127.0.0.1", 37448), ("127.0.0.1", 60401), tlvs)


def test_haproxys_checksum_over_ipv6() -> None:
    sent = (
        SIGNATURE + b"!!\0>" + LOOPBACK + LOOPBACK + b"\xa6\xc6\xc6\xb7\3\0\4\xed\xf4\xfb\xa1\5\0\x1015924-1795334941"
    )
    assert parsed(sent).source == ("::1", 42694)


def test_haproxys_ssl_information() -> None:
    sent = SIGNATURE + b"!\x11\0\x14\x7f\0\0\1\x7f\0\0\1\xe1v\xe3\xe3 \0\5\0\0\0\0\0"
    assert parsed(sent).tlvs == ((0x20, bytes(5)),)


def test_haproxys_health_check_is_its_own_connection() -> None:
    assert parse(SIGNATURE + b" \0\0\0") == Header(16, None, None, ())


# Which version


def test_nothing_yet() -> None:
    for mode in ("v1", "v2", "auto"):
        assert parse(b"", mode) is None


@pytest.mark.parametrize(
    "buffer", [b"GET / HTTP/1.1\r\n", b"PROXY\tTCP4", b"proxy ", b"P ", b"\r\n\r\nQ", b"\n", b"\0"]
)
def test_anything_else_is_refused_at_once(buffer: bytes) -> None:
    for mode in ("v1", "v2", "auto"):
        assert refused(buffer, mode) == (Close.PROXY_MALFORMED, "signature")


def test_a_mode_takes_its_own_version_only() -> None:
    line, block = b"PROXY UNKNOWN\r\n", v2()
    assert parsed(line, "v1").consumed == len(line)
    assert parsed(block, "v2").consumed == len(block)
    assert refused(line, "v2") == refused(block, "v1") == (Close.PROXY_MALFORMED, "signature")


# Version 1


@pytest.mark.parametrize(
    "line",
    [
        b"PROXY UNKNOWN\r\n",
        b"PROXY UNKNOWN \r\n",
        b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n",
        b"PROXY UNKNOWN \xff\0\r whatever\r\n",
        b"PROXY UNKNOWN " + b"f" * 91 + b"\r\n",
    ],
)
def test_unknown_is_followed_by_anything(line: bytes) -> None:
    assert parse(line + b"x") == Header(len(line), None, None, ())


def test_ipv6_becomes_canonical() -> None:
    assert parsed(b"PROXY TCP6 2001:DB8:0:0:0:0:0:1 ::FFFF:A00:1 0 65535\r\n")[1:3] == (
        ("2001:db8::1", 0),
        ("10.0.0.1", 65535),
    )


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n", "line"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n", "line"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n", "line"),
        (b"PROXY TCP4  1.2.3.4 1.2.3.4 1 2\r\n", "line"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n", "line"),
        (b"PROXY TCP4\r\n", "line"),
        (b"PROXY \r\n", "family"),
        (b"PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n", "family"),
        (b"PROXY tcp4 1.2.3.4 1.2.3.4 1 2\r\n", "family"),
        (b"PROXY UNKNOWNS\r\n", "family"),
        (b"PROXY TCP4 1.2.3 1.2.3.4 1 2\r\n", "source"),
        (b"PROXY TCP4 1.2.3.256 1.2.3.4 1 2\r\n", "source"),
        (b"PROXY TCP4 01.2.3.4 1.2.3.4 1 2\r\n", "source"),
        (b"PROXY TCP4 ::1 ::1 1 2\r\n", "source"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4.5 1 2\r\n", "destination"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.\xb2 1 2\r\n", "destination"),
        (b"PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n", "source"),
        (b"PROXY TCP6 :::1 ::1 1 2\r\n", "source"),
        (b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n", "source"),
        (b"PROXY TCP6 ::1 12345::1 1 2\r\n", "destination"),
        (b"PROXY TCP6 ::1  1 2\r\n", "destination"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n", "source port"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n", "source port"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 -1 2\r\n", "source port"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 \xb2 2\r\n", "source port"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n", "destination port"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 99999999999\r\n", "destination port"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 \r\n", "destination port"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\r\n", "destination port"),
    ],
)
def test_a_bad_line_names_what_is_wrong(line: bytes, field: str) -> None:
    assert refused(line) == (Close.PROXY_MALFORMED, field)


def test_a_line_is_at_most_107_bytes() -> None:
    longest = (
        b"PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n"
    )
    assert len(longest) == proxy.V1_BYTES_MAX
    assert parsed(longest).consumed == 107
    assert parse(longest[:106]) is None
    assert refused(longest[:-2] + b"x\r\n") == (Close.PROXY_MALFORMED, "line")
    assert refused(longest[:-2] + b"xx") == (Close.PROXY_MALFORMED, "line")


# Version 2


def test_a_block_is_none_until_it_is_whole() -> None:
    whole = v2(V4 + tlv(1, b"h2"))
    assert [parse(whole[:size]) for size in range(len(whole))] == [None] * len(whole)
    assert parsed(whole).consumed == len(whole)


def test_a_local_connection_ignores_everything_it_says() -> None:
    assert parse(v2(b"\xff" * 7, command=0x20, family=0xFF)) == Header(23, None, None, ())


@pytest.mark.parametrize(("family", "size"), [(0x00, 0), (0x00, 9), (0x01, 3), (0x10, 12), (0x20, 1)])
def test_an_unspecified_kind_is_not_looked_into(family: int, size: int) -> None:
    assert parse(v2(b"\xff" * size, family=family)) == Header(16 + size, None, None, ())


@pytest.mark.parametrize(("family", "size"), [(0x12, 12), (0x22, 36), (0x31, 216), (0x32, 216)])
def test_what_is_not_tcp_has_tlvs_but_no_address(family: int, size: int) -> None:
    block = bytes(size) + tlv(2, b"example.org")
    assert parse(v2(block, family=family)) == Header(16 + len(block), None, None, ((2, b"example.org"),))


def test_tlvs_come_in_order_and_repeat_and_may_be_empty() -> None:
    block = V4 + tlv(0xE0, b"") + tlv(1, b"h2") + tlv(0xE0, bytes(300))
    assert parsed(v2(block)).tlvs == ((0xE0, b""), (1, b"h2"), (0xE0, bytes(300)))


def test_padding_is_left_out() -> None:
    assert parsed(v2(V4 + tlv(proxy.TLV_NOOP, bytes(5)) + tlv(1, b"h2"))).tlvs == ((1, b"h2"),)


@pytest.mark.parametrize(
    ("buffer", "field"),
    [
        (v2(command=0x11), "version"),
        (v2(command=0x31), "version"),
        (v2(command=0x22), "command"),
        (v2(command=0x2F), "command"),
        (v2(family=0x41), "family"),
        (v2(family=0x13), "family"),
        (v2(V4[:11]), "length"),
        (v2(b""), "length"),
        (v2(V4, family=0x21), "length"),
        (v2(bytes(215), family=0x31), "length"),
        (v2(V4 + b"\1"), "tlv"),
        (v2(V4 + b"\1\0"), "tlv"),
        (v2(V4 + b"\1\0\1"), "tlv"),
        (v2(V4 + tlv(1, b"h2") + b"\1\xff\xff"), "tlv"),
        (v2(V4 + tlv(proxy.TLV_CRC32C, b"")), "crc32c"),
        (v2(V4 + tlv(proxy.TLV_CRC32C, bytes(5))), "crc32c"),
        (v2(V4 + tlv(proxy.TLV_CRC32C, bytes(4))), "crc32c"),
    ],
)
def test_a_bad_block_names_what_is_wrong(buffer: bytes, field: str) -> None:
    assert refused(buffer + b"GET /") == (Close.PROXY_MALFORMED, field)


def test_a_flipped_bit_is_found_by_the_checksum() -> None:
    unsummed = v2(V4 + tlv(1, b"h2") + tlv(proxy.TLV_CRC32C, bytes(4)))
    summed = unsummed[:-4] + proxy.crc32c(unsummed).to_bytes(4, "big")
    assert parsed(summed).source == ("10.0.0.1", 1111)
    flipped = bytearray(summed)
    flipped[16] ^= 1
    assert refused(bytes(flipped)) == (Close.PROXY_MALFORMED, "crc32c")


def test_the_block_is_bounded_before_it_has_arrived() -> None:
    block = V4 + tlv(0xE0, bytes(proxy.V2_LENGTH_MAX - len(V4) - 3))
    assert parsed(v2(block)).consumed == 16 + proxy.V2_LENGTH_MAX
    assert refused(v2(b"", length=proxy.V2_LENGTH_MAX + 1)) == (Close.PROXY_MALFORMED, "length")


def test_the_checksum_is_castagnolis() -> None:
    assert proxy.crc32c(b"123456789") == 0xE3069283
    assert proxy.crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    assert proxy.crc32c(b"") == 0
