"""One connection to Redis, RESP3: commands out in one write a turn, replies in order, pushes as they come."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar, cast

import hiredis

from router.outcome import Refused, Unconfirmed

log = logging.getLogger("moorage.pipe")


Reply = object  # bytes, int, list …, or an instance of one of the exceptions of router.outcome
Done = Callable[[Reply], None]

Command = tuple[bytes | str | int, ...]

pack: Callable[[Command], bytes] = hiredis.pack_command  # type: ignore[assignment]  # its stub says: one argument

DEMOTED = ("READONLY ", "LOADING ", "MASTERDOWN ")  # how a server says that it is not, or not yet, the one to ask

UNSENT_BYTES_MAX = 16 * 1024 * 1024  # queued by us, not taken by the kernel: past it, the pipe is `full`

_T = TypeVar("_T")


class Parcel(Protocol):
    """A command that may still grow until it is sent."""

    def pack(self) -> bytes:
        """Return it as it goes out: it has grown for the last time."""


def tell(done: Callable[[_T], object], found: _T) -> None:
    """Call `done`; a bug behind it is logged, and stops nobody else."""
    try:
        done(found)
    except Exception:
        _log_bug(found)


def _log_bug(found: object) -> None:
    log.exception("internal error: not handled: %.200r", found)


class Pipe(asyncio.Protocol):
    """A connection to Redis.

    `on_push(push)` gets what Redis sends unasked; `on_batch()` is called when all that has been read is handed out;
    `on_lost(why)` once, when the pipe is gone, before whatever waits for an answer is told so.
    """

    def __init__(
        self,
        on_push: Callable[[Sequence[bytes]], None],
        on_batch: Callable[[], None],
        on_lost: Callable[[str], None],
    ) -> None:
        self.full = False  # Redis reads slower than we write
        self._on_push, self._on_batch, self._on_lost = on_push, on_batch, on_lost
        self._reader = hiredis.Reader(protocolError=Refused, replyError=Refused)
        self._out: list[bytes | Parcel] = []
        self._waiting: deque[Done | None] = deque()
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._closed: str | None = None  # why

    def __len__(self) -> int:
        """How many answers are waited for."""
        return len(self._waiting)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport, unless nobody wants it any more."""
        opened = cast(asyncio.Transport, transport)  # uvloop's transports are not
        if self._closed is not None:
            opened.abort()
            return
        opened.set_write_buffer_limits(UNSENT_BYTES_MAX)
        self._transport = opened

    def send(self, command: bytes | Parcel, done: Done | None = None) -> None:
        """Queue a command, packed or not yet, that has exactly one reply, which `done` gets: at once `Unconfirmed` when closed."""
        if self._closed is not None:
            if done is not None:
                done(Unconfirmed(self._closed))
            return
        self._waiting.append(done)
        self.push(command)

    def push(self, command: bytes | Parcel) -> None:
        """Queue a packed command that is answered by pushes: SUBSCRIBE and its kind."""
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(command)

    def forget_one(self) -> None:
        """The next answer has come already: nobody waits for it any more."""
        if self._waiting:
            self._waiting.popleft()

    async def ask(self, *command: bytes | str | int) -> Reply:
        """Send one command and wait for its reply.

        Raises: Refused, Unconfirmed.
        """
        future: asyncio.Future[Reply] = self._loop.create_future()
        self.send(pack(command), lambda reply: None if future.done() else future.set_result(reply))
        reply = await future
        if isinstance(reply, Exception):
            raise reply
        return reply

    def data_received(self, data: bytes) -> None:
        """Hand every reply and every push in `data` to whom it is for.

        What closes the pipe is what Redis says: a demotion, or bytes that are no RESP. A bug where something is handed to
        is one of a session, and all of the worker are on this pipe.
        """
        self._reader.feed(data)
        gets = self._reader.gets
        fault = ""
        try:
            while (reply := gets()) is not False:
                if type(reply) is hiredis.PushNotification:
                    try:
                        self._on_push(reply)
                    except Exception:
                        _log_bug(reply)
                elif self._waiting:
                    done = self._waiting.popleft()
                    if done is not None:
                        try:
                            done(reply)
                        except Exception:
                            _log_bug(reply)
                    if type(reply) is Refused and str(reply).startswith(DEMOTED):
                        fault = str(reply)
                else:
                    raise Refused(f"an answer to nothing: {reply!r:.200}")
        except Refused as error:
            fault = str(error)
        if fault:  # what was answered has been told; whoever connects again finds the one to ask
            self.close(fault)
        try:
            self._on_batch()
        except Exception:
            _log_bug("the end of a batch")

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail whatever waits for an answer."""
        self.close(str(exc) if exc else "closed by Redis")

    def pause_writing(self) -> None:
        """Too much is waiting to be written."""
        self.full = True

    def resume_writing(self) -> None:
        """Redis has caught up."""
        self.full = False

    def close(self, why: str) -> None:
        """Close the pipe; whatever waits for an answer gets `Unconfirmed`."""
        if self._closed is not None:
            return
        self._closed = why
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
        self._out.clear()
        tell(self._on_lost, why)
        waiting, self._waiting = self._waiting, deque()
        for done in waiting:
            if done is not None:
                tell(done, Unconfirmed(why))

    def pause(self, paused: bool) -> None:
        """Stop reading, or go on: meanwhile Redis queues for us, up to its client-output-buffer-limit."""
        if self._transport is not None:
            if paused:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._transport is not None and out:
            self._transport.write(b"".join([each if isinstance(each, bytes) else each.pack() for each in out]))
