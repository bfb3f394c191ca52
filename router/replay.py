"""Reading the journal: pages of what a channel holds behind a position, shared by all who ask for the same one."""

from __future__ import annotations

import logging
import sys
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from heapq import heappop, heappush
from itertools import islice
from typing import Any, NamedTuple, Protocol

from router import journal
from router.message import Message
from router.outcome import Refused
from router.pipe import Done, Reply, tell
from router.position import Id, Position, id_of

log = logging.getLogger("moorage.replay")

PAGE_MESSAGES_MAX = 100
PAGE_BYTES_MAX = 256 * 1024
PAGE_BYTES_MIN = 8 * 1024  # however many channels are read side by side
NEWEST_BYTES_MAX = 4 * 1024 * 1024  # of history in one answer; all of a worker wait behind it on one pipe
ENTRY_BYTES = 256  # that a message takes in memory besides its members
PAGES_KEPT_MAX = 256
PAGE_SECONDS_MAX = 2.0
STRAYS_TOLD_MAX = 256  # entries of others of which it is remembered that the log has them

_END = Id(sys.maxsize, sys.maxsize)

_Key = tuple[bytes, str, Id, int, int]  # of a page: channel, epoch, behind, number up to which, bytes at the most


class Entry(NamedTuple):
    """One kept message."""

    id: Id
    message: Message


class Page(NamedTuple):
    """What a channel holds behind an id, from the oldest on; `more`: there is another page behind this one.

    `whole` is False when something behind that id is no longer held.
    """

    entries: list[Entry]
    more: bool
    whole: bool
    bytes: int = 0  # that its messages take here


class Asks(Protocol):
    """The bus, as a reader sees it."""

    def ask(self, command: tuple[bytes, ...], done: Done) -> None:
        """Send a command; `done` gets its reply, or an exception."""


class Pages(Protocol):
    """A reader, or those of all shards."""

    def page(
        self, name: bytes, epoch: str, after: Id, upto: Id, done: Callable[[Page | Exception], None], *,
        bytes_max: int = PAGE_BYTES_MAX,
    ) -> None:  # fmt: skip
        """See `Reader.page`."""


class Reader:
    """Reads the journal for one worker. Times are seconds since the epoch where they are compared with ids."""

    def __init__(
        self,
        bus: Asks,
        keys: journal.Keys,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._bus = bus
        self._keys = keys
        self._clock = clock
        self._wall = wall
        self._asked: dict[_Key, list[Callable[[Page | Exception], None]]] = {}
        self._kept: OrderedDict[_Key, tuple[float, Page]] = OrderedDict()
        self.reads = 0  # commands sent to Redis for pages

    def page(
        self, name: bytes, epoch: str, after: Id, upto: Id, done: Callable[[Page | Exception], None], *,
        bytes_max: int = PAGE_BYTES_MAX,
    ) -> None:  # fmt: skip
        """Give `done` the page of `name` behind `after`, of which all up to `upto` was in Redis while it was in that `epoch`.

        Those who ask for the same page while it is under way, or shortly after, share one read.
        """
        # The clock of `upto` differs with every resume, its number only behind a message.
        key = (name, epoch, after, upto.number, bytes_max)
        kept = self._kept.get(key)
        if kept is not None and self._clock() - kept[0] < PAGE_SECONDS_MAX:
            done(kept[1])
            return
        waiting = self._asked.get(key)
        if waiting is not None:
            waiting.append(done)
            return
        self._asked[key] = [done]
        self.reads += 1

        def answered(reply: Reply) -> None:
            page = self._page(name, epoch, after, upto, reply) if isinstance(reply, list) else None
            if page is not None and name[:1] != b"@":  # a user's own: hardly ever asked for twice, and there are many
                self._keep(key, page)
            for each in self._asked.pop(key):
                tell(each, page if page is not None else _fault(reply))

        args = self._keys.missed_args(name, str(Position(epoch, after)).encode(), PAGE_MESSAGES_MAX, bytes_max)
        self._bus.ask((b"EVALSHA", journal.MISSED_SHA, *args), answered)

    def newest(
        self, name: bytes, epoch: str, after: Id | None, limit: int, done: Callable[[list[Entry] | Exception], None]
    ) -> None:
        """Give `done` at most `limit` messages of `name`, in order: those behind `after`, or the newest.

        Fewer, where they are large.
        """

        def answered(reply: Reply) -> None:
            done(newest_entries(name, epoch, after, reply) if isinstance(reply, list) else _fault(reply))

        self._bus.ask((b"EVALSHA", journal.NEWEST_SHA, *newest_args(self._keys, name, after, limit)), answered)

    def lasts(self, names: Sequence[bytes], done: Callable[[list[Id | None] | Exception], None]) -> None:
        """Give `done` the id of the last message of each of `names`; None where none is remembered.

        What is remembered and cannot be read is later than all: so the channel is looked into.
        """

        def answered(reply: Reply) -> None:
            if isinstance(reply, list):
                done([(_id(last) or _END) if last else None for last in reply])
            else:
                done(_fault(reply))

        self._bus.ask((b"MGET", *map(self._keys.last, names)), answered)

    def _page(self, name: bytes, epoch: str, after: Id, upto: Id, reply: list[Any]) -> Page:
        last, more, is_lost, *rest = reply
        entries, whole = [], True
        for index in range(0, len(rest), 3):
            id, before, members = rest[index : index + 3]
            if not _is_ours(members):
                _tell_stray(name, id)
                whole = False
                continue
            if index == 0:
                whole = _is_upto(before, after)
            entry = _entry(name, epoch, id, members)
            if entry.id.number > upto.number:  # comes live
                more = 0
                break
            entries.append(entry)
        if not rest:
            # Nothing is remembered: nothing was published for as long as a last message is, or ever.
            is_recent = after.ms / 1000 > self._wall() - journal.RESUME_SECONDS_MAX
            whole = _is_upto(last, after) if last else is_recent
        # The next page begins behind the last entry here: behind a page of none of ours it cannot be had.
        taken = sum(ENTRY_BYTES + len(message.members) for _, message in entries)
        return Page(entries, bool(more and entries), whole and not is_lost, taken)

    def _keep(self, key: _Key, page: Page) -> None:
        self._kept[key] = (self._clock(), page)
        self._kept.move_to_end(key)
        if len(self._kept) > PAGES_KEPT_MAX:
            self._kept.popitem(last=False)

    def tick(self) -> None:
        """Let go of pages that nobody may share any more; call a few times a second."""
        while self._kept and self._clock() - next(iter(self._kept.values()))[0] >= PAGE_SECONDS_MAX:
            self._kept.popitem(last=False)


def newest_args(keys: journal.Keys, name: bytes, after: Id | None, limit: int) -> tuple[bytes, ...]:
    """Return what the script NEWEST needs to find at most `limit` messages of `name`: those behind `after`, or the newest."""
    return keys.newest_args(name, b"" if after is None else bytes(after), limit, NEWEST_BYTES_MAX)


def newest_entries(name: bytes, epoch: str, after: Id | None, reply: list[tuple[bytes, list[bytes]]]) -> list[Entry]:
    """Return what the script NEWEST has found of ours, from the oldest on."""
    found = []
    for id, fields in reply:
        if len(fields) > 3 and _is_ours(fields[3]):
            found.append(_entry(name, epoch, id, fields[3]))
        else:
            _tell_stray(name, id)
    return found if after is not None else found[::-1]


def _is_ours(members: bytes) -> bool:
    return members[:1] == b","


@lru_cache(STRAYS_TOLD_MAX)
def _tell_stray(name: bytes, id: bytes) -> None:
    """Log that an entry was left out; each once, however many read it."""
    log.warning("in the stream of %r, the entry %r is not of ours: somebody else writes below our prefix", name, id)


def _id(text: bytes) -> Id | None:
    try:
        return id_of(text)
    except ValueError:
        return None


def _is_upto(text: bytes, after: Id) -> bool:
    """Tell whether an id is not behind `after`; one that cannot be read may be."""
    id = _id(text)
    return id is not None and id.number <= after.number


def _entry(name: bytes, epoch: str, id: bytes, members: bytes) -> Entry:
    return Entry(id_of(id), Message(b"message", name, b"%b-%b" % (epoch.encode(), id), members))


def _number(entry: Entry) -> int:
    return entry.id.number


def _fault(reply: Reply) -> Exception:
    return reply if isinstance(reply, Exception) else Refused(f"an answer of an unknown form: {reply!r:.200}")


class Missed:
    """What was missed on several channels, merged into the order of the stream, in bounded steps.

    A step reads the next page of every channel of which nothing is at hand, but at most `pages_max`. When all have been read,
    what is before the end of the shortest page may be delivered: behind it, another page could still hold something earlier.
    The rest stays for the next step. The pages of all channels together are about as large as one page of a single channel may be.
    """

    def __init__(
        self, reader: Pages, epoch: str, starts: dict[bytes, Id], upto: Id, *, bytes_max: int = PAGE_BYTES_MAX,
        pages_max: int = sys.maxsize,
    ) -> None:  # fmt: skip
        self.gaps: list[bytes] = []  # channels of which something is no longer held
        self.bytes = 0  # of the messages that were read, handed out or not
        self._reader = reader
        self._epoch = epoch
        self._unread = dict(starts)  # where the next page begins, of the channels of which nothing is at hand
        self._ends: list[tuple[int, bytes, Id]] = []  # a heap: the same of the others that have one
        self._ahead: list[tuple[int, bytes, list[Entry]]] = []  # a heap: read, and not handed out, by what comes first
        self._upto = upto
        self._bytes_max = max(PAGE_BYTES_MIN, bytes_max // max(1, len(starts)))
        self._pages_max = pages_max

    @property
    def is_done(self) -> bool:
        """True when everything has been handed out."""
        return not (self._unread or self._ends or self._ahead)

    def abandon(self) -> list[bytes]:
        """Give up the channels that may have more, and return them."""
        left = list(dict.fromkeys([*self._unread, *(name for _, name, _ in (*self._ends, *self._ahead))]))
        self._unread, self._ends, self._ahead = {}, [], []
        return left

    def step(self, done: Callable[[list[Message] | Exception], None]) -> None:
        """Give `done` the messages that come next, in order, or an exception; and note the `gaps` that were found.

        One step at a time. There may be none yet, where there are more than `pages_max` channels.
        """
        asked = dict(islice(self._unread.items(), self._pages_max))
        pages: dict[bytes, Page | Exception] = {}

        def answered(name: bytes, page: Page | Exception) -> None:
            pages[name] = page
            if len(pages) == len(asked):
                failed = [page for page in pages.values() if isinstance(page, Exception)]
                if not failed:
                    self._take({name: page for name, page in pages.items() if isinstance(page, Page)})
                done(failed[0] if failed else self._ready())

        for name, after in asked.items():
            self._reader.page(name, self._epoch, after, self._upto, partial(answered, name), bytes_max=self._bytes_max)

    def _take(self, pages: dict[bytes, Page]) -> None:
        for name, page in pages.items():
            del self._unread[name]
            if not page.whole:
                self.gaps.append(name)
            if page.entries:
                heappush(self._ahead, (page.entries[0].id.number, name, page.entries))
                self.bytes += page.bytes
            if page.more:
                end = page.entries[-1].id
                heappush(self._ends, (end.number, name, end))

    def _ready(self) -> list[Message]:
        """Take what nothing that has not been read can be before."""
        if self._unread:
            return []
        bound = self._ends[0][0] if self._ends else self._upto.number
        ready: list[Entry] = []
        while self._ahead and self._ahead[0][0] <= bound:
            _, name, entries = heappop(self._ahead)
            count = bisect_right(entries, bound, key=_number)
            ready += entries[:count]
            if count < len(entries):
                heappush(self._ahead, (entries[count].id.number, name, entries[count:]))
        while self._ends and self._ends[0][0] <= bound:
            _, name, end = heappop(self._ends)
            self._unread[name] = end
        ready.sort(key=_number)  # runs that are in order, which cost next to nothing to merge
        return [entry.message for entry in ready]
