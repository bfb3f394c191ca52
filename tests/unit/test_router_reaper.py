"""Who is cut off from Redis: those who have been silent for long, in two looks, and nobody else."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from router import reaper
from router.outcome import BusDown, Refused
from router.pipe import Done, Reply
from router.reaper import QUIET_SECONDS, SILENT_SECONDS_MAX, Reaper, subscriber_name

LONG = SILENT_SECONDS_MAX + 20


class Redis:
    """The clients of a Redis by their ids, and the time. As a bus, it says what the worker that looks is answered."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.names: dict[int, str] = {}
        self.heard: dict[int, float] = {}  # when a client was last read from, or written to
        self.subscribers: set[int] = set()
        self.alive: set[int] = set()  # publishing pipes that are heard of all the time
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.asked: list[tuple[bytes, ...]] = []
        self.error: Exception | None = None
        self.workers_cut = 0
        self.cuts = 0  # how often it was told of some
        self.reaper = Reaper(self, self, self.cut, clock=lambda: self.now, later=self.later)

    def cut(self) -> None:
        self.cuts += 1

    def later(self, delay: float, call: Callable[..., None], *args: object) -> None:
        self.timers.append((self.now + delay, lambda: call(*args)))

    def client(self, name: str, silent: float = 0.0) -> int:
        id = len(self.names) + 1
        self.names[id], self.heard[id] = name, self.now - silent
        return id

    def worker(self, name: str, silent: float | None = None) -> tuple[int, int]:
        """Connect a worker, which has been `silent` for so long, or speaks for ever."""
        publisher = self.client(f"moorage:{name}", silent or 0.0)
        subscriber = self.client(subscriber_name(f"moorage:{name}", publisher))
        self.subscribers.add(subscriber)
        if silent is None:
            self.alive.add(publisher)
        return publisher, subscriber

    def ask(self, command: tuple[bytes, ...], done: Done) -> None:
        self.asked.append(command)
        done(self.error or self.answer(*command))

    def answer(self, *command: bytes) -> Reply:
        match command[1:]:
            case (b"LIST", b"TYPE", b"PUBSUB"):
                return self.list(self.subscribers)
            case (b"LIST", b"ID", *ids):
                return self.list(set(map(int, ids)) & self.names.keys())
            case (b"KILL", b"ID", id):
                self.subscribers.discard(int(id))
                return int(self.names.pop(int(id), None) is not None)
        raise AssertionError(command)

    def list(self, ids: set[int]) -> bytes:
        lines = [f"id={id} addr=h:1 name={self.names[id]} age=99 idle={self.idle(id)} flags=P\n" for id in sorted(ids)]
        return "".join(lines).encode()

    def idle(self, id: int) -> int:
        return 0 if id in self.alive else int(self.now - self.heard[id])

    def run(self, seconds: float) -> None:
        """Let time pass."""
        until = self.now + seconds
        while due := min((at for at, _ in self.timers if at <= until), default=None):
            self.now = due
            ready = [call for at, call in self.timers if at <= due]
            self.timers = [(at, call) for at, call in self.timers if at > due]
            for call in ready:
                call()
        self.now = until


@pytest.fixture
def redis() -> Redis:
    return Redis()


def test_who_is_gone_is_cut_off_and_nobody_else(redis: Redis) -> None:
    others = {*redis.worker("alive"), redis.client("billing", LONG), redis.client("", LONG)}
    foreign = redis.client("billing:1", LONG)
    redis.subscribers.add(foreign)
    gone = [redis.worker(f"gone-{n}", LONG) for n in range(3)]
    redis.reaper.suspect()
    redis.run(3)
    assert redis.names.keys() == others | {foreign}
    assert (redis.workers_cut, redis.cuts) == (3, 1)
    kills = [int(command[3]) for command in redis.asked if command[1] == b"KILL"]
    assert all(kills.index(publisher) < kills.index(subscriber) for publisher, subscriber in gone)


def test_who_is_silent_for_a_moment_is_looked_at_again_and_let_alone(redis: Redis) -> None:
    publisher, _ = redis.worker("slow", QUIET_SECONDS)
    redis.reaper.suspect()
    redis.run(2)
    redis.alive.add(publisher)
    redis.run(60)
    assert not redis.workers_cut
    assert redis.timers == [], "and nobody looks any more"
    assert len(redis.asked) == 3


def test_who_dies_while_somebody_looks_is_cut_off_as_soon_as_it_has_been_silent_for_long(redis: Redis) -> None:
    redis.worker("first", QUIET_SECONDS + 2)
    redis.worker("second", QUIET_SECONDS)
    redis.reaper.suspect()
    redis.run(SILENT_SECONDS_MAX - QUIET_SECONDS - 2 + reaper.JITTER_SECONDS)
    assert redis.workers_cut == 1
    redis.run(2 + reaper.LOOK_SECONDS_MIN)
    assert redis.workers_cut == 2


def test_a_redis_that_has_stood_still_makes_nobody_look_dead(redis: Redis) -> None:
    """At the first look it has not read what everybody has sent meanwhile."""
    pipes = [redis.worker(f"w-{n}", LONG)[0] for n in range(5)]
    redis.reaper.suspect()
    redis.run(reaper.JITTER_SECONDS)
    redis.alive.update(pipes)
    redis.run(30)
    assert not redis.workers_cut


def test_a_subscriber_whose_other_pipe_is_gone(redis: Redis) -> None:
    publisher, _ = redis.worker("half", LONG)
    del redis.names[publisher]
    redis.reaper.suspect()
    redis.run(3)
    assert redis.workers_cut == 1
    assert not redis.names


def test_looking_is_bounded_however_many_are_not_answered(redis: Redis) -> None:
    redis.worker("alive")
    for _ in range(1000):
        redis.reaper.suspect()
        redis.run(0.01)
    assert 2 < len(redis.asked) <= 2 * (1 + 10 / reaper.REST_SECONDS)


def test_where_it_is_not_permitted_it_is_told_of_now_and_then(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    redis.worker("gone", LONG)
    redis.error = Refused("NOPERM this user has no permissions to run the 'client|list' command")
    for _ in range(100):
        redis.reaper.suspect()
        redis.run(1)
    assert len(caplog.records) == len(redis.asked) == 1
    assert "client|list" in caplog.text
    redis.run(reaper.REFUSED_SECONDS)
    redis.error = None
    redis.reaper.suspect()
    redis.run(3)
    assert redis.workers_cut == 1, "it is tried again, in time"


def test_where_killing_is_not_permitted(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    redis.worker("one", LONG)
    redis.worker("other", LONG)
    listed = redis.answer
    refused = Refused("NOPERM this user has no permissions to run the 'client|kill' command")
    redis.answer = lambda *command: refused if command[1] == b"KILL" else listed(*command)  # type: ignore[method-assign]
    redis.reaper.suspect()
    redis.run(60)
    redis.reaper.suspect()
    redis.run(60)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert not redis.workers_cut


def test_a_bus_that_is_down_is_no_reason_to_stop_looking(redis: Redis) -> None:
    redis.worker("gone", LONG)
    redis.error = BusDown("down")
    redis.reaper.suspect()
    redis.run(1)
    redis.error = None
    redis.run(reaper.REST_SECONDS)
    redis.reaper.suspect()
    redis.run(3)
    assert redis.workers_cut == 1
