"""The SSE codec: heads within their bounds, what /events may ask for, and frames as a client's parser sees them."""

from __future__ import annotations

import httpx
import orjson
import pytest
from httpx_sse import EventSource, ServerSentEvent

from router.message import Message
from server import limits, lines, sse
from server.close import Close, PeerError

HOST = b"Host: h\r\n"


def head(url: bytes = b"/events", headers: bytes = b"", method: bytes = b"GET") -> sse.Head:
    parsed = sse.parse_head(method + b" " + url + b" HTTP/1.1\r\n" + HOST + headers + b"\r\n")
    assert parsed is not None
    return parsed


def connect(query: bytes = b"", headers: bytes = b"") -> lines.Connect:
    return sse.connect_request(head(b"/events?" + query, headers))


def refused_head(buffer: bytes) -> tuple[Close, str | None]:
    with pytest.raises(PeerError) as caught:
        sse.parse_head(buffer)
    return caught.value.code, caught.value.field


def refused(query: bytes = b"", headers: bytes = b"") -> tuple[Close, str | None]:
    with pytest.raises(PeerError) as caught:
        connect(query, headers)
    return caught.value.code, caught.value.field


def events(stream: bytes) -> list[ServerSentEvent]:
    response = httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=stream)
    return list(EventSource(response).iter_sse())


def answered(response: bytes) -> tuple[bytes, dict[str, str], bytes]:
    """Take a response apart: status, headers, body."""
    top, _, body = response.partition(b"\r\n\r\n")
    status, *rest = top.decode("ascii").split("\r\n")
    version, _, status = status.partition(" ")
    assert version == "HTTP/1.1"
    return status.encode(), dict(line.split(": ", 1) for line in rest), body


# Heads


def test_a_head() -> None:
    buffer = (
        b"GET /events?channel=room:a&x=?/ HTTP/1.1\r\nHost: example.org:7480\r\nUser-Agent: curl/8\r\n"
        b"AUTHORIZATION:\t Bearer abc \t\r\nlast-event-id: p-1\r\norigin: https://a.example\r\n\r\n"
    )
    assert sse.parse_head(buffer) == sse.Head(
        "GET",
        "/events",
        "channel=room:a&x=?/",
        {
            "host": "example.org:7480",
            "authorization": "Bearer abc",
            "last-event-id": "p-1",
            "origin": "https://a.example",
        },
        True,
    )


def test_http_1_0_needs_no_host() -> None:
    assert sse.parse_head(b"GET / HTTP/1.0\r\n\r\n") == sse.Head("GET", "/", "", {}, False)


@pytest.mark.parametrize("behind", [b"", b"x", b"GET /2 HTTP/1.1\r\nHost: b\r\n\r\n", b"\r\n\r\n", b"\0" * 40_000])
def test_what_is_behind_the_head_is_not_looked_at(behind: bytes) -> None:
    assert sse.parse_head(b"POST /publish?a HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n" + behind) == sse.Head(
        "POST", "/publish", "a", {"host": "a"}, True
    )


def test_a_head_is_none_until_it_is_whole() -> None:
    whole = b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n"
    assert [sse.parse_head(whole[:size]) for size in range(len(whole))] == [None] * len(whole)
    assert sse.parse_head(whole) is not None


@pytest.mark.parametrize("path", [b"/", b"/%65vents", b"//events", b"/events/", b"/~a!$&'()*,;=:@"])
def test_a_path_stays_as_it_came(path: bytes) -> None:
    assert head(path).path == path.decode()


@pytest.mark.parametrize(
    ("method", "target", "path", "query"),
    [
        (b"GET", b"http://h/events?user=a", "/events", "user=a"),
        (b"GET", b"http://h", "/", ""),
        (b"GET", b"http://h?a=http://b/c", "/", "a=http://b/c"),
        (b"OPTIONS", b"*", "*", ""),
        (b"CONNECT", b"h:80", "h:80", ""),
    ],
)
def test_other_forms_of_a_target(method: bytes, target: bytes, path: str, query: str) -> None:
    parsed = head(target, method=method)
    assert (parsed.path, parsed.query) == (path, query)


def test_an_offer_to_upgrade_is_a_request_like_any_other() -> None:
    assert head(headers=b"Connection: Upgrade\r\nUpgrade: h2c\r\n").path == "/events"


def test_a_header_may_hold_any_text() -> None:
    assert head(headers="X: é\r\nOrigin: é\r\n".encode()).headers["origin"].encode("latin-1").decode() == "é"


def test_the_bounds_are_inclusive() -> None:
    assert len(head(b"/" + b"a" * (limits.URL_BYTES_MAX - 1)).path) == limits.URL_BYTES_MAX
    assert head(headers=b"a:\r\n" * (limits.HEADERS_MAX - 1)).path == "/events"
    start = b"GET / HTTP/1.1\r\n" + HOST + b"X: "
    full = start + b"a" * (limits.HEAD_BYTES_MAX - len(start) - 4) + b"\r\n\r\n"
    assert len(full) == limits.HEAD_BYTES_MAX
    assert sse.parse_head(full) is not None
    assert sse.parse_head(full[:-1]) is None


@pytest.mark.parametrize(
    ("buffer", "field"),
    [
        (b"GET /" + b"a" * limits.URL_BYTES_MAX + b" HTTP/1.1\r\nHost: a\r\n\r\n", "url"),
        (b"GET /?" + b"a" * limits.URL_BYTES_MAX + b" HTTP/1.1\r\nHost: a\r\n\r\n", "url"),
        (b"GET /" + b"a" * (limits.URL_BYTES_MAX + 100), "url"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a:\r\n" * limits.HEADERS_MAX + b"\r\n", "headers"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * limits.HEAD_BYTES_MAX + b"\r\n\r\n", "head"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * limits.HEAD_BYTES_MAX, "head"),
    ],
)
def test_what_is_too_large_is_refused(buffer: bytes, field: str) -> None:
    assert refused_head(buffer) == (Close.TOO_LARGE, field)


@pytest.mark.parametrize(
    "buffer",
    [
        b"\x16\x03\x01\x02\x00\x01",  # TLS
        b'{"op":"connect"}\n',
        b"\r\n",
        b" GET",
        b"get / ",
        b"\0",
        b"G\0",
        b"GET\t",
        b"A" * 40,
        b"\xc3\xa9",
    ],
)
def test_what_can_never_become_a_request_is_refused_at_once(buffer: bytes) -> None:
    assert refused_head(buffer) == (Close.BAD_REQUEST, "head")


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (b"GET / HTTP/2.0", "version"),
        (b"GET / HTTP/0.9", "version"),
        (b"GET / HTTP/1.2", "version"),
        (b"GET / HTTP/1.10", "version"),
        (b"GET / http/1.1", "version"),
        (b"GET / RTSP/1.0", "version"),
        (b"PRI * HTTP/2.0", "version"),
        (b"GET /", "head"),
        (b"GET", "head"),
        (b"", "head"),
        (b"GET  / HTTP/1.1", "head"),
        (b"GET / HTTP/1.1 ", "head"),
        (b"GET /a b HTTP/1.1", "head"),
        (b" GET / HTTP/1.1", "head"),
        (b"GET  HTTP/1.1", "url"),
        (b"GET ?a HTTP/1.1", "url"),
        (b"GET /a#b HTTP/1.1", "url"),
        (b"GET events HTTP/1.1", "url"),
        (b"GET /\x01 HTTP/1.1", "url"),
        (b"GET /\t HTTP/1.1", "url"),
        (b"GET /a\rb HTTP/1.1", "url"),
        (b"GET /?a\nb HTTP/1.1", "url"),
        ("GET /é HTTP/1.1".encode(), "url"),
        (b"get / HTTP/1.1", "method"),
        (b"GEX / HTTP/1.1", "method"),
        (b"GET\0 / HTTP/1.1", "method"),
    ],
)
def test_a_bad_request_line_is_refused(line: bytes, field: str) -> None:
    assert refused_head(line + b"\r\n" + HOST + b"\r\n") == (Close.BAD_REQUEST, field)


@pytest.mark.parametrize(
    "header",
    [
        b"no colon",
        b": no name",
        b"Host : space before the colon",
        b" Host: folded into the request line",
        b"A: b\r\n folded",
        b"A: b\nHost: bare newline",
        b"A: b\rHost: bare return",
        b"A: \0",
        b"A: \x01",
        b"A: \x7f",
        b"\xc3\xa9: a",
        b"Content-Length: 1\r\nContent-Length: 1",
        b"Content-Length: 1\r\nTransfer-Encoding: chunked",
        b"Content-Length: -1",
        b"Content-Length: 99999999999999999999999",
    ],
)
def test_bad_headers_are_refused(header: bytes) -> None:
    assert refused_head(b"POST / HTTP/1.1\r\n" + header + b"\r\n" + HOST + b"\r\n") == (Close.BAD_REQUEST, "headers")


def test_http_1_1_has_exactly_one_host() -> None:
    assert refused_head(b"GET / HTTP/1.1\r\nX-Host: a\r\n\r\n") == (Close.BAD_REQUEST, "Host")
    assert refused_head(b"GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n") == (Close.BAD_REQUEST, "Host")
    assert refused_head(b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n") == (Close.BAD_REQUEST, "Host")


@pytest.mark.parametrize("name", ["Authorization", "Last-Event-ID", "Origin"])
def test_headers_that_count_come_once(name: str) -> None:
    twice = f"{name}: a\r\nX: y\r\n{name.upper()}: a\r\n".encode()
    assert refused_head(b"GET / HTTP/1.1\r\n" + HOST + twice + b"\r\n") == (Close.BAD_REQUEST, name)


def test_other_headers_may_come_twice() -> None:
    assert head(headers=b"Cookie: a\r\nCookie: b\r\nX-Host: a\r\nHostX: b\r\n").headers == {"host": "h"}


# What /events asks for


def test_a_connect_by_parameters() -> None:
    request = connect(b"channel=room:a&user=alice&channel=b&position=p-1&token=t&channel=room:a&later=1&&flag")
    assert request == lines.Connect("t", "alice", ("room:a", "b"), "p-1")


def test_a_connect_by_headers() -> None:
    request = connect(b"channel=a", b"Authorization: Bearer abc.def\r\nLast-Event-ID: p-2\r\n")
    assert request == lines.Connect("abc.def", None, ("a",), "p-2")


def test_headers_win_over_parameters() -> None:
    request = connect(b"token=q&position=old", b"Authorization: Bearer h\r\nLast-Event-ID: new\r\n")
    assert (request.token, request.position) == ("h", "new")


def test_nothing_is_asked_for() -> None:
    assert sse.connect_request(head()) == lines.Connect(None, None, (), None)


def test_an_empty_position_is_none() -> None:
    assert connect(b"position=").position is None
    assert [connect(query).gaps for query in (b"gaps=1", b"gaps=0", b"")] == [True, False, False]
    assert connect(b"position=p", b"Last-Event-ID:\r\n").position == "p"


@pytest.mark.parametrize("scheme", [b"Bearer", b"bearer", b"BEARER", b"Bearer  "])
def test_the_scheme_is_read_in_any_case(scheme: bytes) -> None:
    assert connect(headers=b"Authorization: " + scheme + b" abc\r\n").token == "abc"


@pytest.mark.parametrize("value", [b"", b"abc", b"Basic YTpi", b"Bearer", b"Bearer ", b"Bearerabc", b"Bearer\tabc"])
def test_another_scheme_is_unauthorized_even_with_a_token_parameter(value: bytes) -> None:
    assert refused(b"token=t", b"Authorization: " + value + b"\r\n") == (Close.UNAUTHORIZED, "Authorization")


@pytest.mark.parametrize(
    ("query", "channels"),
    [
        (b"channel=room%3Aa", ("room:a",)),
        (b"channel=room%3aa&channel=room%3Aa", ("room:a",)),
        (b"channel=%D0%BA%D0%be", ("ко",)),
        (b"channel=%253A", ("%3A",)),
        (b"channel=a%26user%3Db&channel=%22%5C", ("a&user=b", '"\\')),
        (b"ch%61nnel=a", ("a",)),
        (b"channel=a%2Bb", ("a+b",)),
        (b"channel=a=b", ("a=b",)),
        (b"x=%zz&channel=a", ("a",)),
    ],
)
def test_parameters_are_percent_decoded(query: bytes, channels: tuple[str, ...]) -> None:
    assert connect(query).channels == channels


@pytest.mark.parametrize(
    ("query", "field"),
    [
        (b"channel=%", "channel"),
        (b"channel=%3", "channel"),
        (b"channel=%zz", "channel"),
        (b"channel=%+1", "channel"),
        (b"channel=%3G", "channel"),
        (b"channel=%FF", "channel"),
        (b"channel=%C3", "channel"),
        (b"channel=%ED%A0%80", "channel"),
        (b"user=%E9", "user"),
        (b"%zz=a", "query"),
        (b"channel=a+b", "channel"),
        (b"channel=a%20b", "channel"),
        (b"channel=a%0Ab", "channel"),
        (b"channel=%00", "channel"),
        (b"channel=", "channel"),
        (b"channel", "channel"),
        (b"channel=a&channel=" + b"b" * 256, "channel"),
        (b"user=", "user"),
        (b"user=a%0Ab", "user"),
        (b"user=a&user=a", "user"),
        (b"token=a&token=b", "token"),
        (b"position=a&position=b", "position"),
        (b"us%65r=a&user=b", "user"),
        (b"position=a%0D%0Aevent:x", "position"),
        (b"position=a%20b", "position"),
        (b"position=" + b"p" * (limits.POSITION_BYTES_MAX + 1), "position"),
    ],
)
def test_bad_parameters_name_the_field(query: bytes, field: str) -> None:
    assert refused(query) == (Close.BAD_REQUEST, field)


def test_a_bad_last_event_id_is_refused() -> None:
    assert refused(headers=b"Last-Event-ID: a b\r\n") == (Close.BAD_REQUEST, "Last-Event-ID")
    assert refused(headers="Last-Event-ID: é\r\n".encode()) == (Close.BAD_REQUEST, "Last-Event-ID")


def test_a_token_that_is_too_long_is_not_verified() -> None:
    token = b"t" * (limits.TOKEN_BYTES_MAX + 1)
    assert refused(headers=b"Authorization: Bearer " + token + b"\r\n") == (Close.TOO_LARGE, "Authorization")


@pytest.mark.parametrize("method", [b"POST", b"HEAD", b"PUT", b"OPTIONS"])
def test_events_are_got(method: bytes) -> None:
    with pytest.raises(PeerError) as caught:
        sse.connect_request(head(method=method))
    assert (caught.value.code, caught.value.field) == (Close.BAD_REQUEST, "method")


# Frames


def test_a_message_has_no_event_line() -> None:
    frame = sse.message(Message(b"message", b"room:a", b"p-1", b',"from":"alice","at":1,"data":{}'))
    assert frame == b'id: p-1\ndata: {"channel":"room:a","position":"p-1","from":"alice","at":1,"data":{}}\n\n'
    [event] = events(frame)
    assert (event.event, event.id) == ("message", "p-1")


@pytest.mark.parametrize("op", ["gap", "join", "leave"])
def test_the_other_pushed_things_are_named(op: str) -> None:
    [event] = events(sse.message(Message(op.encode(), b"a", b"p-1", b',"user":"bob"')))
    assert (event.event, event.id) == (op, "p-1")
    assert event.json() == {"channel": "a", "position": "p-1", "user": "bob"}


def test_a_message_without_a_position_leaves_the_last_one_standing() -> None:
    first, second, third = events(
        sse.message(Message(b"message", b"a", b"p-1", b""))
        + sse.message(Message(b"message", b"a", b"", b',"data":1'))
        + sse.message(Message(b"join", b"a", b"", b""))
    )
    assert [first.id, second.id, third.id] == ["p-1"] * 3
    assert (second.event, second.json()) == ("message", {"channel": "a", "data": 1})
    assert (third.event, third.json()) == ("join", {"channel": "a"})


@pytest.mark.parametrize("channel", ['say"hi"', "back\\slash", "комната"])
def test_a_channels_name_is_escaped(channel: str) -> None:
    [event] = events(sse.message(Message(b"message", channel.encode(), b"p", b"")))
    assert event.json()["channel"] == channel


def test_json_laid_out_by_a_person_stays_one_event() -> None:
    [event] = events(sse.message(Message(b"message", b"a", b"p", b',\n"data":\r\n\r\n{ "b":\r1}')))
    assert event.json() == {"channel": "a", "position": "p", "data": {"b": 1}}


def test_connected_carries_its_position_as_id() -> None:
    answer = {"user": "alice", "position": "p-1", "recovered": True, "channels": ["@alice"]}
    [event] = events(sse.connected(answer))
    assert (event.event, event.id, event.json()) == ("connected", "p-1", {"op": "connected", **answer})


@pytest.mark.parametrize("position", ["", None, "a\nevent: x", "a\rb", "a\0b"])
def test_connected_never_has_an_id_that_breaks_the_frame(position: str | None) -> None:
    [event] = events(sse.connected({"position": position}))
    assert (event.event, event.id, event.json()) == ("connected", "", {"op": "connected", "position": position})


def test_close_says_when_to_come_back() -> None:
    [event] = events(sse.close(Close.DRAINING, "draining", 1234))
    assert (event.event, event.retry) == ("close", 1234)
    assert event.json() == {"op": "close", "code": 3001, "reason": "draining", "reconnect": True, "after_ms": 1234}
    [event] = events(sse.close(Close.EXPIRED, "a\n\nb", None))
    assert (event.retry, event.json()["reason"]) == (None, "a\n\nb")


def test_a_heartbeat_is_no_event() -> None:
    assert events(sse.HEARTBEAT * 3) == []


def test_a_stream_from_its_first_byte() -> None:
    status, headers, body = answered(sse.response_head(None) + sse.FIRST + sse.connected({"position": "p"}))
    assert status == b"200 OK"
    assert headers == {
        "Content-Type": "text/event-stream",
        "Cache-Control": "no-store",
        "X-Accel-Buffering": "no",
        "Connection": "close",
    }
    [connected] = events(body)
    assert (connected.retry, connected.event) == (sse.RETRY_MS, "connected")


def test_an_allowed_origin_is_told_so() -> None:
    _, headers, _ = answered(sse.response_head("https://a.example"))
    assert headers["Access-Control-Allow-Origin"] == "https://a.example"
    assert headers["Vary"] == "Origin"


def test_a_refusal_is_a_stream_that_says_when_to_come_back() -> None:
    status, headers, body = answered(sse.refusal(Close.OVERLOADED, "full", 4321, "https://a.example"))
    assert status == b"200 OK"
    assert headers["Content-Type"] == "text/event-stream"
    assert headers["Access-Control-Allow-Origin"] == "https://a.example"
    [event] = events(body)
    assert (event.event, event.retry, event.json()["code"]) == ("close", 4321, 3004)


@pytest.mark.parametrize(
    ("code", "field", "status"),
    [
        (Close.BAD_REQUEST, "channel", b"400 Bad Request"),
        (Close.BAD_REQUEST, None, b"400 Bad Request"),
        (Close.TOO_MANY_CHANNELS, "channel", b"400 Bad Request"),
        (Close.BAD_REQUEST, "method", b"405 Method Not Allowed"),
        (Close.UNAUTHORIZED, "token", b"401 Unauthorized"),
        (Close.FORBIDDEN, "channel", b"403 Forbidden"),
        (Close.NOT_FOUND, None, b"404 Not Found"),
        (Close.HANDSHAKE_TIMEOUT, None, b"408 Request Timeout"),
        (Close.TOO_LARGE, "body", b"413 Content Too Large"),
        (Close.TOO_LARGE, "url", b"414 URI Too Long"),
        (Close.TOO_LARGE, "head", b"431 Request Header Fields Too Large"),
        (Close.TOO_LARGE, "headers", b"431 Request Header Fields Too Large"),
        (Close.OUR_FAULT, None, b"503 Service Unavailable"),
    ],
)
def test_a_bad_request_is_answered_with_json(code: Close, field: str | None, status: bytes) -> None:
    found, headers, body = answered(sse.json_error(PeerError(code, "no\r\n\r\nno", field)))
    assert found == status
    assert headers["Content-Type"] == "application/json"
    assert headers["Connection"] == "close"
    assert int(headers["Content-Length"]) == len(body)
    assert orjson.loads(body) == {
        "error": {"code": code, "reason": "no\r\n\r\nno"} | ({"field": field} if field else {})
    }
    assert headers.get("Allow") == ("GET" if field == "method" else None)
    assert headers.get("WWW-Authenticate") == ("Bearer" if code is Close.UNAUTHORIZED else None)


def test_an_error_too_can_be_read_by_an_allowed_origin() -> None:
    _, headers, _ = answered(sse.json_error(PeerError(Close.BAD_REQUEST), "https://a.example"))
    assert headers["Access-Control-Allow-Origin"] == "https://a.example"
