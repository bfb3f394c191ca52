"""Durable messages on their way to Redis: in the order in which they were given, those of a turn together.

What a turn of the loop publishes is numbered, kept and published by one call of the script PUBLISH, which costs Redis half as
much a message as a call each, and this worker one answer instead of many.
"""

from __future__ import annotations

from functools import reduce

from router import position
from router.journal import Keys, Retention
from router.outcome import Refused
from router.pipe import Done, Pipe, Reply, pack

WAITING_MAX = 20_000  # messages, while the script is being sent
BATCH_MESSAGES_MAX = 64  # Redis does nothing else while it runs a script: half a millisecond


class Batch:
    """Messages of one turn that are kept alike: one call of the script."""

    __slots__ = ("_args", "_dones", "_keys", "_names", "is_open", "kept")

    def __init__(self, keys: Keys, kept: tuple[Retention, bool]) -> None:
        """`kept`: how long, and whether the messages have idempotency keys."""
        self.kept = kept
        self.is_open = True
        self._keys = keys
        self._names: list[bytes] = []  # of keys, and the arguments, as the script wants them
        self._args: list[bytes] = []
        self._dones: list[Done] = []

    def __len__(self) -> int:
        return len(self._dones)

    def add(self, name: bytes, members: bytes, once: bytes, done: Done) -> None:
        """Take one more message."""
        self._names += self._keys.publish_keys(name, once)
        self._args += (self._keys.channel(name), members)
        self._dones.append(done)
        self.is_open = len(self._dones) < BATCH_MESSAGES_MAX

    def pack(self) -> bytes:
        """Return the command; nothing is added any more."""
        self.is_open = False
        keys = self._keys
        return pack((b"EVALSHA", keys.dialect.publishing_sha, *keys.publish_args(*self.kept, self._names, self._args)))

    def tell(self, reply: Reply) -> None:
        """Hand every message what became of it; nothing is added any more."""
        self.is_open = False
        answers = reply if isinstance(reply, list) and len(reply) == len(self._dones) else [_fault(reply)] * len(self)
        for done, answer in zip(self._dones, answers, strict=True):
            done(answer)


def _fault(reply: Reply) -> Exception:
    return reply if isinstance(reply, Exception) else Refused(f"it answered a publish with {reply!r:.100}")


class Publisher:
    """Publishes on a pipe, and is told by `seal` of everything else that is sent there, so that order is kept.

    What Redis refuses because it has forgotten the script (SCRIPT FLUSH) is published again, before everything that came
    later: that waits until all that is under way is answered. Where it is too late for that, because another worker has
    brought the script back in between, those that were refused stay so, and their senders are told.
    """

    def __init__(self, keys: Keys) -> None:
        self.newest = b""  # the newest position that was answered
        self._keys = keys
        self._waiting = 0  # messages without an answer
        self._batch: Batch | None = None  # the one that was begun last
        self._forgotten: list[Batch] | None = None  # refused; None: all is well
        self._later: list[Batch] = []  # not sent yet

    def __len__(self) -> int:
        """How many messages wait for their answers."""
        return self._waiting

    def send(self, pipe: Pipe, name: bytes, members: bytes, retention: Retention, once: bytes, done: Done) -> None:
        """Publish; `done` gets the position, or an exception: Refused, Unconfirmed."""
        if self._forgotten is not None and self._waiting >= WAITING_MAX:
            done(Refused("too many publishes wait for the script"))
            return
        kept, batch = (retention, once != b""), self._batch
        self._waiting += 1
        if batch is not None and batch.is_open and batch.kept == kept:
            batch.add(name, members, once, done)
            return
        batch = self._batch = Batch(self._keys, kept)
        batch.add(name, members, once, done)
        if self._forgotten is None:
            self._send(pipe, batch)
        else:
            self._later.append(batch)

    def seal(self) -> None:
        """Something else is sent: what is published from here on goes behind it."""
        self._batch = None

    def _send(self, pipe: Pipe, batch: Batch) -> None:
        def answered(reply: Reply) -> None:
            if isinstance(reply, list):
                self._note(batch, [each for each in reply if isinstance(each, bytes)])
                if self._forgotten:
                    self._give_up("NOSCRIPT, and later ones have been published since")
            elif isinstance(reply, Refused) and str(reply).startswith("NOSCRIPT"):
                self._forgot(pipe, batch)
                return
            self._tell(batch, reply)

        pipe.send(batch, answered)

    def _note(self, batch: Batch, positions: list[bytes]) -> None:
        """Keep the newest; what has an idempotency key may have been published long ago."""
        _, is_once = batch.kept
        if is_once:
            self.newest = reduce(position.later, positions, self.newest)
        elif positions:
            self.newest = positions[-1]

    def _tell(self, batch: Batch, reply: Reply) -> None:
        self._waiting -= len(batch)
        batch.tell(reply)

    def _forgot(self, pipe: Pipe, batch: Batch) -> None:
        if self._forgotten is not None:
            self._forgotten.append(batch)
            return
        self._forgotten = [batch]
        self.seal()

        def loaded(reply: Reply) -> None:  # behind the answers to all that was sent before
            waiting = [*(self._forgotten or ()), *self._later]
            self._forgotten, self._later = None, []
            for each in waiting:
                if isinstance(reply, Exception):
                    self._tell(each, Refused(f"not sent: {reply}"))
                else:
                    self._send(pipe, each)

        pipe.send(pack((b"SCRIPT", b"LOAD", self._keys.dialect.publishing)), loaded)

    def _give_up(self, why: str) -> None:
        """Answer those that were refused."""
        refused, self._forgotten = self._forgotten or [], []
        for batch in refused:
            self._tell(batch, Refused(why))
