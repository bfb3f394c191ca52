"""Behind a balancer: whose a connection is shows in the log, over real sockets."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from harness import DEADLINE_SECONDS, Server, wait_until

pytestmark = pytest.mark.xdist_group("proxy")  # three servers for most of them

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
CLIENT = "203.0.113.9"
V1 = b"PROXY TCP4 203.0.113.9 127.0.0.1 4711 7400\r\n"
V1_MAPPED = b"PROXY TCP6 ::ffff:203.0.113.9 ::1 4711 7400\r\n"
LOCAL = SIGNATURE + b"\x20\0\0\0"


def v2(*tlvs: tuple[int, bytes]) -> bytes:
    block = socket.inet_aton(CLIENT) + socket.inet_aton("127.0.0.1") + struct.pack("!HH", 4711, 7400)
    block += b"".join(struct.pack("!BH", kind, len(value)) + value for kind, value in tlvs)
    return SIGNATURE + struct.pack("!BBH", 0x21, 0x11, len(block)) + block


V2 = v2((2, b"chat.example"), (5, b"unique"), (4, b"\0" * 9), (0x20, b"\1\0\0\0\0"))
HEADERS = {"v1": V1, "v1 mapped": V1_MAPPED, "v2": v2(), "v2 with TLVs": V2}


def serve(mode: str, trusted: str = "127.0.0.1") -> Iterator[Server]:
    options = ["--workers", "1", "--log-level", "debug", "--handshake-seconds", "1"]
    with Server([*options, "--proxy-protocol", mode, "--proxy-trusted", trusted]) as server:
        yield server


@pytest.fixture(scope="module")
def auto() -> Iterator[Server]:
    yield from serve("auto")


@pytest.fixture(scope="module")
def strict() -> Iterator[Server]:
    yield from serve("v2", "::ffff:127.0.0.0/104")


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Server]:
    yield from serve("auto", "192.0.2.0/24")


def ask(address: tuple[str, int], *parts: bytes) -> bytes:
    """Send `parts`, one a packet, and return what is answered until the end, or the first line."""
    with closing(socket.create_connection(address, timeout=DEADLINE_SECONDS)) as sock, sock.makefile("rb") as file:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in parts:
            sock.sendall(part)
        return file.readline()


def line(user: str) -> bytes:
    return json.dumps({"op": "connect", "user": user}).encode() + b"\n"


def get(user: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET /events?user={user} HTTP/1.1", "Host: h", *headers, "", ""]).encode()


def post(user: str, *headers: str) -> bytes:
    body = b'{"channel":"room:a","data":1}'
    head = [f"POST /publish?user={user} HTTP/1.1", "Host: h", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(head).encode() + body


def came_from(server: Server, user: str, *, verb: str = "comes") -> str:
    """Wait until the log says where a user comes from."""
    said = f"] {user} {verb} from "
    found = wait_until(lambda: next((line for line in server.log if said in line), ""), f"{said!r} in the log")
    return str(found.partition(said)[2].split()[0])


def refused(server: Server, code: int, reason: str, *parts: bytes) -> str:
    """Check that both transports refuse, with a clear reason and not by a reset; return the reason."""

    def count() -> Any:
        return server.stats()["total"]["handshake_failures"].get(reason, 0)

    before = count()
    said = json.loads(ask(server.tcp, *parts))
    assert (said["op"], said["code"], said["reconnect"]) == ("close", code, False)
    assert ask(server.http, *parts).split()[1] == b"400"
    wait_until(lambda: count() == before + 2, "counted")
    return str(said["reason"])


SPLITS: dict[str, Callable[[bytes], list[bytes]]] = {
    "whole": lambda sent: [sent],
    "byte by byte": lambda sent: [sent[i : i + 1] for i in range(len(sent))],
    "in three": lambda sent: [sent[:3], sent[3:20], sent[20:]],
}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("header", HEADERS)
def test_the_header_says_whose_a_connection_is(auto: Server, header: str, split: str) -> None:
    name = f"{header}-{split}".replace(" ", "-")
    for transport, address, request in (("tcp", auto.tcp, line), ("sse", auto.http, get)):
        user = f"{name}-{transport}"
        answer = ask(address, *SPLITS[split](HEADERS[header] + request(user)))
        assert b"connected" in answer or b"200" in answer
        assert came_from(auto, user) == CLIENT


def test_requests_behind_the_header_are_kept(auto: Server) -> None:
    more = b'{"op":"ping","id":1}\n'
    with closing(socket.create_connection(auto.tcp, timeout=DEADLINE_SECONDS)) as sock, sock.makefile("rb") as file:
        sock.sendall(V2 + line("eager") + more)
        assert [json.loads(file.readline())["op"] for _ in range(2)] == ["connected", "pong"]


def test_it_says_whose_a_publish_is(auto: Server) -> None:
    for user, parts in (("dora", [V1 + post("dora")]), ("emil", SPLITS["byte by byte"](V2 + post("emil")))):
        assert ask(auto.http, *parts).split()[1] == b"200"
        assert came_from(auto, user, verb="publishes") == CLIENT


def test_a_kept_alive_connection_stays_its_clients(auto: Server) -> None:
    """It goes to aiohttp and back, unless the next request comes before aiohttp is done with the last."""

    def there_and_back() -> bool:
        with (
            closing(socket.create_connection(auto.http, timeout=DEADLINE_SECONDS)) as sock,
            sock.makefile("rb") as file,
        ):
            sock.sendall(V2 + post("first"))
            while not file.readline().startswith(b"Content-Length"):
                pass
            sock.sendall(get("second"))
            while line := file.readline():
                if b"connected" in line:
                    return True
        return False

    wait_until(there_and_back, "a connection that is taken back")
    assert came_from(auto, "first", verb="publishes") == came_from(auto, "second") == CLIENT


def test_the_balancers_own_checks_are_its_own(auto: Server, strict: Server) -> None:
    for server in (auto, strict):
        assert ask(server.http, LOCAL + b"GET /readyz HTTP/1.1\r\nHost: h\r\n\r\n").split()[1] == b"200"
        ask(server.tcp, LOCAL + line("check"))
        assert came_from(server, "check") == "127.0.0.1"


def test_auto_takes_those_without_a_header(auto: Server) -> None:
    assert b"connected" in ask(auto.tcp, *SPLITS["byte by byte"](b"\r\n" + line("plain")))
    assert came_from(auto, "plain") == "127.0.0.1"
    assert ask(auto.http, b"GET /readyz HTTP/1.1\r\nHost: h\r\n\r\n").split()[1] == b"200"


def test_a_trusted_peer_without_a_header_is_refused(strict: Server) -> None:
    assert "127.0.0.1" in refused(strict, 4012, "proxy_missing", line("x"))
    assert refused(strict, 4012, "proxy_missing", b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")


def test_a_wrong_header_is_refused(strict: Server) -> None:
    assert "version 2" in refused(strict, 4013, "proxy_malformed", V1 + line("x"))
    broken = v2((3, b"\0\0\0\0"))
    assert "sums to" in refused(strict, 4013, "proxy_malformed", broken + line("x"))
    assert refused(strict, 4013, "proxy_malformed", SIGNATURE + b"\x31\x11\0\0")


def test_who_is_not_trusted_may_not_send_one(elsewhere: Server) -> None:
    for header in (V1, V2, LOCAL):
        assert "proxy_trusted" in refused(elsewhere, 4011, "proxy_untrusted", header + line("x"))
        refused(elsewhere, 4011, "proxy_untrusted", *SPLITS["byte by byte"](header)[:12])
    assert b"connected" in ask(elsewhere.tcp, line("direct"))
    assert came_from(elsewhere, "direct") == "127.0.0.1"


def test_where_it_is_off_a_header_is_named_for_what_it_is(server: Server) -> None:
    for header in (V1, V2):
        assert "proxy_protocol is off" in refused(
            server, 4011, "proxy_untrusted", header + b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
        )


def test_half_a_header_is_given_up_at_the_deadline(strict: Server) -> None:
    said = json.loads(ask(strict.tcp, V2[:20]))
    assert said["code"] == 4002
    assert ask(strict.http, V2[:20]).split()[1] == b"408"


# HTTP proxies.


@pytest.mark.parametrize(
    ("headers", "wanted"),
    [
        (["X-Forwarded-For: 198.51.100.1, 203.0.113.9, 127.0.0.1"], CLIENT),
        (["X-Forwarded-For: 198.51.100.1", "X-Forwarded-For: 203.0.113.9"], CLIENT),
        (["Forwarded: for=198.51.100.1, for=203.0.113.9;proto=https"], CLIENT),
        (['Forwarded: for="[2001:db8::9]:4711"'], "2001:db8::9"),
        (["X-Forwarded-For: nobody"], "127.0.0.1"),
        ([], "127.0.0.1"),
    ],
)
def test_http_proxies_that_are_trusted_say_who_asks(auto: Server, headers: list[str], wanted: str) -> None:
    name = f"h{abs(hash(str(headers)))}"
    assert b"200" in ask(auto.http, get(name, *headers))
    assert came_from(auto, name) == wanted
    assert b"200" in ask(auto.http, post(name, *headers))
    assert came_from(auto, name, verb="publishes") == wanted


def test_clients_that_are_not_trusted_do_not(auto: Server, elsewhere: Server) -> None:
    forged = "X-Forwarded-For: 198.51.100.1"
    for verb, request in (("comes", get), ("publishes", post)):
        assert b"200" in ask(elsewhere.http, request("forger", forged))
        assert came_from(elsewhere, "forger", verb=verb) == "127.0.0.1"
        assert b"200" in ask(auto.http, V2 + request("behind", forged))
        assert came_from(auto, "behind", verb=verb) == CLIENT


def test_headers_that_contradict_each_other_are_refused(auto: Server) -> None:
    forged = "Forwarded: for=198.51.100.1", "X-Forwarded-For: 203.0.113.9"
    for request in (get, post):
        assert ask(auto.http, request("x", *forged)).split()[1] == b"400"


def test_it_does_not_start_without_knowing_whom_to_trust() -> None:
    with Server(["--proxy-protocol", "v2"], wait=False) as server:
        assert server.process.wait(20) == 2
        wait_until(lambda: "proxy_trusted" in "".join(server.log), "it says what is missing")
