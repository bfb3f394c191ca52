"""The PROXY protocol, versions 1 and 2 (haproxy.org, proxy-protocol.txt): who is behind a balancer. Sans-I/O.

The header is the first thing on a connection and tells the addresses as the balancer saw them. Only a listener that is
configured for it, and that only balancers can reach, may believe it. Bytes behind the header are the caller's.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import AddressValueError, IPv6Address
from struct import Struct
from typing import Literal, NamedTuple, TypeAlias

from server.close import Close, PeerError

Mode: TypeAlias = Literal["v1", "v2", "auto"]
Address: TypeAlias = tuple[str, int]

V1_BYTES_MAX = 107  # the specification's worst case, line end included
V2_LENGTH_MAX = 4096  # what may follow the fixed part: addresses take 216 at most, the rest are TLVs

TLV_CRC32C = 0x03
TLV_NOOP = 0x04

_V1_START = b"PROXY "
_V2_START = b"\r\n\r\n\x00\r\nQUIT\n"
_V2_FIXED = Struct("!12sBBH")
_V4 = Struct("!4s4sHH")
_V6 = Struct("!16s16sHH")
_TLV = Struct("!BH")
_V4_MAPPED = bytes(10) + b"\xff\xff"

_LOCAL, _PROXY = 0x20, 0x21
_TCP4, _TCP6 = 0x11, 0x21
# Family and transport -> size of the addresses. Of those that are no TCP we can skip the addresses, not use them.
_ADDRESSES_BYTES = {_TCP4: _V4.size, 0x12: _V4.size, _TCP6: _V6.size, 0x22: _V6.size, 0x31: 216, 0x32: 216}

_OCTETS = frozenset(map(str, range(256)))  # canonical ones only: a leading zero might be octal to somebody


class Header(NamedTuple):
    """What a balancer says of a connection.

    `consumed` is the header's size in bytes. `source` and `destination` are None when the connection is the balancer's
    own (LOCAL) or of a kind it cannot tell (UNKNOWN, UNSPEC, no TCP): then the socket's addresses are the true ones.
    A v4-mapped IPv6 address is given as the IPv4 one it means.
    """

    consumed: int
    source: Address | None
    destination: Address | None
    tlvs: tuple[tuple[int, bytes], ...]


def begins(buffer: bytes) -> bool | None:
    """Tell whether `buffer` begins with a header of either version; None while it is too short to say."""
    for start in (_V1_START, _V2_START):
        if buffer[: len(start)] == start[: len(buffer)]:
            return True if len(buffer) >= len(start) else None
    return False


def parse(buffer: bytes, mode: Mode = "auto") -> Header | None:
    """Read the header a connection begins with; None while it is incomplete.

    Raises: PeerError as soon as the bytes cannot become a header of that mode.
    """
    if mode != "v2" and buffer[:6] == _V1_START[: len(buffer)]:
        return _parse_v1(buffer)
    if mode != "v1" and buffer[:12] == _V2_START[: len(buffer)]:
        return _parse_v2(buffer)
    wanted = "version 1 or 2" if mode == "auto" else f"version {mode[1]}"
    raise _fault("signature", f"found {buffer[:12]!r}, want a header of {wanted}")


def _parse_v1(buffer: bytes) -> Header | None:
    end = buffer.find(b"\n", 0, V1_BYTES_MAX) + 1
    if not end:
        if len(buffer) >= V1_BYTES_MAX:
            raise _fault("line", f"no line end in {V1_BYTES_MAX} bytes")
        return None
    if not buffer.endswith(b"\r\n", 0, end):
        raise _fault("line", "ends in a bare newline, want CRLF")
    words = buffer[: end - 2].decode("latin-1").split(" ")  # behind UNKNOWN anything may stand
    if words[1] == "UNKNOWN":
        return Header(end, None, None, ())
    if words[1] not in ("TCP4", "TCP6"):
        raise _fault("family", f"found {words[1]!r}, want TCP4, TCP6 or UNKNOWN")
    if len(words) != 6:
        raise _fault("line", f"{len(words)} words, want 6 with single spaces between them")
    read = _v4 if words[1] == "TCP4" else _v6
    source = read(words[2], "source"), _port(words[4], "source port")
    return Header(end, source, (read(words[3], "destination"), _port(words[5], "destination port")), ())


def _v4(text: str, field: str) -> str:
    octets = text.split(".")
    if len(octets) != 4 or not _OCTETS.issuperset(octets):
        raise _fault(field, f"found {text!r}, want an IPv4 address")
    return text


def _v6(text: str, field: str) -> str:
    if "%" not in text:  # a scope means nothing on another machine
        try:
            return _v6_of_text(text)
        except AddressValueError:
            pass
    raise _fault(field, f"found {text!r}, want an IPv6 address")


def _port(text: str, field: str) -> int:
    # Canonical digits only: isdecimal() alone would take other alphabets' and leading zeros.
    if not (text.isascii() and text.isdecimal() and len(text) <= 5) or (text[0] == "0" and text != "0"):
        raise _fault(field, f"found {text!r}, want 0 to 65535")
    if (port := int(text)) > 65_535:
        raise _fault(field, f"found {port}, want 0 to 65535")
    return port


def _parse_v2(buffer: bytes) -> Header | None:
    if len(buffer) < _V2_FIXED.size:
        return None
    _, command, family, length = _V2_FIXED.unpack_from(buffer)
    if length > V2_LENGTH_MAX:
        raise _fault("length", f"{length} bytes follow, want at most {V2_LENGTH_MAX}")
    if command >> 4 != 2:
        raise _fault("version", f"found {command >> 4}, want 2")
    if command not in (_LOCAL, _PROXY):
        raise _fault("command", f"found {command & 15}, want 0 (LOCAL) or 1 (PROXY)")
    if command == _PROXY and (family >> 4 > 3 or family & 15 > 2):
        raise _fault("family", f"found 0x{family:02x}, which is not assigned")
    end = _V2_FIXED.size + length
    if len(buffer) < end:
        return None
    addresses_bytes = _ADDRESSES_BYTES.get(family)
    if command == _LOCAL or addresses_bytes is None:  # the whole block is to be ignored
        return Header(end, None, None, ())
    if length < addresses_bytes:
        raise _fault("length", f"{length} bytes follow, want {addresses_bytes} of addresses")
    tlvs = _tlvs(buffer[:end], _V2_FIXED.size + addresses_bytes)
    source, destination = _addresses(buffer, family)
    return Header(end, source, destination, tlvs)


def _addresses(buffer: bytes, family: int) -> tuple[Address, Address] | tuple[None, None]:
    if family == _TCP4:
        source, destination, source_port, destination_port = _V4.unpack_from(buffer, _V2_FIXED.size)
        return (_v4_of(source), source_port), (_v4_of(destination), destination_port)
    if family == _TCP6:
        source, destination, source_port, destination_port = _V6.unpack_from(buffer, _V2_FIXED.size)
        return (_v6_of(source), source_port), (_v6_of(destination), destination_port)
    return None, None


def _v4_of(packed: bytes) -> str:
    return ".".join(map(str, packed))


# ipaddress takes longer over one address than all the rest takes (socket's inet_pton is I/O's): destinations repeat.
@lru_cache(maxsize=256)
def _v6_of_text(text: str) -> str:
    return _v6_of(IPv6Address(text).packed)


@lru_cache(maxsize=256)
def _v6_of(packed: bytes) -> str:
    return _v4_of(packed[12:]) if packed.startswith(_V4_MAPPED) else str(IPv6Address(packed))


def _tlvs(header: bytes, at: int) -> tuple[tuple[int, bytes], ...]:
    """Read the type-length-value triples from `at` to the end of the header, and verify its checksum if it has one."""
    tlvs: list[tuple[int, bytes]] = []
    while at < len(header):
        if at + _TLV.size > len(header):
            raise _fault("tlv", f"{len(header) - at} bytes left over, want a type and a length")
        kind, size = _TLV.unpack_from(header, at)
        at += _TLV.size
        if at + size > len(header):
            raise _fault("tlv", f"type 0x{kind:02x} has {size} bytes, {len(header) - at} are left")
        value = header[at : at + size]
        if kind == TLV_CRC32C:
            _check_crc32c(header, at, value)
        if kind != TLV_NOOP:
            tlvs.append((kind, value))
        at += size
    return tuple(tlvs)


def _check_crc32c(header: bytes, at: int, found: bytes) -> None:
    if len(found) != 4:
        raise _fault("crc32c", f"{len(found)} bytes, want 4")
    wanted = crc32c(header[:at] + bytes(4) + header[at + 4 :])  # the field itself counts as zero
    if int.from_bytes(found, "big") != wanted:
        raise _fault("crc32c", f"found {found.hex()}, the header sums to {wanted:08x}")


def _crc32c_of_byte(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_CRC32C = tuple(map(_crc32c_of_byte, range(256)))


def crc32c(data: bytes) -> int:
    """Return the Castagnoli checksum (RFC 9260, Appendix A)."""
    crc = 0xFFFF_FFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC32C[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFF_FFFF


def _fault(field: str, reason: str) -> PeerError:
    return PeerError(Close.PROXY_MALFORMED, f"PROXY header: {reason}", field)
