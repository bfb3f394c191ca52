"""Growth of slab caches, as objects a socket."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from tuning.footprint import growth, slabs

PAGE = resource.getpagesize()


def test_whole_objects_a_socket_and_the_noise_is_left_out() -> None:
    before = {"TCP": (100, 2520.0), "dentry": (5000, 195.0), "filp": (900, 195.0), "kmalloc-8": (0, 8.0)}
    after = {"TCP": (2103, 2520.0), "dentry": (6010, 195.0), "filp": (1010, 195.0), "kmalloc-8": (1500, 8.0)}
    # 1,000 sockets: 2.003 TCP and 1.01 dentries each; 0.11 files are noise, 1.5 of a cache could be either.
    assert growth(before, after, 1000) == {"TCP": 2, "dentry": 1}


def test_slabinfo_is_read(tmp_path: Path) -> None:
    (tmp_path / "slabinfo").write_text(
        "slabinfo - version: 2.1\n"
        "# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables ...\n"
        "TCP                  13     26   2368   13    8 : tunables    0    0    0 : slabdata      2      2      0\n"
    )
    assert slabs(tmp_path) == {"TCP": (13, 8 * PAGE / 13)}
    with pytest.raises(OSError, match="slabinfo"):
        slabs(tmp_path / "elsewhere")
