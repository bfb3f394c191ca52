"""Joins and leaves: what the workers tell each other about who is in a channel, and each its own subscribers.

There is no registry. A worker with subscribers of a channel whose namespace has joins and leaves keeps a roster of it. It publishes
its own changes on the channel itself, so that exactly the workers with subscribers hear them: one message per worker, channel and
window, however many come and go. It greets the others when it begins, and they answer with who is there; changes are
numbered, and where a number is missing the worker is asked. Joins and leaves are then made from the roster, by every
worker for its own subscribers.

Workers that keep rosters beat. One that has been silent for long is dead, and so is one whose name is heard with another life:
its users are gone, unless they are elsewhere. Silence is counted by the beats of our own that come back, so that
neither a stall of ours nor one of Redis looks like the death of everybody else.
"""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Protocol

import orjson

from router.namespaces import Namespaces
from router.note import Kind, Note
from router.outcome import Refused
from router.pipe import Done, Reply
from router.roster import WINDOW_SECONDS, YOUNG_SECONDS_MAX, Roster

log = logging.getLogger("moorage.rosters")

BEAT_SECONDS = 2.0
SILENT_SECONDS_MAX = 6.0
NAMES_MAX = 100  # of those who have joined, or left, in one window of a channel; past it their number is told
USERS_MAX = 1_000_000  # in the rosters of one worker; past it nobody is told of others
TURN_ROSTERS = 100  # seen to in one turn of the loop
GREETINGS_PER_TICK = 500
MISSED_MAX = 1000  # workers that are remembered as taken for dead
LOG_SECONDS = 60.0
CONTROL = b"$control"


class Bus(Protocol):
    """What reaches other workers."""

    reply_name: bytes

    def send(self, name: bytes, payload: bytes, done: Done, /) -> None:
        """Publish; `done` gets how many subscribers heard it, or an exception."""


class Stage(Protocol):
    """What reaches the subscribers here."""

    @property
    def is_steady(self) -> bool:
        """False while nothing may be announced, because something is being repaired."""

    def announce(self, name: bytes, op: bytes, members: Iterable[bytes], /) -> None:
        """Push an `op` with each of `members` to the subscribers of a channel."""


class Counts(Protocol):
    """Where a worker counts what it did."""

    joins_leaves: int
    join_leave_summaries: int
    roster_users: int
    roster_overflows: int


class Rosters:
    """The rosters of one worker. `later` is loop.call_soon: what there is to do must not hold up the loop."""

    def __init__(
        self, bus: Bus, stage: Stage, namespaces: Namespaces, counts: Counts, *, clock: Callable[[], float],
        later: Callable[..., object], shards: int = 1,
    ) -> None:  # fmt: skip
        self._counts, self._shards = counts, shards
        self._users = self._counted = 0  # of other workers, in all rosters
        self._bus, self._stage, self._namespaces, self._clock, self._later = bus, stage, namespaces, clock, later
        self._is_used = any(each.join_leave for each in (namespaces.default, *namespaces.named))
        self._me = bus.reply_name.decode()
        self._life = random.getrandbits(48)
        self._rosters: dict[bytes, Roster] = {}
        self._active: dict[Roster, None] = {}  # those with something to do, now or later
        self._ungreeted: dict[Roster, None] = {}
        self._heard: dict[
            str, tuple[int, float]
        ] = {}  # every worker that keeps rosters: its life, and when it was heard
        self._missed: dict[tuple[str, int], None] = {}  # those that were taken for dead
        self._beat_at = self._log_at = 0.0
        self._is_up = False

    # What the table asks for.

    def of(self, name: bytes) -> Roster | None:
        """Return the roster of a channel that is getting its first subscriber here; None where none is kept."""
        if not self._is_used or not self._namespaces.of(name.decode()).join_leave:
            return None
        roster = self._rosters.get(name)
        if roster is None:
            roster = self._rosters[name] = Roster(name, self._clock(), self._changed)
            self._ungreeted[roster] = None
        return roster

    def _changed(self, roster: Roster) -> None:
        self._active[roster] = None

    # What the bus tells.

    def lost(self) -> None:
        """The bus is down: nobody knows who comes and goes, and nobody is told."""
        self._is_up = False

    def restored(self) -> None:
        """The bus is up: everybody has to be told and asked anew."""
        now = self._clock()
        self._is_up = True
        self._heard = {worker: (life, now) for worker, (life, _) in self._heard.items()}
        self._ungreeted = dict.fromkeys(self._rosters.values())
        if self._is_used:
            self._beat(now)  # without a roster too: whoever had this name before is dead

    def rejoined(self, name: bytes) -> None:
        """Something may have been missed on this channel."""
        roster = self._rosters.get(name)
        if roster is not None:
            self._ungreeted[roster] = None

    def heard(self, name: bytes, payload: bytes) -> None:
        """Take what a worker says, this one included, on channel `name` (b"": to us or to all). Raises: ValueError."""
        note = Note.decode(payload)
        if not self._is_used:
            return
        now = self._clock()
        self._lives(note, now)
        if note.worker == self._me:
            return
        channel = name or note.channel.encode()
        if note.kind is Kind.HELLO or note.kind is Kind.ASK:
            self._answer(note, channel)
        elif note.kind is Kind.AGAIN:
            self._ungreeted = dict.fromkeys(self._rosters.values())
        roster = self._rosters.get(channel)
        if roster is not None and note.kind in (Kind.HELLO, Kind.STATE, Kind.CHANGE):
            self._users -= roster.users
            self._take(note, roster, now)
            self._users += roster.users

    def _take(self, note: Note, roster: Roster, now: float) -> None:
        """Note what another worker has said of a channel."""
        speaker, came = (note.worker, note.life, note.number), set(note.came)
        fellow = roster.fellows.get(note.worker)
        new = came - fellow.users if fellow is not None else came
        if (
            self._users + roster.users + len(new) > USERS_MAX // self._shards
        ):  # those of the roster are not counted at the moment
            came = came - new
            self._overflow(now)
        if note.kind is Kind.HELLO:
            roster.greeted(*speaker, came, now)
        elif not (
            roster.answered(*speaker, came, now)
            if note.kind is Kind.STATE
            else roster.hear(*speaker, came, set(note.gone), now)
        ):
            self._ask(roster, note.worker, now)

    def _overflow(self, now: float) -> None:
        self._counts.roster_overflows += 1
        if now >= self._log_at:
            self._log_at = now + LOG_SECONDS
            log.error(
                "over %d users in rosters: joins and leaves of some are not told (%d times)",
                USERS_MAX // self._shards,
                self._counts.roster_overflows,
            )

    def _lives(self, note: Note, now: float) -> None:
        known = self._heard.get(note.worker)
        if known is not None and known[0] != note.life:
            self._lose(note.worker, now)
        elif known is None and (note.worker, note.life) in self._missed:
            del self._missed[note.worker, note.life]
            self._say(note.worker.encode(), Note(Kind.AGAIN, self._me, self._life))
        self._heard[note.worker] = note.life, now

    def _answer(self, note: Note, channel: bytes) -> None:
        """Say who is here. A worker without a roster was asked too, as long as Redis counts it as subscribed."""
        roster = self._rosters.get(channel)
        number, users = (roster.number, list(roster.published())) if roster is not None else (0, [])
        self._say(note.worker.encode(), Note(Kind.STATE, self._me, self._life, channel.decode(), number, users))

    def _ask(self, roster: Roster, worker: str, now: float) -> None:
        fellow = roster.fellows.get(worker)
        if fellow is not None and now - fellow.asked_at >= YOUNG_SECONDS_MAX:
            fellow.asked_at = now
            self._say(worker.encode(), Note(Kind.ASK, self._me, self._life, roster.name.decode()))

    def _say(self, name: bytes, note: Note, done: Done | None = None) -> None:
        self._bus.send(name, note.encode(), done or _refused)

    # What time brings.

    def tick(self) -> None:
        """See to what is due; call a few times a second."""
        if not self._is_used or not self._is_up:
            return
        now = self._clock()
        self._counts.roster_users += self._users - self._counted  # in a cluster there are others beside
        self._counted = self._users
        if self._rosters and now >= self._beat_at:
            self._beat(now)
        self._bury(now)
        for roster in list(islice(self._ungreeted, GREETINGS_PER_TICK)):
            del self._ungreeted[roster]
            self._greet(roster, now)
        active, self._active = self._active, {}
        if active:
            self._see_to(deque(active), now)

    def _beat(self, now: float) -> None:
        self._beat_at = now + BEAT_SECONDS
        self._say(CONTROL, Note(Kind.BEAT, self._me, self._life))

    def _bury(self, now: float) -> None:
        """Find out who is dead."""
        _, latest = self._heard.get(self._me, (0, 0.0))
        for worker in [worker for worker, (_, at) in self._heard.items() if latest - at > SILENT_SECONDS_MAX]:
            life, _ = self._heard.pop(worker)
            if self._lose(worker, now):
                self._missed[worker, life] = None
                if len(self._missed) > MISSED_MAX:
                    del self._missed[next(iter(self._missed))]

    def _lose(self, worker: str, now: float) -> bool:
        """A worker is dead; return whether anybody was there."""
        lost = [roster for roster in self._rosters.values() if worker in roster.fellows]
        for roster in lost:
            self._users -= roster.users
            roster.lose(worker, now)
            self._users += roster.users
        return bool(lost)

    def _greet(self, roster: Roster, now: float) -> None:
        """Tell who is here, and ask who is elsewhere."""
        if not roster.here and not roster.number:
            return  # come and gone before anybody was told
        roster.take(now)

        def sent(reply: Reply) -> None:
            if isinstance(reply, int):
                roster.awaited = reply - 1  # we hear it too
            _refused(reply)

        users = list(roster.here)
        note = Note(Kind.HELLO, self._me, self._life, roster.name.decode(), roster.number, users)
        self._say(roster.name, note, sent)

    def _see_to(self, rosters: deque[Roster], now: float) -> None:
        if not self._is_up:
            self._active |= dict.fromkeys(rosters)
            return
        for _ in range(min(TURN_ROSTERS, len(rosters))):
            roster = rosters.popleft()
            if self._rosters.get(roster.name) is roster:
                self._publish(roster, now)
                self._tell(roster, now)
                if not roster.here and not roster.is_changed:
                    del self._rosters[roster.name]  # nobody is left to be told
                    self._users -= roster.users
                    self._ungreeted.pop(roster, None)
                elif roster.is_changed or roster.is_restless:
                    self._active[roster] = None
        if rosters:
            self._later(self._see_to, rosters, now)

    def farewell(self) -> None:
        """Tell what there is to tell before this worker ends."""
        for roster in list(self._active) if self._is_up else ():
            self._publish(roster, self._clock(), 0.0)

    def _publish(self, roster: Roster, now: float, window: float = WINDOW_SECONDS) -> None:
        """Tell the other workers."""
        if roster.is_changed and roster not in self._ungreeted and now - roster.published_at >= window:
            came, gone = roster.take(now)
            channel = roster.name.decode()
            self._say(
                roster.name, Note(Kind.CHANGE, self._me, self._life, channel, roster.number, list(came), list(gone))
            )

    def _tell(self, roster: Roster, now: float) -> None:
        """Tell the subscribers here."""
        if now - roster.told_at < WINDOW_SECONDS or roster.is_young(now) or not roster.has_news(now):
            return
        if not self._stage.is_steady:
            return
        roster.told_at = now
        news = roster.news(now)
        for op, users in ((b"join", news.joined), (b"leave", news.left)):
            if len(users) > NAMES_MAX:
                self._counts.join_leave_summaries += 1
                self._stage.announce(roster.name, op, [b',"count":%d' % len(users)])
            elif users:
                self._stage.announce(roster.name, op, [b',"user":' + orjson.dumps(user) for user in sorted(users)])
            self._counts.joins_leaves += len(users)


def _refused(reply: Reply) -> None:
    if isinstance(reply, Refused):
        log.error("joins and leaves cannot be told to other workers: Redis refuses to publish: %s", reply)
