"""The scripts of the journal on real servers: numbers, epochs, what is kept and for how long."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest
import redis
from harness import wait_until
from journals import publish_args
from redis import ResponseError
from stations import KEPT, KINDS, Client, client_of, server_of

from router import journal
from router.embedded import Embedded
from router.journal import Keys, Retention
from router.position import parse

MEMBERS = b',"from":null,"at":1,"data":1'


@pytest.fixture(scope="module", params=KINDS)
def server(request: pytest.FixtureRequest) -> Iterator[Embedded]:
    with server_of(request.param) as server:
        yield server


@pytest.fixture
def client(server: Embedded) -> Iterator[Client]:
    with client_of(server) as client:
        client.flushall()
        yield client


class Missed(NamedTuple):
    """What the script MISSED answers; `entries` are id, id of the one before, members."""

    last: bytes
    more: int
    entries: list[tuple[bytes, bytes, bytes]]


class Journal:
    """Publishes as a worker does, without the bus."""

    def __init__(self, client: Client, prefix: str = "moorage:") -> None:
        self.client = client
        self.keys = Keys(prefix)

    def publish(
        self, name: str = "room:a", members: bytes = MEMBERS, retention: Retention = KEPT, once: bytes = b""
    ) -> bytes:
        args = publish_args(self.keys, name.encode(), members, retention, once)
        (found,) = self.client.execute_command("EVAL", journal.PUBLISH, *args)
        position: bytes = found
        return position

    def publish_all(self, messages: Sequence[tuple[str, bytes]], *, are_once: bool = False) -> list[Any]:
        """Publish messages, each a name and an idempotency key, in one call."""
        names = [key for name, once in messages for key in self.keys.publish_keys(name.encode(), once)]
        args = [each for name, _ in messages for each in (self.keys.channel(name.encode()), MEMBERS)]
        found: list[Any] = self.client.execute_command(
            "EVAL", journal.PUBLISH, *self.keys.publish_args(KEPT, are_once, names, args)
        )
        return found

    def now(self, known: bytes | None = None) -> bytes:
        position: bytes = self.client.execute_command("EVAL", journal.NOW, *self.keys.now_args(parse(known)))
        return position

    def missed(self, after: bytes, messages_max: int = 100, bytes_max: int = 100_000) -> Missed:
        """Return the page of room:a behind a position."""
        args = self.keys.missed_args(b"room:a", after, messages_max, bytes_max)
        last, more, _, *rest = self.client.execute_command("EVAL", journal.MISSED, *args)
        return Missed(last, more, list(zip(rest[::3], rest[1::3], rest[2::3], strict=True)))

    def is_lost(self, after: bytes) -> bool:
        """Whether a position is of a number that Redis has lost, as a page behind it says."""
        args = self.keys.missed_args(b"room:a", after, 100, 100_000)
        return bool(self.client.execute_command("EVAL", journal.MISSED, *args)[2])

    def kept(self, name: str = "room:a") -> list[tuple[bytes, bytes, bytes]]:
        """Id, id of the one before, members."""
        stream = self.client.xrange(self.keys.prefix + b"$stream:" + name.encode())
        return [(id, fields[b"p"], fields[b"m"]) for id, fields in stream]


@pytest.fixture
def log(client: Client) -> Journal:
    return Journal(client)


def parts(position: bytes) -> tuple[bytes, int, int]:
    epoch, ms, number = position.split(b"-")
    return epoch, int(ms), int(number)


def test_numbers_are_one_sequence_over_all_channels(log: Journal) -> None:
    before = time.time_ns() // 1_000_000
    positions = [parts(log.publish(f"room:{n % 7}")) for n in range(50)]
    after = time.time_ns() // 1_000_000
    epochs, times, numbers = zip(*positions, strict=True)
    assert len(set(epochs)) == 1
    assert list(numbers) == list(range(1, 51))
    assert list(times) == sorted(times)
    assert before - 1 <= times[0] <= times[-1] <= after + 1
    epoch, ms, number = parts(log.now())
    assert (epoch, number) == (epochs[-1], numbers[-1])
    assert ms >= times[-1]


def test_numbers_are_one_sequence_over_all_publishers(server: Embedded, log: Journal) -> None:
    def publish(worker: int) -> list[bytes]:
        with client_of(server) as client:
            return [Journal(client).publish(f"room:{worker % 2}") for _ in range(100)]

    with ThreadPoolExecutor(4) as pool:
        positions = [parts(position) for some in pool.map(publish, range(4)) for position in some]
    assert sorted(number for _, _, number in positions) == list(range(1, 401))
    in_order = sorted(positions, key=lambda position: position[2])
    assert [ms for _, ms, _ in in_order] == sorted(ms for _, ms, _ in positions)
    assert len({epoch for epoch, _, _ in positions}) == 1


def test_the_clock_never_runs_back(log: Journal, client: Client) -> None:
    """The time of the machine may; ids of a stream must not."""
    future = time.time_ns() // 1_000_000 + 3_600_000
    first = log.publish()
    client.hset("moorage:$clock", "ms", future)
    assert parts(log.publish())[1:] == (future, 2)
    assert parts(log.publish())[1:] == (future, 3)
    assert parts(log.now()) == (parts(first)[0], future, 3)


def test_what_is_published_behind_a_look_at_the_clock_is_not_earlier(log: Journal, client: Client) -> None:
    log.publish()
    future = time.time_ns() // 1_000_000 + 3_600_000
    client.hset("moorage:$clock", "ms", future)
    assert parts(log.now())[1] == future
    assert parts(log.publish())[1] == future


def test_now_before_anything_was_published(log: Journal) -> None:
    epoch, ms, number = parts(log.now())
    assert number == 0
    assert parts(log.now())[0] == epoch
    assert parts(log.publish())[0] == epoch
    assert parts(log.now())[2] == 1
    assert ms <= parts(log.now())[1]


def test_large_numbers_stay_exact(log: Journal, client: Client) -> None:
    log.publish()
    client.hset("moorage:$clock", "number", 2**52)
    assert [parts(log.publish())[2] for _ in range(3)] == [2**52 + 1, 2**52 + 2, 2**52 + 3]


def test_a_redis_that_has_lost_its_data_begins_an_epoch(log: Journal, client: Client) -> None:
    epochs = {parts(log.publish())[0]}
    for begin in (log.publish, log.now) * 2:
        client.flushall()
        epochs.add(parts(begin())[0])
    assert len(epochs) == 5


@pytest.mark.parametrize(("behind", "is_lost"), [(-40, False), (0, False), (1, True), (50, True)])
def test_a_clock_that_is_behind_what_was_seen_has_lost_data(
    log: Journal, client: Client, behind: int, is_lost: bool
) -> None:
    """A failover, or a restart with an older file: whoever has seen more finds it out."""
    for _ in range(60):
        seen = log.publish()
    client.hset("moorage:$clock", "number", 60 - behind)
    client.delete("moorage:$stream:room:a")
    epoch = parts(log.now(seen))[0]
    assert (epoch != parts(seen)[0]) == is_lost
    assert parts(log.publish())[0] == epoch
    assert parts(log.now(seen))[0] == epoch, "what was seen of a former epoch says nothing"


def test_an_epoch_that_the_clock_has_never_had_was_lost(log: Journal) -> None:
    """It was begun where nothing is left of it; whoever knows of it ends the one that has come back in its place, once."""
    position = log.publish()
    foreign = b"0badcafe-%d-%d" % (parts(position)[1], 1)
    epoch, _, number = parts(log.now(foreign))
    assert epoch not in (b"0badcafe", parts(position)[0])
    assert number == parts(position)[2]
    assert {parts(log.now(known))[0] for known in (foreign, position, log.publish(), None)} == {epoch}


def test_so_many_epochs_are_remembered(log: Journal, client: Client) -> None:
    first = log.publish()
    for number in range(100):
        log.now(b"%08x-1-1" % number)
    assert len(client.hget("moorage:$clock", "past")) <= 64 * 9
    epoch = parts(log.now(b"%08x-1-1" % 99))[0]
    assert parts(log.now(None))[0] == epoch, "who was in one of them says nothing"
    assert parts(log.now(first))[0] != epoch, "who comes from one that is forgotten has everybody told once more"


def test_older_data_begin_an_epoch_for_all(log: Journal, client: Client) -> None:
    """A failover to a replica that was behind: the first who knows more tells, and everybody sees it."""
    for _ in range(10):
        position = log.publish()
    older = {key: client.dump(key) for key in client.keys("*")}
    seen = [log.publish() for _ in range(10)]
    client.flushall()
    for key, value in older.items():
        client.restore(key, 0, value)
    assert parts(log.now(position))[0] == parts(position)[0], "who has seen no more than that has lost nothing"
    epoch, ms, number = parts(log.now(seen[4]))
    assert (epoch != parts(position)[0], number) == (True, 10)
    assert ms >= parts(seen[-1])[1]
    assert {parts(log.now(known))[0] for known in (None, position, *seen)} == {epoch}
    assert parts(log.publish())[::2] == (epoch, 11)


# Another server, or the same one anew: it may lack the newest numbers.

SPAN = 10_000_000_000


def hand_over(client: Client) -> None:
    """Let the clock be one that another master has written."""
    client.hset("moorage:$clock", "run", "0" * 40)


def roll_back(client: Client, older: dict[bytes, bytes]) -> None:
    """Let the server be another one, that has got only so far."""
    client.flushall()
    for key, value in older.items():
        client.restore(key, 0, value)
    hand_over(client)


def test_another_master_begins_a_span_in_the_same_epoch(log: Journal, client: Client) -> None:
    seen = [log.publish() for _ in range(3)]
    epoch = parts(log.now(seen[-1]))[0]
    for span in (1, 2, 3):
        hand_over(client)
        for _ in range(2):
            assert parts(log.now(seen[-1]))[::2] == (epoch, span * SPAN)
        seen += [log.publish(), log.publish()]
        assert [parts(position)[2] for position in seen[-2:]] == [span * SPAN + 1, span * SPAN + 2]
    assert {parts(log.now(position))[0] for position in seen} == {epoch}, "whatever anybody knows is there"
    assert not any(map(log.is_lost, seen))
    assert len(log.missed(seen[1]).entries) == len(seen) - 2


def test_who_knows_a_lost_number_tells_however_late(log: Journal, client: Client) -> None:
    """The first to ask has seen less, and publishes more than was lost before the other one comes."""
    for _ in range(10):
        early = log.publish()
    older = {key: client.dump(key) for key in client.keys("*")}
    lost = [log.publish() for _ in range(5)]
    roll_back(client, older)
    assert parts(log.now(early))[0] == parts(early)[0]
    new = [log.publish() for _ in range(20)]
    assert not {parts(position)[2] for position in new} & {parts(position)[2] for position in lost}, "no number twice"
    assert all(map(log.is_lost, lost)), "who comes back with one of them is told, although nobody has told us"
    assert not any(map(log.is_lost, [early, *new]))
    assert parts(log.now(lost[0]))[0] != parts(early)[0]
    assert parts(log.publish())[::2] == (parts(log.now())[0], parts(new[-1])[2] + 1)


def test_a_loss_of_long_ago_is_known(log: Journal, client: Client) -> None:
    early = log.publish()
    older = {key: client.dump(key) for key in client.keys("*")}
    lost = log.publish()
    roll_back(client, older)
    for _ in range(3):
        log.now(early)
        log.publish()
        hand_over(client)
    assert (log.is_lost(early), log.is_lost(lost)) == (False, True)
    assert parts(log.now(lost))[0] != parts(early)[0]


@pytest.mark.parametrize("keeps", [False, True])
def test_a_restart_of_the_server_is_another_master(tmp_path: Path, keeps: bool) -> None:
    with Embedded(directory=tmp_path if keeps else None) as server:
        with client_of(server) as client:
            log = Journal(client)
            log.now()
            seen = log.publish()
        server.restart()
        with client_of(server) as client:
            epoch, _, number = parts(Journal(client).now(seen))
    assert (epoch == parts(seen)[0], number) == ((True, SPAN) if keeps else (False, 0))


def test_a_restart_without_persistence_begins_an_epoch() -> None:
    with server_of("valkey") as server:
        with client_of(server) as client:
            before = parts(Journal(client).publish())
        server.restart()
        with client_of(server) as client:
            epoch, ms, number = parts(Journal(client).publish())
        assert epoch != before[0]
        assert ms >= before[1]
        assert number == 1


def test_every_message_names_the_one_before_it_in_its_channel(log: Journal) -> None:
    ids = {name: [b"0-0"] for name in ("room:a", "room:b")}
    for number in range(20):
        name = "room:a" if number % 3 else "room:b"
        ids[name].append(log.publish(name).split(b"-", 1)[1])
    for name, chain in ids.items():
        kept = log.kept(name)
        assert [id for id, _, _ in kept] == chain[1:]
        assert [before for _, before, _ in kept] == chain[:-1]


def test_the_bus_is_told_what_is_kept(log: Journal, client: Client) -> None:
    with client.pubsub() as pubsub:
        pubsub.subscribe("moorage:room:a")
        wait_until(lambda: pubsub.get_message(timeout=1), "subscribed")
        positions = [log.publish() for _ in range(3)]
        payloads = [wait_until(lambda: pubsub.get_message(timeout=1), "a message")["data"] for _ in range(3)]
    kept = log.kept()
    for position, payload, (id, before, members) in zip(positions, payloads, kept, strict=True):
        assert payload == b"%b %b %b" % (position, before, members)
        assert position.endswith(b"-" + id)


@pytest.mark.parametrize("data", ["a b  c", 'quo"te\\', "é漢字👩‍👩‍👧", "\0\r\n", {"x": [1, None]}, "x" * 65_000])
def test_any_data_is_kept_as_it_was(log: Journal, data: object) -> None:
    members = journal.members("zoë", 1, orjson.dumps(data))
    log.publish("raum:größe", members)
    ((_, _, kept),) = log.kept("raum:größe")
    assert kept == members


def test_at_most_so_many_messages_are_kept(log: Journal) -> None:
    positions = [log.publish(retention=Retention(messages_max=5)) for _ in range(12)]
    assert [id for id, _, _ in log.kept()] == [position.split(b"-", 1)[1] for position in positions[-5:]]


def test_messages_are_kept_for_so_long(log: Journal, client: Client) -> None:
    """Older ones go with the next message; without one, the whole stream goes."""
    old = log.publish()
    client.hset("moorage:$clock", "ms", parts(old)[1] + 60_001)  # a minute passes
    retention = Retention(1000, 60)
    young = log.publish(retention=retention)
    assert [(id, before) for id, before, _ in log.kept()] == [(young.split(b"-", 1)[1], old.split(b"-", 1)[1])]
    assert 55 < client.ttl("moorage:$stream:room:a") <= 61  # set once a second, so that no message goes early
    assert client.ttl("moorage:$last:room:a") > 6 * 24 * 3600


def test_a_channel_that_was_silent_long_enough_is_gone_but_for_its_last_id(log: Journal, client: Client) -> None:
    position = log.publish(retention=Retention(1000, 1))
    wait_until(lambda: not client.exists("moorage:$stream:room:a"), "the stream has expired", 5)
    again = log.publish(retention=Retention(1000, 1))
    assert log.kept()[0][:2] == (again.split(b"-", 1)[1], position.split(b"-", 1)[1])


def test_all_that_is_written_has_the_prefix(client: Client) -> None:
    Journal(client, "chat:").publish()
    Journal(client, "chat:").now()
    assert sorted(client.keys()) == [b"chat:$clock", b"chat:$last:room:a", b"chat:$stream:room:a"]
    assert parts(Journal(client, "other:").now())[2] == 0


def test_one_key_is_the_only_thing_that_grows_with_nothing(log: Journal, client: Client) -> None:
    """Ten thousand reads of the clock leave one small hash."""
    with client.pipeline(transaction=False) as pipeline:
        for _ in range(1000):
            pipeline.execute_command("EVAL", journal.NOW, *log.keys.now_args(None))
        pipeline.execute()
    assert client.keys() == [b"moorage:$clock"]
    assert sorted(client.hkeys("moorage:$clock")) == [b"epoch", b"ms", b"number", b"run"]


def test_a_script_is_known_by_its_digest(client: Client, log: Journal) -> None:
    for digest, script in journal.SCRIPTS.items():
        assert client.execute_command("SCRIPT", "LOAD", script) == digest
    reading = {journal.MISSED_SHA, journal.NEWEST_SHA}
    assert set(journal.SCRIPTS) == {journal.PUBLISH_SHA, journal.SHARDED.publishing_sha, *reading}
    (position,) = client.execute_command("EVALSHA", journal.PUBLISH_SHA, *publish_args(log.keys, b"a", MEMBERS))
    assert parts(position)[2] == parts(log.now())[2] == 1


def test_what_is_published_together_is_as_if_it_were_one_by_one(log: Journal, client: Client) -> None:
    first = log.publish("room:a")
    with client.pubsub() as pubsub:
        pubsub.subscribe("moorage:room:a", "moorage:room:b")
        for _ in range(2):
            wait_until(lambda: pubsub.get_message(timeout=1), "subscribed")
        positions = log.publish_all([("room:a", b""), ("room:b", b""), ("room:a", b"")])
        heard = [wait_until(lambda: pubsub.get_message(timeout=1), "a message") for _ in range(3)]
    assert [parts(position)[2] for position in positions] == [2, 3, 4]
    assert [message["channel"] for message in heard] == [b"moorage:room:a", b"moorage:room:b", b"moorage:room:a"]
    ids = [position.split(b"-", 1)[1] for position in (first, *positions)]
    assert [message["data"].split(b" ")[:2] for message in heard] == [
        [positions[0], ids[0]],
        [positions[1], b"0-0"],
        [positions[2], ids[1]],
    ]
    assert [(id, before) for id, before, _ in log.kept()] == [(ids[0], b"0-0"), (ids[1], ids[0]), (ids[3], ids[1])]
    assert parts(log.now())[2] == 4


def test_what_is_wrong_with_one_message_is_not_the_others_fault(log: Journal, client: Client) -> None:
    """Somebody else has written below the prefix."""
    client.set("moorage:$stream:room:b", "not a stream")
    client.rpush("moorage:$last:room:c", "not an id")
    found = log.publish_all([(f"room:{name}", b"") for name in "abcd"])
    assert [type(each) for each in found] == [bytes, ResponseError, ResponseError, bytes]
    assert "WRONGTYPE" in str(found[1])
    assert "WRONGTYPE" in str(found[2])
    assert parts(log.publish())[2] == 5  # a number is not given out twice
    assert len(log.kept("room:a")) == 2
    assert len(log.kept("room:d")) == 1


# Idempotency keys.


def test_a_key_publishes_once(log: Journal, client: Client) -> None:
    first = log.publish(once=b"alice:1")
    assert [log.publish(once=b"alice:1") for _ in range(2)] == [first, first]
    assert parts(log.now())[2] == len(log.kept()) == 1
    (remembered,) = client.keys("moorage:$once:*")
    assert 0 < client.ttl(remembered) <= journal.ONCE_SECONDS_MAX


def test_a_key_publishes_once_among_others(log: Journal) -> None:
    """Those that were published before, and twice in one call."""
    first = log.publish(once=b"alice:1")
    messages = [("room:a", b"alice:%d" % key) for key in (1, 2, 2, 3, 1)]
    found = log.publish_all(messages, are_once=True)
    assert [parts(each)[2] for each in found] == [1, 2, 2, 3, 1]
    assert found[0] == found[4] == first
    assert len(log.kept()) == parts(log.now())[2] == 3


def test_other_keys_other_senders_other_channels_and_no_key_publish_again(log: Journal) -> None:
    published = [(name, once) for name in ("room:a", "room:b") for once in (b"alice:1", b"alice:2", b"bob:1", b"", b"")]
    positions = [log.publish(name, once=once) for name, once in published]
    assert [parts(position)[2] for position in positions] == list(range(1, 11))


def test_a_channel_and_a_sender_are_told_apart(log: Journal) -> None:
    """Names may hold whatever separates them elsewhere."""
    assert log.publish("room:a", once=b"b:alice:1") != log.publish("room:a:b", once=b"alice:1")


def test_a_key_is_forgotten_after_its_time(log: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "ONCE_SECONDS_MAX", 1)
    first = log.publish(once=b"alice:1")
    again = wait_until(lambda: log.publish(once=b"alice:1") != first, "it is forgotten", 5)
    assert again
    assert len(log.kept()) == 2


def test_a_key_of_lost_data_is_lost_too(log: Journal, client: Client) -> None:
    first = log.publish(once=b"alice:1")
    client.flushall()
    assert parts(log.publish(once=b"alice:1"))[0] != parts(first)[0]


# What was missed.


@pytest.mark.parametrize("count", [1, 19, 20, 21, 40, 45])
def test_a_page_is_what_is_kept_behind_a_position(log: Journal, count: int) -> None:
    begin = log.publish("room:b")
    positions = [log.publish(members=b',"data":%d' % number) for number in range(count)]
    page = log.missed(begin)
    assert page == (log.kept()[-1][0], 0, log.kept())
    assert [members for _, _, members in page.entries] == [b',"data":%d' % number for number in range(count)]
    assert log.missed(positions[0]).entries == log.kept()[1:]
    assert log.missed(positions[-1]) == (page.last, 0, [])


@pytest.mark.parametrize("size", [1, 7, 19, 20, 21, 44, 45, 46])
def test_pages_hold_so_many_messages_and_say_whether_there_are_more(log: Journal, size: int) -> None:
    after = log.publish("room:b")
    for _ in range(45):
        log.publish()
    kept, found = log.kept(), list[tuple[bytes, bytes, bytes]]()
    while True:
        page = log.missed(after, size)
        found += page.entries
        assert page.last == kept[-1][0]
        assert page.more == (len(found) < 45)
        if not page.more:
            break
        assert len(page.entries) == size
        after = after[:9] + found[-1][0]
    assert found == kept


def test_pages_hold_so_many_bytes_but_one_message_at_least(log: Journal) -> None:
    after = log.publish("room:b")
    sizes = [1000, 1000, 1000, 50_000, 10, 2000, 1, 3000]
    for size in sizes:
        log.publish(members=b"," + b"x" * (size - 1))
    pages = []
    while True:
        page = log.missed(after, bytes_max=3000)
        pages.append([len(members) for _, _, members in page.entries])
        if not page.more:
            break
        after = after[:9] + page.entries[-1][0]
    assert pages == [[1000, 1000, 1000], [50_000], [10, 2000, 1], [3000]]


def test_a_page_shows_what_is_no_longer_kept(log: Journal, client: Client) -> None:
    """Its first message names one before it that the asker has not had; or there is only the last id."""
    begin = log.publish()
    ids = [log.publish(retention=Retention(messages_max=2)).split(b"-", 1)[1] for _ in range(5)]
    page = log.missed(begin)
    assert [(id, before) for id, before, _ in page.entries] == [(ids[3], ids[2]), (ids[4], ids[3])]
    client.delete("moorage:$stream:room:a")
    assert log.missed(begin) == (ids[4], 0, [])


def test_a_page_behind_a_position_of_another_epoch_holds_nothing(log: Journal, client: Client) -> None:
    """The same number is another message there, and the epoch may have changed since the asker looked."""
    begin = log.now()
    for _ in range(2):
        log.publish()
    assert not log.is_lost(begin)
    client.flushall()
    assert log.is_lost(begin), "also while nothing is there"
    log.publish()
    assert log.is_lost(begin)
    assert log.missed(begin).entries == []
    assert len(log.missed(log.now()[:9] + b"0-0").entries) == 1


def test_a_channel_that_never_had_a_message(log: Journal, client: Client) -> None:
    assert log.missed(log.now()) == (b"", 0, [])
    assert client.keys() == [b"moorage:$clock"], "a look writes nothing"


def refuse(client: Client, setting: str, value: str) -> Callable[[], object]:
    before = client.config_get(setting)[setting]
    client.config_set(setting, value)
    return lambda: client.config_set(setting, before)


def test_a_redis_without_memory_takes_all_of_a_message_or_nothing(client: Client, log: Journal) -> None:
    position = log.publish()
    undo = refuse(client, "maxmemory", "1")
    try:
        with pytest.raises(redis.ResponseError, match="maxmemory"):
            log.publish()
    finally:
        undo()
    assert parts(log.now())[2] == parts(position)[2]
    assert len(log.kept()) == 1
    assert parts(log.publish())[2] == 2
