from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Callable
from itertools import count

import pytest

from server.close import Close
from server.stats import BOUNDS, FIELDS, PAGE_BYTES, Histogram, Kind, Page, Pages, Stats, total


def filled() -> Stats:
    """Stats in which every number is another."""
    stats, numbers = Stats(), count(1)
    for field in FIELDS:
        value = getattr(stats, field.name)
        if isinstance(value, Histogram):
            value.counts = [next(numbers) for _ in value.counts]
            value.total = next(numbers) + 0.5
        elif isinstance(value, dict):
            value.update({code: next(numbers) for code in Close})
        else:
            setattr(stats, field.name, next(numbers))
    return stats


def plain(stats: Stats) -> dict[str, object]:
    """What can be compared."""
    values = {field.name: getattr(stats, field.name) for field in FIELDS}
    return {name: (v.counts, v.total) if isinstance(v, Histogram) else v for name, v in values.items()}


def in_child(work: Callable[[], None]) -> int:
    """Do `work` in a forked process; return its pid at once."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return pid


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [(0.0, 0), (0.0001, 0), (0.00011, 1), (0.001, 3), (0.0011, 4), (10.0, len(BOUNDS) - 1), (10.1, len(BOUNDS))],
)
def test_a_bucket_includes_its_upper_bound(seconds: float, bucket: int) -> None:
    histogram = Histogram()
    histogram.observe(seconds)
    assert histogram.counts.index(1) == bucket
    assert sum(histogram.counts) == 1
    assert histogram.total == seconds


def test_every_attribute_is_declared_and_none_can_be_added() -> None:
    assert [field.name for field in FIELDS] == [field.name for field in dataclasses.fields(Stats)]
    assert all(field.help and field.metric for field in FIELDS)
    with pytest.raises(AttributeError):
        Stats().acepted = 1  # type: ignore[attr-defined]


def test_codes_are_counted_by_member_and_by_number() -> None:
    stats = Stats()
    stats.closed[Close.SLOW] += 1
    assert stats.closed[3002] == 1  # type: ignore[index]
    with pytest.raises(KeyError):
        stats.closed[1234] += 1  # type: ignore[index]


def test_a_page_shows_what_was_written_last() -> None:
    page = Pages.create(1)[0]
    page.write(Stats(accepted=1), 10.0, 77)
    page.write(filled(), 11.5, 77)
    snapshot = page.read()
    assert (snapshot.clock, snapshot.pid, snapshot.started) == (11.5, 77, 10.0)
    assert plain(snapshot.stats) == plain(filled())
    assert page.clock() == 11.5


def test_a_page_never_written_is_empty() -> None:
    page = Pages.create(1)[0]
    snapshot = page.read()
    assert (page.clock(), snapshot.clock, snapshot.pid, snapshot.started) == (0.0, 0.0, 0, 0.0)
    assert plain(snapshot.stats) == plain(page.restore()) == plain(Stats())


def test_a_replacement_goes_on_with_counters_and_begins_with_gauges_at_zero() -> None:
    page = Pages.create(1)[0]
    page.write(filled(), 1.0, 77)
    restored, wanted = plain(page.restore()), plain(filled())
    gauges = {field.name for field in FIELDS if field.kind is Kind.GAUGE}
    assert {"connections_tcp", "connections_sse", "ready", "backlog_bytes"} < gauges
    assert restored == {name: 0 if name in gauges else value for name, value in wanted.items()}


def test_pages_are_shared_with_processes_and_apart_from_one_another() -> None:
    pages = Pages.create(3)

    def write(number: int) -> None:
        pages[number].write(Stats(accepted=number + 1), number + 0.5, os.getpid())

    pids = [in_child(lambda number=number: write(number)) for number in range(3)]  # type: ignore[misc]
    assert [ended(pid) for pid in pids] == [0, 0, 0]
    assert [page.read().pid for page in pages] == pids
    assert [page.read().stats.accepted for page in pages] == [1, 2, 3]
    assert len(pages) == 3


def test_a_replacement_in_another_process_is_newer_than_its_predecessor() -> None:
    page = Pages.create(1)[0]

    def work(times: int) -> None:
        stats = page.restore()
        for clock in range(times):
            stats.accepted += 1
            page.write(stats, float(clock), os.getpid())

    assert ended(in_child(lambda: work(5))) == 0
    second = in_child(lambda: work(1))
    assert ended(second) == 0
    assert (page.read().pid, page.read().stats.accepted) == (second, 6)


def torn(page: Page, memory: memoryview, stats: Stats) -> None:
    """Write `stats`, and undo the second half of the bytes that changed: what a worker killed in between leaves."""
    before = bytes(memory)
    page.write(stats, 3.0, 77)
    changed = [i for i, (old, new) in enumerate(zip(before, bytes(memory), strict=True)) if old != new]
    for i in changed[len(changed) // 2 :]:
        memory[i] = before[i]


def test_half_a_write_is_not_seen_and_loses_nothing_before_it() -> None:
    memory = memoryview(bytearray(PAGE_BYTES))
    page = Page(memory)
    page.write(Stats(accepted=1), 1.0, 77)
    page.write(Stats(accepted=2, closed=dict.fromkeys(Close, 2)), 2.0, 77)
    torn(page, memory, filled())
    assert page.read().stats.accepted == 2
    replacement = Page(memory)
    stats = replacement.restore()
    assert stats.accepted == 2
    stats.accepted += 1
    replacement.write(stats, 4.0, 78)
    assert (replacement.read().pid, replacement.read().stats.accepted) == (78, 3)


def test_half_of_the_very_first_write_is_as_good_as_none() -> None:
    memory = memoryview(bytearray(PAGE_BYTES))
    torn(Page(memory), memory, filled())
    assert Page(memory).read().pid == 0


def test_a_reader_beside_a_busy_writer_sees_whole_writes_that_never_go_back() -> None:
    page = Pages.create(1)[0]

    def work() -> None:
        stats = Stats()
        while True:
            for name in ("accepted", "published", "writes", "bus_reconnects"):
                setattr(stats, name, stats.accepted + 1 if name == "accepted" else stats.accepted)
            stats.closed = dict.fromkeys(Close, stats.accepted)
            page.write(stats, float(stats.accepted), os.getpid())

    writer = in_child(work)
    try:
        last, until = 0, time.monotonic() + 0.5
        while time.monotonic() < until or last == 0:
            assert time.monotonic() < until + 10, "the writer wrote nothing"
            stats = page.read().stats
            assert {stats.published, stats.writes, stats.bus_reconnects, *stats.closed.values()} == {stats.accepted}
            assert stats.accepted >= last
            last = stats.accepted
    finally:
        os.kill(writer, signal.SIGKILL)
        ended(writer)
    assert page.restore().accepted >= last


def test_total_adds_up_everything() -> None:
    one, other = filled(), Stats(accepted=5, ready=1)
    other.fanout.observe(99.0)
    added = total([one, other])
    assert added.accepted == one.accepted + 5
    assert added.fanout.counts[-1] == one.fanout.counts[-1] + 1
    assert added.fanout.total == one.fanout.total + 99.0
    assert added.closed == one.closed
    assert total([other, other]).ready == 2
    assert plain(total([])) == plain(Stats())


def test_the_supervisor_has_numbers_of_its_own() -> None:
    pages = Pages.create(2)
    assert (pages.supervisor_pid, pages.restarts(0), pages.restarts(1)) == (0, 0, 0)
    pages.supervisor_pid = 4_000_000
    pages.restarted(1)
    pages.restarted(1)
    assert ended(in_child(lambda: os._exit(pages.restarts(1)))) == 2
    assert (pages.supervisor_pid, pages.restarts(0), pages.restarts(1)) == (4_000_000, 0, 2)
    assert pages[0].read().pid == pages[1].read().pid == 0


def test_connections_are_of_both_transports() -> None:
    assert Stats(connections_tcp=2, connections_sse=3).connections == 5
