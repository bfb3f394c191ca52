"""Tokens that expire: each descriptor once, and not before its time."""

from __future__ import annotations

import pytest

from server import expiry
from server.expiry import Expiry


def due(table: Expiry, now: float) -> list[int]:
    return list(table.due(now))


def test_each_is_due_once_and_not_before_its_time() -> None:
    table = Expiry()
    table.set(5, 100.0)
    table.set(900, 101.0)
    assert due(table, 99.0) == []
    assert due(table, 100.0) == [5]
    assert due(table, 200.0) == [900]
    assert due(table, 300.0) == []


def test_those_without_an_end_are_never_due() -> None:
    table = Expiry()
    table.set(3, None)
    table.set(4, 100.0)
    table.set(4, None)  # the descriptor has been given to another
    table.set(5, 1e12)
    assert due(table, 2.0**32 - 2) == []


def test_a_descriptor_that_is_used_again_has_its_own_end() -> None:
    table = Expiry()
    table.set(7, 100.0)
    table.set(7, 500.0)
    assert due(table, 400.0) == []
    assert due(table, 500.0) == [7]


def test_sessions_may_leave_while_others_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Expiry()
    for fd in range(10):
        table.set(fd, 100.0)
    found = []
    for fd in table.due(100.0):
        found.append(fd)
        table.set(fd, None)
    assert found == list(range(10))
    monkeypatch.setattr(expiry, "_SLICE", 4)
    for fd in range(10):
        table.set(fd, 200.0)
    assert [due(table, 200.0) for _ in range(4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], []]


def test_an_empty_table_has_nothing_due() -> None:
    assert due(Expiry(), 0.0) == []
