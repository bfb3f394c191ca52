"""A server that is left: real sessions of both transports, newcomers until the very end, and nobody reset."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from harness import Json, Server, wait_until

StartServer = Callable[..., Server]

WINDOW_SECONDS = 3.0
BINS = 10


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


def histogram(moments: list[float], seconds: float) -> list[int]:
    """How many came in each tenth of the window."""
    bins = Counter(min(BINS - 1, int(moment / seconds * BINS)) for moment in moments)
    return [bins[number] for number in range(BINS)]


async def test_sessions_leave_evenly_and_nobody_who_comes_is_reset(start_server: StartServer) -> None:
    server = start_server("--workers", "2", "--drain-seconds", str(WINDOW_SECONDS))
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
    assert WINDOW_SECONDS - 0.5 < time.monotonic() - began < WINDOW_SECONDS + 3.0

    counts = histogram([at - began for at, _ in told], WINDOW_SECONDS)
    print("told to leave, by tenths of the window:", counts)
    assert len(told) == 300
    assert min(counts) >= 20, counts
    assert max(counts) <= 40, counts
    assert {close["code"] for _, close in told} == {3001}
    assert len({close["after_ms"] for _, close in told}) > 200, "jittered"
    print("newcomers:", ends)
    assert ends.keys() == {"told", "not ready", "refused"}, ends
    assert ends["refused"] == 4, "each once: at the end"
    assert min(ends["told"], ends["not ready"]) > 50
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
    assert server.process.wait(10) == 0
    assert time.monotonic() - began < 3.0, "it ends when the last has left"


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
    counts = histogram([at - began for at, _ in told], 4.0)
    print("told to leave, by tenths of the window:", counts)
    assert len(told) == 200
    assert max(counts) <= 50, counts
    assert sum(counts[:5]) in range(60, 141), counts


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
