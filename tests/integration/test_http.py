"""Everything on the public HTTP port that is not a stream, and connections that are kept alive or half-closed."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import struct
from collections.abc import Iterator

import pytest
from harness import EventClient, Json, LineClient, Server, wait_until

pytestmark = pytest.mark.xdist_group("http")  # one server for all of them

PAGE = "https://chat.example"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    # A heartbeat is what finds out that a half-closed peer has gone altogether.
    with Server(["--workers", "1", "--origins", PAGE, "--heartbeat-seconds", "0.5"]) as made:
        yield made


@pytest.fixture
def connection(server: Server) -> Iterator[http.client.HTTPConnection]:
    """A connection that is kept alive."""
    host, port = server.http
    made = http.client.HTTPConnection(host, port, timeout=10)
    yield made
    made.close()


def speak(server: Server, *pieces: bytes, half_close: bool = False) -> bytes:
    """Send the pieces, and return all that comes until the end."""
    with socket.create_connection(server.http, timeout=10) as sock:
        for piece in pieces:
            sock.sendall(piece)
        if half_close:
            sock.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: sock.recv(65536), b""))


def post(body: bytes, *headers: str, path: str = "/publish?user=alice") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def test_publish(server: Server) -> None:
    with server.joined("listener", "room:http") as client:
        status, answer = server.request("POST", "/publish?user=alice", {"channel": "room:http", "data": {"a": [1]}})
        assert status == 200
        assert list(answer) == ["position"]
        client.expect("message", position=answer["position"], data={"a": [1]}, **{"from": "alice"})


@pytest.mark.parametrize(
    ("path", "body", "wanted"),
    [
        ("/publish", {"channel": "a", "data": 1}, (401, 4001, "user")),
        ("/publish?user=a%20b", {"channel": "a", "data": 1}, (400, 4000, "user")),
        ("/publish?user=a%ff", {"channel": "a", "data": 1}, (400, 4000, "user")),
        ("/publish?user=a&user=b", {"channel": "a", "data": 1}, (400, 4000, "user")),
        ("/publish?user=a", b"", (400, 4000, "body")),
        ("/publish?user=a", b"{", (400, 4000, "body")),
        ("/publish?user=a", b"[]", (400, 4000, "body")),
        ("/publish?user=a", b'{"channel":"\xff","data":1}', (400, 4000, "body")),
        ("/publish?user=a", {"data": 1}, (400, 4000, "channel")),
        ("/publish?user=a", {"channel": 1, "data": 1}, (400, 4000, "channel")),
        ("/publish?user=a", {"channel": "a"}, (400, 4000, "data")),
        ("/publish?user=a", {"channel": "$a", "data": 1}, (403, 4003, "channel")),
        ("/publish?user=a", {"channel": "a", "data": "x" * 65_535}, (413, 4005, "data")),
        ("/publish?user=a", b"x" * 200_000, (413, 4005, "body")),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_publish_that_is_refused(server: Server, path: str, body: Json | bytes, wanted: tuple[int, int, str]) -> None:
    status, answer = server.request("POST", path, body)
    assert list(answer) == ["error"]
    assert (status, answer["error"]["code"], answer["error"]["field"]) == wanted
    assert answer["error"]["reason"]


@pytest.mark.parametrize(
    ("method", "path", "status", "allowed"),
    [
        ("GET", "/nowhere", 404, None),
        ("POST", "/", 405, "GET, HEAD"),
        ("GET", "/publish?user=a", 405, "POST"),
        ("DELETE", "/healthz", 405, "GET, HEAD"),
        ("GET", "/events/", 404, None),
        ("GET", "/%65vents?user=a", 404, None),
        ("OPTIONS", "/nowhere", 204, None),
        ("GET", "/api/stats", 404, None),
        ("GET", "/metrics", 404, None),
    ],
)
def test_nothing_else_is_here(
    connection: http.client.HTTPConnection, method: str, path: str, status: int, allowed: str | None
) -> None:
    connection.request(method, path)
    response = connection.getresponse()
    body = response.read()
    assert response.status == status
    if body:
        error = json.loads(body)["error"]
        assert error["code"] == (4000 if status == 405 else 4004)
        assert error["reason"]
    assert response.getheader("Allow") == allowed


def test_a_body_in_chunks_and_a_large_one(connection: http.client.HTTPConnection) -> None:
    data = json.dumps({"channel": "room:chunks", "data": "x" * 60_000}).encode()
    chunks = [data[start : start + 7000] for start in range(0, len(data), 7000)]
    for _ in range(2):
        connection.request("POST", "/publish?user=a", iter(chunks), encode_chunked=True)
        response = connection.getresponse()
        assert response.status == 200, response.read()
        assert json.loads(response.read())["position"]


def test_faults_of_http_itself_are_json(server: Server) -> None:
    for request in (
        b"POST /publish?user=a HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /publish?user=a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /publish?user=a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"BREW /pot HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nExpect: miracles\r\nConnection: close\r\n\r\n",
    ):
        whole = speak(server, request)
        assert re.match(rb"HTTP/1.[01] 40[05] ", whole), whole
        head, _, body = whole.partition(b"\r\n\r\n")
        assert b"application/json" in head
        assert json.loads(body)["error"]["reason"]


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("port", ["http", "admin"])
def test_a_body_that_cannot_be_read_is_refused(server: Server, port: str, encoding: str) -> None:
    path = "/publish?user=a" if port == "http" else "/api/publish"
    headers = f"Content-Type: application/json\r\nContent-Encoding: {encoding}\r\nContent-Length: 5"
    with socket.create_connection(server.addresses[port][0], timeout=10) as sock:
        sock.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n\r\nhello".encode())
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert answer.split()[1] == b"400", answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == 4000
    assert "Traceback" not in "".join(server.log)
    assert "internal error" not in "".join(server.log)


@pytest.mark.parametrize("port", ["http", "admin"])
def test_a_client_that_leaves_inside_its_body_is_no_error_of_ours(server: Server, port: str) -> None:
    path = "/publish?user=a" if port == "http" else "/api/publish"
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
    for is_reset in (False, True):
        with socket.create_connection(server.addresses[port][0], timeout=10) as sock:
            if is_reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.sendall(head.encode() + b'{"cha')
            wait_until_read(server, sock)
    wait_until_read(server, sock)
    assert "internal error" not in "".join(server.log)


def test_health(server: Server) -> None:
    assert server.request("GET", "/healthz") == (200, {"status": "ok"})
    assert server.request("GET", "/readyz") == (200, {"status": "ready"})
    assert speak(server, b"HEAD /healthz HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.0 200 OK\r\n")


def test_the_page(connection: http.client.HTTPConnection) -> None:
    connection.request("GET", "/")
    response = connection.getresponse()
    assert response.status == 200
    assert response.getheader("Content-Type") == "text/html; charset=utf-8"
    assert "default-src 'none'" in (response.getheader("Content-Security-Policy") or "")
    assert b"EventSource" in response.read()


@pytest.mark.parametrize("origin", [PAGE, "https://elsewhere.example", None])
@pytest.mark.parametrize("user", ["a", ""])
def test_an_allowed_page_may_publish(connection: http.client.HTTPConnection, origin: str | None, user: str) -> None:
    headers = {} if origin is None else {"Origin": origin}
    connection.request("POST", f"/publish?user={user}", b'{"channel":"room:cors","data":1}', headers)
    response = connection.getresponse()
    response.read()
    assert response.status == (200 if user else 400)
    assert response.getheader("Access-Control-Allow-Origin") == (PAGE if origin == PAGE else None)


# Connections that are kept alive.


def test_a_kept_alive_connection_becomes_a_stream(server: Server, connection: http.client.HTTPConnection) -> None:
    for _ in range(3):
        connection.request("GET", "/")
        assert connection.getresponse().read()
    before = server.stats()["total"]["open_fds"]
    connection.request("GET", "/events?user=kept&channel=room:kept")
    response = connection.getresponse()
    assert response.status == 200
    assert response.getheader("Content-Type") == "text/event-stream"
    assert response.readline() == b"retry: 3000\n"
    while not response.readline().startswith(b"data: "):
        pass
    server.request("POST", "/publish?user=bob", {"channel": "room:kept", "data": "hi"})
    while not (line := response.readline()).startswith(b"data: "):
        pass
    assert json.loads(line[6:])["data"] == "hi"
    wait_until(lambda: server.stats()["total"]["open_fds"] == before, "the descriptor of aiohttp's side is closed")


def test_a_stream_behind_another_request_in_one_packet_is_asked_to_come_again(server: Server) -> None:
    events = b"GET /events?user=pipelined HTTP/1.1\r\nHost: x\r\n\r\n"
    whole = speak(server, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" + events)
    assert whole.count(b"HTTP/1.1 200 OK\r\n") == 2
    assert whole.endswith(b"\r\n\r\nretry: 100\n\n")


@pytest.mark.parametrize(
    "pieces",
    [
        (post(b"GET /events?user=x HTTP/1.1\r\nHost: x\r\n\r\n"),),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: ",),
    ],
    ids=["in a body", "in a header"],
)
def test_what_looks_like_a_stream_inside_a_request_is_not_one(server: Server, pieces: tuple[bytes, ...]) -> None:
    """Behind a proxy that shares connections this would be a request smuggled into the answers of another user."""
    inside = b"GET /events?user=smuggled&x="
    for first in (b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"):
        with socket.create_connection(server.http, timeout=10) as sock:
            if first:
                sock.sendall(first)
                assert b'{"status":"ok"}' in sock.recv(65536)
            body = inside + b" HTTP/1.1\r\nHost: x\r\n\r\n"
            if pieces[0].startswith(b"POST"):
                request = post(body).removesuffix(body), body
            else:
                request = pieces[0], inside + b" HTTP/1.1\r\n\r\n"
            sock.sendall(request[0])
            wait_until_read(server, sock)
            sock.sendall(request[1])
            answer = sock.recv(65536)
            assert answer.startswith(b"HTTP/1.1 400" if pieces[0].startswith(b"POST") else b"HTTP/1.1 200")
            assert b"event-stream" not in answer


def test_who_asks_on_and_on_and_reads_nothing_is_not_read_either(server: Server) -> None:
    """Requests in one packet with the first one, too: what lies in the kernel's buffers is all that anybody can send."""
    requests = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 20_000
    with socket.create_connection(server.http, timeout=2) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 64 * 1024 * 1024:
                sent += sock.send(requests[sent % len(requests) :])
    assert sent < 32 * 1024 * 1024


def wait_until_read(server: Server, sock: socket.socket) -> None:
    """Wait until the server has read what `sock` sent: a later request on another connection has been answered."""
    for _ in range(3):
        server.request("GET", "/healthz")


# Half-closed and leaving peers.


def test_a_half_closed_client_gets_its_answer(server: Server) -> None:
    body = b'{"channel":"room:half","data":1}'
    for _ in range(30):
        whole = speak(server, post(body), half_close=True)
        assert whole.startswith(b"HTTP/1.1 200 OK\r\n"), whole
        assert b'{"position":' in whole
    whole = speak(server, post(body)[:-5], post(body)[-5:], half_close=True)
    assert b'{"position":' in whole
    assert b'{"status":"ok"}' in speak(server, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", half_close=True)


def test_a_client_that_closes_inside_its_request_leaves_nothing(server: Server) -> None:
    before = server.stats()["total"]["open_fds"]
    for cut in (10, 40, 70):
        with socket.create_connection(server.http, timeout=10) as sock:
            sock.sendall(post(b'{"channel":"room:half","data":1}')[:cut])
    wait_until(lambda: server.stats()["total"]["open_fds"] <= before, "no descriptor is left")


def test_a_half_closed_stream_still_receives(server: Server) -> None:
    with server.event_client("user=half&channel=room:stream") as events:
        events.expect("connected")
        events.sock.shutdown(socket.SHUT_WR)
        server.request("POST", "/publish?user=bob", {"channel": "room:stream", "data": 1})
        assert events.expect("message")["data"] == 1


def test_a_stream_asked_for_by_a_half_closed_client(server: Server) -> None:
    with socket.create_connection(server.http, timeout=10) as sock:
        sock.sendall(b"GET /events?user=half&channel=room:stream HTTP/1.1\r\nHost: x\r\n\r\n")
        sock.shutdown(socket.SHUT_WR)
        file = sock.makefile("rb")
        while not file.readline().startswith(b"data: "):
            pass
        server.request("POST", "/publish?user=bob", {"channel": "room:stream", "data": "still"})
        while not (line := file.readline()).startswith(b"data: "):
            pass
        assert json.loads(line[6:])["data"] == "still"


@pytest.mark.parametrize("transport", ["tcp", "sse"])
def test_a_client_that_closes_is_gone_at_once(server: Server, transport: str) -> None:
    def held() -> list[int]:
        return [server.stats()["total"][name] for name in ("connections", "subscriptions", "handshaking")]

    wait_until(lambda: held() == [0, 0, 0], "nobody is left of other tests")
    before = server.stats()["total"]["open_fds"]
    client: LineClient | EventClient
    if transport == "tcp":
        client = server.joined("leaver", "room:leaving")
    else:
        client = server.event_client("user=leaver&channel=room:leaving")
        client.expect("connected")
    wait_until(lambda: server.stats()["total"]["connections"] == 1, "the connection is counted")
    client.close()
    wait_until(lambda: held() == [0, 0, 0], "it is gone", seconds=3)
    wait_until(lambda: server.stats()["total"]["open_fds"] <= before, "its descriptor is closed")
