"""The clients of a peer: those of every scenario, with a handshake of several steps and messages known by their mark."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench.clients import Clients, Plan
from bench.load import Kind
from bench.pairs import Pair, Pairs
from bench.peers.wire import HEAD_BYTES, MARK, Lane, Step, Wire, heads, numbers, payload, stamps
from bench.wire import NUMBER_DIGITS


@dataclass(frozen=True, slots=True)
class PeerPlan(Plan):
    """Connections to open to a peer; `wire` (the name) is of no use here, `lane` says what they send."""

    lane: Lane | None = None

    def steps(self, number: int) -> tuple[Step, ...]:
        """Return the handshake of user `number`."""
        assert self.lane is not None
        return self.lane.steps(f"{self.users}{number}")

    def request(self, index: int) -> bytes:
        """Return what connection `index` of the plan sends first; it may be nothing."""
        return self.steps(self.first + index)[0].send


class Subscribers(Clients):
    """Connections to a peer."""

    def __init__(self, wire: Wire, control: int | None = None) -> None:
        super().__init__(control)
        self.wire = wire
        self._steps: dict[int, list[Step]] = {}
        """What is left of a handshake, by descriptor."""

    def feed(self, fd: int, chunk: bytes) -> None:
        """Count the messages in `chunk`; one whose head is not there yet waits for the rest of it."""
        if fd in self.rest:
            chunk = self.rest.pop(fd) + chunk
        at = chunk.rfind(MARK)
        if at >= 0 and len(chunk) - at < HEAD_BYTES:
            self.rest[fd] = chunk[at:]
            chunk = chunk[:at]
        elif chunk.endswith(MARK[:1]):
            self.rest[fd] = MARK[:1]
        pieces = heads(chunk)
        if pieces:
            self.take(fd, pieces)
            if len(pieces) == 1 and not self.sample:
                self.sample = chunk

    def take(self, fd: int, pieces: list[bytes]) -> None:
        """Check the numbers of messages against the ones this connection wants next."""
        digits, count, wanted = numbers(pieces), len(pieces), self.next[fd]
        if digits == self._ruler.run(wanted, count):
            self.next[fd] = wanted + count
        else:
            last = int(digits[-NUMBER_DIGITS:])
            self.faults[f"messages {wanted}... were wanted, {int(digits[:NUMBER_DIGITS])}...{last} came"] += 1
            self.next[fd] = last + 1
        self.received += count
        self.finished_ns = time.monotonic_ns()

    def _hear(self, fd: int, chunk: bytes, opening: Any) -> None:  # noqa: ANN401  # a plan on its way
        """Go on with the handshake as far as what was heard allows."""
        heard = self.rest.pop(fd, b"") + chunk
        steps = self._steps.get(fd)
        if steps is None:
            assert isinstance(opening.plan, PeerPlan)
            steps = self._steps[fd] = list(opening.plan.steps(self.user[fd]))
        while steps and (at := heard.find(steps[0].until)) >= 0:
            heard = heard[at + len(steps.pop(0).until) :]
            if steps and steps[0].send:
                os.write(fd, steps[0].send)
        if not steps:
            del self._steps[fd]
            self._welcome(fd, opening)
            if heard:
                self.feed(fd, heard)
        elif not chunk or any(word in heard for word in self.wire.refusals):
            self._refuse(fd, opening, heard[-300:].decode(errors="replace") or "closed by the server")
        else:
            self.rest[fd] = heard

    def _drop(self, fd: int) -> None:
        self._steps.pop(fd, None)
        super()._drop(fd)


class Conversations(Subscribers, Pairs):
    """Connections to a peer of which some send to others."""

    def __init__(self, wire: Wire, control: int | None = None) -> None:
        super().__init__(wire, control)
        self._by_receiver: dict[int, Pair] = {}
        self._answers: dict[int, bytes] = {}
        """The end of what a sender heard last, where an answer may have begun."""

    def pair_up(self, pairs: list[Pair]) -> int:
        """Take these pairs as the ones that talk from now on; return how many they are."""
        self._by_receiver = {pair.receiver: pair for pair in pairs}
        return super().pair_up(pairs)

    def feed(self, fd: int, chunk: bytes) -> None:
        """Count a sender's answers, or a receiver's messages."""
        pair = self._by_sender.get(fd)
        if pair is None:
            super().feed(fd, chunk)
        elif answer := self.wire.answer:
            *answers, rest = (self._answers.get(fd, b"") + chunk).split(answer)
            self._answers[fd] = rest[1 - len(answer) :]
            self._answered(pair, len(answers))

    def take(self, fd: int, pieces: list[bytes]) -> None:
        """Check the numbers and take the latencies; where the sender has no answers, this is as good as one."""
        now = time.monotonic_ns()
        super().take(fd, pieces)
        self._outcome.latencies_ns.extend([now - due for due in stamps(pieces)])
        self._outcome.received += len(pieces)
        if not self.wire.answer:
            self._answered(self._by_receiver[fd], len(pieces))

    def _answered(self, pair: Pair, count: int) -> None:
        pair.answered += count
        pair.waiting -= count
        self._outcome.answered += count

    def _send(self, pair: Pair, count: int, due_ns: int) -> None:
        user = pair.channel.removeprefix("@")
        messages = [self.wire.to_user(user, payload(number, due_ns)) for number in range(pair.sent, pair.sent + count)]
        self._post(pair, b"".join(messages), count)


def subscribers(wire: Wire) -> Kind:
    """Return what makes the clients of a crowd."""
    return partial(Subscribers, wire)


def conversations(wire: Wire) -> Kind:
    """Return what makes clients of which some send to others."""
    return partial(Conversations, wire)
