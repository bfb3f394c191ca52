from collections import Counter

import pytest

from bench.clients import Plan, Tally
from bench.load import CONNECTIONS_PER_SOURCE_MAX, processes_needed, shares, sources, total
from bench.settings import Impossible
from bench.target import room_for


def test_a_plan_is_shared_out_without_overlap() -> None:
    plan = Plan("tcp", ("127.0.0.1", 1), 100, 10, tokens=tuple(map(str, range(10))), rate=9.0)
    parts = list(shares(plan, 3))
    assert [(part.first, part.count) for part in parts] == [(100, 4), (104, 3), (107, 3)]
    assert sum((part.tokens for part in parts), ()) == plan.tokens
    assert [part.rate for part in parts] == [3.0, 3.0, 3.0]
    used = [address for part in parts for address, _ in part.sources]
    assert len(set(used)) == 3


def test_no_address_is_used_twice_nor_for_too_many() -> None:
    first, second = list(sources(30_000)), list(sources(500))
    assert [count for _, count in first] == [CONNECTIONS_PER_SOURCE_MAX, CONNECTIONS_PER_SOURCE_MAX, 6_000]
    addresses = [address for address, _ in first + second]
    assert len(set(addresses)) == 4
    assert all(address.startswith("127.") for address in addresses)


def test_processes_add_up() -> None:
    one = Tally(2, 5, 1, Counter({"lost": 1}), 10, b"")
    other = Tally(3, 6, 0, Counter({"lost": 2, "refused": 1}), 20, b"frame")
    assert total([one, other]) == Tally(5, 11, 1, Counter({"lost": 3, "refused": 1}), 20, b"frame")


def test_too_few_client_processes_are_refused_with_how_many_it_takes() -> None:
    assert processes_needed(100, None) == 1
    assert processes_needed(100, 3) == 3
    with pytest.raises(Impossible, match="--client-processes: 1 hold"):
        processes_needed(1 << 31, 1)


def test_too_few_workers_are_refused_with_how_many_it_takes() -> None:
    room_for(100, 1)
    with pytest.raises(Impossible, match="take --workers"):
        room_for(1 << 31, 2)
