"""Positions: what is written is read again, and nothing else is."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.outcome import Refused
from router.position import Behind, Id, Position, id_of, later, parse, read

IDS = st.builds(Id, st.integers(0, 10**15 - 1), st.integers(0, 10**18 - 1))
EPOCHS = st.integers(0, 2**32 - 1).map("{:08x}".format)
NAMES = st.binary(min_size=1, max_size=255)


@given(EPOCHS, IDS, NAMES, IDS)
def test_what_is_written_is_read_again(epoch: str, id: Id, name: bytes, behind: Id) -> None:
    plain = Position(epoch, id)
    assert parse(str(plain)) == parse(str(plain).encode()) == plain
    late = plain.but(name, behind)
    assert parse(str(late)) == (late if behind.number <= id.number else None)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "now",
        "0123abcd",
        "0123abcd-1",
        "0123abcd-1-2 ",
        "0123abcd-1-2\n",
        " 0123abcd-1-2",
        "0123ABCD-1-2",
        "0123abc-1-2",
        "0123abcd--1-2",
        "0123abcd-1-2-3",
        "0123abcd-1-2~",
        "0123abcd-1-2~cm9vbTph",
        "0123abcd-1-2~-1-1",
        "0123abcd-1-2~c-1-1",
        "0123abcd-1-2~cm9vb-1-1",  # five letters of base64 are no bytes
        "0123abcd-1-2~cm9vbTph-1-3",  # the one that is behind is ahead
        "0123abcd-1-2~cm9vbTph-1-1~cm9vbTph-1-1",
        "0123abcd-1111111111111111-2",
        "0123abcd-1-1111111111111111111",
        "0123abcd-\u0661-2",  # a digit elsewhere
        "0123abcd-1-2\x00",
        "x" * 1024,
        b"\xff\xfe",
    ],
)
def test_what_is_none_is_none(text: str | bytes | None) -> None:
    assert parse(text) is None


@given(st.text(max_size=60))
def test_anything_is_read_without_an_error(text: str) -> None:
    assert parse(text) is None or parse(text) == parse(str(parse(text)))


def test_a_channel_that_is_behind_is_elsewhere_than_the_others() -> None:
    at = Position("0123abcd", Id(5, 50))
    assert at.of(b"room:a") == Id(5, 50)
    late = at.but(b"room:a", Id(3, 30))
    assert (late.of(b"room:a"), late.of(b"room:b")) == (Id(3, 30), Id(5, 50))
    assert late.behind == Behind(b"room:a", Id(3, 30))
    assert str(late).isascii()
    assert '"' not in str(late)


def test_ids() -> None:
    assert id_of(b"17-4") == Id(17, 4)
    assert bytes(Id(17, 4)) == b"17-4"
    with pytest.raises(ValueError, match="invalid literal"):
        id_of(b"17")


@pytest.mark.parametrize("text", [b"", b"x-1-1", b"0123abcd-1", b"$clock"])
def test_what_is_no_position_in_redis_is_refused(text: bytes) -> None:
    assert read(b"0123abcd-17-4") == Position("0123abcd", Id(17, 4))
    with pytest.raises(Refused, match=re.escape(f"its $clock holds no position of ours: {text!r}")):
        read(text)


@pytest.mark.parametrize(
    ("earlier", "latest"),
    [
        (b"", b"0000000a-1-1"),
        (b"nonsense", b"0000000a-1-1"),
        (b"0000000a-5-1", b"0000000a-5-2"),
        (b"0000000a-9-1", b"0000000a-5-2"),  # another master, whose clock is behind
        (b"0000000a-5-9", b"0000000b-6-1"),
        (b"0000000b-5-9", b"0000000a-6-1"),
    ],
)
def test_which_was_given_out_later(earlier: bytes, latest: bytes) -> None:
    assert later(earlier, latest) == later(latest, earlier) == latest


@given(IDS, IDS)
def test_numbers_alone_give_the_order_of_ids(one: Id, other: Id) -> None:
    assert (one < other, one <= other, one > other, one >= other) == (
        one.number < other.number,
        one.number <= other.number,
        one.number > other.number,
        one.number >= other.number,
    )
    assert max(one, other).number == max(one.number, other.number)
