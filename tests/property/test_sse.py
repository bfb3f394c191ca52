"""Whatever a peer sends, and however its bytes are cut: the same head, or a PeerError. And no frame ever breaks."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, quote_plus, urlencode

import httpx
import orjson
from httpx_sse import EventSource, ServerSentEvent
from hypothesis import example, given
from hypothesis import strategies as st

from router.message import Message
from router.namespaces import channel_fault, user_fault
from server import limits, lines, sse
from server.close import Close, PeerError

NAMES = st.text(min_size=1, max_size=40).filter(lambda name: channel_fault(name) is None)
USERS = NAMES.filter(lambda name: user_fault(name) is None)
POSITIONS = st.text(alphabet="abcXYZ019-_.:,~", min_size=1, max_size=100)
TOKENS = st.text(alphabet="abcXYZ019-_.", min_size=1)
TCHAR = "!#$%&'*+-.^_`|~0123456789abcXYZ"  # RFC 9110, 5.6.2
FIELDS = st.tuples(
    st.text(alphabet=TCHAR, min_size=1, max_size=12).map(lambda name: "X-" + name),
    st.text(alphabet=st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=12),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
# Bytes that come near enough to HTTP to get past the first check.
PIECES = (
    b"GET |PRI |http://|/events|?channel=a|&user=b|%|%3A|#| HTTP/1.1| HTTP/1.0|\r\n|\r|\n| |\t|\0|\xff|Host: h|host:|"
    b"Last-Event-ID: a|Authorization: |Content-Length: 5|Transfer-Encoding: chunked|Upgrade: x\r\nConnection: Upgrade"
).split(b"|")
ALMOST = st.lists(st.sampled_from(PIECES) | st.binary(max_size=4), max_size=24).map(b"".join)


def request(buffer: bytes) -> lines.Connect | PeerError | None:
    try:
        head = sse.parse_head(buffer)
        return head and sse.connect_request(head)
    except PeerError as error:
        return error


def events(stream: bytes) -> list[ServerSentEvent]:
    response = httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=stream)
    return list(EventSource(response).iter_sse())


@given(st.binary() | ALMOST | ALMOST.map(lambda b: b"GET /events HTTP/1.1\r\nHost: h\r\n" + b + b"\r\n\r\n"))
@example(b"GET /a\r\nX: HTTP/1.1\r\nHost: h\r\n\r\n")
def test_arbitrary_bytes_are_a_request_or_a_peer_error(buffer: bytes) -> None:
    outcome = request(buffer)
    if isinstance(outcome, PeerError):
        assert b"\r\n\r\n" in sse.json_error(outcome)
    elif outcome is not None:
        assert all(channel_fault(name) is None for name in outcome.channels)
        assert outcome.user is None or user_fault(outcome.user) is None
        assert b"\r\n\r\n" in buffer


@given(st.lists(FIELDS, max_size=limits.HEADERS_MAX - 1), POSITIONS, st.binary(max_size=40))
def test_any_cut_gives_the_same_head(fields: list[tuple[str, str]], position: str, behind: bytes) -> None:
    text = "".join(f"{name}: {value}\r\n" for name, value in [("host", "h"), *fields])
    whole = f"GET /events?position={position} HTTP/1.1\r\n{text}\r\n".encode("latin-1")
    head = sse.parse_head(whole)
    assert head == sse.Head("GET", "/events", f"position={position}", {"host": "h"}, True)
    assert sse.parse_head(whole + behind) == head
    assert {sse.parse_head(whole[:size]) for size in range(len(whole))} == {None}


@given(ALMOST, st.binary(max_size=40))
def test_what_is_behind_changes_nothing(almost: bytes, behind: bytes) -> None:
    buffer = almost + b"\r\n\r\n"
    once, again = request(buffer), request(buffer + behind)
    assert again == once or (str(again), type(again)) == (str(once), PeerError)


@given(st.lists(NAMES, max_size=6), USERS, TOKENS, POSITIONS, st.sampled_from([quote, quote_plus]))
def test_a_connect_comes_through(channels: list[str], user: str, token: str, position: str, quoting: Any) -> None:
    wanted = lines.Connect(token, user, tuple(dict.fromkeys(channels)), position)
    named = [*(("channel", name) for name in channels), ("user", user), ("x y", "é +")]
    query = urlencode(named, quote_via=quoting)
    headers = f"Host: h\r\nAuthorization: Bearer {token}\r\nLast-Event-ID: {position}\r\n"
    assert request(f"GET /events?{query} HTTP/1.1\r\n{headers}\r\n".encode()) == wanted
    query = urlencode([*named, ("token", token), ("position", position)], quote_via=quoting)
    assert request(f"GET /events?{query} HTTP/1.1\r\nHost: h\r\n\r\n".encode()) == wanted


@given(st.sampled_from(["message", "gap", "join", "leave"]), NAMES, POSITIONS, JSON, st.booleans())
def test_a_message_is_one_event_and_comes_through(
    op: str, channel: str, position: str, data: object, indented: bool
) -> None:
    text = orjson.dumps(data, option=orjson.OPT_INDENT_2 if indented else None)
    frame = sse.message(Message(op.encode(), channel.encode(), position.encode(), b',"data":' + text))
    assert b"\r" not in frame
    assert frame.endswith(b"\n\n")
    assert {line.partition(b":")[0] for line in frame[:-2].split(b"\n")} <= {b"id", b"event", b"data"}
    [event] = events(frame)
    assert (event.event, event.id) == (op, position)
    assert event.json() == {"channel": channel, "position": position, "data": data}


@given(st.sampled_from(Close), st.text(), st.none() | st.integers(0, 10**6))
def test_a_close_is_one_event(code: Close, reason: str, after_ms: int | None) -> None:
    [event] = events(sse.close(code, reason, after_ms))
    assert (event.event, event.retry, event.json()["reason"]) == ("close", after_ms, reason)


@given(st.text(), st.text())
def test_connected_is_one_event(user: str, position: str) -> None:
    [event] = events(sse.connected({"user": user, "position": position}))
    assert event.event == "connected"
    assert event.id in ("", position)
    assert event.json() == {"op": "connected", "user": user, "position": position}
