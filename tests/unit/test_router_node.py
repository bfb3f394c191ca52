"""Which servers are taken for a Redis."""

from __future__ import annotations

import pytest

from router.node import check_version
from router.pipe import Refused


@pytest.mark.parametrize(
    "version", [b"7.0.15", b"7.2.4", b"8.0.0", b"9.1.2", b"10.0.0", b"255.255.255", b"", b"unknown"]
)
def test_a_server_that_is_new_enough(version: bytes) -> None:
    check_version({b"server": b"redis", b"version": version})


def test_an_old_server_is_told_apart() -> None:
    with pytest.raises(Refused, match=r"found Redis 6\.2\.14, want Redis 7 or newer, or Valkey"):
        check_version({b"server": b"redis", b"version": b"6.2.14"})
