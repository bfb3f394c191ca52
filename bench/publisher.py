"""The one who speaks: a blocking TCP connection that publishes numbered messages and wants an answer to each."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Sequence
from types import TracebackType

from bench.wire import CONNECTED, PUBLISHED, connect_line, publish_line

ANSWER_SECONDS_MAX = 30.0
WINDOW = 500  # messages without an answer


class Refused(Exception):
    """The server did not take a connection or a message of the bench; the text has its answer."""


class Publisher:
    """A signed-in connection that subscribes to nothing."""

    def __init__(self, server: tuple[str, int], user: str = "publisher", token: str | None = None) -> None:
        """Connect. Raises: Refused, OSError."""
        self._socket = socket.create_connection(server, timeout=ANSWER_SECONDS_MAX)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._lines = self._socket.makefile("rb")
        self._socket.sendall(connect_line(user, (), token))
        self._answer = self._expect(CONNECTED)
        self._address, self._who = server, (user, token)

    def __enter__(self) -> Publisher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect."""
        self._lines.close()
        self._socket.close()

    def publish(self, channel: str, first: int, count: int = 1) -> None:
        """Publish messages `first`, `first` + 1, ... in one write, and wait until each has its answer.

        Raises: Refused, OSError.
        """
        now = time.monotonic_ns()
        numbers = range(first, first + count)
        self._socket.sendall(b"".join([publish_line(number, channel, number, now) for number in numbers]))
        for _ in numbers:
            self._expect(PUBLISHED)

    def flood(self, channels: Sequence[str], number: int) -> None:
        """Publish message `number` to every one of `channels`, a window at a time. Raises: Refused, OSError."""
        for start in range(0, len(channels), WINDOW):
            some, now = channels[start : start + WINDOW], time.monotonic_ns()
            self._socket.sendall(b"".join([publish_line(number, channel, number, now) for channel in some]))
            for _ in some:
                self._expect(PUBLISHED)

    def position(self) -> str:
        """Return the position of now: where the stream of a connection begins that is made now. Raises: Refused, OSError."""
        with Publisher(self._address, *self._who) as other:
            found: str = json.loads(other._answer)["position"]
            return found

    def _expect(self, answer: bytes) -> bytes:
        line = b"\n"
        while line == b"\n":  # a heartbeat
            line = self._lines.readline()
        if answer not in line:
            raise Refused(f"wanted {answer.decode()}, got {line.decode(errors='replace') or 'the end'}")
        return line
