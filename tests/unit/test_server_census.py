"""Counting over processes: a table a worker, added up by whoever asks."""

from __future__ import annotations

import os
import random
from collections import Counter

import pytest

from server.census import ALL, Census, key_of


def census(workers: int = 1, keys_max: int = 100, worker: int = 0) -> Census:
    found = Census(workers, keys_max)
    found.claim(worker)
    return found


def test_what_is_added_is_counted_until_it_is_discarded() -> None:
    table = census()
    alice = key_of("user alice")
    for count in (1, 2, 3):
        assert table.add(alice)
        assert table.count(alice) == count
    assert table.count(key_of("user bob")) == 0
    for count in (2, 1, 0, 0):
        table.discard(alice)
        assert table.count(alice) == count
    table.discard(key_of("nobody"))


def test_keys_of_different_kinds_differ_and_none_is_everybodys() -> None:
    assert len({key_of(name) for name in ("user a", "address a", "user b")}) == 3
    assert all(key_of(f"user {number}") != ALL for number in range(1000))


@pytest.mark.parametrize("seed", range(5))
def test_it_counts_as_a_dict_does_whatever_displaces_what(seed: int) -> None:
    """Keys that all want the same few places, near the end of the table, where it goes round."""
    dice = random.Random(seed)
    table, wanted = census(), Counter[int]()
    keys = [home | high << 9 for home in (0, 1, 2, 509, 510, 511) for high in range(1, 30)]
    for _ in range(6000):
        key = dice.choice(keys)
        if dice.random() < 0.5:
            assert table.add(key)
            wanted[key] += 1
        else:
            table.discard(key)
            wanted[key] = max(0, wanted[key] - 1)
    assert {key: table.count(key) for key in keys} == {key: wanted[key] for key in keys}
    for key in keys:
        for _ in range(wanted[key]):
            table.discard(key)
    assert not any(table._own), "and nothing is left"


def test_a_full_table_counts_no_more_and_goes_on() -> None:
    table = census(keys_max=1)
    taken = [table.add(key << 3 | 5) for key in range(1, 600)]
    assert taken == [True] * 448 + [False] * 151
    assert table.count(599 << 3 | 5) == 0
    table.discard(599 << 3 | 5)
    assert table.add(5 | 1 << 3), "those that are there still are counted"
    assert table.count(5 | 1 << 3) == 2


def test_counts_beyond_sixteen_bits() -> None:
    table = census()
    for _ in range(70_000):
        table.add(ALL)
    assert table.count(ALL) == 70_000


def forked(work: object) -> int:
    """Run `work` in a child; return its exit code, which is what it returns."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(work())  # type: ignore[operator]
        finally:
            os._exit(255)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_every_worker_sees_what_the_others_count() -> None:
    table = Census(3, 100)
    key = key_of("address 203.0.113.9")

    def work(number: int) -> int:
        table.claim(number)
        for _ in range(number + 1):
            table.add(key)
        return table.count(key)

    assert [forked(lambda number=number: work(number)) for number in range(3)] == [1, 3, 6]
    table.claim(1)  # it died, and this is its replacement
    assert table.count(key) == 4
    table.add(key)
    assert table.count(key) == 5


def test_it_takes_little_for_a_connection() -> None:
    assert len(Census(1, 20_000)._own) * 8 / 20_000 < 32
