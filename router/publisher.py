"""Durable messages on their way to Redis: in the order in which they were given, also when Redis has forgotten the script."""

from __future__ import annotations

from router.outcome import Refused
from router.pipe import Done, Pipe, Reply, pack

WAITING_MAX = 20_000  # while the script is being sent


class Publisher:
    """Runs `script`, that which publishes, by its name.

    What Redis refuses because it has forgotten the script (SCRIPT FLUSH) is published again, before everything that came
    later: that waits until all that is under way is answered. Where it is too late for that, because another worker has
    brought the script back in between, those that were refused stay so, and their senders are told.
    """

    def __init__(self, script: bytes) -> None:
        self._script = script
        self.newest = b""  # the newest position that was answered
        self._forgotten: list[tuple[bytes, Done]] | None = None  # refused; None: all is well
        self._later: list[tuple[bytes, Done]] = []  # not sent yet

    def send(self, pipe: Pipe, command: bytes, done: Done) -> None:
        """Send `command`, an EVALSHA; `done` gets the position, or an exception: Refused, Unconfirmed."""
        if self._forgotten is not None:
            if len(self._later) < WAITING_MAX:
                self._later.append((command, done))
            else:
                done(Refused("too many publishes wait for the script"))
            return

        def answered(reply: Reply) -> None:
            if isinstance(reply, bytes):
                self.newest = reply
                if self._forgotten:
                    self._give_up("NOSCRIPT, and later ones have been published since")
            elif isinstance(reply, Refused) and str(reply).startswith("NOSCRIPT"):
                self._forgot(pipe, command, done)
                return
            done(reply)

        pipe.send(command, answered)

    def _forgot(self, pipe: Pipe, command: bytes, done: Done) -> None:
        if self._forgotten is not None:
            self._forgotten.append((command, done))
            return
        self._forgotten = [(command, done)]

        def loaded(reply: Reply) -> None:  # behind the answers to all that was sent before
            waiting = [*(self._forgotten or ()), *self._later]
            self._forgotten, self._later = None, []
            for each in waiting:
                if isinstance(reply, Exception):
                    each[1](Refused(f"not sent: {reply}"))
                else:
                    self.send(pipe, *each)

        pipe.send(pack((b"SCRIPT", b"LOAD", self._script)), loaded)

    def _give_up(self, why: str) -> None:
        """Answer those that were refused."""
        refused, self._forgotten = self._forgotten or [], []
        for _, done in refused:
            done(Refused(why))
