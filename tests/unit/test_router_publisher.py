"""What is published in a turn goes together; what Redis has forgotten how to do is done again in order, or refused."""

from __future__ import annotations

import re
from collections import deque
from typing import Any

import pytest

from router import publisher
from router.journal import Keys, Retention
from router.outcome import Refused, Unconfirmed
from router.pipe import Done
from router.publisher import BATCH_MESSAGES_MAX, Batch, Publisher

KEPT = Retention()
_MESSAGE = re.compile(rb"\r\n,(\d+)\r\n")


class Line:
    """A pipe whose commands are packed when the turn ends, and whose answers wait until they are told to come."""

    def __init__(self) -> None:
        self.turn: list[tuple[Any, Done]] = []
        self.sent: deque[tuple[bytes, Done]] = deque()
        self.knows = True  # the script
        self.executed: list[int] = []
        self.calls: list[int] = []  # how many messages each had

    def send(self, command: Any, done: Done) -> None:
        self.turn.append((command, done))

    def flush(self) -> None:
        turn, self.turn = self.turn, []
        self.sent += [(each.pack() if isinstance(each, Batch) else each, done) for each, done in turn]

    def answer(self, count: int = 1 << 30) -> None:
        """Answer `count` of what was sent, and what is sent because of that."""
        self.flush()
        while self.sent and count:
            count -= 1
            command, done = self.sent.popleft()
            if b"LOAD" in command:
                self.knows = True
                done(b"sha")
            elif self.knows:
                numbers = list(map(int, _MESSAGE.findall(command)))
                self.executed += numbers
                self.calls.append(len(numbers))
                done([b"position of %d" % number for number in numbers])
            else:
                done(Refused("NOSCRIPT No matching script."))
            self.flush()

    def cut(self) -> None:
        self.flush()
        while self.sent:
            self.sent.popleft()[1](Unconfirmed("cut"))


class Desk:
    def __init__(self) -> None:
        self.line: Any = Line()
        self.publisher = Publisher(Keys("test:"))
        self.answers: list[tuple[int, object]] = []
        self.count = 0

    def publish(self, count: int = 1, *, kept: Retention = KEPT, once: bytes = b"") -> None:
        """Publish in one turn."""
        for number in range(self.count, self.count + count):
            done = lambda reply, number=number: self.answers.append((number, reply))  # noqa: E731
            self.publisher.send(self.line, b"room:a", b",%d" % number, kept, once, done)
        self.count += count

    def publish_apart(self, count: int = 1) -> None:
        """Publish in a turn each."""
        for _ in range(count):
            self.publish()
            self.line.flush()

    def refused(self) -> list[int]:
        return [number for number, reply in self.answers if isinstance(reply, Refused)]


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_what_is_published_in_a_turn_goes_together(desk: Desk) -> None:
    desk.publish(3)
    desk.line.flush()
    desk.publish(2)
    assert len(desk.publisher) == 5
    desk.line.answer()
    assert desk.line.calls == [3, 2]
    assert desk.answers == [(number, b"position of %d" % number) for number in range(5)]
    assert desk.publisher.newest == b"position of 4"
    assert len(desk.publisher) == 0


def test_what_is_kept_differently_goes_apart_and_in_order(desk: Desk) -> None:
    desk.publish(2)
    desk.publish(1, kept=Retention(5, 60))
    desk.publish(1, once=b"alice:1")
    desk.publish(2, once=b"alice:2")
    desk.publish(1)
    desk.line.answer()
    assert desk.line.calls == [2, 1, 3, 1]
    assert desk.line.executed == list(range(7))


def test_a_call_is_bounded(desk: Desk) -> None:
    desk.publish(2 * BATCH_MESSAGES_MAX + 1)
    desk.line.answer()
    assert desk.line.calls == [BATCH_MESSAGES_MAX, BATCH_MESSAGES_MAX, 1]
    assert desk.line.executed == list(range(desk.count))


def test_nothing_overtakes_what_else_is_sent(desk: Desk) -> None:
    desk.publish(2)
    desk.publisher.seal()
    desk.line.send(b"LOAD", lambda _reply: desk.line.executed.append(-1))
    desk.publish(2)
    desk.line.answer()
    assert desk.line.executed == [0, 1, -1, 2, 3]


def test_one_message_that_is_refused_does_not_concern_the_others(desk: Desk) -> None:
    desk.publish(3)
    desk.line.flush()
    _, done = desk.line.sent.popleft()
    done([b"first", Refused("WRONGTYPE"), b"third"])
    assert [reply for _, reply in desk.answers if isinstance(reply, bytes)] == [b"first", b"third"]
    assert desk.refused() == [1]
    assert desk.publisher.newest == b"third"


@pytest.mark.parametrize("reply", [7, b"position", [b"of one"], None])
def test_an_answer_of_another_shape_is_told_to_all(desk: Desk, reply: object) -> None:
    desk.publish(2)
    desk.line.flush()
    desk.line.sent.popleft()[1](reply)
    assert desk.refused() == [0, 1]


@pytest.mark.parametrize("early", range(6))
@pytest.mark.parametrize("late", range(4))
def test_what_was_forgotten_goes_before_what_comes_later(desk: Desk, early: int, late: int) -> None:
    """Whatever is answered when the next ones are published."""
    desk.line.knows = False
    desk.publish_apart(3)
    desk.line.answer(early)
    desk.publish_apart(2)
    desk.line.answer(late)
    desk.publish_apart(2)
    desk.line.answer()
    assert desk.line.executed == list(range(7))
    assert [number for number, _ in desk.answers] == list(range(7))
    assert desk.refused() == []


def test_what_is_too_late_to_go_before_the_others_is_refused(desk: Desk) -> None:
    """Another worker has brought the script back in between."""
    desk.line.knows = False
    desk.publish_apart(5)
    desk.line.answer(2)
    desk.line.knows = True
    desk.publish()
    desk.line.answer()
    assert desk.line.executed == [2, 3, 4, 5]
    assert desk.refused() == [0, 1]
    assert len(desk.answers) == 6


def test_forgotten_again(desk: Desk) -> None:
    for _ in range(3):
        desk.line.knows = False
        desk.publish_apart(2)
        desk.line.answer(3)
        desk.line.knows = False
        desk.publish_apart(2)
        desk.line.answer()
    assert desk.line.executed == list(range(12))


def test_a_cut_answers_everybody(desk: Desk) -> None:
    desk.line.knows = False
    desk.publish_apart(3)
    desk.line.answer(2)
    desk.publish(2)
    desk.line.cut()
    assert [type(reply) for _, reply in sorted(desk.answers)] == [Refused, Refused, Unconfirmed, Refused, Refused]
    assert len(desk.publisher) == 0
    desk.line.knows = True
    desk.publish()
    desk.line.answer()
    assert desk.line.executed == [5]


def test_nothing_is_added_to_what_was_cut_before_it_was_sent(desk: Desk) -> None:
    desk.publish()
    ((_, done),) = desk.line.turn
    desk.line.turn.clear()
    done(Unconfirmed("cut"))
    desk.publish()
    desk.line.answer()
    assert desk.line.executed == [1]
    assert [number for number, _ in desk.answers] == [0, 1]


def test_those_who_wait_are_bounded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "WAITING_MAX", 3)
    desk.line.knows = False
    desk.publish()
    desk.line.answer(1)
    desk.publish(3)
    assert desk.refused() == [3]
    desk.line.answer()
    assert desk.line.executed == [0, 1, 2]
