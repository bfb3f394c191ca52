"""A server that is left: real sessions of both transports, newcomers until the very end, and nobody reset."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import pytest
from harness import ROOT, Json, Server, wait_until

StartServer = Callable[..., Server]

WINDOW_SECONDS = 3.0


async def session(server: Server, number: int, told: list[tuple[float, Json]], joined: asyncio.Semaphore) -> None:
    """Connect over TCP or SSE, say when there, and note when and how the server says goodbye."""
    is_tcp = number % 2 == 0
    reader, writer = await asyncio.open_connection(*(server.tcp if is_tcp else server.http))
    if is_tcp:
        writer.write(json.dumps({"op": "connect", "user": f"u{number}"}).encode() + b"\n")
    else:
        writer.write(f"GET /events?user=u{number} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    retry = 0
    async for line in reader:
        if line.startswith(b"retry: "):
            retry = int(line.removeprefix(b"retry: "))
        text = line.removeprefix(b"data: ")
        if not text.startswith(b"{"):
            continue
        message = json.loads(text)
        if message["op"] == "connected":
            joined.release()
        elif message["op"] == "close":
            assert is_tcp or retry == message["after_ms"]
            told.append((time.monotonic(), message))
    writer.close()


async def newcomer(address: tuple[str, int], request: bytes) -> str:
    """Connect, ask, and return how that ended."""
    try:
        reader, writer = await asyncio.open_connection(*address)
    except ConnectionRefusedError:
        return "refused"
    try:
        writer.write(request)
        answer = await reader.read()
    except ConnectionResetError:
        return "reset"
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
    if b'"code":3001' in answer or b'"code":3009' in answer:
        return "told"
    if b'"reason":"draining"' in answer and b" 503 " in answer:
        return "not ready"
    return "ended" if not answer else repr(answer)


async def knock(ends: Counter[str], address: tuple[str, int], request: bytes) -> None:
    """Come again and again, until nobody listens any more."""
    while True:
        end = await newcomer(address, request)
        ends[end] += 1
        await asyncio.sleep(0.01)
        if end == "refused":
            return


def read_all(sock: socket.socket) -> bytes:
    """Read to the end, which must not be a reset."""
    with sock, sock.makefile("rb") as file:
        return file.read()


# A machine that is busy makes everybody late, at times all together; it makes nobody early. So an even pace is exact on that
# side only. That it is kept on the other side, too, is for the unit tests of `server.drain`, whose clock is their own.


def earliness(moments: list[float], seconds: float) -> float:
    """The most by which more had been told, as a share of all, than an even pace allows from 0 to `seconds`."""
    return max(
        (number + 1) / len(moments) - min(1.0, moment / seconds) for number, moment in enumerate(sorted(moments))
    )


def burst(moments: list[float], seconds: float = 0.1) -> float:
    """The share of all that were told within so many seconds, at most."""
    moments = sorted(moments)
    return max(bisect_right(moments, at + seconds) - number for number, at in enumerate(moments)) / len(moments)


@pytest.mark.parametrize("unprivileged", [True, False])
async def test_sessions_leave_evenly_and_nobody_who_comes_is_reset(
    start_server: StartServer, unprivileged: bool
) -> None:
    """The end of a drain is another one with and without privileges: `server.sockets`."""
    server = start_server("--workers", "2", "--drain-seconds", str(WINDOW_SECONDS), unprivileged=unprivileged)
    told: list[tuple[float, Json]] = []
    joined = asyncio.Semaphore(0)
    sessions = [asyncio.create_task(session(server, number, told, joined)) for number in range(300)]
    for _ in sessions:
        await joined.acquire()
    wait_until(lambda: server.stats()["total"]["connections"] == 300, "they show")
    idle = [socket.create_connection(address, timeout=20) for address in (server.tcp, server.http) for _ in range(10)]
    partial = [socket.create_connection(server.http, timeout=20) for _ in range(4)]
    for sock in partial[:2]:
        sock.sendall(b"GET /events?user=slow HTTP/1.1\r\n")
    for sock in partial[2:]:
        sock.sendall(b"POST /publish HTTP/1.1\r\n")

    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    await asyncio.to_thread(wait_until, lambda: server.stats()["total"]["draining"] == 2, "it drains")
    ends: Counter[str] = Counter()
    get = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n"
    knocking = [
        asyncio.create_task(knock(ends, server.tcp, b'{"op":"connect","user":"late"}\n')),
        asyncio.create_task(knock(ends, server.tcp, b'{"op":"connect","user":"late"}\n')),
        asyncio.create_task(knock(ends, server.http, get % b"/events?user=late")),
        asyncio.create_task(knock(ends, server.http, get % b"/readyz")),
    ]
    await asyncio.gather(*sessions, *knocking)
    assert await asyncio.to_thread(server.process.wait, 20) == 0
    assert time.monotonic() - began > WINDOW_SECONDS - 0.5

    moments = [at - began for at, _ in told]
    assert len(told) == 300
    assert earliness(moments, WINDOW_SECONDS) < 0.05, sorted(moments)
    assert burst(moments) < 0.5, sorted(moments)
    assert {close["code"] for _, close in told} == {3001}
    assert len({close["after_ms"] for _, close in told}) > 200, "jittered"
    print("newcomers:", ends)
    assert ends.keys() == {"told", "not ready", "refused"}, ends
    assert ends["refused"] == 4, "each once: at the end"
    assert min(ends["told"], ends["not ready"]) > 10
    farewells = [await asyncio.to_thread(read_all, sock) for sock in (*idle, *partial)]
    assert all(json.loads(each)["code"] == 3009 for each in farewells[:10]), "lines"
    assert farewells[10:20] == [b""] * 10, "HTTP that has not asked is not answered"
    assert all(b" 200 OK" in each and b'"code":3009' in each for each in farewells[20:22]), "streams come again"
    assert all(each.startswith(b"HTTP/1.1 503 ") for each in farewells[22:]), "nothing was published"


async def test_a_worker_whose_sessions_have_gone_goes_on_answering(start_server: StartServer) -> None:
    server = start_server("--workers", "4", "--drain-seconds", "60")
    last = server.joined("last")
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: server.stats()["total"]["drained"] == 3, "three of four have nobody left")
    answers = {server.request("GET", "/readyz")[1]["reason"] for _ in range(40)}
    assert answers == {"draining"}
    for _ in range(20):
        with server.line_client(user="late") as late:
            late.expect("close", code=3001)
    began = time.monotonic()
    last.close()
    assert server.process.wait(20) == 0
    assert time.monotonic() - began < 10.0, "it ends when the last has left"


async def test_many_workers_with_few_sessions_each_are_left_evenly(start_server: StartServer) -> None:
    server = start_server("--workers", "120", "--drain-seconds", "4")
    told: list[tuple[float, Json]] = []
    joined = asyncio.Semaphore(0)
    sessions = [asyncio.create_task(session(server, number, told, joined)) for number in range(200)]
    for _ in sessions:
        await joined.acquire()
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    await asyncio.gather(*sessions)
    assert await asyncio.to_thread(server.process.wait, 30) == 0
    moments = [at - began for at, _ in told]
    assert len(told) == 200
    assert earliness(moments, 4.0) < 0.2, sorted(moments)
    assert burst(moments) < 0.5, sorted(moments)


async def test_who_does_not_read_the_farewell_is_cut(start_server: StartServer) -> None:
    server = start_server("--workers", "1", "--drain-seconds", "0.5", "--send-buffer-bytes", "4096")
    deaf = server.joined("deaf", "room:a")
    speaker = server.joined("speaker")
    for number in range(20):
        speaker.send({"op": "publish", "id": number, "channel": "room:a", "data": "x" * 60_000})
        speaker.expect("published", id=number)
    wait_until(
        lambda: server.stats()["total"]["connections"] == 1 or server.stats()["total"]["backlog_bytes"], "it is full"
    )
    server.process.send_signal(signal.SIGTERM)
    assert speaker.expect("close", code=3001)
    assert await asyncio.to_thread(server.process.wait, 10) == 0
    deaf.close()


def drain_command(server: Server, *flags: str, key: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "commands", "drain", "--admin", "{}:{}".format(*server.admin), *flags]
    environ = {k: v for k, v in os.environ.items() if not k.startswith("MOORAGE_")}
    environ |= {"MOORAGE_ADMIN_KEY": key} if key else {}
    return subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_the_command_drains_and_shows_how_far_it_has_come(start_server: StartServer) -> None:
    server, bearer = start_server("--workers", "2", "--admin-key", "k3y"), {"Authorization": "Bearer k3y"}
    clients = [server.joined(f"c{number}") for number in range(20)]
    wait_until(
        lambda: server.request("GET", "/api/stats", admin=True, headers=bearer)[1]["total"]["connections"] == 20,
        "they show",
    )
    refused = drain_command(server, "--wait")
    assert "401" in refused.communicate(timeout=20)[0] or refused.returncode == 1
    assert server.process.poll() is None
    process = drain_command(server, "--seconds", "3", "--wait", key="k3y")
    for client in clients:
        client.expect("close", code=3001)
        client.close()
    said = process.communicate(timeout=20)[0]
    assert process.returncode == 0, said
    assert "drains for at most 3 s" in said
    assert "of 20 sessions left" in said
    assert said.endswith("the server has ended\n")
    assert server.process.wait(20) == 0
    wait_until(lambda: "0 of 20 sessions are cut" in "".join(server.log), f"the end: {server.log}", 5)
    log = "".join(server.log)
    assert "draining: 20 sessions leave within 3 s" in log
    assert "of 20 sessions left, " in log, "which is said two seconds after its beginning"


def test_a_drain_is_hurried_and_a_signal_after_it_does_not_cut(start_server: StartServer) -> None:
    server = start_server("--workers", "2", "--drain-seconds", "600")
    client = server.joined("client")
    headers = {"Content-Type": "application/json"}
    wait_until(lambda: server.stats()["total"]["connections"], "it shows")
    assert server.request("POST", "/api/drain", admin=True) == (200, {"seconds": 600.0})
    drain = wait_until(lambda: server.stats()["drain"], "it shows")
    assert (drain["seconds"], drain["sessions"], drain["sessions_left"]) == (600.0, 1, 1)
    assert server.request("POST", "/api/drain", admin=True) == (200, {"seconds": 600.0}), "nothing new"
    metrics = server.request("GET", "/metrics", admin=True)[1]
    assert "moorage_drain_sessions_left 1\n" in metrics
    assert 590 < float(metrics.split("\nmoorage_drain_seconds_left ")[1].split("\n")[0]) <= 600
    server.process.send_signal(signal.SIGTERM)  # a service manager, behind what began the drain
    late = server.line_client(user="late")
    late.expect("close", code=3001)
    assert server.stats()["total"]["connections"] == 1
    assert server.request("POST", "/api/drain", {"seconds": 0.2}, admin=True, headers=headers) == (
        200,
        {"seconds": 0.2},
    )
    client.expect("close", code=3001)
    client.close()
    assert server.process.wait(20) == 0


def test_an_order_to_drain_that_nobody_understands(server: Server) -> None:
    for body, field in (({"seconds": -1}, "seconds"), ({"seconds": "soon"}, "seconds"), ({"second": 5}, "second")):
        status, answer = server.request("POST", "/api/drain", body, admin=True)
        assert (status, answer["error"]["field"]) == (400, field)
    assert server.stats()["drain"] is None
    assert server.request("GET", "/readyz")[0] == 200


def test_a_worker_that_dies_in_a_drain_is_replaced_by_one_that_refuses(start_server: StartServer) -> None:
    server = start_server("--workers", "1", "--drain-seconds", "60")
    stays = server.joined("stays")
    before = server.workers()[0]
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: server.stats()["total"]["draining"] == 1, "it drains")
    before.suspend()
    waiting = server.line_client(user="waiting")
    before.kill()
    assert stays.ends()
    waiting.expect("close", code=3001)
    assert server.process.wait(10) == 0, "nobody is left"


def test_a_valkey_that_dies_in_a_drain_is_started_again(start_server: StartServer) -> None:
    """Who has not been told to leave yet is served to the end."""
    server = start_server("--workers", "1", "--drain-seconds", "86400")
    stays, valkey = server.joined("stays", "room:a"), server.redis()
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: server.stats()["total"]["draining"] == 1, "it drains")
    valkey.kill()

    def publish() -> bool:
        return server.request("POST", "/publish?user=stays", {"channel": "room:a", "data": 1})[0] == 200

    wait_until(publish, "there is a Valkey")
    assert server.redis().pid != valkey.pid
    stays.expect("message", data=1)


def test_a_second_signal_ends_it_now_and_says_so(start_server: StartServer) -> None:
    server = start_server("--workers", "2", "--drain-seconds", "60")
    clients = [server.joined(f"c{number}") for number in range(10)]
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: server.stats()["total"]["draining"] == 2, "it drains")
    stopped = server.workers()[0]
    stopped.suspend()
    waiting = [server.line_client(user=f"w{number}") for number in range(20)]
    server.process.send_signal(signal.SIGTERM)
    stopped.resume()
    codes = Counter(client.expect("close")["code"] for client in (*clients, *waiting))
    assert codes.keys() <= {3001, 3009}
    assert codes[3009] > 5
    assert server.process.wait(20) == 0
