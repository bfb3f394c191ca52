"""The admin process alone: pages filled by hand, a real Valkey, real requests. No worker runs."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import ClientSession, TCPConnector, web

from router import clients, journal, position
from router.embedded import Embedded
from router.namespaces import Namespaces
from server import admin, backend
from server.backend import Backend
from server.gate import Gate
from server.stats import Pages, Stats

ROOT = Path(__file__).parents[2]
PREFIX = "test:"
KEY = "an-admin-key"
MESSAGE_BYTES_MAX = 4096
ENDPOINTS = [
    ("GET", "/"), ("GET", "/metrics"), ("GET", "/api/stats"), ("POST", "/api/publish"),
    ("POST", "/api/users/alice/disconnect"), ("GET", "/api/channels/room:a/history"),
    ("GET", "/api/channels/room:a/presence"), ("GET", "/nowhere"),
]  # fmt: skip


@pytest.fixture(scope="module")
def valkey() -> Iterator[Embedded]:
    with Embedded() as server:
        yield server


class Port:
    """An admin port, and what a client of it does."""

    def __init__(self, app: web.Application, pages: Pages, redis: clients.Client, session: ClientSession) -> None:
        self.app = app
        self.pages = pages
        self.redis = redis
        self.session = session
        self.url = ""

    async def ask(self, method: str, path: str, json: object = ..., **more: Any) -> tuple[int, dict[str, Any]]:
        body: dict[str, Any] = {} if json is ... else {"json": json}
        async with self.session.request(method, self.url + path, **body, **more) as response:
            return response.status, await response.json()


async def opened(redis_url: str, gate: Gate) -> AsyncIterator[Port]:
    pages, redis = Pages.create(2), clients.client(redis_url, timeout_seconds=1.0)
    bus = Backend(redis, PREFIX, Namespaces())
    app = admin.make_app(pages, bus, gate=gate, message_bytes_max=MESSAGE_BYTES_MAX)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.1)
    await runner.setup()
    sock = socket.create_server(("127.0.0.1", 0))
    (listener,) = await admin.listen(runner, [sock])
    async with ClientSession(connector=TCPConnector(force_close=True)) as session:
        port = Port(app, pages, redis, session)
        port.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        yield port
    listener.close()
    await runner.cleanup()
    await redis.aclose()


@pytest.fixture
async def port(valkey: Embedded) -> AsyncIterator[Port]:
    async for each in opened(valkey.url, Gate("127.0.0.1", None)):
        yield each


@pytest.fixture
async def keyed(valkey: Embedded) -> AsyncIterator[Port]:
    async for each in opened(valkey.url, Gate("127.0.0.1", KEY)):
        yield each


@pytest.fixture
async def lonely(tmp_path: Path) -> AsyncIterator[Port]:
    """A port whose Redis is down."""
    async for each in opened(f"unix://{tmp_path}/none.sock", Gate("127.0.0.1", None)):
        yield each


async def heard(redis: clients.Client, *channels: str) -> AsyncGenerator[tuple[bytes, bytes], None]:
    """What is published to `channels`; the first item only says that the subscription stands."""
    async with redis.pubsub() as pubsub:
        await pubsub.subscribe(*(PREFIX + channel for channel in channels))
        async for item in pubsub.listen():
            yield item["channel"], item["data"]


# Publishing.


async def test_a_publish_reaches_the_bus_with_its_position(port: Port) -> None:
    listening = heard(port.redis, "room:a")
    await anext(listening)
    before = time.time()
    status, body = await port.ask("POST", "/api/publish", {"channel": "room:a", "data": {"text": "é \u2028 </script>"}})
    name, payload = await anext(listening)
    await listening.aclose()
    assert (status, name) == (200, b"test:room:a")
    message, _ = journal.decode(b"room:a", payload, b"")
    assert body == {"position": message.position.decode()}
    assert message.members.startswith(b',"from":null,"at":')
    assert message.members.endswith('"data":{"text":"é \u2028 </script>"}'.encode())
    assert before - 0.01 <= journal.published_at(message) <= time.time()


async def test_a_publish_to_several_channels_has_a_position_each(port: Port) -> None:
    names = ["room:a", "room:b", "@alice"]
    status, body = await port.ask("POST", "/api/publish", {"channels": [*names, "room:a"], "data": None})
    assert (status, list(body["positions"])) == (200, names)
    assert len(set(body["positions"].values())) == 3


async def test_behind_a_failover_a_publish_begins_a_span_of_numbers(port: Port) -> None:
    """No worker has looked at the new master: what is numbered first there must not have a number of the old one."""
    body = {"channel": "room:a", "data": 1}
    _, before = await port.ask("POST", "/api/publish", body)
    await port.redis.execute_command("HSET", f"{PREFIX}$clock", "run", "another")  # type: ignore[no-untyped-call]
    _, behind = await port.ask("POST", "/api/publish", body)
    old, new = (position.parse(answer["position"]) for answer in (before, behind))
    assert old
    assert new
    assert old.epoch == new.epoch
    assert (old.id.number < 10**10, new.id.number) == (True, 10**10 + 1)


async def test_a_message_that_had_been_published_takes_back_nothing_of_what_is_known(port: Port) -> None:
    """Redis loses what was answered last; what was answered last of all is the old position of a key that is known."""
    once = {"channel": "room:a", "data": 1, "idempotency": "k"}
    _, first = await port.ask("POST", "/api/publish", once)
    clock = await port.redis.execute_command("HGET", f"{PREFIX}$clock", "number")  # type: ignore[no-untyped-call]
    _, lost = await port.ask("POST", "/api/publish", {"channel": "room:a", "data": 2})
    assert await port.ask("POST", "/api/publish", once) == (200, first)
    await port.redis.execute_command("HSET", f"{PREFIX}$clock", "number", clock)  # type: ignore[no-untyped-call]
    _, behind = await port.ask("POST", "/api/publish", {"channel": "room:a", "data": 3})
    assert behind["position"][:8] != lost["position"][:8], "another epoch"


async def test_publishes_at_the_same_time_wait_for_one_another(port: Port) -> None:
    asked = [port.ask("POST", "/api/publish", {"channel": "room:a", "data": i}) for i in range(60)]
    answers = await asyncio.gather(*asked)
    assert {status for status, _ in answers} == {200}
    assert len({body["position"] for _, body in answers}) == 60


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ([], 4000, "body"),
        ({"data": 1}, 4000, "channel"),
        ({"channel": 7, "data": 1}, 4000, "channel"),
        ({"channel": "", "data": 1}, 4000, "channel"),
        ({"channel": "a b", "data": 1}, 4000, "channel"),
        ({"channel": "x" * 256, "data": 1}, 4000, "channel"),
        ({"channel": "$control", "data": 1}, 4003, "channel"),
        ({"channels": "room:a", "data": 1}, 4000, "channels"),
        ({"channels": [], "data": 1}, 4000, "channels"),
        ({"channels": ["room:a", None], "data": 1}, 4000, "channels"),
        ({"channels": ["room:a", "$x"], "data": 1}, 4003, "channels"),
        ({"channels": [f"room:{i}" for i in range(1001)], "data": 1}, 4000, "channels"),
        ({"channels": ["room:a"], "channel": "room:a", "data": 1}, 4000, "channels"),
        ({"channel": "room:a"}, 4000, "data"),
        ({"channel": "room:a", "data": "x" * MESSAGE_BYTES_MAX}, 4005, "data"),
    ],
)
async def test_a_bad_publish_is_told_what_is_wrong(port: Port, body: object, code: int, field: str) -> None:
    status, answer = await port.ask("POST", "/api/publish", body)
    assert status == {4000: 400, 4003: 403, 4005: 413}[code]
    assert (answer["error"]["code"], answer["error"]["field"]) == (code, field)
    assert answer["error"]["reason"]


@pytest.mark.parametrize(
    ("data", "status", "field"),
    [
        (b"", 400, "body"),
        (b"{", 400, "body"),
        (b'{"channel":"room:a","data":"\xff"}', 400, "body"),
        (b'{"channel":"room:a","data":NaN}', 400, "body"),
        (b'{"channel":"room:a","data":' + b"[" * 300 + b"]" * 300 + b"}", 400, "data"),
        (b'{"channel":"room:a","data":' + b"[" * 5000 + b"]" * 5000 + b"}", 400, "body"),
        (b" " * 200_000, 413, "body"),
    ],
)
async def test_bytes_that_are_no_publish(port: Port, data: bytes, status: int, field: str) -> None:
    headers = {"Content-Type": "application/json"}
    found, answer = await port.ask("POST", "/api/publish", data=data, headers=headers)
    assert (found, answer["error"]["field"]) == (status, field)


async def test_a_form_is_not_json(port: Port) -> None:
    status, answer = await port.ask("POST", "/api/publish", data={"channel": "room:a", "data": "1"})
    assert (status, answer["error"]["field"]) == (400, "Content-Type")


# Disconnecting.


@pytest.mark.parametrize(("body", "reconnect"), [(..., b"false"), ({}, b"false"), ({"reconnect": True}, b"true")])
async def test_disconnect_tells_every_worker(port: Port, body: object, reconnect: bytes) -> None:
    workers = [heard(port.redis, "$control"), heard(port.redis, "$control")]
    for worker in workers:
        await anext(worker)
    status, answer = await port.ask("POST", "/api/users/al%2Fice/disconnect", body)
    orders = [await anext(worker) for worker in workers]
    for worker in workers:
        await worker.aclose()
    assert (status, answer) == (200, {"workers": 2})
    order = b'{"do":"disconnect","user":"al/ice","reconnect":%b}' % reconnect
    assert orders == [(b"test:$control", order)] * 2


async def test_disconnect_that_no_worker_hears_has_not_been_done(port: Port) -> None:
    status, answer = await port.ask("POST", "/api/users/alice/disconnect")
    assert (status, answer["error"]["code"]) == (503, 3005)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("alice", {"reconnect": 1}, "reconnect"),
        ("alice", ["x"], "body"),
        ("a%20b", {}, "user"),
        ("x" * 255, {}, "user"),
    ],
)
async def test_a_bad_disconnect_is_told_what_is_wrong(port: Port, path: str, body: object, field: str) -> None:
    status, answer = await port.ask("POST", f"/api/users/{path}/disconnect", body)
    assert (status, answer["error"]["code"], answer["error"]["field"]) == (400, 4000, field)


# Reading.


async def test_metrics_of_all_workers_in_one_scrape(port: Port) -> None:
    port.pages[0].write(Stats(accepted=3, connections_sse=2), time.monotonic(), os.getpid())
    port.pages[1].write(Stats(accepted=4), time.monotonic(), os.getpid())
    accept = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"}
    async with port.session.get(port.url + "/metrics", headers=accept) as response:
        assert response.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
        lines = (await response.text()).splitlines()
    assert {'moorage_accepted_total{worker="0"} 3', 'moorage_accepted_total{worker="1"} 4'} <= set(lines)
    assert lines[-1] == "# EOF"
    async with port.session.get(port.url + "/metrics") as response:
        assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert 'moorage_connections{worker="0",transport="sse"} 2\n' in await response.text()


async def test_stats_as_json(port: Port) -> None:
    port.pages.supervisor_pid = 4711
    port.pages[1].write(Stats(connections_tcp=5, ready=1), time.monotonic(), os.getpid())
    status, stats = await port.ask("GET", "/api/stats")
    assert (status, stats["supervisor"], stats["total"]["connections"], stats["total"]["ready"]) == (200, 4711, 5, 1)
    assert [worker["connections"] for worker in stats["workers"]] == [0, 5]
    assert 0 <= stats["workers"][1]["silent_seconds"] < 5


async def test_the_dashboard_needs_nothing_from_elsewhere(port: Port) -> None:
    async with port.session.get(port.url + "/") as response:
        page = await response.text()
        assert response.headers["Content-Type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "/api/stats" in page


async def test_what_is_not_there(port: Port) -> None:
    assert (await port.ask("GET", "/nowhere"))[0] == 404
    status, answer = await port.ask("DELETE", "/api/publish")
    assert (status, answer["error"]) == (
        405, {"code": 4000, "reason": "found DELETE, want POST", "field": "method"},
    )  # fmt: skip


# Who may.


@pytest.mark.parametrize(("method", "path"), ENDPOINTS)
async def test_with_a_key_everything_wants_it(keyed: Port, method: str, path: str) -> None:
    async with keyed.session.request(method, keyed.url + path) as response:
        assert response.status == 401
        assert response.headers["WWW-Authenticate"].startswith("Bearer ")
        assert (await response.json())["error"]["code"] == 4001
    right = {"Authorization": f"Bearer {KEY}"}
    async with keyed.session.request(method, keyed.url + path, headers=right) as response:
        assert response.status not in (401, 403)


async def test_health_wants_no_key_and_no_host(keyed: Port, port: Port) -> None:
    assert await keyed.ask("GET", "/healthz") == (200, {"status": "ok"})
    assert await port.ask("GET", "/healthz", headers={"Host": "10.1.2.3:8080"}) == (200, {"status": "ok"})


@pytest.mark.parametrize(("method", "path"), ENDPOINTS)
async def test_without_a_key_a_rebound_name_reads_nothing(port: Port, method: str, path: str) -> None:
    status, answer = await port.ask(method, path, headers={"Host": "evil.example"})
    assert (status, answer["error"]["code"], answer["error"]["field"]) == (403, 4003, "Host")


async def test_a_bug_is_told_in_the_form_of_the_contract(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Backend, "presence", broken)
    status, body = await port.ask("GET", "/api/channels/room:a/presence")
    assert (status, body) == (500, {"error": {"code": 3008, "reason": "internal error"}})


@pytest.mark.parametrize("request_bytes", [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nHost x\r\n\r\n"])
async def test_what_is_no_http_is_told_so_in_the_form_of_the_contract(port: Port, request_bytes: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(port.url.rpartition(":")[2]))
    writer.write(request_bytes)
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert head.startswith(b"HTTP/1.0 400 ") or head.startswith(b"HTTP/1.1 400 "), head
    assert b"Content-Type: application/json" in head
    error = orjson.loads(body)["error"]
    assert (error["code"], error["field"]) == (4000, "request")
    assert error["reason"]


async def test_a_page_of_another_site_publishes_nothing(port: Port) -> None:
    headers = {"Origin": "http://evil.example"}
    status, answer = await port.ask("POST", "/api/publish", {"channel": "room:a", "data": 1}, headers=headers)
    assert (status, answer["error"]["field"]) == (403, "Origin")
    async with port.session.get(port.url + "/api/stats", headers=headers) as response:
        assert "Access-Control-Allow-Origin" not in response.headers


# When Redis is not well.


@pytest.mark.parametrize("path", ["/api/publish", "/api/users/alice/disconnect"])
async def test_redis_down_is_said_at_once(lonely: Port, path: str) -> None:
    started = time.monotonic()
    status, answer = await lonely.ask("POST", path, {"channel": "room:a", "data": 1})
    assert (status, answer["error"]["code"]) == (503, 3005)
    assert time.monotonic() - started < 2.0
    assert (await lonely.ask("GET", "/api/stats"))[0] == 200


async def test_redis_frozen_is_said_in_time_and_over_when_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "BUS_SECONDS_MAX", 1.0)
    with Embedded() as server:
        async for port in opened(server.url, Gate("127.0.0.1", None)):
            publish = {"channel": "room:a", "data": 1}
            assert (await port.ask("POST", "/api/publish", publish))[0] == 200
            assert server.pid
            os.kill(server.pid, signal.SIGSTOP)
            try:
                started = time.monotonic()
                first = await port.ask("POST", "/api/publish", publish)
                second = await port.ask("POST", "/api/publish", publish)
                assert time.monotonic() - started < 5.0
            finally:
                os.kill(server.pid, signal.SIGCONT)
            # The first was sent on a connection that stood: nobody knows. For the second there was none to send it on.
            assert [(status, body["error"]["code"]) for status, body in (first, second)] == [(503, 3006), (503, 3005)]
            assert (await port.ask("POST", "/api/publish", publish))[0] == 200


async def test_what_redis_refuses_is_passed_on(port: Port) -> None:
    await port.redis.set(PREFIX + "$stream:room:odd", "not a stream")
    status, answer = await port.ask("POST", "/api/publish", {"channels": ["room:a", "room:odd"], "data": 1})
    assert (status, answer["error"]["code"]) == (503, 3005)
    assert "WRONGTYPE" in answer["error"]["reason"]
    assert "published to 1 of 2, up to room:a" in answer["error"]["reason"]


# The process.

PROCESS = """
import socket, sys
from server import admin
from server.config import load
from server.stats import Pages
sock = socket.socket()
sock.bind(("127.0.0.1", 0))
sock.listen()
print(sock.getsockname()[1], flush=True)
admin.run(load({}, {}), Pages.create(2), [sock], sys.argv[1])
"""


async def test_the_process_goes_on_through_a_drain_and_ends_when_told(valkey: Embedded) -> None:
    command = [sys.executable, "-c", PROCESS, valkey.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout
            url = f"http://127.0.0.1:{process.stdout.readline().strip()}/healthz"
            async with ClientSession() as session:
                for signum in (None, signal.SIGTERM, signal.SIGHUP):
                    if signum is not None:
                        process.send_signal(signum)
                    async with session.get(url) as response:  # waits in the queue until the process has booted
                        assert response.status == 200
            process.send_signal(signal.SIGINT)
            _, errors = await asyncio.to_thread(process.communicate, timeout=10)
            assert (process.returncode, errors) == (0, "")
        finally:
            process.kill()
