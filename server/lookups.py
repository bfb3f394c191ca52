"""What may be asked about a channel: what was said in it, and who is there. Answers are JSON members."""

from __future__ import annotations

from collections.abc import Callable

import orjson

from router import position
from router.feed import Feed
from router.replay import Entry
from server import lines
from server.close import Close, PeerError

Done = Callable[[bytes | Exception], None]


class Lookups:
    """The lookups of one worker."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    def history(self, channel: str, after: str | None, limit: int, done: Done) -> None:
        """Give `done` at most `limit` messages: those behind the position `after`, or the newest."""
        since, head = position.parse(after), position.parse(self._feed.head)
        if after is not None and (since is None or head is None or since.epoch != head.epoch):
            done(PeerError(Close.NOT_FOUND, "a position that is no longer known", "after"))
            return
        name = channel.encode()

        def read(found: list[Entry] | Exception) -> None:
            if isinstance(found, Exception):
                done(found)
                return
            at = found[-1].message.position if found else (after or "").encode() or self._feed.head
            messages = b",".join(lines.kept(entry.message) for entry in found)
            done(b',"messages":[%b],"position":"%b"' % (messages, at))

        epoch = head.epoch if head is not None else ""
        self._feed.reader.newest(name, epoch, since.of(name) if since else None, limit, read)

    def presence(self, channel: str, done: Done) -> None:
        """Give `done` the users in a channel and with how many connections each."""

        def counted(found: dict[str, int] | Exception) -> None:
            done(found if isinstance(found, Exception) else b',"users":' + orjson.dumps(found))

        self._feed.presence.ask(channel.encode(), counted)
