"""What was missed: in order over channels and pages, bounded, shared, and with every lack of it known."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator

import pytest
from journals import Desk, number

from router import journal, replay
from router.embedded import Embedded
from router.journal import Retention
from router.message import Message
from router.outcome import Refused, Unconfirmed
from router.position import START, Id, Position
from router.replay import Entry, Missed, Page, Reader

FEW = Retention(5, 3600)


@pytest.fixture(scope="module")
def server() -> Iterator[Embedded]:
    with Embedded() as embedded:
        yield embedded


@pytest.fixture
def desk(server: Embedded) -> Iterator[Desk]:
    desk = Desk(server)
    yield desk
    desk.close()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def read_all(missed: Missed, steps_max: int = 10_000) -> list[Message]:
    """Take all steps; fail when one of them fails."""
    found: list[Message] = []

    def took(step: list[Message] | Exception) -> None:
        assert not isinstance(step, Exception), step
        found.extend(step)

    while not missed.is_done:
        missed.step(took)
        steps_max -= 1
        assert steps_max > 0
    return found


def numbers(found: list[Message]) -> list[int]:
    return [int(message.id.split(b"-")[1]) for message in found]


def page_of(reader: Reader, name: bytes, after: Position, upto: Position, **limits: int) -> Page:
    pages: list[Page | Exception] = []
    reader.page(name, after.epoch, after.id, upto.id, pages.append, **limits)
    assert isinstance(pages[0], Page)
    return pages[0]


@pytest.mark.parametrize("channels", [1, 2, 7, 40])
def test_all_channels_in_one_order_over_many_pages(desk: Desk, channels: int) -> None:
    rng = random.Random(channels)
    names = [b"room:%d" % n for n in range(channels)]
    start = desk.place()
    # Uneven on purpose: one channel has most of it, some have nothing.
    weights = [1 / (1 + n) ** 2 for n in range(channels)]
    sent = [number(desk.publish(rng.choices(names, weights)[0], b'"%b"' % (b"x" * 40))) for _ in range(700)]
    upto = desk.place()
    desk.publish(names[0])  # comes live
    reader = Reader(desk, desk.keys)
    missed = Missed(reader, start.epoch, dict.fromkeys(names, start.id), upto.id)
    assert numbers(read_all(missed)) == sent
    assert missed.gaps == []
    assert reader.reads <= 700 / 20 + 3 * channels  # none is read twice


def test_very_many_channels_are_read_some_at_a_time(desk: Desk) -> None:
    names = [b"@u%d" % n for n in range(95)]
    start = desk.place()
    sent = [number(desk.publish(names[n * 7 % 95])) for n in range(150)]
    starts = dict.fromkeys(names, start.id)
    missed = Missed(Reader(desk, desk.keys), start.epoch, starts, desk.place().id, pages_max=10)
    desk.is_prompt = False
    steps: list[list[Message] | Exception] = []
    while not missed.is_done:
        missed.step(steps.append)
        assert len(desk.asked) <= 10, "the probes of the bus wait behind them"
        desk.answer()
    assert [n for step in steps if isinstance(step, list) for n in numbers(step)] == sent
    assert not any(steps[:9]), "what has not been read may be earlier"


def test_large_messages_come_few_at_a_time(desk: Desk) -> None:
    start, big = desk.place(), b'"%b"' % (b"x" * 60_000)
    names = [b"room:a", b"room:b"]
    sent = [number(desk.publish(names[n % 2], big)) for n in range(40)]
    reader, steps = Reader(desk, desk.keys), []
    missed = Missed(reader, start.epoch, dict.fromkeys(names, start.id), desk.place().id)
    while not missed.is_done:
        missed.step(lambda step: steps.append(step))
    assert [n for step in steps if isinstance(step, list) for n in numbers(step)] == sent
    sizes = [sum(len(message.members) for message in step) for step in steps if isinstance(step, list)]
    assert max(sizes) <= 2 * replay.PAGE_BYTES_MAX


def test_a_cut_anywhere_is_gone_on_from(desk: Desk) -> None:
    names = [b"room:a", b"room:b", b"room:c"]
    start = desk.place()
    sent = [number(desk.publish(names[n % 3])) for n in range(30)]
    upto = desk.place()
    whole = read_all(Missed(Reader(desk, desk.keys), start.epoch, dict.fromkeys(names, start.id), upto.id))
    for cut, message in enumerate(whole):
        ms, _, at = message.id.partition(b"-")
        starts = dict.fromkeys(names, Id(int(ms), int(at)))
        assert numbers(read_all(Missed(Reader(desk, desk.keys), start.epoch, starts, upto.id))) == sent[cut + 1 :]


def test_a_trimmed_channel_is_named_once_and_the_others_are_whole(desk: Desk) -> None:
    start = desk.place()
    few = [number(desk.publish(b"few:a", retention=FEW)) for _ in range(8)]
    many = [number(desk.publish(b"room:a")) for _ in range(250)]
    late = [number(desk.publish(b"few:a", retention=FEW)) for _ in range(2)]
    missed = Missed(Reader(desk, desk.keys), start.epoch, {b"few:a": start.id, b"room:a": start.id}, desk.place().id)
    assert numbers(read_all(missed)) == few[-3:] + many + late
    assert missed.gaps == [b"few:a"]


def test_what_is_trimmed_between_two_pages_is_told(desk: Desk) -> None:
    start = desk.place()
    sent = [number(desk.publish(b"room:a")) for _ in range(150)]
    upto = desk.place()
    missed = Missed(Reader(desk, desk.keys), start.epoch, {b"room:a": start.id}, upto.id)
    found: list[list[Message] | Exception] = []
    missed.step(found.append)
    assert isinstance(found[0], list)
    assert numbers(found[0]) == sent[: replay.PAGE_MESSAGES_MAX]
    assert missed.gaps == []
    for _ in range(4):
        desk.publish(b"room:a", retention=FEW)
    assert numbers(read_all(missed)) == sent[-1:]
    assert missed.gaps == [b"room:a"]


@pytest.mark.parametrize("kept", [0, 3])
def test_all_that_was_missed_is_gone_and_newer_is_there(desk: Desk, kept: int) -> None:
    start = desk.place()
    desk.publish(b"room:a")
    upto = desk.place()
    for _ in range(kept):
        desk.publish(b"room:a", retention=Retention(max(1, kept), 3600))
    if not kept:
        desk.client.delete(desk.keys.stream(b"room:a"))  # as when it has expired
    page = page_of(Reader(desk, desk.keys), b"room:a", start, upto)
    assert page == Page([], False, False)


def test_a_channel_that_was_quiet_for_long_is_whole(desk: Desk) -> None:
    """Its messages have expired, and somebody comes back who had the last of them."""
    desk.publish(b"room:a")
    after = desk.place()
    desk.client.delete(desk.keys.stream(b"room:a"))
    for _ in range(3):
        desk.publish(b"room:b")
    assert page_of(Reader(desk, desk.keys), b"room:a", after, desk.place()) == Page([], False, True)


def test_a_channel_of_which_nothing_is_remembered_is_whole_for_as_long_as_it_would_be(desk: Desk) -> None:
    at, wall = desk.place(), Clock()
    reader = Reader(desk, desk.keys, wall=wall)
    wall.now = at.id.ms / 1000 + journal.RESUME_SECONDS_MAX - 60
    assert page_of(reader, b"room:a", at, at).whole
    wall.now += 120
    assert not page_of(Reader(desk, desk.keys, wall=wall), b"room:a", at, at).whole


def test_one_read_for_all_who_ask_for_the_same(desk: Desk) -> None:
    start = desk.place()
    sent = [number(desk.publish(b"room:a")) for _ in range(3)]
    upto, clock = desk.place(), Clock()
    reader, pages = Reader(desk, desk.keys, clock=clock), list[Page | Exception]()
    desk.is_prompt = False
    for _ in range(50):
        reader.page(b"room:a", start.epoch, start.id, upto.id, pages.append)
    assert (len(desk.asked), pages) == (1, [])
    desk.answer()
    assert len(pages) == 50
    clock.now += replay.PAGE_SECONDS_MAX / 2
    reader.page(b"room:a", start.epoch, start.id, upto.id, pages.append)
    assert [[entry.id.number for entry in page.entries] for page in pages if isinstance(page, Page)] == [sent] * 51
    assert reader.reads == 1
    clock.now += replay.PAGE_SECONDS_MAX
    reader.page(b"room:a", start.epoch, start.id, upto.id, pages.append)
    desk.answer()
    assert reader.reads == 2


def test_a_page_of_another_epoch_is_another(desk: Desk) -> None:
    """In a cluster the numbers that a dead master had given out last are given out again, to other messages."""
    start = desk.place()
    desk.publish(b"room:a")
    upto, reader = desk.place(), Reader(desk, desk.keys)
    (entry,) = page_of(reader, b"room:a", start, upto).entries
    assert entry.message.position.startswith(start.epoch.encode())
    assert page_of(reader, b"room:a", start._replace(epoch="00000bad"), upto) == Page([], more=False, whole=False)
    assert reader.reads == 2


def test_kept_pages_are_bounded_and_go_with_time(desk: Desk) -> None:
    at, clock = desk.place(), Clock()
    reader = Reader(desk, desk.keys, clock=clock)
    for room in range(replay.PAGES_KEPT_MAX + 50):
        page_of(reader, b"room:%d" % room, at, at)
    assert len(reader._kept) == replay.PAGES_KEPT_MAX
    clock.now += replay.PAGE_SECONDS_MAX / 2
    page_of(reader, b"room:last", at, at)
    clock.now += replay.PAGE_SECONDS_MAX / 2
    reader.tick()
    assert [name for name, *_ in reader._kept] == [b"room:last"]
    clock.now += replay.PAGE_SECONDS_MAX / 2
    reader.tick()
    assert not reader._kept


def test_a_failure_reaches_all_who_wait_and_is_not_kept(desk: Desk) -> None:
    at = desk.place()
    reader, pages = Reader(desk, desk.keys), list[Page | Exception]()
    desk.is_prompt = False
    for _ in range(2):
        reader.page(b"room:a", at.epoch, at.id, at.id, pages.append)
    desk.fail(Unconfirmed("cut"))
    assert [str(page) for page in pages] == ["cut", "cut"]
    desk.is_prompt = True
    assert page_of(reader, b"room:a", at, at).whole


def test_a_failed_step_is_one_answer(desk: Desk) -> None:
    start = desk.place()
    desk.is_prompt = False
    missed = Missed(Reader(desk, desk.keys), start.epoch, {b"room:a": start.id, b"room:b": start.id}, start.id)
    found: list[list[Message] | Exception] = []
    missed.step(found.append)
    desk.answer(1)
    assert found == []
    desk.fail(Unconfirmed("cut"))
    assert [str(each) for each in found] == ["cut"]


def test_to_abandon_names_what_may_have_more(desk: Desk) -> None:
    start = desk.place()
    for n in range(150):
        desk.publish(b"room:%d" % (n % 2))
    desk.publish(b"room:c")
    starts = dict.fromkeys([b"room:0", b"room:1", b"room:c"], start.id)
    missed = Missed(Reader(desk, desk.keys), start.epoch, starts, desk.place().id)
    assert sorted(missed.abandon()) == sorted(starts)
    assert missed.is_done


@pytest.mark.parametrize(("limit", "expected"), [(2, [1, 2]), (100, list(range(1, 6)))])
def test_history_behind_a_position(desk: Desk, limit: int, expected: list[int]) -> None:
    start = desk.place()
    for _ in range(5):
        desk.publish(b"room:a")
    found: list[list[Entry] | Exception] = []
    Reader(desk, desk.keys).newest(b"room:a", start.epoch, start.id, limit, found.append)
    assert isinstance(found[0], list)
    assert [entry.id.number for entry in found[0]] == expected


def test_the_newest_in_order_and_the_lasts(desk: Desk) -> None:
    epoch = desk.place().epoch
    for _ in range(5):
        desk.publish(b"room:a")
    found: list[list[Entry] | Exception] = []
    reader = Reader(desk, desk.keys)
    reader.newest(b"room:a", epoch, None, 3, found.append)
    assert isinstance(found[0], list)
    assert [entry.id.number for entry in found[0]] == [3, 4, 5]
    lasts: list[list[Id | None] | Exception] = []
    reader.lasts([b"room:a", b"room:never"], lasts.append)
    assert isinstance(lasts[0], list)
    assert [last and last.number for last in lasts[0]] == [5, None]


def add_strays(desk: Desk, name: bytes, fields: dict[str, str], count: int = 1) -> None:
    """Add entries as somebody else would, between those of ours: in a millisecond of their own."""
    ms = begun = desk.place().id.ms
    while ms == begun:
        ms = desk.place().id.ms
    for _ in range(count):
        desk.client.xadd(desk.keys.stream(name), fields, id=f"{ms}-*")
    while desk.place().id.ms == ms:
        pass


STRAYS = [{"x": "1"}, {"a": "b", "c": "d"}, {"p": "0-0"}, {"p": "0-0", "m": ""}, {"p": "0-0", "m": "{}", "q": "r"}]


@pytest.mark.parametrize("stray", STRAYS, ids=str)
def test_entries_of_others_are_left_out_and_told(
    desk: Desk, stray: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    name = b"room:%d" % STRAYS.index(stray)  # each is logged once
    start = desk.place()
    sent = []
    for _ in range(3):
        add_strays(desk, name, stray)
        sent.append(number(desk.publish(name)))
    reader, upto = Reader(desk, desk.keys), desk.place()
    page = page_of(reader, name, start, upto)
    assert ([entry.id.number for entry in page.entries], page.more, page.whole) == (sent, False, False)
    missed = Missed(reader, start.epoch, {name: start.id}, upto.id)
    assert (numbers(read_all(missed)), missed.gaps) == (sent, [name])
    for after in (None, START):
        found: list[list[Entry] | Exception] = []
        reader.newest(name, start.epoch, after, 10, found.append)
        assert isinstance(found[0], list)
        assert [entry.id.number for entry in found[0]] == sent
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 3
    assert f"in the stream of {name!r}, the entry b'" in caplog.text


def test_a_page_of_nothing_but_entries_of_others_ends_it(desk: Desk) -> None:
    start = desk.place()
    first = number(desk.publish(b"room:a"))
    add_strays(desk, b"room:a", {"x": "1"}, replay.PAGE_MESSAGES_MAX + 10)
    desk.publish(b"room:a")
    missed = Missed(Reader(desk, desk.keys), start.epoch, {b"room:a": start.id}, desk.place().id)
    assert numbers(read_all(missed)) == [first]
    assert set(missed.gaps) == {b"room:a"}


def test_a_last_id_that_cannot_be_read_is_looked_into(desk: Desk) -> None:
    start = desk.place()
    sent = number(desk.publish(b"room:a"))
    for name in (b"room:a", b"room:b"):
        desk.client.set(desk.keys.last(name), "yesterday")
    reader, lasts = Reader(desk, desk.keys), list[list[Id | None] | Exception]()
    reader.lasts([b"room:a", b"room:b", b"room:c"], lasts.append)
    assert isinstance(lasts[0], list)
    assert [last is not None and last > desk.place().id for last in lasts[0]] == [True, True, False]
    assert [entry.id.number for entry in page_of(reader, b"room:a", start, desk.place()).entries] == [sent]
    assert page_of(reader, b"room:b", start, desk.place()) == Page([], False, False)


def test_an_answer_of_another_form_is_a_refusal(desk: Desk) -> None:
    desk.is_prompt = False
    reader, pages = Reader(desk, desk.keys), list[Page | Exception]()
    reader.page(b"room:a", "01234567", START, START, pages.append)
    desk.asked.popleft()[1](7)
    assert [(type(page), str(page)) for page in pages] == [(Refused, "an answer of an unknown form: 7")]


def test_a_bug_behind_one_who_shares_a_page_stops_no_other(desk: Desk) -> None:
    desk.is_prompt = False
    reader, pages = Reader(desk, desk.keys), list[Page | Exception]()

    def broken(_page: object) -> None:
        raise KeyError("a bug")

    for done in (broken, pages.append):
        reader.page(b"room:a", "01234567", START, START, done)
    desk.fail(Unconfirmed("cut"))
    assert [str(page) for page in pages] == ["cut"]
