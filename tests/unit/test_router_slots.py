"""Tags that spread over the slots, and the map of who has which."""

from __future__ import annotations

import pytest

from router import slots
from router.slots import SHARDS_MAX, SLOTS, TAG_CHARS, Address, owners, slot_of, slot_of_key, tags

ASKED = Address("10.0.0.1", 7000)


@pytest.mark.parametrize("shards", range(1, SHARDS_MAX + 1))
def test_shards_are_spread_evenly(shards: int) -> None:
    found = [slot_of(tag) for tag in tags(shards)]
    share = SLOTS / shards
    assert len(set(found)) == shards
    assert all(len(tag) == TAG_CHARS for tag in tags(shards))
    assert all(abs(slot - (shard + 0.5) * share) < 64 for shard, slot in enumerate(found)), "each in its share"
    for nodes in (2, 3, 4, 6):
        counts = [sum(slot * nodes // SLOTS == node for slot in found) for node in range(nodes)]
        assert max(counts) - min(counts) <= 1 or shards < nodes


def test_tags_never_change() -> None:
    """Data lies below them."""
    assert tags(8) == (b"bq", b"wk", b"ss", b"fi", b"ci", b"b7", b"rk", b"s5")


@pytest.mark.parametrize(
    ("key", "slot"),
    [
        (b"123456789", 12739),  # of the specification
        (b"{123456789}.x", 12739),
        (b"x{123456789}{y}", 12739),
        (b"foo{}{bar}", slot_of(b"foo{}{bar}")),
        (b"foo{bar", slot_of(b"foo{bar")),
        (b"foo}{bar}", slot_of(b"bar")),
    ],
)
def test_the_slot_of_a_key(key: bytes, slot: int) -> None:
    assert slot_of_key(key) == slot


def test_who_has_what() -> None:
    reply = [
        [0, 100, [b"10.0.0.1", 7000, b"id", {}], [b"10.0.0.2", 7000, b"id", {}]],
        [101, 101, [b"", 7001, b"id", {}]],
        [102, 102, [None, 7002, b"id", {}]],
        [200, 300, [b"node.example", 7003, b"id"]],
    ]
    found = owners(reply, [0, 100, 101, 102, 150, 300], ASKED)
    assert found == [
        ASKED, ASKED, Address("10.0.0.1", 7001), Address("10.0.0.1", 7002), None, Address("node.example", 7003)
    ]  # fmt: skip


@pytest.mark.parametrize("reply", [b"OK", [b"x"], [[0, 1]], [[0, 1, [b"h"]]], [[0, b"1", [b"h", 1]]]])
def test_no_map(reply: object) -> None:
    with pytest.raises(ValueError, match=r"found .*, want "):
        owners(reply, [0], ASKED)


def test_an_address_in_a_log() -> None:
    assert (str(Address("h", 1)), str(Address("::1", 1))) == ("h:1", "[::1]:1")
    assert slots.SLOTS == 16384
