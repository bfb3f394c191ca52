"""The carousel's turns in the event loop: between two of them it does other things."""

from __future__ import annotations

from collections.abc import Callable

from router.carousel import Carousel


class Turns:
    """Gives `carousel` its turns. `later` is loop.call_soon.

    `on_waiting(bytes)` is told how much is waiting there, and in what `held()` returns besides.
    """

    def __init__(
        self, carousel: Carousel, later: Callable[..., object], on_waiting: Callable[[int], None],
        held: Callable[[], int],
    ) -> None:  # fmt: skip
        self._carousel, self._later, self._on_waiting, self._held = carousel, later, on_waiting, held
        self._going = False

    def go(self) -> None:
        """Begin, unless that has been done; call behind every batch."""
        if self._carousel and not self._going:
            self._turn()
        self._on_waiting(self._carousel.bytes_waiting + self._held())

    def _turn(self) -> None:
        """Give it one, and come back while it has more to do."""
        self._going = self._carousel.turn()
        if self._going:
            self._later(self._turn)
        else:
            self._on_waiting(self._carousel.bytes_waiting + self._held())
