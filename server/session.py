"""One connection as data, and what waits for it when its socket is full."""

from __future__ import annotations

from collections import deque
from os import write
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from router.table import Channel
    from server.lane import Lane

CLOSED = -1


class Backlog:
    """Frames that the kernel did not take, oldest first. Frames are shared by all who wait for them, so they are not copied."""

    __slots__ = ("bytes", "frames")

    def __init__(self) -> None:
        self.frames: deque[bytes] = deque()
        self.bytes = 0

    def append(self, frame: bytes) -> None:
        """Queue `frame` behind the others."""
        self.frames.append(frame)
        self.bytes += len(frame)

    def drop(self, count: int) -> None:
        """Forget the first `count` bytes: they have been sent."""
        self.bytes -= count
        frames = self.frames
        while frames and count >= len(frames[0]):
            count -= len(frames.popleft())
        if count:
            frames[0] = frames[0][count:]


class Session:
    """A connection that has finished its handshake.

    Nothing else is kept for an idle one: a feature that needs more has a table of its own, keyed by session. The object is
    its own generation: whoever waits for an answer holds the session, and finds its descriptor `CLOSED` when it has ended.
    """

    __slots__ = ("backlog", "channels", "fd", "user")

    lane: Lane  # of the class: every lane has a subclass of its own, which saves each of its sessions the reference

    def __init__(self, fd: int, user: str, channels: tuple[Channel, ...]) -> None:
        self.fd = fd
        self.user = user
        self.channels = channels
        self.backlog: Backlog | None = None

    def offer(self, frame: bytes) -> bool:
        """Send `frame` at once, or queue what the kernel does not take; False when the backlog would be over its limit."""
        if self.backlog is None:
            try:
                sent = write(self.fd, frame)
            except BlockingIOError:
                sent = 0
            except OSError:
                return True  # the peer is gone: epoll will say so
            if sent == len(frame):
                return True
            frame = frame[sent:]
        return self.lane.pool.hold(self, frame)

    def react(self, events: int) -> None:
        """Handle epoll `events`."""
        self.lane.pool.react(self, events)
