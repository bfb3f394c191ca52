"""Who runs where: clients stay off the CPUs of the workers they measure, where there are CPUs enough."""

from __future__ import annotations

import os
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager


@contextmanager
def aside(taken: AbstractSet[int]) -> Iterator[set[int]]:
    """Move this process, and those it forks meanwhile, off the CPUs `taken`; yield where they run."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, before - taken or before)
        yield os.sched_getaffinity(0)
    finally:
        os.sched_setaffinity(0, before)  # a server started later is to have all of them
