"""What arrives while a hole is being filled: messages, and joins in their places among them."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from router import journal
from router.message import Message
from router.repair import Found

LATER = sys.maxsize  # the number of what is behind everything: a message of a newer epoch


class Payload(NamedTuple):
    """A message as it came on the bus."""

    channel: bytes
    payload: bytes


class Join(NamedTuple):
    """Who wants to enter `names`, behind the message with `number`; `enter` is told whether that is where they are."""

    number: int
    names: Sequence[bytes]
    enter: Callable[[bool], None]


Item = (
    Payload | Join | Message
)  # a Message is one that was found, or, without a position, a gap that is still to be told


class Hold:
    """A queue, in the order of the bus."""

    def __init__(self) -> None:
        self.bytes = 0  # of the payloads in it
        self._items: deque[Item] = deque()

    def append(self, item: Item) -> None:
        """Queue `item` behind the others."""
        self._items.append(item)
        if isinstance(item, Payload):
            self.bytes += len(item.payload)

    def joins(self) -> list[Join]:
        """Return the joins in it."""
        return [item for item in self._items if isinstance(item, Join)]

    def merge(self, found: Found, epoch: str, upto: int) -> Iterator[Item]:
        """Yield everything in the order of `epoch`, once: what was held, and what was `found` up to the number `upto`.

        A gap stands for all that a channel lacks up to what was found: what was held of that is left out, and who comes
        meanwhile is told too.
        """
        waiting = deque(found.messages)
        reached = -1
        for item in self._items:
            number = _number(item, epoch.encode())
            while waiting and number is not None and (next_number := _number_of(waiting[0])) <= number:
                reached = next_number
                yield waiting.popleft()
            if isinstance(item, Join):
                yield item
                lacking = found.gaps if item.number < upto else ()
                yield from (Message(b"gap", name, b"", b"") for name in item.names if name in lacking)
            elif number is None or number > upto or (number != reached and item.channel not in found.gaps):
                yield item
        yield from waiting


def _number(item: Item, epoch: bytes) -> int | None:
    """Return an item's place in the order of `epoch`; None for what has none: it stays behind the one before it."""
    if isinstance(item, Join):
        return item.number
    if isinstance(item, Message):
        return _number_of(item) if item.position else None
    try:
        number = journal.number_of(item.payload)
    except ValueError:  # not one of ours; whoever delivers it will say so
        return None
    return number if number is None or item.payload.startswith(epoch) else LATER


def _number_of(message: Message) -> int:
    return int(message.id.rpartition(b"-")[2])
