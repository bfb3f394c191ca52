"""Positions over several shards: made by concatenation, read back exactly, and none of another number of shards."""

from __future__ import annotations

import pytest

from router import vector
from router.position import Id, Position
from router.vector import Vector, nowhere, pack, parse, shard_of, unpack

PARTS = tuple(Position(f"{shard:08x}", Id(1_790_000_000_000 + shard, shard * 1000)) for shard in range(8))


def test_in_one_shard_it_is_written_as_ever() -> None:
    at = Position("0a1b2c3d", Id(1_790_000_000_000, 7))
    assert str(Vector((at,))) == "0a1b2c3d-1790000000000-7"
    assert parse("0a1b2c3d-1790000000000-7", 1) == Vector((at,))
    behind = at.but(b"room:a", Id(5, 3))
    assert parse(str(Vector((behind,))), 1) == Vector((behind,))
    assert str(Vector((behind,))) == str(behind)


def test_it_is_as_long_as_there_are_shards() -> None:
    assert len(str(Vector(PARTS))) == 8 * 20
    assert len(str(nowhere(64).but(b"x" * 255, Id(0, 0)))) < 2048
    assert str(Vector(PARTS)) == "".join(pack(str(part).encode()).decode() for part in PARTS)


@pytest.mark.parametrize(
    "text",
    [
        "", None, b"", "0a1b2c3d-1790000000000-7", "A" * 140, "A" * 180, "!" * 160, "A" * 159 + "=", "A" * 159 + "é",
        "A" * 160 + "~", "A" * 160 + "~nonsense", "A" * 160 + "~cm9vbQ-1-1", "A" * 160 + "~cm9vbQ-1",
    ],
)  # fmt: skip
def test_what_is_none(text: str | bytes | None) -> None:
    assert parse(text, 8) is None


def test_of_another_number_of_shards_it_is_none() -> None:
    assert parse(str(Vector(PARTS)), 8) == Vector(PARTS)
    assert parse(str(Vector(PARTS)), 4) is None
    assert parse(str(Vector(PARTS)), 1) is None


def test_a_channel_is_where_its_shard_is_or_behind() -> None:
    at = Vector(PARTS)
    shard = shard_of(b"room:a", 8)
    assert at.part(b"room:a") == PARTS[shard]
    assert at.of(b"room:a") == PARTS[shard].id
    behind = at.but(b"room:a", Id(5, 3)) if PARTS[shard].id.number >= 3 else at.but(b"room:a", Id(0, 0))
    assert behind.of(b"room:a") != at.of(b"room:a")
    assert parse(str(behind), 8) == behind
    others = {f"room:{n}".encode() for n in range(100)}
    assert all(behind.of(name) == at.of(name) for name in others)


def test_a_channel_never_changes_its_shard() -> None:
    """A cluster that is in use holds it there."""
    names = [b"room:a", b"@alice", "raum:größe".encode(), b"a{b}c"]
    assert [shard_of(name, 8) for name in names] == [4, 5, 1, 2]
    assert [shard_of(name, 64) for name in names] == [36, 21, 17, 42]


def test_the_largest_numbers() -> None:
    text = b"ffffffff-%d-%d" % (2**43 - 1, 2**45 - 1)
    assert str(unpack(pack(text).decode())) == text.decode()
    assert unpack(vector.NOWHERE.decode()) == Position("00000000", Id(0, 0))
