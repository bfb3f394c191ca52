"""Which process of a parallel run gets which tests: those that share a server, a cluster or a browser get the same.

It is then started once, and not once in every process. pytest-xdist has `--dist loadgroup` for that, which gives tests with the
same mark to one process, but knows them by an attribute that pytest 9 no longer reads. So the marks are found in the files, where
they stand for all tests of one.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

_GROUP = re.compile(r'^pytestmark = .*\bxdist_group\("(\w+)"\)', re.MULTILINE)


class Grouped(LoadScopeScheduling):
    """Files with a mark for all of their tests go to one process, every other test to the next that has room."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(self.config.rootpath / nodeid.partition("::")[0]) or nodeid


@cache
def group_of(file: Path) -> str:
    """Return the name in the mark of a file, "" when it has none."""
    found = _GROUP.search(file.read_text())
    return found[1] if found else ""
