"""One repair: everything that was missed, in order; what could not be had, by name; or nothing, when the bus has failed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

import pytest
from journals import Desk, number

from router import repair
from router.bus import BusDown
from router.embedded import Embedded
from router.journal import Retention
from router.outcome import Refused, Unconfirmed
from router.position import Id
from router.repair import Found, Repair
from router.replay import Reader


@pytest.fixture(scope="module")
def server() -> Iterator[Embedded]:
    with Embedded() as embedded:
        yield embedded


@pytest.fixture
def desk(server: Embedded) -> Iterator[Desk]:
    desk = Desk(server)
    yield desk
    desk.close()


class Run:
    """A repair with what it has answered."""

    def __init__(self, desk: Desk, behind: Iterable[tuple[bytes, Id]]) -> None:
        self.answers: list[Found | None] = []
        self.later: deque[Callable[[], object]] = deque()
        upto = desk.place()
        Repair(
            Reader(desk, desk.keys), upto.epoch, behind, upto.id, self.answers.append,
            later=lambda call, *args: self.later.append(lambda: call(*args)),
        ).start()  # fmt: skip

    def finish(self) -> Found:
        while self.later:
            self.later.popleft()()
        (found,) = self.answers
        assert found is not None
        return found


def numbers(found: Found) -> list[int]:
    return [int(message.id.split(b"-")[1]) for message in found.messages]


def test_many_names_of_which_few_have_something(desk: Desk) -> None:
    start = desk.place()
    names = [b"@user%d" % n for n in range(3 * repair.NAMES_PER_READ)]
    sent = [number(desk.publish(names[n * 7 % len(names)])) for n in range(300)]
    desk.publish(b"room:elsewhere")
    found = Run(desk, ((name, start.id) for name in names)).finish()
    assert numbers(found) == sent
    assert found.gaps == []


def test_each_has_its_own_beginning(desk: Desk) -> None:
    first, second = desk.place(), number(desk.publish(b"room:a"))
    middle = desk.place()
    desk.publish(b"room:b")
    last = desk.place()
    desk.publish(b"room:a")
    found = Run(desk, [(b"room:a", middle.id), (b"room:b", last.id), (b"room:c", first.id)]).finish()
    assert numbers(found) == [second + 2]


def test_a_gap_has_a_name(desk: Desk) -> None:
    start = desk.place()
    for _ in range(5):
        desk.publish(b"few:a", retention=Retention(2, 3600))
        desk.publish(b"room:a")
    found = Run(desk, [(b"few:a", start.id), (b"room:a", start.id)]).finish()
    assert found.gaps == [b"few:a"]
    assert numbers(found) == [2, 4, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("error", [BusDown("down"), Unconfirmed("cut")])
@pytest.mark.parametrize("answers", [0, 1])
def test_the_bus_fails(desk: Desk, error: Exception, answers: int) -> None:
    start = desk.place()
    desk.publish(b"room:a")
    desk.is_prompt = False
    run = Run(desk, [(b"room:a", start.id)])
    desk.answer(answers)
    desk.fail(error)
    assert run.answers == [None]


@pytest.mark.parametrize("answers", [0, 1])
def test_a_redis_that_refuses_is_a_gap(desk: Desk, answers: int) -> None:
    start = desk.place()
    desk.publish(b"room:a")
    desk.is_prompt = False
    run = Run(desk, [(b"room:a", start.id)])
    desk.answer(answers)
    desk.fail(Refused("BUSY"))
    found = run.finish()
    assert (found.gaps, found.messages) == ([b"room:a"], [])


def test_no_more_than_so_many_bytes(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(repair, "BYTES_MAX", 2000)
    start = desk.place()
    for n in range(400):
        desk.publish(b"room:%d" % (n % 2))
    found = Run(desk, [(b"room:0", start.id), (b"room:1", start.id), (b"room:quiet", start.id)]).finish()
    assert sorted(found.gaps) == [b"room:0", b"room:1"]
    assert numbers(found) == list(range(1, len(found.messages) + 1))
    assert caplog.messages == ["a gap is told on 2 channels: over 2000 bytes were missed"]


def test_what_is_read_counts_before_it_is_handed_out(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "BYTES_MAX", 3000)
    monkeypatch.setattr(repair, "PAGES_PER_READ", 1)
    start = desk.place()
    names = [b"room:%d" % n for n in range(40)]
    for name in names:
        desk.publish(name, b'"%b"' % (b"x" * 500))
    asked: list[bytes] = []
    monkeypatch.setattr(desk, "ask", lambda command, done, ask=desk.ask: (asked.append(command[0]), ask(command, done)))
    found = Run(desk, [(name, start.id) for name in names]).finish()
    assert sorted(found.gaps) == sorted(names)
    assert asked.count(b"EVALSHA") == 4


def test_nothing_to_repair(desk: Desk) -> None:
    assert Run(desk, []).finish() == Found([], [])
