"""Which servers are taken for a Redis."""

from __future__ import annotations

from typing import Any

import pytest

from router.node import check_role, check_version, has_moved
from router.outcome import Refused


@pytest.mark.parametrize(
    "version", [b"7.0.15", b"7.2.4", b"8.0.0", b"9.1.2", b"10.0.0", b"255.255.255", b"", b"unknown"]
)
def test_a_server_that_is_new_enough(version: bytes) -> None:
    check_version({b"server": b"redis", b"version": version})


def test_an_old_server_is_told_apart() -> None:
    with pytest.raises(Refused, match=r"found Redis 6\.2\.14, want Redis 7 or newer, or Valkey"):
        check_version({b"server": b"redis", b"version": b"6.2.14"})


@pytest.mark.parametrize("hello", [{}, {b"role": b"master"}, {b"role": b"master", b"mode": b"cluster"}, b"OK"])
def test_a_master_is_taken(hello: object) -> None:
    check_role(hello)


def test_what_takes_no_writes_is_named() -> None:
    with pytest.raises(Refused, match="found a replica, want the master"):
        check_role({b"role": b"replica", b"mode": b"standalone"})
    with pytest.raises(Refused, match=r"found a Sentinel, want redis\+sentinel://"):
        check_role({b"mode": b"sentinel"})


class Place:
    """Where the master is, of which nobody may know."""

    def __init__(self, *found: str) -> None:
        self.address = found[0]
        self._found = list(found[1:])

    async def locate(self) -> Any:
        if not self._found:
            raise Refused("nobody knows")
        self.address = self._found.pop(0)


@pytest.mark.parametrize(("found", "moved"), [(("a", "a"), False), (("a", "b"), True), (("a",), False)])
async def test_a_master_that_refuses_writes_may_have_a_successor(found: tuple[str, ...], moved: bool) -> None:
    assert await has_moved(Place(*found)) is moved
