"""What Redis has forgotten how to do is done again in order, or refused."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest

from router import publisher
from router.outcome import Refused, Unconfirmed
from router.pipe import Done
from router.publisher import Publisher


class Line:
    """A pipe whose answers wait until they are told to come."""

    def __init__(self) -> None:
        self.sent: deque[tuple[bytes, Done]] = deque()
        self.knows = True  # the script
        self.executed: list[bytes] = []

    def send(self, command: bytes, done: Done) -> None:
        self.sent.append((command, done))

    def answer(self, count: int = 1 << 30) -> None:
        while self.sent and count:
            count -= 1
            command, done = self.sent.popleft()
            if b"LOAD" in command:
                self.knows = True
                done(b"sha")
            elif self.knows:
                self.executed.append(command)
                done(b"position of " + command)
            else:
                done(Refused("NOSCRIPT No matching script."))

    def cut(self) -> None:
        while self.sent:
            self.sent.popleft()[1](Unconfirmed("cut"))


class Desk:
    def __init__(self) -> None:
        self.line: Any = Line()
        self.publisher = Publisher(b"return 1")
        self.answers: list[tuple[int, object]] = []
        self.count = 0

    def publish(self, count: int = 1) -> None:
        for number in range(self.count, self.count + count):
            done = lambda reply, number=number: self.answers.append((number, reply))  # noqa: E731
            self.publisher.send(self.line, b"%d" % number, done)
        self.count += count

    def executed(self) -> list[int]:
        return list(map(int, self.line.executed))

    def refused(self) -> list[int]:
        return [number for number, reply in self.answers if isinstance(reply, Refused)]


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_all_goes_straight_on(desk: Desk) -> None:
    desk.publish(3)
    desk.line.answer()
    assert desk.answers == [(number, b"position of %d" % number) for number in range(3)]
    assert desk.publisher.newest == b"position of 2"


@pytest.mark.parametrize("early", range(6))
@pytest.mark.parametrize("late", range(4))
def test_what_was_forgotten_goes_before_what_comes_later(desk: Desk, early: int, late: int) -> None:
    """Whatever is answered when the next ones are published."""
    desk.line.knows = False
    desk.publish(3)
    desk.line.answer(early)
    desk.publish(2)
    desk.line.answer(late)
    desk.publish(2)
    desk.line.answer()
    assert desk.executed() == list(range(7))
    assert [number for number, _ in desk.answers] == list(range(7))
    assert desk.refused() == []


def test_what_is_too_late_to_go_before_the_others_is_refused(desk: Desk) -> None:
    """Another worker has brought the script back in between."""
    desk.line.knows = False
    desk.publish(5)
    desk.line.answer(2)
    desk.line.knows = True
    desk.publish(1)
    desk.line.answer()
    assert desk.executed() == [2, 3, 4, 5]
    assert desk.refused() == [0, 1]
    assert len(desk.answers) == 6


def test_forgotten_again(desk: Desk) -> None:
    for _ in range(3):
        desk.line.knows = False
        desk.publish(2)
        desk.line.answer(3)
        desk.line.knows = False
        desk.publish(2)
        desk.line.answer()
    assert desk.executed() == list(range(12))


def test_a_cut_answers_everybody(desk: Desk) -> None:
    desk.line.knows = False
    desk.publish(3)
    desk.line.answer(2)
    desk.publish(2)
    desk.line.cut()
    assert [type(reply) for _, reply in sorted(desk.answers)] == [Refused, Refused, Unconfirmed, Refused, Refused]
    desk.line.knows = True
    desk.publish()
    desk.line.answer()
    assert desk.executed() == [5]


def test_those_who_wait_are_bounded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "WAITING_MAX", 2)
    desk.line.knows = False
    desk.publish()
    desk.line.answer(1)
    desk.publish(3)
    assert desk.refused() == [3]
    desk.line.answer()
    assert desk.executed() == [0, 1, 2]
