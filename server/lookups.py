"""What may be asked about a channel: what was said in it, and who is there. Answers are JSON members."""

from __future__ import annotations

from collections.abc import Callable

from router import position
from router.feed import Feed
from router.position import Position
from router.presence import Found
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
        head, name = position.parse(self._feed.head), channel.encode()
        try:
            since = behind(after, head)
        except PeerError as error:
            done(error)
            return

        def read(found: list[Entry] | Exception) -> None:
            done(found if isinstance(found, Exception) else history_members(found, after, head))

        epoch = head.epoch if head is not None else ""
        self._feed.reader.newest(name, epoch, since.of(name) if since else None, limit, read)

    def presence(self, channel: str, done: Done) -> None:
        """Give `done` the users in a channel and with how many connections each, or only how many those are in all."""
        presence = self._feed.presence

        def counted(found: Found | Exception) -> None:
            if isinstance(found, dict):
                presence.write(found, lambda users: done(b',"users":' + users))
            else:
                done(found if isinstance(found, Exception) else b',"connections":%d' % found)

        presence.ask(channel.encode(), counted)


def behind(after: str | None, head: Position | None) -> Position | None:
    """Return the position `after` which history is asked for; `head` is where the stream was before it was read.

    Raises: PeerError when it is none, or one of another epoch.
    """
    since = position.parse(after)
    if after is not None and (since is None or head is None or since.epoch != head.epoch):
        raise PeerError(Close.NOT_FOUND, "a position that is no longer known", "after")
    return since


def history_members(found: list[Entry], after: str | None, head: Position | None) -> bytes:
    """Return the messages, and the position to go on from: where nothing was found, one that nothing can be before."""
    at = found[-1].message.position if found else (after or str(head or "")).encode()
    messages = b",".join(lines.kept(entry.message) for entry in found)
    return b',"messages":[%b],"position":"%b"' % (messages, at)
