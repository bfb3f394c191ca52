from __future__ import annotations

from collections.abc import Callable
from typing import cast

from router.carousel import Carousel
from router.turns import Turns


class Wheel:
    """A carousel with so many turns of work."""

    def __init__(self, turns: int) -> None:
        self.turns = turns

    @property
    def bytes_waiting(self) -> int:
        return 100 * self.turns

    def __bool__(self) -> bool:
        return self.turns > 0

    def turn(self) -> bool:
        self.turns -= 1
        return self.turns > 0


def test_it_comes_back_until_all_is_done_and_tells_what_waits() -> None:
    wheel, told, later = Wheel(3), list[int](), list[Callable[[], None]]()
    turns = Turns(cast(Carousel, wheel), later.append, told.append, lambda: 7)
    turns.go()
    turns.go()  # another batch meanwhile is no second one
    assert (wheel.turns, len(later), told) == (2, 1, [207, 207])
    later.pop()()
    assert (wheel.turns, len(later), told) == (1, 1, [207, 207])
    later.pop()()
    assert (wheel.turns, later, told) == (0, [], [207, 207, 7])
    turns.go()
    assert (later, told[-1]) == ([], 7)
