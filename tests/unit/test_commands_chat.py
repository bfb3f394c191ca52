"""`moorage chat` against a scripted server over real sockets, typed to through a real pipe."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from commands import chat, main
from server import limits
from server.options import Address

SECONDS_MAX = 10.0
CONNECTED = {
    "op": "connected", "user": "alice", "session": "s", "heartbeat_s": 25, "position": "p0", "recovered": False,
    "channels": ["@alice", "room:lobby"],
}  # fmt: skip


class Peer:
    """The server's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def line(self) -> bytes:
        return await self.reader.readline()

    async def hear(self) -> dict[str, Any]:
        heard = json.loads(await self.line())
        assert isinstance(heard, dict)
        return heard

    def tell(self, **event: object) -> None:
        self.writer.write(json.dumps(event).encode() + b"\n")

    async def sign_in(self, **changes: object) -> dict[str, Any]:
        hello = await self.hear()
        self.tell(**CONNECTED | changes)
        return hello


Script = Callable[[Peer], Awaitable[None]]


class Scene:
    """A conversation with a server whose connections each follow the next script."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts = list(scripts)
        self.said: list[str] = []
        self.typed_fd, self._type_fd = os.pipe()
        self.faults: list[BaseException] = []

    def say(self, line: str) -> None:
        self.said.append(line)

    def type(self, text: str) -> None:
        os.write(self._type_fd, text.encode())

    def end_typing(self) -> None:
        os.close(self._type_fd)
        self._type_fd = -1

    async def wait_said(self, text: str) -> None:
        async with asyncio.timeout(SECONDS_MAX):
            while not any(text in line for line in self.said):
                await asyncio.sleep(0.005)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self.scripts.pop(0)(Peer(reader, writer))
        except Exception as fault:
            self.faults.append(fault)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    @asynccontextmanager
    async def playing(self, *channels: str, token: str | None = None) -> AsyncIterator[asyncio.Task[int]]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        who = {"token": token} if token else {"user": "alice"}
        talk = chat.Talk(Address(*server.sockets[0].getsockname()[:2]), who, list(channels) or ["room:lobby"], self.say)
        task = asyncio.create_task(talk.run(self.typed_fd))
        try:
            async with asyncio.timeout(SECONDS_MAX):
                yield task
                await task
        finally:
            task.cancel()
            if self._type_fd >= 0:
                self.end_typing()
            server.close()
            await asyncio.gather(task, return_exceptions=True)
            os.close(self.typed_fd)
        assert not self.faults, self.faults


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reconnect at once."""
    monkeypatch.setattr(chat, "BACKOFF_SECONDS", (0.01, 0.02))


async def test_a_line_is_published_and_what_others_say_is_printed() -> None:
    heard: list[dict[str, Any]] = []

    async def script(peer: Peer) -> None:
        heard.append(await peer.sign_in())
        heard.append(await peer.hear())
        peer.tell(op="published", id=1, channel="room:lobby", position="p1")
        data = {"text": "hi bob"}
        peer.tell(op="message", channel="room:lobby", position="p1", **{"from": "bob"}, at=1, data=data)
        await peer.line()

    scene = Scene(script)
    async with scene.playing() as task:
        scene.type("hello there\n")
        await scene.wait_said("room:lobby bob: hi bob")
        scene.end_typing()
        assert await task == 0
    assert heard == [
        {"op": "connect", "user": "alice", "channels": ["room:lobby"]},
        {"op": "publish", "id": 1, "channel": "room:lobby", "data": {"text": "hello there"}},
    ]
    assert scene.said[0] == "* connected as alice to @alice, room:lobby"


async def test_a_token_signs_in_and_channels_are_named_once() -> None:
    heard: list[dict[str, Any]] = []

    async def script(peer: Peer) -> None:
        heard.append(await peer.sign_in())
        await peer.line()

    scene = Scene(script)
    async with scene.playing("room:a", "room:b", "room:a", token="t") as task:
        await scene.wait_said("connected as")
        scene.type("/quit\n")
        assert await task == 0
    assert heard == [{"op": "connect", "token": "t", "channels": ["room:a", "room:b"]}]


async def test_the_end_of_the_input_waits_for_the_answers() -> None:
    answered = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.sign_in()
        requests = [await peer.hear() for _ in range(3)]
        for request in requests:
            peer.tell(op="published", id=request["id"], channel="room:lobby", position="p")
        answered.set()

    scene = Scene(script)
    scene.type("one\ntwo\nthree")  # the last without a newline
    scene.end_typing()
    async with scene.playing() as task:
        assert await task == 0
        assert answered.is_set()


async def test_answers_that_do_not_come_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "ANSWER_SECONDS", 0.05)

    async def script(peer: Peer) -> None:
        await peer.sign_in()
        while await peer.line():
            pass

    scene = Scene(script)
    scene.type("hello\n")
    scene.end_typing()
    async with scene.playing() as task:
        assert await task == 1
    assert scene.said[-1] == "! no answer came to: hello"


async def test_commands_join_leave_and_who() -> None:
    heard: list[dict[str, Any]] = []

    async def script(peer: Peer) -> None:
        await peer.sign_in()
        for _ in range(5):
            heard.append(request := await peer.hear())
            request["op"] = {"subscribe": "subscribed", "unsubscribe": "unsubscribed"}.get(request["op"], request["op"])
            peer.tell(**request, users={"bob": 1, "alice": 2})
        await peer.line()

    scene = Scene(script)
    async with scene.playing() as task:
        scene.type("/join room:b\n")
        await scene.wait_said("* joined room:b")
        scene.type("/who\n/who room:b\n/leave room:lobby\n")
        await scene.wait_said("* left room:lobby")
        scene.type("to b\n/what\n/join\n/quit\n")
        assert await task == 0
    assert [(each["op"], each["channel"]) for each in heard] == [
        ("subscribed", "room:b"), ("presence", "room:lobby"), ("presence", "room:b"), ("unsubscribed", "room:lobby"),
        ("publish", "room:b"),
    ]  # fmt: skip
    assert "* in room:lobby: bob, alice" in scene.said
    assert scene.said.count(chat.HELP) == 2


async def test_without_a_channel_it_says_so() -> None:
    async def script(peer: Peer) -> None:
        await peer.sign_in()
        request = await peer.hear()
        peer.tell(op="unsubscribed", id=request["id"], channel=request["channel"])
        await peer.line()

    scene = Scene(script)
    async with scene.playing() as task:
        scene.type("/leave room:lobby\n")
        await scene.wait_said("* left room:lobby")
        scene.type("hello\n/who\n/quit\n")
        assert await task == 0
    assert "! you are in no channel: /join CHANNEL" in scene.said


async def test_heartbeats_are_answered() -> None:
    answers: list[bytes] = []

    async def script(peer: Peer) -> None:
        await peer.sign_in()
        for _ in range(2):
            peer.writer.write(b"\n")
            answers.append(await peer.line())
        peer.tell(op="close", code=4009, reason="disconnected by the operator", reconnect=False)
        await peer.line()

    scene = Scene(script)
    async with scene.playing() as task:
        assert await task == 1
    assert answers == [b"\n", b"\n"]
    assert scene.said[-1] == "! closed by the server: 4009 disconnected by the operator"


async def test_a_close_that_says_reconnect_resumes_with_the_position_after_the_time_said() -> None:
    hellos: list[dict[str, Any]] = []
    times: list[float] = []

    async def first(peer: Peer) -> None:
        hellos.append(await peer.sign_in())
        request = await peer.hear()
        peer.tell(op="subscribed", id=request["id"], channel="room:b", position="ahead", recovered=True)
        peer.tell(op="message", channel="room:b", position="p5", **{"from": "bob"}, at=1, data=1)
        request = await peer.hear()
        peer.tell(op="published", id=request["id"], channel="room:lobby", position="p9")
        peer.tell(op="close", code=3001, reason="draining", reconnect=True, after_ms=150)
        times.append(asyncio.get_running_loop().time())
        await peer.line()

    async def second(peer: Peer) -> None:
        times.append(asyncio.get_running_loop().time())
        hellos.append(await peer.sign_in(recovered=True, position="p5"))
        request = await peer.hear()
        peer.tell(**request, users={})

    scene = Scene(first, second)
    async with scene.playing() as task:
        scene.type("/join room:b\n")
        await scene.wait_said("room:b bob: 1")
        scene.type("hello\n")
        await scene.wait_said("closed by the server: 3001 draining")
        scene.type("/who\n")  # waits until it is connected again
        scene.end_typing()
        assert await task == 0
    assert hellos[1] == {
        "op": "connect", "user": "alice", "channels": ["room:lobby", "room:b"], "position": "p5",
    }  # fmt: skip
    assert times[1] - times[0] >= 0.15
    assert not [line for line in scene.said if "missing" in line]


async def test_a_lost_connection_says_what_is_unanswered_and_what_is_missing() -> None:
    async def first(peer: Peer) -> None:
        await peer.sign_in()
        await peer.hear()
        peer.tell(op="gap", channel="room:lobby", position="p3")

    async def second(peer: Peer) -> None:
        assert (await peer.sign_in())["position"] == "p3"
        await peer.line()

    scene = Scene(first, second)
    async with scene.playing() as task:
        scene.type("hello\n")
        await scene.wait_said("! what was said meanwhile is no longer held: messages are missing here")
        scene.type("/quit\n")
        assert await task == 0
    assert "! room:lobby: what was missed here is no longer held: messages are missing" in scene.said
    assert "! no answer came, it may or may not have been done: hello" in scene.said
    assert "! the connection was lost" in scene.said


async def test_a_silent_server_is_left() -> None:
    is_back = asyncio.Event()

    async def silent(peer: Peer) -> None:
        await peer.sign_in(heartbeat_s=0.02)
        assert await peer.line() == b""

    async def second(peer: Peer) -> None:
        await peer.sign_in(recovered=True)
        is_back.set()
        await peer.line()

    scene = Scene(silent, second)
    async with scene.playing() as task:
        await is_back.wait()
        scene.type("/quit\n")
        assert await task == 0
    assert "! nothing heard from the server for too long" in scene.said


async def test_errors_are_printed() -> None:
    async def script(peer: Peer) -> None:
        await peer.sign_in()
        request = await peer.hear()
        peer.tell(op="error", id=request["id"], code=4003, reason="not allowed to publish", field="channel")
        await peer.line()

    scene = Scene(script)
    scene.type("hello\n")
    scene.end_typing()
    async with scene.playing() as task:
        assert await task == 1, "a script wants to know"
    assert scene.said[-1] == "! 4003 channel: not allowed to publish"


async def test_a_token_that_has_expired_is_not_tried_again() -> None:
    async def script(peer: Peer) -> None:
        await peer.sign_in()
        peer.tell(op="close", code=3003, reason="the token has expired", reconnect=True, after_ms=10)
        await peer.line()

    scene = Scene(script)
    async with scene.playing(token="t") as task:
        assert await task == 1
    assert scene.said[-2:] == ["! closed by the server: 3003 the token has expired", "! sign in with a new one"]


@pytest.mark.parametrize("garbage", [b"HTTP/1.1 400 Bad Request\r\n", b"[]\n", b'{"op":"close"}\n', b"x" * 2**21])
async def test_what_is_no_moorage_server_is_left(garbage: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.line()
        peer.writer.write(garbage)
        with suppress(OSError):
            await peer.line()

    scene = Scene(script)
    async with scene.playing() as task:
        assert await task == 1
    assert scene.said[-1].endswith("does not speak as a moorage server does")


async def test_a_request_longer_than_servers_read_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LINE_BYTES_MAX", 1024)
    heard: list[bytes] = []

    async def script(peer: Peer) -> None:
        await peer.sign_in()
        heard.append(await peer.line())

    scene = Scene(script)
    async with scene.playing() as task:
        scene.type("x" * 1024 + "\n/quit\n")
        assert await task == 0
    assert scene.said[-1] == "! not sent: 1098 bytes, a server reads lines of at most 1024"
    assert heard == [b""]


async def test_a_line_too_long_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "LINE_BYTES_MAX", 1024)

    async def script(peer: Peer) -> None:
        await peer.sign_in()
        while line := await peer.line():
            request = json.loads(line)
            peer.tell(op="published", id=request["id"], channel="room:lobby", position="p")

    scene = Scene(script)
    async with scene.playing() as task:
        await scene.wait_said("connected")
        scene.type("x" * 5000 + "\n")
        await scene.wait_said("! not sent: a line of more than 1024 bytes")
        scene.type("/quit\n")
        assert await task == 0


@pytest.mark.parametrize(
    ("event", "text"),
    [
        ({"op": "message", "channel": "a", "from": None, "data": {"text": "x"}}, "a (backend): x"),
        ({"op": "message", "channel": "a", "from": "bob", "data": [1, "é"]}, 'a bob: [1, "é"]'),
        ({"op": "message", "channel": "a", "from": "bob", "data": {"text": 1}}, 'a bob: {"text": 1}'),
        (
            {"op": "message", "channel": "a", "from": "bob", "data": {"text": "\x1b[2J\n\u202e"}},
            r"a bob: \x1b[2J\n\u202e",
        ),
        ({"op": "join", "channel": "a", "user": "bob"}, "* bob joined a"),
        ({"op": "leave", "channel": "a", "user": "bob"}, "* bob left a"),
        ({"op": "leave", "channel": "a", "count": 1234}, "* 1,234 users left a"),
        ({"op": "presence", "channel": "a", "connections": 12000}, "* in a: 12,000 connections"),
        ({"op": "presence", "channel": "a", "users": {}}, "* in a: nobody"),
        ({"op": "published", "id": 1, "channel": "a", "position": "p"}, ""),
        ({"op": "of the future"}, ""),
    ],
)
def test_what_a_person_reads_of_an_event(event: dict[str, Any], text: str) -> None:
    assert chat.shown(event) == text


def test_back_off_doubles_is_bounded_and_spreads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "BACKOFF_SECONDS", (0.5, 30.0))
    longest = [chat.backoff_seconds(attempt, 1.0) for attempt in range(8)]
    assert longest == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert chat.backoff_seconds(10_000, 1.0) == 30.0
    spread = [chat.backoff_seconds(3, random.random()) for _ in range(100)]
    assert 2.0 <= min(spread) < max(spread) <= 4.0


async def test_a_file_can_be_typed_too(tmp_path: Path) -> None:
    (tmp_path / "typed").write_bytes(b"one\ntwo\n")
    with (tmp_path / "typed").open("rb") as file:
        reader, writer = await chat.read_descriptor(file.fileno())
        assert await reader.read() == b"one\ntwo\n"
        writer.close()


def test_nobody_to_be(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("USER", raising=False)
    monkeypatch.delenv("MOORAGE_TOKEN", raising=False)
    assert main(["chat"]) == 2
    assert "--user NAME" in capsys.readouterr().err


def test_a_bad_address(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--user", "alice", "--server", "7400"]) == 2
    assert "--server: found '7400', want HOST:PORT" in capsys.readouterr().err
