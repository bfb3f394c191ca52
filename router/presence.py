"""Who is there: asked of the workers that hold the subscribers, and kept nowhere.

A question goes out on the channel itself, so that it reaches exactly the workers with subscribers; Redis says how many
those were, and each answers on the asker's own channel. There is no registry that a dead worker could leave stale: whoever
is gone does not answer, and Redis does not count it.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from operator import attrgetter

import orjson

from router.bus import Bus
from router.pipe import Reply, Unconfirmed
from router.table import Table

ANSWER_SECONDS_MAX = 3.0

Done = Callable[[dict[str, int] | Exception], None]  # user -> connections


class _Question:
    """What one worker wants to know, and how far it has got."""

    __slots__ = ("awaited", "counts", "done", "heard", "timer")

    def __init__(self, done: Done, timer: asyncio.TimerHandle) -> None:
        self.done = done
        self.counts: Counter[str] = Counter()
        self.heard = 0
        self.awaited = -1  # how many workers were asked; -1: Redis has not said yet
        self.timer = timer


class Presence:
    """Asks and answers for one worker, which is reached at the bus's reply channel."""

    def __init__(self, bus: Bus, table: Table, loop: asyncio.AbstractEventLoop) -> None:
        self._bus = bus
        self._table = table
        self._loop = loop
        self._asked: dict[bytes, _Question] = {}
        self._questions = random.getrandbits(40)  # not those of the worker before this one, which are still answered

    def ask(self, name: bytes, done: Done) -> None:
        """Give `done` the users subscribed to channel `name`, or an exception.

        A question under way is not shared: it may have passed a worker before the newest subscriber came.
        """
        self._questions += 1
        number = b"%d" % self._questions
        timer = self._loop.call_later(ANSWER_SECONDS_MAX, self._late, number)
        self._asked[number] = _Question(done, timer)
        self._bus.send(name, b"?%b %b" % (self._bus.reply_name, number), lambda reply: self._sent(number, reply))

    def asked(self, name: bytes, question: bytes) -> None:
        """Answer another worker's question, which came on channel `name`."""
        reply_name, _, number = question[1:].partition(b" ")
        channel = self._table.find(name)
        counts = Counter(map(attrgetter("user"), channel.sinks)) if channel is not None else {}
        if channel is not None:
            self._table.settle(channel)
        self._bus.send(reply_name, number + b" " + orjson.dumps(counts), lambda _reply: None)

    def answered(self, answer: bytes) -> None:
        """Take one worker's answer to a question of ours. Raises: ValueError when it is none."""
        number, _, counts = answer.partition(b" ")
        question = self._asked.get(number)
        if question is not None:
            question.counts.update(orjson.loads(counts))
            question.heard += 1
            self._check(number, question)

    def _sent(self, number: bytes, reply: Reply) -> None:
        question = self._asked.get(number)
        if question is None:
            return
        if isinstance(reply, int):
            question.awaited = reply
            self._check(number, question)
        else:
            self._finish(number, reply if isinstance(reply, Exception) else Unconfirmed(f"{reply!r:.100}"))

    def _check(self, number: bytes, question: _Question) -> None:
        if question.heard == question.awaited:
            self._finish(number, dict(question.counts))

    def _late(self, number: bytes) -> None:
        if number in self._asked:
            self._finish(number, Unconfirmed(f"not every worker has answered within {ANSWER_SECONDS_MAX:g} s"))

    def _finish(self, number: bytes, found: dict[str, int] | Exception) -> None:
        question = self._asked.pop(number)
        question.timer.cancel()
        question.done(found)
