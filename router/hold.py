"""What arrives while a hole is being filled: messages, and joins in their places among them."""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from router import journal
from router.message import Message

log = logging.getLogger("moorage.hold")

LATER = sys.maxsize  # the number of what is behind everything: a message of a newer epoch


class Payload(NamedTuple):
    """A message as it came on the bus."""

    name: bytes
    payload: bytes


class Join(NamedTuple):
    """Who wants to enter, behind the message with `number`; `enter` is told whether that is where they are."""

    number: int
    enter: Callable[[bool], None]


Item = Payload | Join | Message  # a Message is one that was found


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

    def merge(self, found: list[Message], epoch: str) -> Iterator[Item]:
        """Yield everything in the order of `epoch`, once: what was held, and what was `found`, which may be the same."""
        waiting = deque(found)
        reached = -1
        for item in self._items:
            number = _number(item, epoch.encode())
            while waiting and number is not None and (reached_next := _number_of(waiting[0])) <= number:
                reached = reached_next
                yield waiting.popleft()
            if isinstance(item, Join) or number is None or number != reached:
                yield item
        yield from waiting


def _number(item: Item, epoch: bytes) -> int | None:
    """Return an item's place in the order of `epoch`; None for a live-only message, which has its place behind another."""
    if isinstance(item, Join):
        return item.number
    if isinstance(item, Message):
        return _number_of(item)
    try:
        number = journal.number_of(item.payload)
    except ValueError:  # not one of ours; whoever delivers it will say so
        return None
    return number if number is None or item.payload.startswith(epoch) else LATER


def _number_of(message: Message) -> int:
    return int(message.id.rpartition(b"-")[2])
