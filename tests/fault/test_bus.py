"""The bus when Redis is cut off, killed, frozen, restarted, too old, or does not want us: told, logged, and back by itself."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from functools import partial

import pytest
from stations import Client, Proxy, Station, client_of, number, until, watched

from router import backoff, bus, link
from router.bus import BusDown, Unconfirmed
from router.embedded import Embedded
from router.outcome import Refused
from router.pipe import pack


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything happens sooner."""
    monkeypatch.setattr(bus, "PROBE_SECONDS", 0.05)
    monkeypatch.setattr(bus, "DEADLINE_SECONDS", 0.5)
    monkeypatch.setattr(link, "DEADLINE_SECONDS", 0.5)
    monkeypatch.setattr(bus, "LEAVE_SECONDS", 0.1)
    monkeypatch.setattr(backoff, "SECONDS_MIN", 0.01)
    monkeypatch.setattr(backoff, "SECONDS_MAX", 0.05)


@pytest.fixture
def outside(valkey: Embedded) -> Iterator[Client]:
    with client_of(valkey) as client:
        yield client


@pytest.fixture
async def proxy(quick: None, valkey: Embedded) -> AsyncIterator[Proxy]:
    async with Proxy(valkey) as proxy:
        yield proxy


@pytest.fixture
async def station(proxy: Proxy) -> AsyncIterator[Station]:
    async with watched():
        async with Station(proxy.url) as station:
            yield station
        proxy.flow()
        await until(lambda: not proxy.pairs, "all connections are closed")


def subscribed(outside: Client, station: Station) -> set[bytes]:
    """The names of `station` that some connection is subscribed to, but those of the bus itself."""
    found = outside.pubsub_channels(f"{station.prefix}*")
    return {name.removeprefix(station.prefix.encode()) for name in found if b"$" not in name}


async def back(station: Station, times: int = 2) -> None:
    """Wait until it has been connected so often, and is well."""
    await until(lambda: len(station.restored) >= times and station.bus.healthy(), "the bus is back")


async def works(station: Station, *names: bytes) -> None:
    """Check that a message on each of the names arrives, once."""
    for name in names:
        await station.comes(name, await station.publish(name))
    assert len(set(station.messages)) == len(station.messages)


# Cut off.


async def test_a_cut_answers_all_who_wait_and_is_repaired(station: Station, proxy: Proxy, outside: Client) -> None:
    await station.join(b"room:a")
    proxy.stall()
    waiting = [station.publish_nowait(b"room:a") for _ in range(100)]
    joining = station.join_nowait(b"room:b", b"room:c")
    await asyncio.sleep(0)
    proxy.cut()
    answers = await asyncio.wait_for(asyncio.gather(*waiting), 5)
    assert {type(answer) for answer in answers} == {Unconfirmed}
    assert await joining is None
    assert not station.bus.healthy()
    proxy.flow()
    await back(station)
    assert subscribed(outside, station) == {b"room:a", b"room:b", b"room:c"}
    await works(station, b"room:a", b"room:b", b"room:c")


async def test_while_it_is_down_everybody_is_told_at_once(station: Station, proxy: Proxy, valkey: Embedded) -> None:
    await station.join(b"room:a")
    os.kill(valkey.pid or 0, signal.SIGKILL)
    await until(lambda: not station.bus.connected, "it is noticed")
    answer = station.publish_nowait(b"room:a")
    assert isinstance(answer.result(), BusDown)
    assert await station.join(b"room:b") is None
    assert not station.bus.healthy()
    station.leave(b"room:a")
    valkey.restart()
    await back(station)
    with client_of(valkey) as outside:
        assert subscribed(outside, station) == {b"room:b"}
    await works(station, b"room:b")


@pytest.mark.usefixtures("quick")
async def test_who_comes_and_goes_while_it_is_down_takes_no_memory(caplog: pytest.LogCaptureFixture) -> None:
    """It may be down for hours, in which clients try again and again."""
    async with watched():
        station = Station("unix:///nonexistent.sock")
        station.start()
        await until(lambda: "cannot connect: " in caplog.text, "it is down")
        size = sum(map(len, kept(station)))
        for number in range(100):
            assert await station.join(b"@u%d" % number) is None
            station.leave(b"@u%d" % number)
        assert sum(map(len, kept(station))) == size
        await station.stop()


def kept(station: Station) -> list[Collection[object]]:
    """All that a bus keeps of names."""
    return [value for value in vars(station.bus).values() if isinstance(value, dict | list | set)]


@pytest.mark.parametrize("kind", ["pubsub", "normal"])
async def test_one_pipe_takes_the_other_with_it(station: Station, outside: Client, kind: str) -> None:
    await station.join(b"room:a")
    assert outside.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes") == 1
    await back(station)
    await works(station, b"room:a")
    ours = [client for client in outside.client_list() if client["name"].startswith("moorage:test-")]
    assert len(ours) == 2


async def test_a_restart_is_told_with_the_position_where_it_goes_on(
    station: Station, valkey: Embedded, outside: Client
) -> None:
    await station.join(b"room:a")
    before = await station.publish(b"room:a")
    outside.close()
    valkey.restart()
    await back(station)
    assert number(station.restored[1]) == 0
    assert isinstance(before, bytes)
    assert station.restored[1].split(b"-")[0] != before.split(b"-")[0], "Redis has lost its data: another epoch"
    await works(station, b"room:a")


async def test_a_redis_with_an_older_file_begins_an_epoch(station: Station, proxy: Proxy, outside: Client) -> None:
    """What we have published, or seen, is more than it knows: it has lost data."""
    for _ in range(10):
        seen = await station.publish(b"room:a")
    assert isinstance(seen, bytes)
    outside.hset(f"{station.prefix}$clock", "number", 3)
    proxy.cut()
    await back(station)
    assert station.restored[1].split(b"-")[0] != seen.split(b"-")[0]


async def test_a_cut_goes_on_in_the_same_epoch(station: Station, proxy: Proxy, outside: Client) -> None:
    await station.join(b"room:a")
    position = await station.publish(b"room:a")
    proxy.cut()
    await back(station)
    assert station.lost == 1
    assert isinstance(position, bytes)
    assert station.restored[1].split(b"-")[0] == position.split(b"-")[0]
    assert number(station.restored[1]) == number(position)


async def test_thousands_of_names_are_subscribed_again_in_chunks(
    station: Station, proxy: Proxy, outside: Client
) -> None:
    names = [b"room:%d" % room for room in range(5000)]
    await station.join(*names)
    calls = outside.info("commandstats")["cmdstat_subscribe"]["calls"]
    proxy.cut()
    await back(station)
    assert outside.info("commandstats")["cmdstat_subscribe"]["calls"] - calls == 1 + 5000 // bus.SUBSCRIBE_CHUNK
    assert subscribed(outside, station) == set(names)
    await works(station, names[0], names[-1])


async def test_who_joins_and_leaves_while_it_connects(
    station: Station, proxy: Proxy, outside: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every step of connecting somebody comes, somebody goes, and somebody comes back."""
    await station.join(*[b"room:%d" % room for room in range(50)])
    gone: list[bytes] = []
    joined: list[asyncio.Future[bytes | None]] = []
    original = bus.Bus._subscribe

    async def subscribe(self: bus.Bus, *args: object) -> bytes:
        if len(gone) < 5:
            name = b"room:%d" % len(gone)
            station.leave(name)
            gone.append(name)
            joined.append(station.join_nowait(b"new:%d" % len(gone)))
            self.join([b"nobody:%d" % len(gone)], lambda _position: None)
        return await original(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(bus.Bus, "_subscribe", subscribe)
    proxy.cut()
    await back(station)
    monkeypatch.setattr(bus.Bus, "_subscribe", original)
    assert len(gone) == 5
    assert await asyncio.gather(*joined) == [None] * len(gone)
    await asyncio.gather(*[station.join_nowait(name) for name in gone])  # before they are left for good
    await works(station, *station.present)
    await until(lambda: subscribed(outside, station) == station.present, "nothing is subscribed for nobody")


async def test_chaos(station: Station, proxy: Proxy, outside: Client) -> None:
    """Cuts at any time; every publish and every join is answered once, and in the end all is as it should be."""
    chance = random.Random(11)
    answers: list[asyncio.Future[object]] = []
    for turn in range(300):
        names = [b"room:%d" % chance.randrange(30) for _ in range(2)]
        answers.append(station.publish_nowait(names[0]))
        if chance.random() < 0.7:
            answers.append(station.join_nowait(*names))  # type: ignore[arg-type]
        else:
            station.leave(*station.present.intersection(names))
        if turn % 20 == 19:
            proxy.cut()
            await until(lambda: not station.bus.connected, "the cut is noticed")
            if chance.random() < 0.7:
                await until(lambda: station.bus.connected, "the bus is back")
        await asyncio.sleep(chance.choice([0, 0, 0, 0.002]))
    results = await asyncio.wait_for(asyncio.gather(*answers), 10)
    assert {type(result) for result in results} >= {bytes, BusDown}
    await back(station)
    await until(lambda: subscribed(outside, station) == station.present, "what is present is subscribed")
    await works(station, *station.present)


# What is told, and in which order.


async def test_a_loss_is_told_once_and_before_anything_that_comes_of_it(
    station: Station, proxy: Proxy, outside: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is told that an answer will not come can rely on what it finds: the bus is down."""
    # A Valkey that a busy machine lets wait for 0.15 s would look frozen: one loss more.
    monkeypatch.setattr(bus, "PROBE_SECONDS", 60.0)
    await station.join(b"room:a")
    for kind in ("pubsub", "normal", "both"):
        times = len(station.restored)
        proxy.stall()
        waiting = [station.publish_nowait(b"room:a") for _ in range(3)]
        waiting += [station.ask_nowait(b"ECHO", b"hello") for _ in range(3)]
        joining = [station.join_nowait(b"room:%d" % room) for room in range(3)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # the joins of a turn are sent in the next one
        joining += [station.join_nowait(b"room:later")]  # and this one is not sent yet
        station.events.clear()
        if kind == "both":
            proxy.cut()
        else:
            outside.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
        proxy.flow()
        await asyncio.wait_for(asyncio.gather(*waiting, *joining), 5)
        await back(station, times + 1)
        before = station.events[: station.events.index("lost")]
        assert not [event for event in before if event.startswith("not ")], kind
        assert station.events.count("lost") == 1
        assert station.events[-1] == "restored"
        assert station.events.count("restored") == 1
    await works(station, b"room:a", b"room:later")


async def test_stopping_is_a_loss_too(proxy: Proxy) -> None:
    async with Station(proxy.url) as station:
        waiting = station.publish_nowait(b"room:a")
        station.events.clear()
    assert waiting.done()
    assert station.events == ["lost", "not published"]


async def test_an_attempt_that_fails_is_no_loss(station: Station, valkey: Embedded) -> None:
    os.kill(valkey.pid or 0, signal.SIGKILL)
    await until(lambda: not station.bus.connected, "it is noticed")
    connects = station.bus.connects
    for _ in range(5):
        assert isinstance(await station.publish(b"room:a"), BusDown)
        await asyncio.sleep(backoff.SECONDS_MAX)
    assert (station.lost, station.bus.connects) == (1, connects)
    valkey.restart()
    await back(station)
    assert station.lost == 1


async def test_a_redis_that_comes_back_with_older_data_begins_an_epoch(
    station: Station, proxy: Proxy, outside: Client
) -> None:
    """As a replica that was behind does, when it takes over."""
    await station.join(b"room:a")
    for _ in range(5):
        position = await station.publish(b"room:a")
    older = {key: outside.dump(key) for key in outside.keys("*")}
    for _ in range(5):
        seen = await station.publish(b"room:a")
    assert isinstance(position, bytes)
    assert isinstance(seen, bytes)
    proxy.stall()
    proxy.cut()
    await until(lambda: not station.bus.connected, "it is noticed")
    outside.flushall()
    for key, value in older.items():
        outside.restore(key, 0, value)
    proxy.flow()
    await back(station)
    assert number(station.restored[1]) == number(position)
    assert station.restored[1][:8] != seen[:8]
    assert isinstance(again := await station.publish(b"room:a"), bytes)
    assert again[:8] == station.restored[1][:8]
    proxy.cut()
    await back(station, 3)
    assert station.restored[2][:8] == again[:8], "that was told once"


async def test_what_was_not_confirmed_is_said_again(station: Station, proxy: Proxy, valkey: Embedded) -> None:
    """With a key, it is published once, whether Redis had it or not, and is told its position."""
    async with Station(valkey.url, station.prefix) as other:
        await other.join(b"room:a")
        for turn in range(10):
            times, once = len(station.restored), b"alice:%d" % turn
            waiting = station.publish_nowait(b"room:a", once=once)
            if turn % 2:
                await until(partial(lambda turn: len(other.messages) > turn, turn), "Redis has it")
            else:
                await asyncio.sleep(0)
            proxy.cut()
            answer = await asyncio.wait_for(waiting, 5)
            assert isinstance(answer, bytes | Unconfirmed)
            await back(station, times + 1)
            position = await station.publish(b"room:a", once=once)
            assert isinstance(position, bytes)
            assert answer == position or isinstance(answer, Unconfirmed)
            await other.comes(b"room:a", position)
        assert list(map(number, other.positions(b"room:a"))) == list(range(1, 11))


# Frozen.


async def test_a_frozen_redis_is_noticed_in_time(valkey: Embedded) -> None:
    """With the figures of production: red within 5 s, publishers answered, back by itself."""
    async with watched(), Station(valkey.url) as station:
        await station.join(b"room:a")
        os.kill(valkey.pid or 0, signal.SIGSTOP)
        try:
            frozen_at = time.monotonic()
            waiting = [station.publish_nowait(b"room:a", b',"data":%d' % n) for n in range(10)]
            await until(lambda: not station.bus.healthy(), "it is noticed", 5.0)
            answers = await asyncio.wait_for(asyncio.gather(*waiting), 5.0)
            assert time.monotonic() - frozen_at < 5.0
            assert {type(answer) for answer in answers} == {Unconfirmed}
            assert isinstance(await station.publish(b"room:a"), BusDown)
        finally:
            os.kill(valkey.pid or 0, signal.SIGCONT)
        await back(station)
        await works(station, b"room:a")


async def test_a_link_that_swallows_everything_is_noticed(station: Station, proxy: Proxy) -> None:
    await station.join(b"room:a")
    proxy.stall()
    waiting = station.publish_nowait(b"room:a")
    assert isinstance(await asyncio.wait_for(waiting, 5), Unconfirmed)
    proxy.flow()
    await back(station)
    await works(station, b"room:a")


@pytest.mark.parametrize("pipe", [0, 1], ids=["publishing", "subscribing"])
async def test_one_pipe_that_swallows_everything_is_noticed_in_time(valkey: Embedded, pipe: int) -> None:
    """Publishing works and nothing arrives, or the other way round: with the figures of production, red within 5 s."""
    async with watched(), Proxy(valkey) as proxy, Station(proxy.url) as station:
        await station.join(b"room:a")
        began = time.monotonic()
        proxy.stall(proxy.pairs[pipe])
        await until(lambda: not station.bus.healthy(), "it is noticed", 5.0)
        assert time.monotonic() - began < 5.0
        await until(lambda: not station.bus.connected, "it is given up")
        proxy.flow()
        await back(station)
        await works(station, b"room:a")


async def test_a_link_that_swallows_everything_while_we_do_not_read(station: Station, proxy: Proxy) -> None:
    await station.join(b"room:a")
    station.bus.pause(True)
    proxy.stall()
    await until(lambda: not station.bus.connected, "it is noticed")
    proxy.flow()
    await back(station)
    assert not station.bus.paused
    await works(station, b"room:a")


async def test_a_stall_of_our_own_is_not_one_of_redis(station: Station) -> None:
    await station.join(b"room:a")
    for _ in range(3):
        time.sleep(5 * bus.PROBE_SECONDS)  # the loop stands still, the clock does not
        await asyncio.sleep(0)
        assert station.bus.healthy()
    await works(station, b"room:a")
    assert station.bus.connects == 1


async def test_a_subscriber_too_slow_is_cut_and_comes_back(station: Station, outside: Client) -> None:
    """While we do not read, Redis queues for us up to its limit, and then ends the connection."""
    await station.join(b"room:a")
    outside.config_set("client-output-buffer-limit", "pubsub 100kb 0 0")
    station.bus.pause(True)
    while any(client["sub"] > "0" for client in outside.client_list()):
        answer = await station.publish(b"room:a", b',"data":"%b"' % (b"x" * 60_000))
        assert isinstance(answer, bytes)
    station.bus.pause(False)
    await back(station)
    await works(station, b"room:a")


# While it connects.


async def connect_with_a_cut(proxy: Proxy, pipes: slice, step: int) -> bool:
    """Connect, with a cut of `pipes` when the proxy carries its piece number `step`; True when that was before the end."""
    station = Station(proxy.url)
    losses: list[asyncio.Future[str]] = []

    def cut(carried: int) -> None:
        if carried >= step and not losses and proxy.pairs[pipes]:
            losses.append(station.bus._lost)
            for to_bus, _ in proxy.pairs[pipes]:
                to_bus.transport.abort()

    async with watched():
        proxy.carried, proxy.on_carry = 0, cut
        station.join_nowait(b"room:a")
        station.start()
        await station.up()
        was_connecting = bool(losses) and losses[0].done()
        await until(lambda: losses and losses[0].done() and station.bus.healthy(), "it is repaired")
        await works(station, b"room:a")
        await station.stop()
    await until(lambda: not proxy.pairs, "all connections are closed")
    return was_connecting


@pytest.mark.parametrize("pipes", [slice(0, 1), slice(1, 2), slice(0, 2)], ids=["first", "second", "both"])
async def test_a_pipe_that_is_lost_at_any_step_of_connecting(proxy: Proxy, pipes: slice) -> None:
    step = 1
    while await connect_with_a_cut(proxy, pipes, step):
        step += 1
    assert step >= 8


async def test_nothing_is_sent_before_the_bus_is_up(station: Station, proxy: Proxy) -> None:
    """A command among those that connect would be given one of their answers."""
    answers: list[object] = []
    asked = 0

    def ask(_carried: int) -> None:
        nonlocal asked
        if not station.bus.connected:
            asked += 1
            station.bus.publish(b"room:a", b",", None, answers.append)
            station.bus.ask((b"PING",), answers.append)
            station.bus.send(b"room:a", b",", answers.append)

    await station.join(b"room:a")
    proxy.on_carry = ask
    proxy.cut()
    await back(station)
    proxy.on_carry = lambda _carried: None
    assert asked >= 8
    assert {type(answer) for answer in answers} == {BusDown}
    assert len(answers) == 3 * asked
    assert station.bus.connects == 2
    await works(station, b"room:a")


async def test_a_silent_server_is_given_up(quick: None, proxy: Proxy, caplog: pytest.LogCaptureFixture) -> None:
    proxy.stall()
    station = Station(proxy.url)
    async with watched():
        station.start()
        await until(lambda: "cannot connect: no answer in" in caplog.text, "it is given up")
        assert isinstance(await station.publish(b"room:a"), BusDown)
        proxy.flow()
        await station.up()
        await station.stop()


async def test_the_last_answer_and_the_end_in_one_turn(
    station: Station, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe may break between the answer to the last command and the turn in which we go on."""
    original = bus.Bus._subscribe
    broken: list[int] = []

    async def subscribe(self: bus.Bus, *args: object) -> bytes:
        position = await original(self, *args)  # type: ignore[arg-type]
        if len(args[1]) == 1 and not broken:  # type: ignore[arg-type]
            broken.append(1)
            assert self._publisher is not None
            self._publisher.close("broken")
        return position

    await station.join(b"room:a")
    monkeypatch.setattr(bus.Bus, "_subscribe", subscribe)
    proxy.cut()
    await back(station)
    assert broken
    await works(station, b"room:a")


async def test_what_does_not_last_is_not_tried_in_a_hurry(
    station: Station, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[int] = []
    original = bus.backoff

    def counting(attempt: int, chance: float) -> float:
        attempts.append(attempt)
        return original(attempt, chance)

    monkeypatch.setattr(bus, "backoff", counting)
    for times in range(2, 7):
        proxy.cut()
        await back(station, times)
    assert attempts == [0, 1, 2, 3, 4]
    monkeypatch.setattr(bus, "STEADY_SECONDS", -1.0)
    proxy.cut()
    await back(station, 7)
    assert attempts[-1] == 0


# Unsubscribed.


async def test_a_name_that_redis_has_unsubscribed_is_repaired(
    station: Station, proxy: Proxy, outside: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody in between says UNSUBSCRIBE in our name, as a cluster does when a slot moves."""
    await station.join(b"room:a", b"room:b")
    _, upstream = proxy.pairs[1]  # the one that subscribes
    told: list[set[bytes]] = []
    station.events.clear()
    tell = station.bus._on.rejoined

    def rejoined(name: bytes, position: bytes) -> None:
        tell(name, position)
        told.append(subscribed(outside, station))

    station.bus._on = station.bus._on._replace(rejoined=rejoined)
    upstream.write(pack((b"UNSUBSCRIBE", station.keys.channel(b"room:a"))))
    await until(lambda: station.rejoined, "it is told")
    assert station.events == ["lapsed", "rejoined"]
    assert station.lapsed == [name for name, _ in station.rejoined] == [b"room:a"]
    assert told == [{b"room:a", b"room:b"}], "it is told when nothing is missed any more"
    assert "unsubscribed from b'room:a' without being asked" in caplog.text
    assert station.bus.connects == 1
    await works(station, b"room:a", b"room:b")


async def test_a_loss_while_a_name_is_subscribed_again(station: Station, proxy: Proxy) -> None:
    """It is restored with all the others, and not told to have been rejoined."""
    await station.join(b"room:a")
    _, upstream = proxy.pairs[1]  # the one that subscribes
    tell = station.bus._on.lapsed

    def lapsed(name: bytes) -> None:
        tell(name)
        proxy.stall()

    station.bus._on = station.bus._on._replace(lapsed=lapsed)
    station.events.clear()
    upstream.write(pack((b"UNSUBSCRIBE", station.keys.channel(b"room:a"))))
    await until(lambda: station.lapsed, "it is told")
    proxy.cut()
    proxy.flow()
    await back(station)
    assert station.events == ["lapsed", "lost", "restored"]
    await works(station, b"room:a")


async def test_a_name_that_cannot_be_subscribed_again_is_restored(
    station: Station, proxy: Proxy, outside: Client
) -> None:
    """Redis refuses to say where that would begin: nobody may wait for ever for that to be told."""
    await station.join(b"room:a")
    _, upstream = proxy.pairs[1]  # the one that subscribes
    undo = refuse_by_memory(outside)
    upstream.write(pack((b"UNSUBSCRIBE", station.keys.channel(b"room:a"))))
    await until(lambda: station.lost, "it is given up")
    assert station.lapsed == [b"room:a"]
    assert not station.rejoined
    undo()
    await back(station)
    await works(station, b"room:a")


@pytest.mark.parametrize("names", ["$probe*", "$reply*", "$control", "*"])
async def test_a_name_of_the_bus_itself_that_redis_has_unsubscribed_is_noticed(
    station: Station, proxy: Proxy, outside: Client, names: str
) -> None:
    await station.join(b"room:a")
    _, upstream = proxy.pairs[1]  # the one that subscribes
    upstream.write(pack((b"UNSUBSCRIBE", *outside.pubsub_channels(station.prefix + names))))
    await back(station)
    assert await station.send(station.bus.reply_name, b"1 {}") == 1
    assert outside.publish(f"{station.prefix}$control", "order") == 1
    await works(station, b"room:a")


# Not wanted.


def refuse_by_replicas(client: Client) -> Callable[[], object]:
    client.config_set("min-replicas-to-write", 1)
    return lambda: client.config_set("min-replicas-to-write", 0)


def refuse_by_memory(client: Client) -> Callable[[], object]:
    client.config_set("maxmemory", 1)
    return lambda: client.config_set("maxmemory", 0)


REFUSALS = [
    pytest.param(refuse_by_replicas, "NOREPLICAS", id="min-replicas"),
    pytest.param(refuse_by_memory, "OOM", id="maxmemory"),
]


async def test_one_that_is_demoted_is_left(
    station: Station, outside: Client, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    """As by an operator's REPLICAOF, which cuts no connection: at once, and it is asked again until it is the master."""
    await station.join(b"room:a")
    before = await station.publish(b"room:a")
    outside.execute_command("REPLICAOF", "127.0.0.1", "1")
    assert "READONLY" in str(await station.publish(b"room:a")) or not station.bus.connected
    await until(lambda: not station.bus.connected, "it is left")
    await until(lambda: "found a replica, want the master" in caplog.text, "it is told")
    outside.execute_command("REPLICAOF", "NO", "ONE")
    await back(station)
    after = await station.publish(b"room:a")
    await station.comes(b"room:a", after)
    assert isinstance(before, bytes)
    assert isinstance(after, bytes)
    assert (after[:8], number(after) > number(before)) == (before[:8], True), "nothing was lost"


@pytest.mark.parametrize(("refuse", "why"), REFUSALS)
async def test_a_redis_that_stops_taking_writes(
    station: Station,
    outside: Client,
    refuse: Callable[[Client], Callable[[], object]],
    why: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "moorage.bus")
    await station.join(b"room:a")
    undo = refuse(outside)
    await until(lambda: not station.bus.healthy(), "it is noticed")
    answer = await station.publish(b"room:a")
    assert isinstance(answer, Refused)
    assert why in str(answer)
    sent = station.bus._probes
    await until(lambda: station.bus._probes > sent + 3, "more probes")
    assert caplog.text.count(f"Redis refuses writes: {why}") == 1
    undo()
    await until(station.bus.healthy, "it is well again")
    assert "Redis takes writes again" in caplog.text
    assert station.bus.connects == 1
    await works(station, b"room:a")


@pytest.mark.parametrize(("refuse", "why"), REFUSALS)
@pytest.mark.usefixtures("quick")
async def test_a_redis_that_takes_no_writes_from_the_beginning(
    valkey: Embedded,
    outside: Client,
    refuse: Callable[[Client], Callable[[], object]],
    why: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    undo = refuse(outside)
    async with watched():
        station = Station(valkey.url)
        station.start()
        await until(lambda: f"cannot connect: {why}" in caplog.text, "it is logged")
        assert not station.bus.healthy()
        assert isinstance(await station.publish(b"room:a"), BusDown)
        undo()
        await station.up()
        await station.stop()


@pytest.mark.parametrize(
    ("sign_in", "why"),
    [("", "NOAUTH"), (":wrong@", "WRONGPASS"), ("nobody:secret@", "WRONGPASS"), (":secret@", "")],
)
@pytest.mark.usefixtures("quick")
async def test_a_password(
    proxy: Proxy, outside: Client, sign_in: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    outside.config_set("requirepass", "secret")
    async with watched():
        station = Station(proxy.url.replace("//", "//" + sign_in))
        station.start()
        if why:
            await until(lambda: f"cannot connect: {why}" in caplog.text, "it is logged")
            assert not station.bus.healthy()
            assert "secret" not in caplog.text
            assert "wrong@" not in caplog.text
        else:
            await station.up()
        await station.stop()


async def answer_with(*answers: bytes) -> asyncio.Server:
    """Listen, and answer the first commands of every connection with `answers`."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await reader.read(65536)
            writer.write(answer)
        with contextlib.suppress(OSError):
            await reader.read()
        writer.close()

    return await asyncio.start_server(accept, "127.0.0.1", 0)


HELLO_6 = b"%2\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$6\r\n6.2.14\r\n"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"-ERR unknown command `HELLO`, with args beginning with: `3`\r\n", "ERR unknown command `HELLO`"),
        (HELLO_6, "found Redis 6.2.14, want Redis 7 or newer, or Valkey"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "Protocol error"),
        (b"-ERR max number of clients reached\r\n", "ERR max number of clients reached"),
    ],
)
@pytest.mark.usefixtures("quick")
async def test_what_is_no_redis_of_ours_is_named(answer: bytes, why: str, caplog: pytest.LogCaptureFixture) -> None:
    server = await answer_with(answer)
    async with watched():
        station = Station(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        station.start()
        await until(lambda: caplog.text.count(why) >= 2, "it is logged, and tried again")
        assert not station.bus.healthy()
        await station.stop()
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1", "unix:///nonexistent.sock", "redis://a..b:6379"])
@pytest.mark.usefixtures("quick")
async def test_what_cannot_be_reached_is_tried_for_ever(url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with watched():
        station = Station(url)
        station.start()
        await until(lambda: caplog.text.count("cannot connect: ") == 3, "it is logged, but not without end")
        assert station.bus._node.address in caplog.text
        await station.stop()
