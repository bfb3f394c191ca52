"""The one who publishes to a peer's room: a blocking connection that numbers what it sends."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from types import TracebackType

from bench.peers.peer import Address
from bench.peers.wire import Wire, payload
from bench.publisher import ANSWER_SECONDS_MAX, Refused

READ_BYTES = 64 * 1024


class Speaker:
    """A connection that is in the room only as far as the protocol wants it there."""

    def __init__(self, wire: Wire, server: Address, room: str) -> None:
        """Connect. Raises: Refused, OSError."""
        self._wire = wire
        self._room = room
        self._socket = socket.create_connection(server, timeout=ANSWER_SECONDS_MAX)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._heard = b""
        for step in wire.speak("speaker", room):
            self._socket.sendall(step.send)
            self._expect(step.until, 1)

    def __enter__(self) -> Speaker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def publish(self, first: int, count: int = 1) -> None:
        """Publish messages `first`, `first` + 1, ... in one write, and wait for their answers if there are any.

        Raises: Refused, OSError.
        """
        self._forget()
        now = time.monotonic_ns()
        numbers = range(first, first + count)
        self._socket.sendall(b"".join([self._wire.to_room(self._room, payload(number, now)) for number in numbers]))
        if self._wire.answer:
            self._expect(self._wire.answer, count)

    def _expect(self, answer: bytes, count: int) -> None:
        """Read until `answer` has come `count` times."""
        while self._heard.count(answer) < count:
            chunk = self._socket.recv(READ_BYTES)
            self._heard += chunk
            if not chunk or any(word in self._heard for word in self._wire.refusals):
                said = self._heard[-300:].decode(errors="replace") or "the end"
                raise Refused(f"wanted {answer.decode(errors='replace')!r}, got {said}")
        self._heard = self._heard[self._heard.rfind(answer) + len(answer) :] if count == 1 else b""

    def _forget(self) -> None:
        """Read what has come unasked: its own messages, where the protocol sends them back."""
        self._heard = b""
        self._socket.setblocking(False)
        with suppress(BlockingIOError):
            while self._socket.recv(READ_BYTES):
                pass
        self._socket.settimeout(ANSWER_SECONDS_MAX)
