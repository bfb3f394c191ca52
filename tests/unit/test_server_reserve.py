"""Watches that are held back, by the kernel's own count."""

from __future__ import annotations

import errno
import gc
import os
import select
from pathlib import Path
from typing import Any

import pytest

from server import reserve
from server.reserve import RESTORE_SECONDS, WATCHES, Reserve

ENOSPC = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def watched() -> int:
    """How many watches this process has."""
    found = 0
    for path in Path("/proc/self/fdinfo").iterdir():
        if path.exists():
            found += path.read_text().count("tfd:")
    return found


class Few:
    """An epoll set on a host that has only `most` watches for this process."""

    most = 0

    def __init__(self, real: Any) -> None:
        self._real = real()

    def fileno(self) -> int:
        found: int = self._real.fileno()
        return found

    def register(self, fd: Any, events: int) -> None:
        if watched() >= Few.most:
            raise OSError(
                errno.ENOSPC, os.strerror(errno.ENOSPC)
            )  # its traceback holds those who were in the middle of it
        self._real.register(fd, events)


@pytest.fixture(autouse=True)
def others_are_gone() -> None:
    """What other tests have left is not freed in the middle of one here."""
    gc.collect()


def test_they_are_let_go_once_and_for_one_reason() -> None:
    before = watched()
    held = Reserve()
    assert (held.is_spent, watched()) == (False, before + WATCHES)
    assert not held.spend(OSError(errno.EBADF, ""))
    assert not held.is_spent
    assert held.spend(ENOSPC)
    assert (held.is_spent, watched()) == (True, before)
    assert not held.spend(ENOSPC), "there are no others"


def test_they_are_held_again_when_there_are_twice_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    before, real = watched(), select.epoll
    held = Reserve()
    held.spend(ENOSPC)
    monkeypatch.setattr(reserve.select, "epoll", lambda: Few(real))
    monkeypatch.setattr(Few, "most", before + 2 * WATCHES - 1)
    held.restore(100.0)
    assert (held.is_spent, watched()) == (True, before)
    monkeypatch.setattr(Few, "most", before + 2 * WATCHES)
    held.restore(100.0 + RESTORE_SECONDS / 2)
    assert held.is_spent, "not often"
    held.restore(100.0 + RESTORE_SECONDS)
    assert (held.is_spent, watched()) == (False, before + WATCHES)
    held.restore(200.0)
    assert watched() == before + WATCHES


def test_there_may_be_none_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    real = select.epoll
    monkeypatch.setattr(reserve.select, "epoll", lambda: Few(real))
    monkeypatch.setattr(Few, "most", watched() + WATCHES - 1)
    assert Reserve().is_spent
