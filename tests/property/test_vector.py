"""Any position over any number of shards is read as it was written, and any text is read or refused."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.position import Id, Position
from router.vector import PART_CHARS, Vector, parse, shard_of

parts = st.builds(
    Position,
    st.integers(0, 2**32 - 1).map(lambda epoch: f"{epoch:08x}"),
    st.builds(Id, st.integers(0, 2**43 - 1), st.integers(0, 2**45 - 1)),
    st.none(),
)
vectors = st.lists(parts, min_size=1, max_size=9).map(lambda found: Vector(tuple(found)))


@given(vectors)
def test_it_is_read_as_it_was_written(at: Vector) -> None:
    assert parse(bytes(at), len(at.parts)) == at
    assert parse(str(at), len(at.parts)) == at


@given(vectors, st.binary(min_size=1, max_size=255), st.integers(0, 2**43 - 1), st.data())
def test_one_channel_may_be_behind(at: Vector, channel: bytes, ms: int, data: st.DataObject) -> None:
    id = Id(ms, data.draw(st.integers(0, at.of(channel).number)))
    behind = at.but(channel, id)
    found = parse(str(behind), len(at.parts))
    assert found == behind
    assert found.of(channel) == id
    assert [part._replace(behind=None) for part in found.parts] == list(at.parts)


@given(st.text(max_size=400), st.integers(1, 64))
def test_any_text_is_read_or_refused(text: str, shards: int) -> None:
    found = parse(text, shards)
    assert found is None or len(found.parts) == shards


@given(st.text("ABCabc019-_~=!", min_size=PART_CHARS * 2, max_size=PART_CHARS * 2 + 30))
def test_text_that_is_nearly_one(text: str) -> None:
    found = parse(text, 2)
    assert found is None or parse(str(found), 2) == found


@given(st.binary(max_size=255), st.integers(1, 64))
def test_every_channel_has_a_shard(channel: bytes, shards: int) -> None:
    assert 0 <= shard_of(channel, shards) < shards
