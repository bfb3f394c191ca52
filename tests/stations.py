"""A bus with its table and all it has told, and a proxy that cuts and stalls: what the tests of the bus share."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import pytest
import redis

from router import embedded, topology
from router.bus import Bus, Listeners
from router.embedded import Embedded
from router.journal import Keys, Retention
from router.pipe import Done, Reply

KINDS = [
    "valkey",
    pytest.param("redis", marks=pytest.mark.skipif(not shutil.which("redis-server"), reason="no redis-server")),
]

KEPT = Retention()

Client: TypeAlias = Any  # a redis.Redis, whose types say of most answers that they may be of any kind

_serial = count()


@contextlib.contextmanager
def server_of(kind: str) -> Iterator[Embedded]:
    """Run a server: the embedded Valkey, or the machine's redis-server in its place."""
    with pytest.MonkeyPatch.context() as patch:
        if kind == "redis":
            patch.setattr(embedded, "binary", lambda: Path(shutil.which("redis-server") or ""))
        with Embedded() as server:
            yield server


def client_of(server: Embedded) -> Client:
    """A client of the server, for looking at it from outside."""
    return redis.Redis.from_url(server.url, protocol=3)


async def until(condition: Callable[[], Any], what: str, seconds: float = 10.0) -> Any:
    """Return the first truthy result of `condition`; fail the test after `seconds`."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not (result := condition()):
        if asyncio.get_running_loop().time() > deadline:
            pytest.fail(f"not within {seconds:g} s: {what}")
        await asyncio.sleep(0.002)
    return result


def sockets() -> set[str]:
    """The sockets that this process has open."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # that of the listing itself
            found.add(str(descriptor.readlink()))
    return {target for target in found if target.startswith("socket:")}


class Station:
    """The bus of one worker, the names that have subscribers there, and everything the bus has told."""

    def __init__(self, url: str, prefix: str | None = None) -> None:
        number = next(_serial)
        self.prefix = f"test-{number}:" if prefix is None else prefix
        self.present: set[bytes] = set()
        self.messages: list[tuple[bytes, bytes]] = []
        self.batches = 0
        self.answered = 0  # batches of answers
        self.replies: list[bytes] = []
        self.controls: list[bytes] = []
        self.lost = 0
        self.restored: list[bytes] = []
        self.lapsed: list[bytes] = []
        self.rejoined: list[tuple[bytes, bytes]] = []
        self.events: list[str] = []  # what became of the bus and of what was asked of it, in order
        self.head = b""
        self.keys = Keys(self.prefix)
        listeners = Listeners(
            message=lambda name, payload: self.messages.append((name, payload)),
            batch=self._batch,
            answered=self._answered,
            reply=self.replies.append,
            control=self.controls.append,
            lost=self._lost,
            restored=self._restored,
            lapsed=self._lapsed,
            rejoined=self._rejoined,
            head=lambda: self.head,
        )
        self.bus = Bus(topology.parse(url), self.keys, self, listeners, worker=f"test-{number}")
        self._task: asyncio.Task[None] | None = None

    # What the bus asks of the table.

    def __contains__(self, name: bytes, /) -> bool:
        return name in self.present

    def names(self) -> Iterable[bytes]:
        return self.present

    def _batch(self) -> None:
        self.batches += 1

    def _answered(self) -> None:
        self.answered += 1

    def _lost(self) -> None:
        assert not self.bus.connected
        self.lost += 1
        self.events.append("lost")

    def _restored(self, position: bytes) -> None:
        assert self.bus.connected
        self.restored.append(position)
        self.events.append("restored")

    def _lapsed(self, name: bytes) -> None:
        self.lapsed.append(name)
        self.events.append("lapsed")

    def _rejoined(self, name: bytes, position: bytes) -> None:
        self.rejoined.append((name, position))
        self.events.append("rejoined")

    # What a worker does.

    def start(self) -> None:
        """Begin to connect."""
        self._task = asyncio.get_running_loop().create_task(self.bus.run())

    async def stop(self) -> None:
        """Cancel `run`, which must not have ended before."""
        assert self._task is not None
        self._task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self._task
        await asyncio.sleep(0)  # transports close their sockets in the next turn

    async def up(self) -> None:
        """Wait until it is connected."""
        await until(lambda: self.bus.connected, "connected")

    def join_nowait(self, *names: bytes) -> asyncio.Future[bytes | None]:
        """Join, and put the names into the table when that is done."""
        future: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()

        def done(position: bytes | None) -> None:
            self.present.update(names)
            self.events.append("joined" if position is not None else "not joined")
            future.set_result(position)

        self.bus.join(names, done)
        return future

    async def join(self, *names: bytes) -> bytes | None:
        """Join, and return the position where that begins."""
        return await asyncio.wait_for(self.join_nowait(*names), 10)

    def leave(self, *names: bytes) -> None:
        """Take the names out of the table, and tell the bus."""
        self.present.difference_update(names)
        self.bus.leave(names)

    def publish_nowait(
        self, name: bytes, members: bytes = b',"data":1', retention: Retention | None = KEPT, once: bytes = b""
    ) -> asyncio.Future[Reply]:
        """Publish; the future gets the answer, be it an exception, as its result."""
        future, done = self._answer("published")
        self.bus.publish(name, members, retention, done, once=once)
        return future

    async def publish(
        self, name: bytes, members: bytes = b',"data":1', retention: Retention | None = KEPT, once: bytes = b""
    ) -> Reply:
        """Publish, and return the answer."""
        return await asyncio.wait_for(self.publish_nowait(name, members, retention, once), 10)

    def ask_nowait(self, *command: bytes) -> asyncio.Future[Reply]:
        """Ask Redis; the future gets the answer, be it an exception, as its result."""
        future, done = self._answer("answered")
        self.bus.ask(command, done)
        return future

    async def ask(self, *command: bytes) -> Reply:
        """Ask Redis, and return the answer."""
        return await asyncio.wait_for(self.ask_nowait(*command), 10)

    async def send(self, name: bytes, payload: bytes) -> Reply:
        """Send to other workers, and return the answer."""
        future, done = self._answer("sent")
        self.bus.send(name, payload, done)
        return await asyncio.wait_for(future, 10)

    def _answer(self, event: str) -> tuple[asyncio.Future[Reply], Done]:
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

        def done(reply: Reply) -> None:
            self.events.append(f"not {event}" if isinstance(reply, Exception) else event)
            future.set_result(reply)

        return future, done

    def positions(self, name: bytes) -> list[bytes]:
        """The positions of the durable messages that have come for `name`."""
        return [payload.split(b" ", 1)[0] for to, payload in self.messages if to == name]

    async def comes(self, name: bytes, position: Reply) -> None:
        """Wait for the message with that position."""
        assert isinstance(position, bytes), position
        await until(lambda: position in self.positions(name), f"{position!r} on {name!r}")

    async def __aenter__(self) -> Station:
        self.start()
        await self.up()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


def number(position: Reply) -> int:
    """Return the number in a position."""
    assert isinstance(position, bytes), position
    return int(position.split(b"-")[2])


Pair = tuple[asyncio.StreamWriter, asyncio.StreamWriter]  # to the bus, to the server


class Proxy:
    """A TCP proxy to a server's unix socket."""

    def __init__(self, server: Embedded) -> None:
        self._path = server.url.removeprefix("unix://")
        self._flows = asyncio.Event()
        self._flows.set()
        self._stalled: Pair | None = None
        self.on_carry: Callable[[int], None] = lambda _number: None  # is given how many pieces have come so far
        self.carried = 0
        self.pairs: list[Pair] = []  # what is open
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Proxy:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        self.cut()
        self.flow()
        while self._tasks:
            await asyncio.wait(self._tasks)
        await asyncio.sleep(0)

    def cut(self) -> None:
        """Reset all connections."""
        for pair in self.pairs:
            for writer in pair:
                writer.transport.abort()
        self.pairs.clear()

    def stall(self, pair: Pair | None = None) -> None:
        """Let nothing through, either way, of all connections or of one."""
        self._stalled = pair
        self._flows.clear()

    def flow(self) -> None:
        """Let everything through again."""
        self._flows.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_unix_connection(self._path)
        except OSError:  # it is down
            writer.transport.abort()
            return
        pair = (writer, server_writer)
        self.pairs.append(pair)
        for source, sink in ((reader, server_writer), (server_reader, writer)):
            task = asyncio.get_running_loop().create_task(self._carry(source, sink, pair))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, pair: Pair) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if self._stalled in (None, pair):
                    await self._flows.wait()
                self.carried += 1
                self.on_carry(self.carried)
                if sink.transport.is_closing():
                    break
                sink.write(data)
                await sink.drain()
        sink.transport.abort()
        if pair in self.pairs:
            self.pairs.remove(pair)


@contextlib.asynccontextmanager
async def watched() -> AsyncIterator[None]:
    """Fail when the loop meets an error that nobody handles, or when a task of the bus is left."""
    loop = asyncio.get_running_loop()
    errors: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _loop, context: errors.append(context))
    yield
    left = [repr(task.get_coro()) for task in asyncio.all_tasks() if "Bus." in repr(task.get_coro())]
    assert not errors, errors
    assert not left, left
