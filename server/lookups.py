"""What may be asked about a channel: what was said in it, and who is there. Answers are JSON members."""

from __future__ import annotations

from collections.abc import Callable

from router.message import Message
from router.position import Id
from router.presence import Found
from router.replay import Entry
from router.vector import Vector
from router.wiring import AnyFeed
from server import lines
from server.close import Close, PeerError

Done = Callable[[bytes | Exception], None]


class Lookups:
    """The lookups of one worker."""

    def __init__(self, feed: AnyFeed) -> None:
        self._feed = feed

    def history(self, channel: str, after: str | None, limit: int, done: Done) -> None:
        """Give `done` at most `limit` messages: those behind the position `after`, or the newest."""
        feed, name = self._feed, channel.encode()
        head = feed.read(feed.newest)
        try:
            since = behind(after, feed.read(after), head, name)
        except PeerError as error:
            done(error)
            return

        def read(found: list[Entry] | Exception) -> None:
            done(found if isinstance(found, Exception) else history_members(found, after, head))

        epoch = head.part(name).epoch if head is not None else ""
        feed.reader.newest(name, epoch, since, limit, read)

    def presence(self, channel: str, done: Done) -> None:
        """Give `done` the users in a channel and with how many connections each, or only how many those are in all."""
        presence = self._feed.presence

        def counted(found: Found | Exception) -> None:
            if isinstance(found, dict):
                presence.write(found, lambda users: done(b',"users":' + users))
            else:
                done(found if isinstance(found, Exception) else b',"connections":%d' % found)

        presence.ask(channel.encode(), counted)


def behind(after: str | None, since: Vector | None, head: Vector | None, name: bytes) -> Id | None:
    """Return the id `after` which history of channel `name` is asked for: `since` is `after`, as it was read.

    `head` is where the stream was before. Raises: PeerError when it is no position, or one of another epoch.
    """
    if after is None:
        return None
    if since is None or head is None or since.part(name).epoch != head.part(name).epoch:
        raise PeerError(Close.NOT_FOUND, "a position that is no longer known", "after")
    return since.of(name)


def history_members(found: list[Entry], after: str | None, head: Vector | None) -> bytes:
    """Return the messages, and the position to go on from: where nothing was found, one that nothing can be before."""
    messages = [_placed(entry, head) for entry in found]
    at = messages[-1].position if messages else (after or str(head or "")).encode()
    return b',"messages":[%b],"position":"%b"' % (b",".join(map(lines.kept, messages)), at)


def _placed(entry: Entry, head: Vector | None) -> Message:
    """Give a message the position that a client may go on from: in the other shards, that of now."""
    message = entry.message
    if head is None or len(head.parts) == 1:
        return message
    part = head.part(message.channel)._replace(id=entry.id)
    return message._replace(position=bytes(head.at(message.channel, part)))
