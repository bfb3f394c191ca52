"""What the bus promises, against real servers: delivery, positions, order, and what a publisher is told."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from stations import KINDS, Client, Station, client_of, number, server_of, sockets, until, watched

from router import bus, journal
from router.bus import BusDown, Busy
from router.embedded import Embedded
from router.journal import Retention
from router.outcome import Refused
from router.pipe import Done, pack


@pytest.fixture(scope="module", params=KINDS)
def server(request: pytest.FixtureRequest) -> Iterator[Embedded]:
    with server_of(request.param) as server:
        yield server


@pytest.fixture
def outside(server: Embedded) -> Iterator[Client]:
    """A look at the server from outside."""
    with client_of(server) as client:
        yield client


@pytest.fixture
async def station(server: Embedded) -> AsyncIterator[Station]:
    async with watched(), Station(server.url) as station:
        yield station


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are left soon, probes come often."""
    monkeypatch.setattr(bus, "PROBE_SECONDS", 0.02)
    monkeypatch.setattr(bus, "PROBES_UNANSWERED_MAX", 25)  # half a second: a busy machine may hold Redis up
    monkeypatch.setattr(bus, "PROBES_LATE_MAX", 250)
    monkeypatch.setattr(bus, "LEAVE_SECONDS", 0.05)


def subscribed(outside: Client, station: Station) -> set[bytes]:
    """The names of `station` that some connection is subscribed to, but those of the bus itself."""
    found = outside.pubsub_channels(f"{station.prefix}*")
    return {name.removeprefix(station.prefix.encode()) for name in found if b"$" not in name}


async def test_what_is_published_arrives_with_the_position_its_publisher_got(station: Station) -> None:
    await station.join(b"room:a")
    position = await station.publish(b"room:a", b',"data":"hi"')
    assert isinstance(position, bytes)
    await station.comes(b"room:a", position)
    assert station.messages == [(b"room:a", b'%b 0-0 ,"data":"hi"' % position)]
    assert station.batches > 0


async def test_two_workers_hear_each_other(server: Embedded, station: Station) -> None:
    async with Station(server.url, station.prefix) as other:
        await station.join(b"room:a")
        await other.join(b"room:a", b"@bob")
        for publisher in (station, other):
            position = await publisher.publish(b"room:a")
            await station.comes(b"room:a", position)
            await other.comes(b"room:a", position)
        await other.comes(b"@bob", await station.publish(b"@bob"))
        assert not station.positions(b"@bob")


async def test_a_pipelined_stream_keeps_its_order(station: Station) -> None:
    await station.join(b"room:a", b"room:b")
    answers = [station.publish_nowait(random.choice([b"room:a", b"room:b"])) for _ in range(2000)]
    positions = await asyncio.gather(*answers)
    assert [number(position) for position in positions] == list(range(1, 2001))
    await until(lambda: len(station.messages) == 2000, "all messages")
    assert [payload.split(b" ")[0] for _, payload in station.messages] == positions
    assert station.batches < 500


async def test_another_prefix_is_another_world(server: Embedded, station: Station) -> None:
    async with Station(server.url) as other:
        await other.join(b"room:a")
        await station.join(b"room:a")
        await station.comes(b"room:a", await station.publish(b"room:a"))
        await other.comes(b"room:a", await other.publish(b"room:a"))
        assert len(station.messages) == len(other.messages) == 1


@pytest.mark.parametrize("name", ["raum:größe", "房间:漢字", "@zoë", "x" * 255, "a'b\"c\\{d}%*?[e]"])
async def test_any_name(station: Station, name: str) -> None:
    await station.join(name.encode())
    await station.comes(name.encode(), await station.publish(name.encode()))


async def test_the_largest_message(station: Station) -> None:
    await station.join(b"room:a")
    data = b',"data":"%b"' % (os.urandom(32 * 1024).hex().encode())
    for _ in range(20):
        await station.publish(b"room:a", data)
    await until(lambda: len(station.messages) == 20, "all messages")
    assert all(payload.endswith(data) for _, payload in station.messages)


async def test_live_only_messages_are_not_kept(station: Station, outside: Client) -> None:
    await station.join(b"room:a")
    assert await station.publish(b"room:a", b',"data":1', None) == 1  # connections that heard it
    await until(lambda: station.messages, "the message")
    assert station.messages == [(b"room:a", b',"data":1')]
    assert not outside.keys(f"{station.prefix}$stream:*")


async def test_durable_messages_are_kept_for_nobody_too(station: Station, outside: Client) -> None:
    await station.publish(b"room:a", retention=Retention(10, 60))
    assert outside.xlen(f"{station.prefix}$stream:room:a") == 1


# Where a subscription begins.


async def test_a_join_begins_exactly_at_its_position(server: Embedded, station: Station) -> None:
    """Of a stream that is under way, all that is numbered higher comes, and nothing else is promised."""
    async with Station(server.url, station.prefix) as publisher:
        rooms = [b"room:%d" % room for room in range(40)]
        sent: list[bytes] = []

        async def publish() -> None:
            while len(station.present) < len(rooms):
                sent.extend(await asyncio.gather(*[publisher.publish_nowait(room) for room in rooms]))  # type: ignore[arg-type]

        stream = asyncio.ensure_future(publish())
        begins = {room: number(await station.join(room)) for room in rooms}
        await stream
        for room in rooms:
            sent.append(await publisher.publish(room))  # type: ignore[arg-type]
        await station.comes(rooms[-1], sent[-1])
        assert list(map(number, sent)) == list(range(1, len(sent) + 1))
        assert begins[rooms[0]] < begins[rooms[-1]]
        for index, room in enumerate(rooms):
            behind = [position for position in sent[index :: len(rooms)] if number(position) > begins[room]]
            assert behind
            assert [position for position in station.positions(room) if number(position) > begins[room]] == behind


async def test_a_name_that_is_joined_already_begins_now(station: Station) -> None:
    await station.join(b"room:a")
    position = await station.publish(b"room:a")
    assert number(await station.join(b"room:a")) == number(position)


async def test_joins_of_a_turn_share_their_commands(station: Station, outside: Client) -> None:
    calls = outside.info("commandstats")
    joins = [station.join_nowait(b"room:%d" % room, b"room:all") for room in range(1000)]
    positions = set(await asyncio.gather(*joins))
    after = outside.info("commandstats")
    assert len(positions) == 1
    assert after["cmdstat_subscribe"]["calls"] - calls["cmdstat_subscribe"]["calls"] == 3  # 1001 names
    assert len(subscribed(outside, station)) == 1001
    await station.comes(b"room:all", await station.publish(b"room:all"))


async def test_five_thousand_names_in_one_join(station: Station, outside: Client) -> None:
    names = [b"room:%d" % room for room in range(5000)]
    await station.join(*names)
    assert subscribed(outside, station) == set(names)
    position = await station.publish(names[-1])
    await station.comes(names[-1], position)


async def test_a_join_sees_what_was_published_before_it(station: Station) -> None:
    position = await station.publish(b"room:a")
    assert number(await station.join(b"room:b")) == number(position)


# Data that Redis has lost.


def set_back(outside: Client, station: Station, number: int) -> None:
    """Be a Redis that has come back with older data."""
    outside.hset(station.keys.clock.decode(), "number", str(number))


@pytest.mark.parametrize(("number_now", "is_lost"), [(9, True), (0, True), (10, False), (11, False)])
async def test_a_lower_number_than_was_seen_begins_an_epoch(
    server: Embedded, station: Station, outside: Client, number_now: int, is_lost: bool
) -> None:
    async with Station(server.url, station.prefix) as other:
        for _ in range(10):
            seen = await other.publish(b"room:a")
        assert isinstance(seen, bytes)
        station.head = seen
        set_back(outside, station, number_now)
        position = await station.join(b"room:b")
        assert number(position) == number_now
        assert isinstance(position, bytes)
        assert (position[:8] != seen[:8]) == is_lost
        published = await other.publish(b"room:a")
        assert isinstance(published, bytes)
        assert published[:8] == position[:8]


async def test_a_lower_number_than_was_given_to_a_publisher_begins_an_epoch(station: Station, outside: Client) -> None:
    """A worker without subscribers has seen no message, but it has promised a position."""
    for _ in range(10):
        promised = await station.publish(b"room:a")
    set_back(outside, station, 9)
    position = await station.join(b"room:b")
    assert isinstance(position, bytes)
    assert isinstance(promised, bytes)
    assert position[:8] != promised[:8]


async def test_a_message_that_had_been_published_takes_back_nothing_of_what_was_promised(
    station: Station, outside: Client
) -> None:
    """The answer to an idempotency key that is known is an old position, also together with a new one."""
    first = await station.publish(b"room:a", once=b"alice:1")
    for _ in range(8):
        await station.publish(b"room:a")
    answers = [station.publish_nowait(b"room:a", once=once) for once in (b"alice:2", b"alice:1")]
    promised, again = await asyncio.gather(*answers)
    assert again == first
    set_back(outside, station, 9)
    position = await station.join(b"room:b")
    assert isinstance(position, bytes)
    assert isinstance(promised, bytes)
    assert position[:8] != promised[:8]


async def test_the_newer_of_what_was_seen_and_promised_counts(station: Station, outside: Client) -> None:
    for _ in range(10):
        promised = await station.publish(b"room:a")
    assert isinstance(promised, bytes)
    station.head = promised.rsplit(b"-", 1)[0] + b"-5"
    set_back(outside, station, 7)
    position = await station.join(b"room:b")
    assert isinstance(position, bytes)
    assert position[:8] != promised[:8]


async def test_what_was_promised_in_a_newer_epoch_than_was_seen_counts(station: Station, outside: Client) -> None:
    """A worker that nobody has come to since has seen no message of it."""
    seen = await station.publish(b"room:a")
    assert isinstance(seen, bytes)
    station.head = seen
    outside.flushall()
    begin = await station.join(b"room:b")
    for _ in range(10):
        promised = await station.publish(b"room:a")
    assert isinstance(begin, bytes)
    assert isinstance(promised, bytes)
    assert seen[:8] != begin[:8] == promised[:8]
    set_back(outside, station, 9)
    position = await station.join(b"room:c")
    assert isinstance(position, bytes)
    assert position[:8] != promised[:8]


@pytest.mark.parametrize("head", [b"", b"nonsense", b"00000000-1-99999999"])
async def test_what_says_nothing_about_this_epoch_begins_none(station: Station, head: bytes) -> None:
    station.head = head
    begin = await station.join(b"room:a")
    published = await station.publish(b"room:a")
    again = await station.join(b"room:b")
    assert isinstance(begin, bytes)
    assert isinstance(published, bytes)
    assert isinstance(again, bytes)
    assert begin[:8] == published[:8] == again[:8] != b"00000000"


@pytest.mark.usefixtures("quick")
async def test_a_probe_finds_it_out_too(station: Station, outside: Client) -> None:
    promised = await station.publish(b"room:a")
    assert isinstance(promised, bytes)
    set_back(outside, station, 0)
    await until(lambda: outside.hget(station.keys.clock.decode(), "epoch") != promised[:8], "another epoch")


# Unsubscribed by Redis.


async def test_a_name_that_redis_unsubscribes_is_subscribed_again(station: Station) -> None:
    await station.join(b"room:a", b"room:b")
    assert station.bus._subscriber is not None
    station.events.clear()
    station.bus._subscriber.push(pack((b"UNSUBSCRIBE", station.keys.channel(b"room:a"))))
    await until(lambda: station.rejoined, "it is told")
    assert station.events == ["lapsed", "rejoined"]
    assert station.lapsed == [b"room:a"]
    ((name, begins),) = station.rejoined
    assert name == b"room:a"
    position = await station.publish(b"room:a")
    await station.comes(b"room:a", position)
    assert number(begins) == number(position) - 1
    assert (station.lost, len(station.restored), station.bus.connects) == (0, 1, 1)


async def test_what_is_published_meanwhile_is_before_the_position_that_is_told(
    server: Embedded, station: Station
) -> None:
    """All that is numbered higher arrives; what is not may have been missed."""
    async with Station(server.url, station.prefix) as publisher:
        await station.join(b"room:a")
        assert station.bus._subscriber is not None
        answers = []
        for turn in range(300):
            answers.append(publisher.publish_nowait(b"room:a"))
            if turn % 100 == 50:
                station.bus._subscriber.push(pack((b"UNSUBSCRIBE", station.keys.channel(b"room:a"))))
            await asyncio.sleep(0)
        await until(lambda: len(station.rejoined) == 3, "it is told")
        sent = [*await asyncio.gather(*answers), await publisher.publish(b"room:a")]
        await station.comes(b"room:a", sent[-1])
        begins = number(station.rejoined[-1][1])
        behind = [position for position in sent if number(position) > begins]
        assert [position for position in station.positions(b"room:a") if number(position) > begins] == behind
        assert station.events.count("lapsed") == 3


async def test_all_names_are_unsubscribed_at_once(station: Station) -> None:
    names = [b"room:%d" % room for room in range(700)]
    await station.join(*names)
    assert station.bus._subscriber is not None
    station.bus._subscriber.push(pack((b"UNSUBSCRIBE", *map(station.keys.channel, names))))
    await until(lambda: len(station.rejoined) == 700, "all are told")
    assert station.lapsed == names
    assert [name for name, _ in station.rejoined] == names
    for name in (names[0], names[-1]):
        await station.comes(name, await station.publish(name))


@pytest.mark.usefixtures("quick")
async def test_a_name_that_is_left_has_not_lapsed(station: Station, outside: Client) -> None:
    await station.join(b"room:a", b"room:b")
    station.leave(b"room:a")
    await until(lambda: subscribed(outside, station) == {b"room:b"}, "room:a is left")
    await until(lambda: not station.bus._left, "it is confirmed")
    assert not station.lapsed


# Leaving.


@pytest.mark.usefixtures("quick")
async def test_a_name_is_left_late(station: Station, outside: Client) -> None:
    await station.join(b"room:a", b"room:b")
    station.leave(b"room:a")
    assert subscribed(outside, station) == {b"room:a", b"room:b"}
    await until(lambda: subscribed(outside, station) == {b"room:b"}, "room:a is left")


@pytest.mark.usefixtures("quick")
async def test_a_name_that_is_joined_again_in_time_is_kept(station: Station, outside: Client) -> None:
    await station.join(b"room:a")
    calls = outside.info("commandstats")["cmdstat_subscribe"]["calls"]
    station.leave(b"room:a")
    await station.join(b"room:a")
    await until(lambda: not station.bus._leaving, "the time to leave is over")
    assert subscribed(outside, station) == {b"room:a"}
    assert outside.info("commandstats")["cmdstat_subscribe"]["calls"] == calls


@pytest.mark.usefixtures("quick")
async def test_a_name_that_is_in_the_table_again_is_kept(station: Station, outside: Client) -> None:
    await station.join(b"room:a")
    station.leave(b"room:a")
    station.present.add(b"room:a")
    await until(lambda: not station.bus._leaving, "the time to leave is over")
    assert subscribed(outside, station) == {b"room:a"}


@pytest.mark.usefixtures("quick")
async def test_a_name_joined_for_somebody_who_has_gone_is_left(station: Station, outside: Client) -> None:
    joined = asyncio.get_running_loop().create_future()
    station.bus.join([b"room:a"], joined.set_result)
    await joined
    assert subscribed(outside, station) == {b"room:a"}
    await until(lambda: not subscribed(outside, station), "room:a is left")


@pytest.mark.usefixtures("quick")
async def test_one_of_two_who_join_has_gone(station: Station, outside: Client) -> None:
    nobody = asyncio.get_running_loop().create_future()
    station.bus.join([b"room:a"], nobody.set_result)
    await asyncio.sleep(0)  # another turn of the loop: another batch
    await station.join(b"room:a")
    assert nobody.done()
    assert not station.bus._leaving
    await station.comes(b"room:a", await station.publish(b"room:a"))


@pytest.mark.usefixtures("quick")
async def test_coming_and_going_ends_with_what_is_present(station: Station, outside: Client) -> None:
    names = [b"room:%d" % room for room in range(20)]
    chance = random.Random(7)
    for turn in range(400):
        some = chance.sample(names, 3)
        if chance.random() < 0.5:
            station.join_nowait(*some)
        else:
            station.leave(*station.present.intersection(some))
        await asyncio.sleep(0.002 if turn % 20 == 0 else 0)
    await until(lambda: not station.bus._joining, "all joins are done")
    await until(lambda: subscribed(outside, station) == station.present, "what is present is subscribed")
    await until(lambda: not station.bus._left, "all is confirmed")
    for name in sorted(station.present):
        await station.comes(name, await station.publish(name))
    assert len(set(station.messages)) == len(station.messages)
    assert not station.lapsed


# Publishing.


async def test_nothing_is_published_before_the_bus_is_up(server: Embedded) -> None:
    station = Station(server.url)
    assert not station.bus.healthy()
    for answer in (await station.publish(b"room:a"), await station.ask(b"PING"), await station.send(b"room:a", b"?")):
        assert isinstance(answer, BusDown)
        assert "no connection to Redis at " in str(answer)
    assert await station.join(b"room:a") is None
    assert station.lost == 0, "what has not been up cannot be lost"


async def test_a_refused_subscription_takes_nobody_elses_answer(station: Station, outside: Client) -> None:
    """As a script of others that runs for long makes Redis refuse; here the right is taken away, and given back."""
    first = station.join_nowait(b"room:a")
    outside.execute_command("ACL", "SETUSER", "default", "-subscribe")
    try:
        await asyncio.sleep(0)  # it is on its way, and the next one waits for it
        second = station.join_nowait(b"room:b")
        assert [await first, await second] == [None, None]
        await until(lambda: station.lost == 1, "what cannot subscribe is of no use")
    finally:
        outside.execute_command("ACL", "SETUSER", "default", "+subscribe")
    await until(lambda: station.bus.connected, "it is back")
    assert subscribed(outside, station) == {b"room:a", b"room:b"}


async def test_too_many_at_a_time_are_told_so(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus, "PENDING_MAX", 100)
    answers = await asyncio.gather(*[station.publish_nowait(b"room:a") for _ in range(200)])
    taken = [answer for answer in answers if isinstance(answer, bytes)]
    refused = [answer for answer in answers if isinstance(answer, Busy)]
    assert len(taken) + len(refused) == 200
    assert 90 <= len(taken) <= 100
    assert isinstance(await station.publish(b"room:a"), bytes)


@pytest.mark.usefixtures("quick")
async def test_a_clock_that_somebody_else_has_written_is_a_fault_and_no_crash(
    server: Embedded, station: Station, outside: Client, caplog: pytest.LogCaptureFixture
) -> None:
    await station.join(b"room:a")
    epoch = outside.hget(station.keys.clock, "epoch")
    outside.hset(station.keys.clock, "epoch", "noon")
    await until(lambda: not station.bus.healthy(), "it is noticed")
    assert await station.join(b"room:b") is None
    assert station.bus.connects == 1
    late = Station(server.url, station.prefix)
    late.start()
    await until(lambda: "cannot connect: its $clock holds no position of ours: b'noon-" in caplog.text, "it is told")
    assert not late.restored
    outside.hset(station.keys.clock, "epoch", epoch)
    await late.up()
    await until(station.bus.healthy, "it is well again")
    assert await station.join(b"room:b") is not None
    await late.stop()


async def test_scripts_that_redis_has_forgotten_are_sent_again(station: Station, outside: Client) -> None:
    await station.join(b"room:a")
    outside.script_flush()
    answers = await asyncio.gather(*[station.publish_nowait(b"room:a", b',"data":%d' % n) for n in range(100)])
    assert [number(answer) for answer in answers] == list(range(1, 101))
    await until(lambda: len(station.messages) == 100, "all messages")
    assert [payload.rsplit(b":")[-1] for _, payload in station.messages] == [b"%d" % n for n in range(100)]


async def test_reading_goes_on_when_redis_has_forgotten_the_script(station: Station, outside: Client) -> None:
    for _ in range(3):
        position = await station.publish(b"room:a")
    assert isinstance(position, bytes)
    command = b"EVALSHA", journal.MISSED_SHA, *station.keys.missed_args(b"room:a", position[:8] + b"-0-0", 100, 100_000)
    page = await station.ask(*command)
    outside.script_flush()
    again = await asyncio.gather(*[station.ask_nowait(*command) for _ in range(20)])
    assert again == [page] * 20
    assert isinstance(page, list)
    assert (page[0], page[1], len(page)) == (position.split(b"-", 1)[1], 0, 3 + 3 * 3)


async def test_answers_to_questions_keep_their_order(station: Station) -> None:
    answers = [station.ask_nowait(b"ECHO", b"%d" % n) for n in range(100)]
    assert await asyncio.gather(*answers) == [b"%d" % n for n in range(100)]
    assert "unknown command" in str(await station.ask(b"NO"))
    assert isinstance(await station.ask(b"EVALSHA", journal.MISSED_SHA, b"x"), Refused)


async def test_an_idempotency_key_is_delivered_once(server: Embedded, station: Station) -> None:
    """Whichever worker it reaches: a client that does not know whether it was heard says it again, to another."""
    async with Station(server.url, station.prefix) as other:
        await station.join(b"room:a")
        answers = [worker.publish_nowait(b"room:a", once=b"alice:1") for worker in (station, other) * 10]
        (position,) = set(await asyncio.gather(*answers))
        behind = await other.publish(b"room:a", once=b"alice:2")
        await station.comes(b"room:a", behind)
        assert station.positions(b"room:a") == [position, behind]


async def test_an_idempotency_key_is_forgotten_after_its_time(
    station: Station, outside: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "ONCE_SECONDS_MAX", 1)
    brief = Retention(10, 61)  # one that no other test has: settings are packed once
    await station.join(b"room:a")
    first = await station.publish(b"room:a", retention=brief, once=b"alice:1")
    await until(lambda: not outside.keys(f"{station.prefix}$once:*"), "it is forgotten")
    second = await station.publish(b"room:a", retention=brief, once=b"alice:1")
    await station.comes(b"room:a", second)
    assert station.positions(b"room:a") == [first, second]


async def test_what_redis_refuses_is_told(station: Station, outside: Client) -> None:
    outside.set(f"{station.prefix}$stream:room:a", "not a stream")
    assert "WRONGTYPE" in str(await station.publish(b"room:a"))
    assert isinstance(await station.publish(b"room:b"), bytes)


# What else comes over it.


async def test_an_answer_goes_to_the_worker_that_asked(server: Embedded, station: Station) -> None:
    async with Station(server.url, station.prefix) as other, Station(server.url) as stranger:
        assert await station.send(other.bus.reply_name, b"1 {}") == 1
        assert await other.send(station.bus.reply_name, b"2 {}") == 1
        assert await stranger.send(station.bus.reply_name, b"3 {}") == 0, "another prefix"
        await until(lambda: station.replies and other.replies, "the answers")
        assert (station.replies, other.replies) == ([b"2 {}"], [b"1 {}"])
        assert not station.messages
        assert not station.controls
    await until(lambda: len(station.replies) == 1, "nothing else came")


async def test_a_question_reaches_exactly_who_is_subscribed(server: Embedded, station: Station) -> None:
    async with Station(server.url, station.prefix) as other:
        await station.join(b"room:a")
        assert await other.send(b"room:a", b"?question") == 1
        await other.join(b"room:a")
        assert await other.send(b"room:a", b"?question") == 2
        assert await other.send(b"room:b", b"?question") == 0
        await until(lambda: len(station.messages) + len(other.messages) == 3, "the questions")
        assert station.messages == [(b"room:a", b"?question")] * 2


async def test_orders_reach_every_worker(server: Embedded, station: Station, outside: Client) -> None:
    async with Station(server.url, station.prefix) as other:
        assert outside.publish(f"{station.prefix}$control", "order") == 2
        await until(lambda: station.controls and other.controls, "the orders")
        assert (station.controls, other.controls) == ([b"order"], [b"order"])


async def test_orders_of_the_admin_process(station: Station, outside: Client) -> None:
    assert outside.publish(f"{station.prefix}$control", '{"user":"alice"}') == 1
    await until(lambda: station.controls, "the order")
    assert station.controls == [b'{"user":"alice"}']
    assert not station.messages


async def test_what_others_publish_does_not_break_it(
    station: Station, outside: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(name: bytes, payload: bytes) -> None:
        if payload == b"junk":
            raise ValueError("not ours")
        station.messages.append((name, payload))

    monkeypatch.setattr(station.bus, "_on", station.bus._on._replace(message=refuse))
    await station.join(b"room:a")
    outside.publish(f"{station.prefix}room:a", b"junk")
    outside.publish(f"{station.prefix}$probe:{station.bus._probe_name.decode().removeprefix('$probe:')}", b"junk")
    await station.comes(b"room:a", await station.publish(b"room:a"))
    assert caplog.text.count("came no message of ours: b'junk'") == 2
    assert station.bus.connects == 1


# Health.


@pytest.mark.usefixtures("quick")
async def test_it_is_healthy_while_probes_come_back(station: Station) -> None:
    await until(lambda: station.bus._probe > 20, "probes")
    assert station.bus.healthy()
    assert station.bus.connects == 1
    assert len(station.restored) == 1


async def test_those_who_come_while_others_join_share_the_next_look_at_the_clock(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each turn of the loop brings somebody, and Redis is further away than a turn."""
    assert station.bus._subscriber is not None
    looks: list[bytes] = []
    send = station.bus._subscriber.send

    def counting(command: bytes, done: Done) -> None:
        looks.append(command)
        send(command, done)

    monkeypatch.setattr(station.bus._subscriber, "send", counting)
    station.bus.pause(True)  # so that no answer comes
    joins = []
    for room in range(5):
        joins.append(station.join_nowait(b"room:%d" % room))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert len(looks) == 1
    station.bus.pause(False)
    positions = await asyncio.gather(*joins)
    assert len(looks) == 2
    assert len(set(positions[1:])) == 1
    for room in range(5):
        at = await station.publish(b"room:%d" % room)
        await station.comes(b"room:%d" % room, at)


@asynccontextmanager
async def late(station: Station) -> AsyncIterator[None]:
    """Messages come all the time, and the probes do not come back."""

    async def talk() -> None:
        while True:
            station.publish_nowait(b"room:a")
            await asyncio.sleep(0.001)

    await station.join(b"room:a")
    station.bus._probe_name = b"$probe:of-somebody-else"
    talking = asyncio.create_task(talk())
    yield
    talking.cancel()


@pytest.mark.usefixtures("quick")
async def test_a_bus_that_is_late_is_not_healthy_and_not_cut(station: Station) -> None:
    """More comes than is kept up with: to read it all again from the journal would not make it less."""
    async with late(station):
        await until(lambda: station.bus._probes - station.bus._probe > 2 * bus.PROBES_UNANSWERED_MAX, "probes")
        assert not station.bus.healthy()
        assert station.bus.connects == 1
    await until(lambda: station.bus.connects == 2, "nothing comes any more, and it is given up")


@pytest.mark.usefixtures("quick")
async def test_what_is_late_for_ever_is_cut(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others come and the probe does not: whatever has become of its subscription."""
    monkeypatch.setattr(bus, "PROBES_LATE_MAX", 50)
    async with late(station):
        await until(lambda: station.bus.connects == 2, "it is given up")


async def test_it_says_where_it_begins(server: Embedded, station: Station) -> None:
    position = await station.publish(b"room:a")
    async with Station(server.url, station.prefix) as late:
        assert list(map(number, late.restored)) == [number(position)]


@pytest.mark.usefixtures("quick")
async def test_a_pause_leaves_messages_with_redis(station: Station) -> None:
    await station.join(b"room:a")
    station.bus.pause(True)
    assert station.bus.paused
    position = await station.publish(b"room:a")
    sent = station.bus._probes
    await until(lambda: station.bus._probes > sent + 2 * bus.PROBES_UNANSWERED_MAX, "probes")
    assert station.bus.healthy()
    assert not station.messages
    station.bus.pause(False)
    await station.comes(b"room:a", position)
    await until(lambda: station.bus._probes > sent + 4 * bus.PROBES_UNANSWERED_MAX, "more probes")
    assert station.bus.healthy()
    assert station.bus.connects == 1


# The end.


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13])
async def test_stopping_at_any_time_leaves_nothing(server: Embedded, outside: Client, turns: int) -> None:
    clients = len(outside.client_list())
    before = sockets()
    async with watched():
        station = Station(server.url)
        joined = station.join_nowait(b"room:a")
        station.start()
        for _ in range(turns):
            await asyncio.sleep(0.0003)
        waiting = station.publish_nowait(b"room:a")
        await station.stop()
        assert joined.done()
        assert waiting.done()
        assert not station.bus.healthy()
    await until(lambda: sockets() == before, "the sockets are closed")
    await until(lambda: len(outside.client_list()) == clients, "Redis has seen them go")
