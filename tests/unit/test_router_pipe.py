"""One connection to Redis, against a socket that plays Redis byte by byte."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Sequence

import pytest

from router import pipe as pipes
from router.outcome import Refused, Unconfirmed
from router.pipe import Pipe, Reply, pack

PING = pack((b"PING",))


class Redis:
    """The other end: a raw socket, and what the pipe has told."""

    def __init__(self) -> None:
        self.ours, self.sock = socket.socketpair()
        self.sock.setblocking(False)
        self.pushes: list[Sequence[bytes]] = []
        self.batches = 0
        self.lost: list[str] = []
        self.told = asyncio.Event()
        self.pipe = Pipe(self._push, self._batch, self.lost.append)

    def _push(self, push: Sequence[bytes]) -> None:
        self.pushes.append(push)

    def _batch(self) -> None:
        self.batches += 1
        self.told.set()

    async def connect(self) -> None:
        await asyncio.get_running_loop().create_connection(lambda: self.pipe, sock=self.ours)

    async def read(self, size: int = 65536) -> bytes:
        return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.sock, size), 5)

    async def says(self, data: bytes) -> None:
        """Send `data`, and wait until the pipe has handled it."""
        self.told.clear()
        await asyncio.get_running_loop().sock_sendall(self.sock, data)
        await asyncio.wait_for(self.told.wait(), 5)


@pytest.fixture
async def redis() -> AsyncIterator[Redis]:
    redis = Redis()
    await redis.connect()
    yield redis
    redis.pipe.close("the end of the test")
    redis.sock.close()
    await asyncio.sleep(0)  # the transport closes its socket in the next turn


def kinds(replies: Sequence[Reply]) -> list[str]:
    return [f"{type(reply).__name__}: {reply}" if isinstance(reply, Exception) else repr(reply) for reply in replies]


async def test_commands_of_a_turn_are_one_write(redis: Redis) -> None:
    for _ in range(3):
        redis.pipe.send(PING)
    redis.pipe.push(pack((b"SUBSCRIBE", b"a")))
    assert await redis.read() == PING * 3 + pack((b"SUBSCRIBE", b"a"))
    assert len(redis.pipe) == 3


async def test_replies_go_to_whom_they_are_for_in_order(redis: Redis) -> None:
    replies: list[Reply] = []
    for _ in range(4):
        redis.pipe.send(PING, replies.append)
    redis.pipe.send(PING)
    await redis.says(b"+PONG\r\n-ERR no\r\n:7\r\n_\r\n$2\r\nok\r\n")
    assert kinds(replies) == ["b'PONG'", "Refused: ERR no", "7", "None"]
    assert len(redis.pipe) == 0


async def test_pushes_are_told_apart_from_replies(redis: Redis) -> None:
    replies: list[Reply] = []
    redis.pipe.send(PING, replies.append)
    await redis.says(
        b">3\r\n$7\r\nmessage\r\n$1\r\na\r\n$2\r\nhi\r\n+PONG\r\n>3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n"
    )
    assert redis.pushes == [[b"message", b"a", b"hi"], [b"subscribe", b"a", 1]]
    assert replies == [b"PONG"]
    assert redis.batches == 1


async def test_a_byte_at_a_time(redis: Redis) -> None:
    replies: list[Reply] = []
    redis.pipe.send(PING, replies.append)
    for byte in b">3\r\n$7\r\nmessage\r\n$1\r\na\r\n$4\r\n\r\nhi\r\n+PONG\r\n":
        await redis.says(bytes([byte]))
    assert redis.pushes == [[b"message", b"a", b"\r\nhi"]]
    assert replies == [b"PONG"]


async def test_ask_returns_the_reply_or_raises_it(redis: Redis) -> None:
    asked = asyncio.gather(redis.pipe.ask("GET", "a", 1), redis.pipe.ask(b"NO"), return_exceptions=True)
    assert await redis.read() == pack(("GET", "a", 1)) + pack((b"NO",))
    await redis.says(b"$1\r\nx\r\n-ERR no\r\n")
    assert kinds(await asked) == ["b'x'", "Refused: ERR no"]


async def test_an_ask_that_is_given_up_does_not_shift_the_replies(redis: Redis) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await redis.pipe.ask("SLOW")
    quick = asyncio.ensure_future(redis.pipe.ask("QUICK"))
    await redis.read()
    await redis.says(b"+slow\r\n+quick\r\n")
    assert await quick == b"quick"


async def test_what_waits_is_answered_when_redis_closes(redis: Redis) -> None:
    replies: list[Reply] = []
    redis.pipe.send(PING, replies.append)
    redis.pipe.send(PING)
    asked = asyncio.ensure_future(redis.pipe.ask("LAST"))
    while not (await redis.read()).endswith(pack((b"LAST",))):
        pass
    redis.sock.close()
    with pytest.raises(Unconfirmed, match="closed by Redis"):
        await asked
    assert kinds(replies) == ["Unconfirmed: closed by Redis"]
    assert redis.lost == ["closed by Redis"]
    assert len(redis.pipe) == 0


async def test_close_answers_at_once_and_once(redis: Redis) -> None:
    replies: list[Reply] = []
    redis.pipe.send(PING, replies.append)
    redis.pipe.close("enough")
    redis.pipe.close("again")
    assert kinds(replies) == ["Unconfirmed: enough"]
    assert redis.lost == ["enough"]
    assert await redis.read() == b""


async def test_a_closed_pipe_answers_at_once(redis: Redis) -> None:
    replies: list[Reply] = []
    redis.pipe.close("enough")
    redis.pipe.send(PING, replies.append)
    redis.pipe.send(PING)
    redis.pipe.push(PING)
    redis.pipe.pause(True)
    assert kinds(replies) == ["Unconfirmed: enough"]
    with pytest.raises(Unconfirmed, match="enough"):
        await redis.pipe.ask("PING")


async def test_a_pipe_closed_before_it_is_connected_stays_closed() -> None:
    redis = Redis()
    redis.pipe.close("too late")
    await redis.connect()
    assert await redis.read() == b""
    with pytest.raises(Unconfirmed, match="too late"):
        await redis.pipe.ask("PING")
    redis.sock.close()


async def test_the_end_is_told_before_the_answers_that_will_not_come() -> None:
    told: list[str] = []
    pipe = Pipe(lambda _push: None, lambda: None, lambda _why: told.append(f"lost, {len(pipe)} wait"))
    pipe.send(PING, lambda _reply: told.append("answered"))
    pipe.close("enough")
    assert told == ["lost, 1 wait", "answered"]


async def test_whoever_is_told_of_the_end_may_ask_again(redis: Redis) -> None:
    replies: list[Reply] = []

    def again(reply: Reply) -> None:
        replies.append(reply)
        if len(replies) < 3:
            redis.pipe.send(PING, again)

    redis.pipe.send(PING, again)
    redis.pipe.close("enough")
    assert kinds(replies) == ["Unconfirmed: enough"] * 3


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"+PONG\r\n", "an answer to nothing: b'PONG'"),
        (b"-ERR max number of clients reached\r\n", "an answer to nothing: .*max number of clients"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "Protocol error"),
    ],
)
async def test_what_is_no_answer_ends_the_pipe(redis: Redis, data: bytes, why: str) -> None:
    await redis.says(data)
    assert len(redis.lost) == 1
    assert re.match(why, redis.lost[0])
    assert await redis.read() == b""


async def test_pause_leaves_redis_waiting(redis: Redis) -> None:
    redis.pipe.pause(True)
    replies: list[Reply] = []
    redis.pipe.send(PING, replies.append)
    assert await redis.read() == PING  # writing goes on
    await asyncio.get_running_loop().sock_sendall(redis.sock, b"+PONG\r\n")
    for _ in range(5):
        await asyncio.sleep(0)
    assert not replies
    redis.told.clear()
    redis.pipe.pause(False)
    await asyncio.wait_for(redis.told.wait(), 5)
    assert replies == [b"PONG"]


async def test_a_pipe_is_full_while_redis_does_not_read(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not redis.pipe.full
    command = pack((b"PUBLISH", b"a", b"x" * 1_000_000))
    sent = 0
    while not redis.pipe.full:
        redis.pipe.send(command)
        sent += len(command)
        await asyncio.sleep(0)
        assert sent < 2 * pipes.UNSENT_BYTES_MAX
    assert sent > pipes.UNSENT_BYTES_MAX
    while sent:
        sent -= len(await redis.read(1 << 20))
    assert not redis.pipe.full


async def test_a_bug_behind_one_callback_stops_nobody_else(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    replies: list[Reply] = []

    def broken(reply: object) -> None:
        raise Refused("a bug, and nothing that Redis says") if reply == b"b" else KeyError(reply)

    redis.pipe._on_push = broken
    for done in (broken, replies.append, broken, replies.append):
        redis.pipe.send(PING, done)
    await redis.says(b"+a\r\n+one\r\n>3\r\n$7\r\nmessage\r\n$1\r\na\r\n$2\r\nhi\r\n+b\r\n+two\r\n")
    assert replies == [b"one", b"two"]
    assert redis.lost == []
    assert [record.exc_info is not None for record in caplog.records] == [True] * 3
    redis.pipe.send(PING, broken)
    redis.pipe.send(PING, replies.append)
    await redis.says(b"-READONLY you cannot\r\n")
    assert redis.lost == ["READONLY you cannot"], "what Redis says still closes it"
    assert kinds(replies) == ["b'one'", "b'two'", "Unconfirmed: READONLY you cannot"]


async def test_a_bug_at_the_end_of_a_batch_does_not_close_the_pipe(
    redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        redis.told.set()
        raise KeyError("a bug")

    redis.pipe._on_batch = broken
    replies: list[Reply] = []
    for _ in range(2):
        redis.pipe.send(PING, replies.append)
        await redis.says(b"+PONG\r\n")
    assert replies == [b"PONG", b"PONG"]
    assert redis.lost == []
    assert len(caplog.records) == 2


async def test_a_bug_behind_one_who_waits_stops_nobody_when_it_closes(redis: Redis) -> None:
    replies: list[Reply] = []

    def broken(_reply: object) -> None:
        raise KeyError("a bug")

    redis.pipe._on_lost = broken
    redis.pipe.send(PING, broken)
    redis.pipe.send(PING, replies.append)
    redis.pipe.close("enough")
    assert kinds(replies) == ["Unconfirmed: enough"]
