"""Who is there: asked of the workers that hold the subscribers, and kept nowhere.

A question goes out on the channel itself, so that it reaches exactly the workers with subscribers; Redis says how many
those were, and each answers on the asker's own channel. There is no registry that a dead worker could leave stale: whoever
is gone does not answer, and Redis does not count it; of a machine that died without a word Redis is told (`router.reaper`), and
what was asked meanwhile is asked again.

    b'?<reply name> <number> <most>[ <within>]'    the question: who is there, and subscribed to `within` too
    b'<number> <+ or .> <JSON>'                    an answer, or a part of it; `.` is the last

Connections are counted in slices, each of which is a part of the answer, so that nobody's loop is held up by a large
channel. One with more than `most` connections is not named but counted: {"alice":1,…} becomes a number.
Where that is to be expected the number is asked for first, so that nobody sends names that are of no use.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from operator import attrgetter

import orjson

from router.bus import Bus
from router.namespaces import personal
from router.note import REPLIES
from router.outcome import Unconfirmed
from router.pipe import Reply
from router.reaper import Counts, Reaper
from router.table import Sink, Table

log = logging.getLogger("moorage.presence")

ANSWER_SECONDS_MAX = 3.0
DOUBT_SECONDS = 1.0  # without an answer: somebody may be gone
PART_CONNECTIONS = 2_000  # counted, or written, in one turn of the loop: half a millisecond
LARGE_SHARE = 16  # a channel with a 16th of what is named on this worker alone may well have more than that in all
LARGE_NAMES_MAX = 1_000  # channels that are remembered as large
SMALL_BYTES_MAX = 4096  # of an answer that is counted in at once

Found = (
    dict[str, int] | int
)  # user -> connections, or how many connections there are, where those are too many to be named
Done = Callable[[Found | Exception], None]


class Tally:
    """What has been answered to one question so far."""

    __slots__ = ("_most", "_users", "connections", "heard")

    def __init__(self, most: int) -> None:
        self.heard = 0  # workers
        self.connections = 0
        self._most = most
        self._users: Counter[str] = Counter()

    def add(self, part: bytes) -> None:
        """Count in an answer, or a part of one, without its number. Raises: ValueError when it is none."""
        end, _, counts = part.partition(b" ")
        found = orjson.loads(counts)
        if type(found) is dict and set(map(type, found.values())) <= {int}:
            self.connections += sum(found.values())
        elif type(found) is int:
            self.connections += found
        else:
            raise ValueError("not a count of connections")
        if self.connections > self._most:
            self._users.clear()
        elif isinstance(found, dict):
            self._users.update(found)
        self.heard += end == b"."

    def found(self) -> Found:
        """Return who is there."""
        return self.connections if self.connections > self._most else self._users


class _Question:
    """What one worker wants to know, and how far it has got."""

    __slots__ = ("again", "awaited", "done", "parts", "tally", "timer")

    def __init__(self, tally: Tally, done: Done, again: Callable[[], None], timer: asyncio.TimerHandle) -> None:
        self.tally = tally
        self.done = done
        self.again = again  # asks the same
        self.parts: deque[bytes] = deque()  # of answers, that have come and are not counted in
        self.awaited = -1  # how many workers were asked; -1: Redis has not said yet
        self.timer = timer


class Presence:
    """Asks and answers for one worker, which is reached at the bus's reply channel. At most `most` connections are named."""

    def __init__(self, bus: Bus, table: Table, loop: asyncio.AbstractEventLoop, counts: Counts, *, most: int) -> None:
        self._bus = bus
        self._table = table
        self._loop = loop
        self._most = most
        self._asked: dict[bytes, _Question] = {}
        self._large: dict[bytes, None] = {}  # channels that had more than `most` connections
        self._questions = random.getrandbits(40)  # not those of the worker before this one, which are still answered
        self._reaper = Reaper(bus, counts, self._ask_again, clock=loop.time, later=loop.call_later)

    def ask(self, name: bytes, done: Done, within: bytes = b"") -> None:
        """Give `done` who is subscribed to channel `name`, and to `within` if given, or an exception.

        A question under way is not shared: it may have passed a worker before the newest subscriber came.
        """
        if within or not self._may_be_large(name):
            self._put(name, lambda found: self._found(name, found, done), self._most, within)
            return

        def counted(found: Found | Exception) -> None:
            if isinstance(found, int) and found <= self._most:
                self._large.pop(name, None)
                self._put(name, done, self._most)
            else:
                self._found(name, found, done)

        self._put(name, counted, 0)

    def _may_be_large(self, name: bytes) -> bool:
        channel = self._table.channels.get(name)
        return name in self._large or (channel is not None and len(channel.sinks) * LARGE_SHARE > self._most)

    def _found(self, name: bytes, found: Found | Exception, done: Done) -> None:
        if isinstance(found, int):
            self._large[name] = None
            if len(self._large) > LARGE_NAMES_MAX:
                del self._large[next(iter(self._large))]
        done(found)

    def _put(self, name: bytes, done: Done, most: int, within: bytes = b"") -> None:
        """Ask all who know."""
        self._put_until(self._loop.time() + ANSWER_SECONDS_MAX, name, done, most, within)

    def _put_until(self, deadline: float, name: bytes, done: Done, most: int, within: bytes) -> None:
        self._questions += 1
        number = b"%d" % self._questions
        again = partial(self._put_until, deadline, name, done, most, within)
        doubt_at = min(deadline, self._loop.time() + DOUBT_SECONDS)
        timer = self._loop.call_at(doubt_at, self._doubt, number, deadline)
        self._asked[number] = _Question(Tally(most), done, again, timer)
        payload = question(self._bus.reply_name, number, most, within)
        self._bus.send(name, payload, lambda reply: self._sent(number, reply))

    def suspect(self) -> None:
        """Somebody, whoever asked, was not answered: find out whether a worker is gone."""
        self._reaper.suspect()

    def ask_member(self, user: str, channel: str, done: Callable[[bool | Exception], None]) -> None:
        """Tell `done` whether a connection of `user` is subscribed to `channel`: the workers that hold her know."""

        def counted(found: Found | Exception) -> None:
            done(found if isinstance(found, Exception) else bool(found))

        own = personal(user)
        self.ask(own.encode(), counted, b"" if channel == own else channel.encode())

    def asked(self, name: bytes, payload: bytes) -> None:
        """Answer another worker's question, which came on channel `name`. Raises: ValueError when it is none."""
        reply_name, number, text, *within = payload[1:].split(b" ")
        most = int(text)
        if not reply_name.startswith(REPLIES.encode()):
            raise ValueError("nobody to answer")
        channel = self._table.find(name)
        sinks: Sequence[Sink] = ()
        if channel is not None:
            self._table.settle(channel)
            if len(channel.sinks) > most and not within:
                self._bus.send(reply_name, b"%b . %d" % (number, len(channel.sinks)), lambda _reply: None)
                return
            sinks = list(channel.sinks)
        if within:
            sinks = [sink for sink in sinks if any(channel.name == within[0] for channel in sink.channels)]
        self._answer(reply_name, number, sinks, 0)

    def _answer(self, reply_name: bytes, number: bytes, sinks: Sequence[Sink], start: int) -> None:
        """Answer with the next part; those who leave meanwhile were there when the question came."""
        end = start + PART_CONNECTIONS
        counts = orjson.dumps(Counter(map(attrgetter("user"), sinks[start:end])))
        is_last = end >= len(sinks)
        self._bus.send(reply_name, b"%b %b %b" % (number, b"." if is_last else b"+", counts), lambda _reply: None)
        if not is_last:
            self._loop.call_soon(self._answer, reply_name, number, sinks, end)

    def answered(self, answer: bytes) -> None:
        """Take one worker's answer to a question of ours. Raises: ValueError when it is none."""
        number, _, part = answer.partition(b" ")
        asked = self._asked.get(number)
        if asked is None:
            return
        if not asked.parts and len(part) <= SMALL_BYTES_MAX:
            asked.tally.add(part)
            self._check(number, asked)
            return
        asked.parts.append(part)  # many come in one batch, and each of them takes a while
        if len(asked.parts) == 1:
            self._loop.call_soon(self._count, number, asked)

    def _count(self, number: bytes, asked: _Question) -> None:
        """Count in the next part."""
        if self._asked.get(number) is not asked:
            return
        try:
            asked.tally.add(asked.parts[0])
        except ValueError:
            log.error("an answer to a question for presence that is none: %.200r", asked.parts[0])
        asked.parts.popleft()
        if asked.parts:
            self._loop.call_soon(self._count, number, asked)
        self._check(number, asked)

    def write(self, users: dict[str, int], done: Callable[[bytes], None]) -> None:
        """Give `done` the JSON object of `users`, at once when it is small."""
        if len(users) <= PART_CONNECTIONS:
            done(orjson.dumps(users))
            return
        items, parts = iter(users.items()), list[bytes]()

        def go_on() -> None:
            if part := dict(islice(items, PART_CONNECTIONS)):
                parts.append(orjson.dumps(part)[1:-1])
                self._loop.call_soon(go_on)
            else:
                done(b"{%b}" % b",".join(parts))

        go_on()

    def _sent(self, number: bytes, reply: Reply) -> None:
        asked = self._asked.get(number)
        if asked is None:
            return
        if isinstance(reply, int):
            asked.awaited = reply
            self._check(number, asked)
        else:
            self._finish(number, reply if isinstance(reply, Exception) else Unconfirmed(f"{reply!r:.100}"))

    def _check(self, number: bytes, asked: _Question) -> None:
        if asked.tally.heard == asked.awaited:
            self._finish(number, asked.tally.found())

    def _doubt(self, number: bytes, deadline: float) -> None:
        asked = self._asked.get(number)
        if asked is None:
            return
        self.suspect()
        asked.timer = self._loop.call_at(deadline, self._late, number)

    def _ask_again(self) -> None:
        """Ask what has not been answered once more: somebody was counted who is gone."""
        waiting, self._asked = self._asked, {}
        for asked in waiting.values():
            asked.timer.cancel()
            asked.again()

    def _late(self, number: bytes) -> None:
        if number in self._asked:
            self._finish(number, Unconfirmed(f"not every worker has answered within {ANSWER_SECONDS_MAX:g} s"))

    def _finish(self, number: bytes, found: Found | Exception) -> None:
        asked = self._asked.pop(number)
        asked.timer.cancel()
        asked.done(found)


def question(reply_name: bytes, number: bytes, most: int, within: bytes = b"") -> bytes:
    """Return what is published to ask; the answers come on `reply_name`, with `number` in front."""
    return b"?%b %b %d%b" % (reply_name, number, most, b" " + within if within else b"")
