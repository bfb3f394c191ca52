"""Several workers that tell each other who is where: every subscriber hears of everybody once."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import orjson
import pytest

from router import rosters
from router.namespaces import Namespace, Namespaces
from router.note import Kind, Note
from router.outcome import Unconfirmed
from router.pipe import Done
from router.roster import GRACE_SECONDS, Roster
from router.rosters import SILENT_SECONDS_MAX, Rosters

HALL = b"hall:a"
TICK_SECONDS = 0.25


class Counts:
    joins_leaves = join_leave_summaries = roster_users = roster_overflows = 0


class House:
    """Redis and the workers around it, and the time."""

    def __init__(self) -> None:
        self.now = 100.0
        self.workers: list[Worker] = []
        self.under_way: deque[Callable[[], None]] = deque()
        self.published = 0

    def worker(self, number: int) -> Worker:
        worker = Worker(self, number)
        self.workers.append(worker)
        worker.rosters.restored()
        return worker

    def publish(self, sender: Worker, name: bytes, payload: bytes, done: Done) -> None:
        heard = [w for w in self.workers if name in (w.reply_name, b"$control") or name in w.here]
        self.published += name in (HALL,)
        self.under_way.append(lambda: done(len(heard)))
        at = b"" if name[:1] == b"$" else name
        for worker in heard:
            self.under_way.append(partial(self.deliver, worker, at, payload))

    def deliver(self, worker: Worker, name: bytes, payload: bytes) -> None:
        if worker in self.workers:  # otherwise it has died meanwhile
            worker.rosters.heard(name, payload)

    def carry(self) -> None:
        while self.under_way:
            self.under_way.popleft()()

    def run(self, seconds: float) -> None:
        """Let time pass."""
        for _ in range(round(seconds / TICK_SECONDS)):
            self.now += TICK_SECONDS
            for worker in self.workers:
                if not worker.is_frozen:
                    worker.rosters.tick()
            self.carry()


class Worker:
    """One worker: its bus, its subscribers, and what they were told."""

    def __init__(self, house: House, number: int) -> None:
        self.house = house
        self.reply_name = b"$reply:%d" % number
        self.here: dict[bytes, Roster] = {}
        self.is_up = self.is_steady = True
        self.is_frozen = False
        self.told: list[str] = []
        self.counts = Counts()
        self.rosters = Rosters(
            self, self, Namespaces(named=(Namespace("hall", join_leave=True),)), self.counts,
            clock=lambda: house.now, later=lambda call, *args: call(*args),
        )  # fmt: skip

    def send(self, name: bytes, payload: bytes, done: Done) -> None:
        if self.is_up:
            self.house.publish(self, name, payload, done)
        else:
            done(Unconfirmed("down"))

    def announce(self, name: bytes, op: bytes, members: Iterable[bytes]) -> None:
        for each in members:
            found = orjson.loads(b"{" + each[1:] + b"}")
            self.told.append(f"{op.decode()} {found.get('user', found.get('count'))}")

    def enter(self, *users: str, name: bytes = HALL) -> None:
        for user in users:
            roster = self.rosters.of(name)
            assert roster is not None
            self.here[name] = roster
            roster.enter(user)

    def leave(self, *users: str, name: bytes = HALL) -> None:
        for user in users:
            self.here[name].leave(user)

    def heard(self) -> list[str]:
        """What subscribers were told since the last time."""
        told, self.told = self.told, []
        return told


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture
def workers(house: House) -> list[Worker]:
    return [house.worker(number) for number in range(3)]


def test_everybody_is_told_of_everybody_once(house: House, workers: list[Worker]) -> None:
    here, there, elsewhere = workers
    here.enter("alice")
    house.run(2)
    assert here.heard() == ["join alice"]
    there.enter("bob", "alice")
    house.run(2)
    assert here.heard() == ["join bob"]
    assert there.heard() == ["join bob"], "alice was there before"
    elsewhere.enter("carol", name=b"hall:b")
    here.leave("alice")
    there.leave("bob")
    house.run(GRACE_SECONDS + 3)
    assert there.heard() == ["leave bob"], "alice is still here"
    there.leave("alice")
    house.run(GRACE_SECONDS + 3)
    assert (here.heard(), elsewhere.heard()) == ([], ["join carol"])
    assert there.rosters._rosters == {}
    assert [worker.counts.roster_users for worker in workers] == [0, 0, 0]


def test_a_channel_of_another_namespace_has_no_roster(workers: list[Worker]) -> None:
    assert workers[0].rosters.of(b"room:a") is None
    assert workers[0].rosters.of(b"hall") is None


def test_however_many_come_it_is_one_message_and_one_number(house: House, workers: list[Worker]) -> None:
    here, there, _ = workers
    here.enter("alice")
    house.run(2)
    here.heard()
    there.enter("bob")
    house.run(2)
    before = house.published
    users = [f"u{n}" for n in range(rosters.NAMES_MAX + 1)]
    there.enter(*users)
    house.run(2)
    assert house.published == before + 1
    assert here.heard() == there.heard() == ["join bob", f"join {len(users)}"]
    there.leave(*users)
    house.run(GRACE_SECONDS + 3)
    assert here.heard()[-1] == f"leave {len(users)}"
    assert here.counts.join_leave_summaries == 2


def test_a_mass_reconnect_is_nobodys_business(house: House, workers: list[Worker]) -> None:
    here, there, elsewhere = workers
    users = [f"u{n}" for n in range(1000)]
    here.enter("alice")
    elsewhere.enter("eve")
    there.enter(*users)
    house.run(3)
    here.heard()
    house.workers.remove(there)  # killed
    heir = house.worker(1)
    house.run(1)
    for n, user in enumerate(users):
        (here, heir, elsewhere)[n % 3].enter(user)
        if n % 100 == 0:
            house.run(TICK_SECONDS)
    house.run(GRACE_SECONDS + 5)
    assert here.heard() == []


def test_the_users_of_a_worker_that_dies_leave_once(house: House, workers: list[Worker]) -> None:
    here, there, _ = workers
    here.enter("alice")
    there.enter("bob", "carol")
    house.run(3)
    here.heard()
    there.is_frozen = True  # its node has died: nothing tells
    house.workers.remove(there)
    house.run(SILENT_SECONDS_MAX)
    here.enter("carol")
    house.run(2 + GRACE_SECONDS)
    assert here.heard() == ["leave bob"]


def test_a_worker_that_was_taken_for_dead_says_anew_who_is_there(house: House, workers: list[Worker]) -> None:
    here, there, _ = workers
    here.enter("alice")
    there.enter("bob")
    house.run(3)
    here.heard()
    there.is_frozen = True
    house.run(SILENT_SECONDS_MAX + 3 + GRACE_SECONDS)
    assert here.heard() == ["leave bob"]
    there.is_frozen = False
    house.run(5)
    assert here.heard() == ["join bob"]
    assert there.heard()[-1] != "leave alice", "its own beats were not heard either"


def test_nobody_leaves_because_the_bus_was_down(house: House, workers: list[Worker]) -> None:
    here, there, elsewhere = workers
    here.enter("alice")
    there.enter("bob")
    elsewhere.enter("carol")
    house.run(3)
    for worker in workers:
        worker.heard()
        worker.is_up = False
        worker.rosters.lost()
    there.leave("bob")
    there.enter("dave")
    house.run(60)
    elsewhere.is_frozen = True  # does not come back
    for worker in (here, there):
        worker.is_up = True
        worker.rosters.restored()
    house.run(2)
    assert here.heard() == ["join dave"]
    house.run(SILENT_SECONDS_MAX + GRACE_SECONDS + 3)
    assert sorted(here.heard()) == ["leave bob", "leave carol"]


def test_a_channel_that_redis_had_unsubscribed(house: House, workers: list[Worker]) -> None:
    here, there, _ = workers
    here.enter("alice")
    there.enter("bob")
    house.run(3)
    here.heard()
    roster = here.here.pop(HALL)
    there.enter("carol")
    house.run(2)
    assert here.heard() == []
    here.here[HALL] = roster
    here.rosters.rejoined(HALL)
    house.run(2)
    assert here.heard() == ["join carol"]


def test_a_change_that_never_came_is_asked_for(house: House, workers: list[Worker]) -> None:
    here, there, _ = workers
    here.enter("alice")
    there.enter("bob")
    house.run(3)
    here.heard()
    roster = here.here.pop(HALL)
    there.enter("carol")
    house.run(2)
    here.here[HALL] = roster
    there.enter("dave")
    house.run(3)
    assert sorted(here.heard()) == ["join carol", "join dave"]


def test_while_something_is_repaired_nobody_is_told(house: House, workers: list[Worker]) -> None:
    here = workers[0]
    here.is_steady = False
    here.enter("alice")
    house.run(5)
    assert here.heard() == []
    here.is_steady = True
    house.run(1)
    assert here.heard() == ["join alice"]


def test_there_is_a_limit(house: House, workers: list[Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rosters, "USERS_MAX", 10)
    here, there, _ = workers
    here.enter("alice")
    there.enter(*[f"a{n}" for n in range(8)])
    house.run(3)
    here.heard()
    there.enter(*[f"b{n}" for n in range(8)])
    house.run(3)
    assert here.heard() == []
    assert (here.counts.roster_users, here.counts.roster_overflows) == (8, 1)
    there.leave("b0", "a0")
    house.run(3 + GRACE_SECONDS)
    assert here.heard() == ["leave a0"]


def test_what_ends_says_so(house: House, workers: list[Worker]) -> None:
    here, there, _ = workers
    here.enter("alice")
    there.enter("bob")
    house.run(3)
    here.heard()
    there.leave("bob")
    there.rosters.farewell()
    house.carry()
    there.is_frozen = True
    house.run(GRACE_SECONDS + 1)
    assert here.heard() == ["leave bob"]


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_all_agree_in_the_end(house: House, workers: list[Worker], seed: int) -> None:
    """Users come and go, workers die and are replaced; what was told adds up to who is there."""
    chance = random.Random(seed)
    witness = workers[0]
    witness.enter("witness")
    held: list[tuple[Worker, str]] = []
    for _ in range(300):
        match chance.randrange(20):
            case 0:
                number = chance.randrange(1, 3)
                held = [(worker, user) for worker, user in held if worker is not house.workers[number]]
                house.workers.pop(number)
                house.workers.insert(number, Worker(house, number))
                house.workers[number].rosters.restored()
            case n if n < 12 or not held:
                worker, user = chance.choice(house.workers), f"u{chance.randrange(12)}"
                worker.enter(user)
                held.append((worker, user))
            case _:
                worker, user = held.pop(chance.randrange(len(held)))
                worker.leave(user)
        house.run(chance.choice([0, 0, 0.25, 1, 4]))
    house.run(GRACE_SECONDS + 2 * SILENT_SECONDS_MAX)
    there: set[str] = set()
    for told in witness.heard():
        op, user = told.split()
        assert (op == "leave") == (user in there), f"{told}, when there are {there}"
        there ^= {user}
    assert there == {"witness", *(user for _, user in held)}


@pytest.mark.parametrize(
    "junk",
    [
        b"?", b"?[", b"?[]", b"?{}", b'?[9,"$reply:1",1,"",0,[],[]]', b'?[0,"room:a",1,"",0,[],[]]',
        b'?[0,"$reply:1","1","",0,[],[]]', b'?[0,"$reply:1",1,"",0,[1],[]]', b'?[0,"$reply:1",1,"",0,{},[]]',
        b'?[0,"$reply:1",1,2,0,[],[]]', b'?[0,"$reply:1",1,"",0,[],[[]]]', b'?[true,"$reply:1",1,"",0,[],[]]',
    ],
)  # fmt: skip
def test_what_is_no_note_is_refused(workers: list[Worker], junk: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # whichever layer finds it
        workers[0].rosters.heard(HALL, junk)


def test_a_note_is_read_as_it_was_written() -> None:
    note = Note(Kind.CHANGE, "$reply:1", 5, "hall:ü", 7, ["a", 'b"'], ["c"])
    assert Note.decode(note.encode()) == note
    found: Any = Note.decode(Note(Kind.BEAT, "$reply:1", 5).encode())
    assert found.kind is Kind.BEAT


def test_a_turn_hands_on_what_is_left_and_copies_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 100,000 that have something to do the copies were most of the work."""
    monkeypatch.setattr(rosters, "TURN_ROSTERS", 10)
    worker, later = house.worker(1), deque[tuple[Callable[..., object], deque[object], float]]()
    worker.rosters._later = lambda call, left, now: later.append((call, left, now))
    for number in range(100):
        worker.enter("alice", name=b"hall:%d" % number)
    house.run(TICK_SECONDS)
    ((_, queue, _),) = later
    left = [len(queue)]
    while later:
        call, handed_on, now = later.popleft()
        assert handed_on is queue
        call(handed_on, now)
        left.append(len(queue))
    assert left == [90, 80, 70, 60, 50, 40, 30, 20, 10, 0]
