"""Whatever a peer sends, and however its bytes are cut: the same lines, the same requests, or a PeerError."""

from __future__ import annotations

from itertools import pairwise

import orjson
from hypothesis import example, given
from hypothesis import strategies as st

from router.message import Message
from router.namespaces import channel_fault, user_fault
from server import lines
from server.close import Close, PeerError

NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.text(min_size=1, max_size=60).filter(lambda name: channel_fault(name) is None)
IDS = st.none() | st.integers(-(2**63), 2**64 - 1) | st.text()
FIELDS = ["op", "id", "channel", "channels", "data", "token", "user", "position", "after", "limit", "idempotency"]
OPS = ["connect", "subscribe", "unsubscribe", "publish", "history", "presence", "ping"]


def split(pieces: list[bytes], line_bytes_max: int) -> tuple[list[bytes], bytes] | Close:
    """Split as a connection would; the code of the refusal if it comes to that."""
    found: list[bytes] = []
    rest = b""
    for piece in pieces:
        try:
            more, rest = lines.split_lines(rest, piece, line_bytes_max)
        except PeerError as error:
            return error.code
        found += more
    return found, rest


def parse(line: bytes) -> lines.Request | PeerError:
    try:
        return lines.parse(line, 100)
    except PeerError as error:
        return error


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@given(
    st.lists(st.binary(max_size=12).map(lambda b: b.replace(b"\n", b"\r"))),
    st.binary(max_size=12),
    st.lists(st.integers(0, 999)),
)
@example([b"\r", b"a\r"], b"\r", [])
def test_any_cut_gives_the_same_lines(found: list[bytes], rest: bytes, places: list[int]) -> None:
    data = b"".join(line + b"\n" for line in found) + rest
    whole = lines.split_lines(b"", data, 1000)
    assert split(cut(data, places), 1000) == whole
    assert split([data[i : i + 1] for i in range(len(data))], 1000) == whole


@given(st.binary(max_size=40), st.lists(st.integers(0, 999)), st.integers(1, 12))
def test_any_cut_refuses_the_same_lines(data: bytes, places: list[int], line_bytes_max: int) -> None:
    whole = split([data], line_bytes_max)
    assert whole is Close.TOO_LARGE or isinstance(whole, tuple)
    assert split(cut(data, places), line_bytes_max) == whole


@given(st.binary())
def test_arbitrary_bytes_are_a_request_or_a_peer_error(line: bytes) -> None:
    outcome = parse(line)
    if isinstance(outcome, PeerError):
        assert orjson.loads(lines.error(outcome))["reason"]


@given(st.dictionaries(st.sampled_from(FIELDS), JSON | st.sampled_from(OPS) | NAMES), st.sampled_from(OPS))
def test_arbitrary_members_are_a_request_or_a_peer_error_with_the_id(members: dict[str, object], op: str) -> None:
    outcome = parse(orjson.dumps({**members, "op": op}))
    if isinstance(outcome, PeerError):
        assert outcome.field in FIELDS
        assert outcome.field == "id" or outcome.id == members.get("id")
    else:
        assert isinstance(outcome, lines.Connect) or outcome.id == members.get("id")


@given(IDS, NAMES, JSON)
def test_a_publish_comes_through(id: lines.Id, channel: str, data: object) -> None:
    line = orjson.dumps({"op": "publish", "id": id, "channel": channel, "data": data})
    request = lines.parse(line, 1_000_000)
    assert isinstance(request, lines.Publish)
    assert (request.id, request.channel, orjson.loads(request.data)) == (id, channel, data)
    assert b"\n" not in request.data


@given(st.lists(NAMES, max_size=8), NAMES.filter(lambda name: user_fault(name) is None))
def test_a_connect_comes_through(channels: list[str], user: str) -> None:
    request = lines.parse(orjson.dumps({"op": "connect", "user": user, "channels": channels}), 100)
    assert request == lines.Connect(None, user, tuple(dict.fromkeys(channels)), None)


@given(NAMES, JSON, st.booleans())
def test_a_message_is_one_line_and_comes_through(channel: str, data: object, indented: bool) -> None:
    text = orjson.dumps(data, option=orjson.OPT_INDENT_2 if indented else None)
    frame = lines.message(Message(b"message", channel.encode(), b"p-1", b',"data":' + text))
    assert frame.index(b"\n") == len(frame) - 1
    assert b"\r" not in frame
    assert orjson.loads(frame) == {"op": "message", "channel": channel, "position": "p-1", "data": data}


@given(st.sampled_from(Close), st.text(), IDS, st.none() | st.text(), st.none() | st.integers(0, 10**6))
def test_errors_and_closes_are_one_line(
    code: Close, reason: str, id: lines.Id, field: str | None, after_ms: int | None
) -> None:
    for frame in (lines.error(PeerError(code, reason, field, id), after_ms), lines.close(code, reason, after_ms)):
        assert frame.index(b"\n") == len(frame) - 1
        obj = orjson.loads(frame)
        assert obj["code"] == code
        assert obj.get("after_ms") == after_ms
