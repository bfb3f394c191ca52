"""Senders and receivers of 1:1 messages in one process and one epoll set, at a fixed rate or in a pipelined stream."""

from __future__ import annotations

import os
import select
import socket
import time
from array import array
from dataclasses import dataclass, field
from typing import NamedTuple

from bench.clients import Clients
from bench.measure import Peer
from bench.wire import ERROR, PUBLISHED, publish_line, stamps

ANSWER_SECONDS_MAX = 30.0


@dataclass(slots=True)
class Pair:
    """A sender, and the receiver it writes to: descriptors, and the receiver's personal channel."""

    sender: int
    receiver: int
    channel: str
    sent: int = 0
    answered: int = 0
    waiting: int = 0
    """Messages of this stream that have no answer yet."""


class Work(NamedTuple):
    """A stream to send: at `rate` messages a second, or with `window` unanswered messages a pair when that is 0."""

    messages: int
    rate: float
    window: int
    copies: int = 1
    """How many receive each."""


@dataclass(slots=True)
class Outcome:
    """What a stream came to. `latencies_ns` are from the time a message was meant to be sent until it was read."""

    sent: int = 0
    answered: int = 0
    received: int = 0
    seconds: float = 0.0
    latencies_ns: array[int] = field(default_factory=lambda: array("Q"))


class Member(NamedTuple):
    """A connection: its descriptor, the number of its user, its own address."""

    fd: int
    user: int
    local: Peer


class Pairs(Clients):
    """Connections of which some send to others."""

    def __init__(self, control: int | None = None) -> None:
        super().__init__(control)
        self._pairs: list[Pair] = []
        self._by_sender: dict[int, Pair] = {}
        self._outcome = Outcome()
        self._refill = 0

    def members(self) -> list[Member]:
        """Return the live connections."""
        return [Member(fd, self.user[fd], _local(fd)) for fd in self.descriptors()]

    def pair_up(self, pairs: list[Pair]) -> int:
        """Take these pairs as the ones that talk from now on; return how many they are."""
        self._pairs = pairs
        self._by_sender = {pair.sender: pair for pair in pairs}
        return len(pairs)

    def talk(self, work: Work) -> Outcome:
        """Send the stream and wait until everything is received and answered; what is not is missing in the outcome."""
        self._outcome = outcome = Outcome()
        began = time.monotonic()
        if work.rate:
            self._at_rate(work)
        else:
            self._pipelined(work)
        deadline = time.monotonic() + ANSWER_SECONDS_MAX
        while min(outcome.answered, outcome.received // work.copies) < outcome.sent and time.monotonic() < deadline:
            if self.interrupted:
                break
            self.pump(0.1)
        outcome.seconds = time.monotonic() - began
        return outcome

    def _at_rate(self, work: Work) -> None:
        """Send each message when it is due, by turns of the pairs, whatever became of the ones before."""
        interval = 1e9 / work.rate
        began = time.monotonic_ns()
        for number in range(work.messages):
            due = began + int(number * interval)
            while (left := due - time.monotonic_ns()) > 0:
                # select(2) waits by the microsecond, epoll_wait by the millisecond.
                if select.select([self.epoll], [], [], left / 1e9)[0]:
                    self.pump(0)
                if self.interrupted:
                    return
            self._send(self._pairs[number % len(self._pairs)], 1, due)

    def _pipelined(self, work: Work) -> None:
        """Keep every pair's window filled: half of it is sent anew when the other half is answered."""
        self._refill = max(1, work.window // 2)
        deadline = time.monotonic() + ANSWER_SECONDS_MAX
        left = work.messages
        hungry = list(self._pairs)
        while left and not self.interrupted and time.monotonic() < deadline:
            for pair in hungry:
                count = min(left, work.window - pair.waiting)
                left -= count
                if count:
                    self._send(pair, count, time.monotonic_ns())
                    deadline = time.monotonic() + ANSWER_SECONDS_MAX
            self.pump(0.1)
            hungry = [pair for pair in self._pairs if work.window - pair.waiting >= self._refill]

    def _send(self, pair: Pair, count: int, due_ns: int) -> None:
        lines = [publish_line(number, pair.channel, number, due_ns) for number in range(pair.sent, pair.sent + count)]
        self._post(pair, b"".join(lines), count)

    def _post(self, pair: Pair, data: bytes, count: int) -> None:
        """Write `data`, the next `count` messages of a sender."""
        pair.sent += count
        pair.waiting += count
        self._outcome.sent += count
        try:
            short = os.write(pair.sender, data) < len(data)
        except BlockingIOError:
            short = True
        if short:
            self.faults["the server does not read what a sender writes"] += 1

    def deliver(self, fd: int, lines: bytes) -> None:
        """Check the numbers, and take the latencies."""
        now = time.monotonic_ns()
        super().deliver(fd, lines)
        due = stamps(lines)
        self._outcome.latencies_ns.extend([now - stamp for stamp in due])
        self._outcome.received += len(due)

    def hear_aside(self, fd: int, lines: bytes) -> None:
        """Count a sender's answers."""
        pair = self._by_sender.get(fd)
        answers = lines.count(PUBLISHED)
        if pair is None or not answers or ERROR in lines:
            super().hear_aside(fd, lines)
            return
        pair.answered += answers
        pair.waiting -= answers
        self._outcome.answered += answers


def _local(fd: int) -> Peer:
    sock = socket.socket(fileno=fd)  # only to ask; it gives the descriptor back unclosed
    try:
        host, port = sock.getsockname()
        return host, port
    finally:
        sock.detach()
