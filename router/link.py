"""The pair of pipes to one node: one subscribes, one publishes. They are up or down together."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from typing import Protocol

from router import journal
from router.node import Node, open_pipe
from router.outcome import Refused, Unconfirmed
from router.pipe import Done, Pipe, Reply, pack, tell
from router.reaper import subscriber_name

DEADLINE_SECONDS = 3.0  # for each step of connecting

PING = pack((b"PING",))


class Subscriber(Protocol):
    """A pipe that subscribes, or a part of one."""

    def send(self, command: bytes, done: Done) -> None:
        """Queue a packed command that has exactly one reply, which `done` gets."""

    def push(self, command: bytes) -> None:
        """Queue a packed command that is answered by pushes."""

    async def ask(self, *command: bytes | str | int) -> Reply:
        """Send one command and wait for its reply. Raises: Refused, Unconfirmed."""


class Link:
    """Two pipes to a node. `on_push` and `on_lost` are those of `Pipe`, the latter is called once for both.

    `on_batch` is called behind a batch of pushes, `on_answered` behind one of answers to what was published.
    """

    def __init__(
        self,
        on_push: Callable[[Sequence[bytes]], None],
        on_batch: Callable[[], None],
        on_answered: Callable[[], None],
        on_lost: Callable[[str], None],
    ) -> None:
        self.subscriber = Pipe(on_push, on_batch, self.close)
        self.publisher = Pipe(lambda _push: None, on_answered, self.close)
        self.paused = False
        self._on_lost = on_lost
        self._is_closed = False

    async def open(self, node: Node, tls: ssl.SSLContext | None, name: str) -> None:
        """Connect both pipes to `node`; `name` is how they show in CLIENT LIST, see `router.reaper`.

        Raises: OSError (of which TimeoutError is one), ValueError, Refused, Unconfirmed.
        """
        async with asyncio.timeout(DEADLINE_SECONDS):
            publisher = await open_pipe(self.publisher, node, tls, name)
            await open_pipe(self.subscriber, node, tls, subscriber_name(name, publisher))
            for script in journal.SCRIPTS.values():
                await self.publisher.ask("SCRIPT", "LOAD", script)

    def pause(self, paused: bool) -> None:
        """Stop receiving, or go on."""
        if paused != self.paused:
            self.paused = paused
            self.subscriber.pause(paused)

    def close(self, why: str) -> None:
        """Close both pipes; whatever waits for an answer gets `Unconfirmed`."""
        if not self._is_closed:
            self._is_closed = True
            self._on_lost(why)
            for pipe in (self.subscriber, self.publisher):
                pipe.close(why)


class Strand:
    """A subscribing pipe on which it is known whose an error is, or one shard's part of it where several share one.

    It can be given up while the pipe lives on.
    """

    def __init__(self, pipe: Pipe, on_refused: Callable[[str], None]) -> None:
        self._pipe = pipe
        self._on_refused = on_refused
        self._waiting: dict[int, Done] = {}
        self._sent = 0
        self._closed: str | None = None  # why

    def send(self, command: bytes, done: Done) -> None:
        """Queue a packed command that has exactly one reply, which `done` gets: `Unconfirmed` when given up."""
        if self._closed is not None:
            done(Unconfirmed(self._closed))
            return
        self._sent += 1
        number = self._sent
        self._waiting[number] = done

        def answered(reply: Reply) -> None:
            waiting = self._waiting.pop(number, None)
            if waiting is not None:
                waiting(reply)

        self._pipe.send(command, answered)

    def push(self, command: bytes) -> None:
        """Queue a packed command that is answered by pushes, or by one error: the slot has moved, a script of others runs for long.

        What is sent behind it always has an answer, so that it is known whose an error is.
        """
        if self._closed is not None:
            return

        def refused_or_done(reply: Reply) -> None:
            if isinstance(reply, Refused):
                if self._closed is None:
                    self._on_refused(str(reply))
            else:  # there were pushes, and this is the answer to what was sent behind
                self._pipe.forget_one()

        self._pipe.send(command, refused_or_done)
        self._pipe.send(PING)

    async def ask(self, *command: bytes | str | int) -> Reply:
        """Send one command and wait for its reply. Raises: Refused, Unconfirmed."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.send(pack(command), lambda reply: None if future.done() else future.set_result(reply))
        reply = await future
        if isinstance(reply, Exception):
            raise reply
        return reply

    def close(self, why: str) -> None:
        """Give it up; whatever waits for an answer gets `Unconfirmed`."""
        if self._closed is None:
            self._closed = why
            waiting, self._waiting = self._waiting, {}
            for done in waiting.values():
                tell(done, Unconfirmed(why))
