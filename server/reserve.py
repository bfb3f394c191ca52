"""Epoll watches that are kept back for the worker itself.

The kernel has only so many for all processes of a user, fs.epoll.max_user_watches of epoll(7), and refuses one more with
ENOSPC. The event loop needs some of its own, for HTTP requests and for the way back to Redis, and libuv aborts the process
where it gets none. So a few are held here and let go when there are no others; no session is let in until they can be held again.
"""

from __future__ import annotations

import errno
import select

WATCHES = 16
RESTORE_SECONDS = 5.0
_SETS = 4
_SCARCE = frozenset({errno.ENOSPC, errno.ENOMEM})


class Reserve:
    """The reserve of one worker: held, or spent."""

    def __init__(self) -> None:
        self._held = _hold(WATCHES)
        self._again_at = 0.0

    @property
    def is_spent(self) -> bool:
        """True while the kernel has no watches for sessions."""
        return not self._held

    def spend(self, error: OSError) -> bool:
        """Let them go if that is what `error` is about; False when it is not, or they are gone already."""
        if error.errno not in _SCARCE or not self._held:
            return False
        self._held = []
        return True

    def restore(self, now: float) -> None:
        """Hold them again, when there are as many besides: otherwise the next newcomer would spend them again.

        Not often: whoever wants one at that moment finds none.
        """
        if not self._held and now >= self._again_at:
            self._again_at = now + RESTORE_SECONDS
            if _hold(2 * WATCHES):
                self._held = _hold(WATCHES)


def _hold(count: int) -> list[select.epoll]:
    """Take `count` watches; they are free again when the list is. Empty when there are not as many.

    A few sets watch the same descriptors, because those are scarce as well.
    """
    try:
        watching = [select.epoll() for _ in range(_SETS)]
        watched = [select.epoll() for _ in range(count // _SETS)]
        for each in watching:
            for other in watched:
                each.register(other, 0)
    except OSError:
        return []
    return watching + watched
