"""Who is in one channel, on which worker, and what its subscribers here have yet to be told of that.

A user has joined when her first connection anywhere is there, and has left when her last one has been gone for a while. So
whoever moves between workers, or comes back in time, has done neither. Everything is sets: a worker that dies takes ten
thousand users along, and that must not hold up the loop. Time is an argument, in seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import NamedTuple

GRACE_SECONDS = 8.0  # from gone to left: longer than the 5 s which a client is told to wait before it comes back
WINDOW_SECONDS = 1.0  # between two times that a channel is told, by this worker or to its subscribers
YOUNG_SECONDS_MAX = 3.0  # for the other workers to say who was there before we were


class Fellow:
    """What another worker has said about the channel."""

    __slots__ = ("asked_at", "life", "number", "seen", "users")

    def __init__(self, life: int, number: int, users: set[str]) -> None:
        self.life = life  # of its process: another one under the same name has other users
        self.number = number  # of the newest change that is in `users`; -1: who was there before is not known
        self.seen = number  # of the newest change that came
        self.users = users
        self.asked_at = -YOUNG_SECONDS_MAX

    @property
    def is_whole(self) -> bool:
        """True when no change is lacking."""
        return self.number >= 0 and self.seen <= self.number


class News(NamedTuple):
    """Who has joined and who has left, as subscribers are to be told."""

    joined: set[str]
    left: set[str]


class Roster:
    """One channel as one worker sees it. `on_change(self)` is called when there may be something to do."""

    __slots__ = (
        "_came", "_gone", "_joining", "_leaving", "_on_change", "_young_until", "answers", "awaited", "fellows", "here",
        "name", "number", "published_at", "told_at",
    )  # fmt: skip

    def __init__(self, name: bytes, now: float, on_change: Callable[[Roster], None]) -> None:
        self.name = name
        self.here: dict[str, int] = {}  # connections of each user on this worker
        self.fellows: dict[str, Fellow] = {}
        self.number = 0  # of the newest change that the others were told
        self.published_at = self.told_at = now - WINDOW_SECONDS
        self.awaited = -1  # how many workers were asked who is there; -1: it is not known yet
        self.answers = 0
        self._came: set[str] = set()  # of those here, whom the others have not been told of
        self._gone: set[str] = set()
        self._joining: set[str] = set()  # to be told
        self._leaving: deque[tuple[float, set[str]]] = deque()  # gone, and from when on they have left
        self._young_until = now + YOUNG_SECONDS_MAX
        self._on_change = on_change

    # What happens here.

    def enter(self, user: str) -> None:
        """A connection of `user` has subscribed here."""
        count = self.here.get(user, 0)
        self.here[user] = count + 1
        if not count:
            self._turn(user, self._gone, self._came)

    def leave(self, user: str) -> None:
        """A connection of `user` that was subscribed here has gone."""
        count = self.here[user] - 1
        if count:
            self.here[user] = count
        else:
            del self.here[user]
            self._turn(user, self._came, self._gone)

    def _turn(self, user: str, undone: set[str], done: set[str]) -> None:
        if user in undone:
            undone.remove(user)
        else:
            done.add(user)
        self._on_change(self)

    @property
    def users(self) -> int:
        """How many users are known to be elsewhere, those on several workers counted once for each."""
        return sum(len(fellow.users) for fellow in self.fellows.values())

    @property
    def is_changed(self) -> bool:
        """True when the others have something to be told."""
        return bool(self._came or self._gone)

    def published(self) -> set[str]:
        """Return who is here, as far as the others have been told."""
        return (self.here.keys() - self._came) | self._gone

    def _published(self, users: set[str]) -> set[str]:
        """Return those of `users` who are here as far as the others have been told: what is not said yet is yet to happen."""
        return (self.here.keys() & users) - self._came | (self._gone & users)

    def take(self, now: float) -> tuple[set[str], set[str]]:
        """Return who has come here and who has gone since the last time: the change `number`, to be published now."""
        came, gone = self._came, self._gone
        self._came, self._gone = set(), set()
        self.number += 1
        self.published_at = now
        self._change(came, gone, now)
        return came, gone

    # What the others say. Those that return a bool return False when the worker has to be asked who is there.

    def hear(self, worker: str, life: int, number: int, came: set[str], gone: set[str], now: float) -> bool:
        """Another worker has changed: its change `number`."""
        fellow = self._fellow(worker, life, now)
        if fellow.is_whole and number <= fellow.number:
            return True  # known already
        fellow.seen = number
        if fellow.number + 1 == number and fellow.number >= 0:
            fellow.number = number
        gone &= fellow.users
        came -= fellow.users
        fellow.users -= gone
        fellow.users |= came
        self._change(came, gone, now, fellow)
        if fellow.is_whole and not fellow.users:  # it takes no interest any more, and greets when it does
            del self.fellows[worker]
        return fellow.is_whole

    def greeted(self, worker: str, life: int, number: int, users: set[str], now: float) -> None:
        """Another worker says who is there, because it has only begun, or was out of reach."""
        self._replace(self._fellow(worker, life, now), number, users, now)
        if not users:
            del self.fellows[worker]

    def answered(self, worker: str, life: int, number: int, users: set[str], now: float) -> bool:
        """Another worker says who is there, because we asked: whoever was there before we began does not join."""
        fellow = self._fellow(worker, life, now)
        if fellow.is_whole and number < fellow.number:
            return True
        is_young, seen = self.is_young(now), fellow.seen
        self.answers += 1
        if fellow.number < 0 and is_young:
            before = users - fellow.users  # the others have come since, and we were told
            self._joining -= before
            fellow.users |= before
        self._replace(fellow, number, users, now)
        fellow.seen = max(seen, number)
        if fellow.is_whole and not users:
            del self.fellows[worker]
        return fellow.is_whole

    def lose(self, worker: str, now: float) -> None:
        """Another worker is dead."""
        fellow = self.fellows.pop(worker, None)
        if fellow is not None:
            self._change(set(), fellow.users, now)

    def _fellow(self, worker: str, life: int, now: float) -> Fellow:
        fellow = self.fellows.get(worker)
        if fellow is not None and fellow.life != life:
            self.lose(worker, now)
            fellow = None
        if fellow is None:
            fellow = self.fellows[worker] = Fellow(life, -1, set())
        return fellow

    def _replace(self, fellow: Fellow, number: int, users: set[str], now: float) -> None:
        came, gone = users - fellow.users, fellow.users - users
        fellow.users, fellow.number, fellow.seen = users, number, number
        self._change(came, gone, now, fellow)

    # What the subscribers are to be told.

    def is_young(self, now: float) -> bool:
        """True while it is not known yet who was there before: until then nobody is told anything."""
        return now < self._young_until and not 0 <= self.awaited <= self.answers

    @property
    def is_restless(self) -> bool:
        """True while somebody has to be told, now or later."""
        return bool(self._joining or self._leaving)

    def news(self, now: float) -> News:
        """Return what is to be told now, once."""
        joined, left = self._joining, set[str]()
        self._joining = set()
        while self._leaving and self._leaving[0][0] <= now:
            left |= self._leaving.popleft()[1]
        return News(joined, left)

    def has_news(self, now: float) -> bool:
        """True when `news` is not empty."""
        return bool(self._joining or (self._leaving and self._leaving[0][0] <= now))

    def _change(self, came: set[str], gone: set[str], now: float, by: Fellow | None = None) -> None:
        """Some have come to, and some are gone from, the worker `by`; None: this one, or one that is dead."""
        came, gone = self._elsewhere_not(came, by), self._elsewhere_not(gone, by)
        gone -= self._published(gone)
        if by is not None:
            came -= self._published(came)
        for _, leaving in self._leaving:
            back = came & leaving
            leaving.difference_update(back)
            came -= back
        if not all(leaving for _, leaving in self._leaving):
            self._leaving = deque((due, leaving) for due, leaving in self._leaving if leaving)
        undone = gone & self._joining
        self._joining -= undone
        self._joining |= came
        gone -= undone
        if gone:
            self._leaving.append((now + GRACE_SECONDS, gone))
        self._on_change(self)

    def _elsewhere_not(self, users: AbstractSet[str], but: Fellow | None) -> set[str]:
        """Return those of `users` whom no other worker has, `but` one."""
        left = set(users)
        for fellow in self.fellows.values():
            if fellow is not but and left:
                left = left - fellow.users  # not -=, which walks the larger one
        return left
