"""Workers that are gone without a word: found by their silence, and cut off from Redis, which counts them until then.

A machine that loses power, or is cut off, closes no connection. Redis goes on publishing to its subscribers until TCP gives up, a
quarter of an hour later, and tells everybody who publishes that they were reached. A live worker writes a probe on its
publishing pipe every second, so what CLIENT LIST says is idle of that pipe is how long the worker has been silent. (Of the
subscribing pipe it says nothing: being written to counts too. Hence its name holds the id of the other one.)

Nobody looks while all is well. Whoever has missed an answer looks, once, at those that subscribe; those that are silent
are looked at again, by their ids, until they have spoken or have been silent for too long. Two looks in a row have to find a worker
silent: after Redis itself has stood still, all seem to be at the first one. One that was cut off and lives after all
connects again, and what it missed is repaired as after any cut.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import NamedTuple, Protocol

from router.outcome import Refused
from router.pipe import Done, Reply

log = logging.getLogger("moorage.reaper")

SILENT_SECONDS_MAX = 8  # as Redis counts, in whole seconds; a worker that stalls for 10 s is killed by its supervisor
QUIET_SECONDS = 2  # a probe has been missed: this one is looked at again
JITTER_SECONDS = 0.5  # of many workers that miss the same answer, the first to look may save the others the work
LOOK_SECONDS_MIN = 1.0  # between two looks: what Redis had not read before the first one, it has by then
REST_SECONDS = 2.0  # from one search to the next
REFUSED_SECONDS = 600.0  # where Redis does not let us look, it is asked and told of again after this
NAME = b"moorage:"  # begins that of every pipe


class Bus(Protocol):
    """What reaches Redis."""

    def ask(self, command: tuple[bytes, ...], done: Done, /) -> None:
        """Send a command; `done` gets its reply, or an exception."""


class Counts(Protocol):
    """Where a worker counts what it did."""

    workers_cut: int


class Client(NamedTuple):
    """A connection, as CLIENT LIST shows it."""

    id: bytes
    name: bytes
    idle: int  # seconds since it was read from, or written to


class Pair(NamedTuple):
    """The two pipes of one worker, but for the id of the one that publishes."""

    name: bytes
    subscriber: bytes


class Reaper:
    """Cuts off who is gone, of those on one Redis; `on_cut` is called when somebody was. `later` is loop.call_later."""

    def __init__(
        self, bus: Bus, counts: Counts, on_cut: Callable[[], None], *, clock: Callable[[], float],
        later: Callable[..., object],
    ) -> None:  # fmt: skip
        self._bus, self._counts, self._on_cut, self._clock, self._later = bus, counts, on_cut, clock, later
        self._is_looking = False
        self._rests_until = self._clock()

    def suspect(self) -> None:
        """Somebody does not answer: find out who, unless that is under way or was of late."""
        if not self._is_looking and self._clock() >= self._rests_until:
            self._is_looking = True
            self._later(random.uniform(0, JITTER_SECONDS), self._search)

    def _search(self) -> None:
        self._bus.ask((b"CLIENT", b"LIST", b"TYPE", b"PUBSUB"), self._found)

    def _found(self, reply: Reply) -> None:
        if isinstance(reply, bytes):
            self._look(dict(pairs(clients(reply))), frozenset())
        else:
            self._fail(reply)

    def _look(self, known: Mapping[bytes, Pair], suspects: frozenset[bytes]) -> None:
        """Look how long those in `known`, by the id of their publishing pipe, have been silent; `suspects` were before."""
        if known:
            command = (b"CLIENT", b"LIST", b"ID", *known)
            self._bus.ask(command, partial(self._looked, known, suspects))
        else:
            self._rest(REST_SECONDS)

    def _looked(self, known: Mapping[bytes, Pair], suspects: frozenset[bytes], reply: Reply) -> None:
        if not isinstance(reply, bytes):
            self._fail(reply)
            return
        idle = dict.fromkeys(known, SILENT_SECONDS_MAX)  # one that is not listed is gone already
        idle |= {client.id: client.idle for client in clients(reply)}
        silent = {id: seconds for id, seconds in idle.items() if seconds >= QUIET_SECONDS}
        dead = {id for id in suspects & silent.keys() if silent[id] >= SILENT_SECONDS_MAX}
        self._cut({id: known[id] for id in dead})
        left = {id: known[id] for id in silent.keys() - dead}
        wait = SILENT_SECONDS_MAX - max([silent[id] for id in left], default=0)
        if left:
            self._later(max(LOOK_SECONDS_MIN, wait), self._look, left, frozenset(left))
        else:
            self._rest(REST_SECONDS)

    def _cut(self, dead: Mapping[bytes, Pair]) -> None:
        """Have Redis close the pipes of `dead`, the subscribing ones last: it is they that are counted."""
        left = len(dead)

        def cut(name: bytes, reply: Reply) -> None:
            nonlocal left
            left -= 1
            if isinstance(reply, int):
                self._counts.workers_cut += reply  # 0: another was faster
                if reply:
                    log.warning("cut off %s: silent for %d s", name.decode(errors="replace"), SILENT_SECONDS_MAX)
            else:
                self._fail(reply)
            if not left:
                self._on_cut()

        for publisher, pair in dead.items():
            self._bus.ask((b"CLIENT", b"KILL", b"ID", publisher), lambda _reply: None)
            self._bus.ask((b"CLIENT", b"KILL", b"ID", pair.subscriber), partial(cut, pair.name))

    def _fail(self, reply: Reply) -> None:
        """Redis does not let us, or is away; then whoever is gone is counted until TCP finds out."""
        if isinstance(reply, Refused) and self._rests_until <= self._clock():
            log.warning(
                "workers that are gone cannot be found, and presence waits until TCP gives them up: Redis refuses: %s",
                reply,
            )
        self._rest(REFUSED_SECONDS if isinstance(reply, Refused) else REST_SECONDS)

    def _rest(self, seconds: float) -> None:
        self._is_looking = False
        self._rests_until = max(self._rests_until, self._clock() + seconds)


def clients(listed: bytes) -> Iterable[Client]:
    """Yield what CLIENT LIST says of each client, `id=1 addr=… name=… age=2 idle=3 …` on a line."""
    for line in listed.splitlines():
        id, _, rest = line.partition(b" ")
        name, _, rest = rest.partition(b" name=")[2].partition(b" ")
        idle = rest.partition(b" idle=")[2].partition(b" ")[0]
        yield Client(id.removeprefix(b"id="), name, int(idle))


def pairs(subscribers: Iterable[Client]) -> Iterable[tuple[bytes, Pair]]:
    """Yield the workers among `subscribers`, by the ids of their publishing pipes."""
    for client in subscribers:
        worker, _, publisher = client.name.rpartition(b":")
        if worker.startswith(NAME) and publisher.isdigit():
            yield publisher, Pair(worker, client.id)


def subscriber_name(name: str, publisher: int) -> str:
    """Return what the subscribing pipe of worker `name` is called, when `publisher` is the id of its other one."""
    return f"{name}:{publisher}"
