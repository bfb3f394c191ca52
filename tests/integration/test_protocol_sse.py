"""The contract of `GET /events`, to the letter, against a server of two workers."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from harness import Server

pytestmark = pytest.mark.xdist_group("protocol_sse")  # one server for all of them

PAGE = "https://chat.example"
POSITION = r"[0-9a-f]{8}-[0-9]+-[0-9]+"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(["--workers", "2", "--heartbeat-seconds", "0.25", "--origins", PAGE]) as made:
        yield made


def ask(server: Server, *lines: str) -> socket.socket:
    """Send a request of these lines; return the socket."""
    sock = socket.create_connection(server.http, timeout=10)
    sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
    return sock


def read_until(sock: socket.socket, end: bytes) -> bytes:
    """Return what comes up to and with `end`."""
    data = b""
    while not data.endswith(end):
        piece = sock.recv(1)
        assert piece, f"the stream ended after {data!r}"
        data += piece
    return data


def answer(server: Server, *lines: str) -> tuple[int, dict[str, str], bytes]:
    """Send a request and return status, headers and body of an answer that ends the connection."""
    with ask(server, *lines) as sock:
        whole = b"".join(iter(lambda: sock.recv(65536), b""))
    head, _, body = whole.partition(b"\r\n\r\n")
    status, *headers = head.decode().split("\r\n")
    return int(status.split()[1]), {k.lower(): v for k, _, v in (h.partition(": ") for h in headers)}, body


def test_a_stream_begins_to_the_letter(server: Server) -> None:
    with ask(server, "GET /events?user=alice&channel=room:a&channel=room:b HTTP/1.1", "Host: x") as sock:
        head = read_until(sock, b"\r\n\r\n").decode()
        assert head.splitlines() == [
            "HTTP/1.1 200 OK",
            "Content-Type: text/event-stream",
            "Cache-Control: no-store",
            "X-Accel-Buffering: no",
            "Connection: close",
            "",
        ]
        event = read_until(sock, b"\n\n").decode()
    # All in one event: some clients take a `retry:` on its own for an empty message.
    found = re.fullmatch(rf"retry: 3000\nid: ({POSITION})\nevent: connected\ndata: (.*)\n\n", event)
    assert found
    greeting = json.loads(found[2])
    assert list(greeting) == ["op", "user", "session", "heartbeat_s", "position", "recovered", "channels"]
    assert re.fullmatch(r"[0-9a-f]{6}-[01]-[0-9a-f]+", greeting.pop("session"))
    assert greeting == {
        "op": "connected",
        "user": "alice",
        "heartbeat_s": 0.25,
        "position": found[1],
        "recovered": True,
        "channels": ["@alice", "room:a", "room:b"],
    }


def test_a_message_is_an_id_and_data_to_the_letter(server: Server) -> None:
    with ask(server, "GET /events?user=alice&channel=room:letter HTTP/1.1", "Host: x") as sock:
        read_until(sock, b'"]}\n\n')  # connected
        status, taken = server.request(
            "POST", "/publish?user=bob", {"channel": "room:letter", "data": {"text": "a\nb"}}
        )
        assert status == 200
        event = b":\n\n"
        while event == b":\n\n":
            event = read_until(sock, b"\n\n")
    found = re.fullmatch(rf"id: ({POSITION})\ndata: (.*)\n\n", event.decode())
    assert found, event
    message = json.loads(found[2])
    assert list(message) == ["channel", "position", "from", "at", "data"]
    assert message.pop("at") > 0
    position = taken["position"]
    assert found[1] == position
    assert message == {"channel": "room:letter", "position": position, "from": "bob", "data": {"text": "a\nb"}}


def test_comments_are_heartbeats(server: Server) -> None:
    with ask(server, "GET /events?user=alice HTTP/1.1", "Host: x") as sock:
        read_until(sock, b'"]}\n\n')
        for _ in range(3):
            assert read_until(sock, b"\n\n") == b":\n\n"


def test_names_are_percent_encoded(server: Server) -> None:
    query = "user=al%C3%AFce&channel=room%3Aa&channel=%F0%9F%98%80&other=1&channel=a%2Bb"
    with server.event_client(query) as events:
        greeting = events.expect("connected")
    assert greeting["user"] == "alïce"
    assert greeting["channels"] == ["@alïce", "room:a", "😀", "a+b"]


def test_it_goes_on_from_a_position_and_the_header_wins(server: Server) -> None:
    with server.event_client("user=alice&channel=room:resume") as events:
        events.expect("connected")
        server.request("POST", "/publish?user=bob", {"channel": "room:resume", "data": 1})
        now = events.expect("message")["position"]
    lost = "ffffffff-1-1"  # of a Redis that has lost its data since
    for query, headers, recovered in [
        (f"&position={now}", {}, True),
        (f"&position={lost}", {}, False),
        ("", {"Last_Event_ID": now}, True),
        (f"&position={lost}", {"Last_Event_ID": now}, True),
        (f"&position={now}", {"last_event_id": lost}, False),
        (f"&position={lost}", {"Last_Event_ID": ""}, False),
    ]:
        with server.event_client("user=alice&channel=room:resume" + query, **headers) as events:
            greeting = events.expect("connected")
            assert greeting["recovered"] is recovered
            assert greeting["position"].split("-")[2] == now.split("-")[2], "the number of the newest message"


def test_http_1_0_needs_no_host(server: Server) -> None:
    with ask(server, "GET /events?user=old HTTP/1.0") as sock:
        assert read_until(sock, b"\r\n\r\n").startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"event: connected" in read_until(sock, b'"]}\n\n')


def test_a_byte_at_a_time(server: Server) -> None:
    with socket.create_connection(server.http, timeout=10) as sock:
        for byte in b"GET /events?user=drip HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n":
            sock.sendall(bytes([byte]))
        assert b"event: connected" in read_until(sock, b'"]}\n\n')


def test_bytes_behind_the_request_are_ignored(server: Server) -> None:
    with ask(server, "GET /events?user=talker&channel=room:talk HTTP/1.1", "Host: x", "", "GET / HTTP/1.1") as sock:
        read_until(sock, b'"]}\n\n')
        sock.sendall(b"POST /publish HTTP/1.1\r\n" * 100)
        server.request("POST", "/publish?user=bob", {"channel": "room:talk", "data": 1})
        assert b'"data":1}' in read_until(sock, b"1}\n\n")


REFUSALS: list[tuple[list[str], int, int, str]] = [
    (["GET /events HTTP/1.1", "Host: x"], 401, 4001, "user"),
    (["GET /events?user= HTTP/1.1", "Host: x"], 400, 4000, "user"),
    (["GET /events?user=a&user=b HTTP/1.1", "Host: x"], 400, 4000, "user"),
    (["GET /events?user=%zz HTTP/1.1", "Host: x"], 400, 4000, "user"),
    (["GET /events?user=%ff HTTP/1.1", "Host: x"], 400, 4000, "user"),
    (["GET /events?user=a&channel= HTTP/1.1", "Host: x"], 400, 4000, "channel"),
    (["GET /events?user=a&channel=a%0Ab HTTP/1.1", "Host: x"], 400, 4000, "channel"),
    (["GET /events?user=a&channel=@b HTTP/1.1", "Host: x"], 403, 4003, "channels"),
    (["GET /events?user=a&channel=$control HTTP/1.1", "Host: x"], 403, 4003, "channels"),
    (["GET /events?user=a&position=%22 HTTP/1.1", "Host: x"], 400, 4000, "position"),
    (["GET /events?user=a HTTP/1.1", "Host: x", 'Last-Event-ID: "'], 400, 4000, "Last-Event-ID"),
    (["GET /events?user=a HTTP/1.1", "Host: x", "Authorization: Basic eDp5"], 401, 4001, "Authorization"),
    (["POST /events?user=a HTTP/1.1", "Host: x", "Content-Length: 0"], 405, 4000, "method"),
    (["GET /events?user=a HTTP/1.1"], 400, 4000, "Host"),
    (["GET /events?user=a HTTP/1.1", "Host: x", "Host: y"], 400, 4000, "Host"),
    (["GET /events?user=a HTTP/2.0", "Host: x"], 400, 4000, "version"),
    (["GET /events?user=a", "Host: x"], 400, 4000, "head"),
    (["get /events?user=a HTTP/1.1", "Host: x"], 405, 4000, "method"),
    (["\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"], 400, 4000, "head"),
    (["GET /events?user=a HTTP/1.1", "Host: x", "no colon"], 400, 4000, "headers"),
    (["GET /events?user=" + "a" * 9000 + " HTTP/1.1", "Host: x"], 414, 4005, "url"),
    (["GET /events?user=a HTTP/1.1", "Host: x", "X: " + "a" * 17_000], 431, 4005, "head"),
    (["GET /events?user=a HTTP/1.1", "Host: x", *["X: 1"] * 101], 431, 4005, "headers"),
    (
        ["GET /events?user=a&" + "&".join(f"channel=c{n}" for n in range(128)) + " HTTP/1.1", "Host: x"],
        400,
        4006,
        "channels",
    ),
]


@pytest.mark.parametrize(("lines", "status", "code", "field"), REFUSALS, ids=lambda value: str(value)[:48])
def test_a_refusal_for_good_is_a_status_and_json(
    server: Server, lines: list[str], status: int, code: int, field: str
) -> None:
    found, headers, body = answer(server, *lines)
    error = json.loads(body)["error"]
    assert (found, error["code"], error["field"]) == (status, code, field)
    assert error["reason"]
    assert list(json.loads(body)) == ["error"]
    assert list(error) == ["code", "reason", "field"]
    assert headers["content-type"] == "application/json"
    assert headers["content-length"] == str(len(body))
    assert headers["connection"] == "close"
    assert headers["cache-control"] == "no-store"
    if status == 401:
        assert headers["www-authenticate"] == "Bearer"
    if status == 405:
        assert headers["allow"] == "GET"


@pytest.mark.parametrize("origin", [PAGE, "https://elsewhere.example", "null", None])
@pytest.mark.parametrize("query", ["user=a", "user="], ids=["welcome", "refused"])
def test_an_allowed_page_may_read_the_answer(server: Server, origin: str | None, query: str) -> None:
    headers: dict[str, Any] = {} if origin is None else {"Origin": origin}
    with server.event_client(query, **headers) as events:
        assert events.status == (200 if query == "user=a" else 400)
        assert events.headers.get("access-control-allow-origin") == (PAGE if origin == PAGE else None)
        assert events.headers.get("vary") == ("Origin" if origin == PAGE else None)


@pytest.mark.parametrize("origin", [PAGE, "https://elsewhere.example"])
def test_preflight(server: Server, origin: str) -> None:
    status, headers, body = answer(
        server, "OPTIONS /events?user=a HTTP/1.1", "Host: x", f"Origin: {origin}", "Connection: close",
        "Access-Control-Request-Method: GET", "Access-Control-Request-Headers: authorization,last-event-id",
    )  # fmt: skip
    assert (status, body) == (204, b"")
    if origin == PAGE:
        assert headers["access-control-allow-origin"] == PAGE
        assert headers["access-control-allow-methods"] == "GET, POST, OPTIONS"
        assert headers["access-control-allow-headers"] == "Authorization, Content-Type, Last-Event-ID"
    else:
        assert "access-control-allow-origin" not in headers
