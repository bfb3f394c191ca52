"""Who is there, asked of all workers: everybody counted once, or an error."""

from __future__ import annotations

import asyncio

import pytest
from journals import Ear

from router import presence, reaper
from router.bus import BusDown
from router.outcome import Refused, Unconfirmed
from router.pipe import Done
from router.presence import Presence
from router.table import Table

Found = dict[str, int] | int | Exception
MOST = 50


class Hub:
    """Redis between some workers. What is published arrives when it is carried."""

    def __init__(self) -> None:
        self.sites: list[Site] = []
        self.under_way: list[tuple[Site, bytes, bytes]] = []

    def publish(self, name: bytes, payload: bytes) -> int:
        heard = [site for site in self.sites if name == site.reply_name or name in site.subscribed]
        self.under_way += [(site, name, payload) for site in heard]
        return len(heard)

    def carry(self) -> list[bytes]:
        carried = []
        while self.under_way:
            site, name, payload = self.under_way.pop(0)
            carried.append(payload)
            if site not in self.sites or site.is_dead:
                continue
            if name == site.reply_name:
                site.presence.answered(payload)
            else:
                site.presence.asked(name, payload)
        return carried


class Pipes:
    """A worker's bus."""

    def __init__(self, site: Site) -> None:
        self.site, self.reply_name = site, site.reply_name

    def send(self, name: bytes, payload: bytes, done: Done) -> None:
        self.site.send(name, payload, done)

    def ask(self, command: tuple[bytes, ...], done: Done) -> None:
        self.site.ask_redis(command, done)


class Site:
    """A worker."""

    def __init__(self, hub: Hub, number: int) -> None:
        self.hub = hub
        self.reply_name = b"$reply:%d" % number
        self.table = Table()
        self.subscribed: set[bytes] = set()
        self.replies: list[tuple[Done, object]] = []
        self.is_dead = False  # and Redis does not know
        self.is_late = False  # the answer of Redis comes behind those of the workers
        self.workers_cut = 0
        self.presence = Presence(Pipes(self), self.table, asyncio.get_running_loop(), self, most=MOST)  # type: ignore[arg-type]
        hub.sites.append(self)

    def send(self, name: bytes, payload: bytes, done: Done) -> None:
        reply = self.hub.publish(name, payload)
        if self.is_late:
            self.replies.append((done, reply))
        else:
            done(reply)

    def ask_redis(self, command: tuple[bytes, ...], done: Done) -> None:
        """Say what CLIENT LIST and CLIENT KILL do of the workers: of the pipes of number n, the ids are 2n and 2n + 1."""
        sites, silent = self.hub.sites, reaper.SILENT_SECONDS_MAX
        if command[2] == b"TYPE":
            done(
                b"".join(
                    b"id=%d addr= name=moorage:w:%d age=9 idle=0 flags=P\n" % (2 * n + 1, 2 * n)
                    for n in range(len(sites))
                )
            )
        elif command[1] == b"LIST":
            done(
                b"".join(
                    b"id=%b addr= name=moorage:w age=9 idle=%d flags=N\n" % (id, sites[int(id) // 2].is_dead * silent)
                    for id in command[3:]
                )
            )
        else:
            self.hub.sites[int(command[3]) // 2].subscribed.clear()
            done(1)

    def enter(self, user: str, *rooms: bytes) -> Ear:
        self.subscribed |= {b"@" + user.encode(), *rooms}
        return Ear(user).enter(self.table, *rooms)

    def ask(self, name: bytes, within: bytes = b"") -> list[Found]:
        found: list[Found] = []
        self.presence.ask(name, found.append, within)
        return found


@pytest.fixture
async def sites() -> list[Site]:
    hub = Hub()
    return [Site(hub, number) for number in range(3)]


async def test_everybody_is_counted_on_every_worker(sites: list[Site]) -> None:
    here, there, elsewhere = sites
    for site, user in ((here, "alice"), (here, "alice"), (there, "alice"), (there, "bob"), (elsewhere, "carol")):
        site.enter(user, b"room:a" if site is not elsewhere else b"room:b")
    for asker in sites:
        found = asker.ask(b"room:a")
        here.hub.carry()
        assert found == [{"alice": 3, "bob": 1}]


async def test_a_personal_channel(sites: list[Site]) -> None:
    """One connection, several, and none; asking leaves the table as small as it was."""
    here, there, asker = sites
    first = here.enter("alice")
    found = asker.ask(b"@alice")
    here.hub.carry()
    assert found == [{"alice": 1}]
    assert here.table.users["alice"] is first
    here.presence.asked(b"@alice", presence.question(asker.reply_name, b"1", 0))
    assert here.hub.carry() == [b"1 . 1"]
    assert here.table.users["alice"] is first, "also where only their number is asked for"
    here.enter("alice")
    there.enter("alice")
    found = asker.ask(b"@alice") + asker.ask(b"@bob")
    here.hub.carry()
    found = asker.ask(b"@alice")
    here.hub.carry()
    assert found == [{"alice": 3}]
    nobody = asker.ask(b"@bob")
    assert nobody == [{}]


async def test_too_many_to_be_named_are_counted(sites: list[Site]) -> None:
    here, there, asker = sites
    for n in range(MOST):
        (here, there)[n % 2].enter(f"u{n}", b"room:a")
    found = asker.ask(b"room:a")
    here.hub.carry()
    assert found == [{f"u{n}": 1 for n in range(MOST)}]
    here.enter("u0", b"room:a")  # connections count, not users: so it costs nobody anything to find out
    found = asker.ask(b"room:a")
    here.hub.carry()
    assert found == [MOST + 1]
    for _ in range(MOST):
        there.enter("u1", b"room:a")
    found = asker.ask(b"room:a")
    here.hub.carry()
    assert found == [2 * MOST + 1]


async def test_names_that_would_be_of_no_use_are_not_sent(sites: list[Site]) -> None:
    """Where many are to be expected, because there were many or because there are many here, they are counted first."""
    here, there, asker = sites
    ears = [(here, there)[n % 2].enter(f"u{n}", b"room:a") for n in range(MOST + 1)]
    for site, names_sent in ((asker, True), (asker, False), (here, False)):
        found = site.ask(b"room:a")
        sent = here.hub.carry()
        assert found == [MOST + 1]
        assert any(b"u1" in payload for payload in sent) == names_sent
    here.table.leave(ears[0])
    for site in (asker, here):
        found = site.ask(b"room:a")
        here.hub.carry()
        assert found == [{f"u{n}": 1 for n in range(1, MOST + 1)}]
    for ear in ears[1:]:
        (here, there)[int(ear.user[1:]) % 2].table.leave(ear)
    found = here.ask(b"room:a")
    here.hub.carry()
    assert found == [{}]


async def test_a_large_channel_is_answered_in_parts(sites: list[Site], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "PART_CONNECTIONS", 2)
    here, _, asker = sites
    ears = [here.enter(f"u{n % 4}", b"room:a") for n in range(5)]
    found = asker.ask(b"room:a")
    here.hub.carry()
    here.table.leave(ears[-1])  # was there when it was asked
    assert found == []
    for _ in range(2):
        await asyncio.sleep(0)
        here.hub.carry()
    assert found == [{"u0": 2, "u1": 1, "u2": 1, "u3": 1}]
    written: list[bytes] = []
    asker.presence.write({f"u{n}": n for n in range(5)}, written.append)
    for _ in range(3):
        assert written == []
        await asyncio.sleep(0)
    assert written == [b'{"u0":0,"u1":1,"u2":2,"u3":3,"u4":4}']


async def test_who_is_a_member(sites: list[Site]) -> None:
    """Only the workers that hold the user are asked, and only about her connections."""
    here, there, asker = sites
    here.enter("alice", b"room:a")
    there.enter("alice")
    there.enter("bob", b"room:a")
    found: list[bool | Exception] = []
    for user, channel in (("alice", "room:a"), ("alice", "room:b"), ("bob", "@bob"), ("carol", "room:a")):
        asker.presence.ask_member(user, channel, found.append)
        here.hub.carry()
    assert found == [True, False, True, False]
    assert asker.ask(b"@alice", within=b"room:a") == []
    here.hub.carry()


@pytest.mark.parametrize("junk", [b"?", b"?$reply:1 2", b"?$reply:1 2 x", b"?room:a 1 1"])
async def test_a_question_that_is_none(sites: list[Site], junk: bytes) -> None:
    with pytest.raises(ValueError, match=r"unpack|invalid literal|nobody"):
        sites[0].presence.asked(b"room:a", junk)


async def test_a_worker_that_still_subscribes_and_has_nobody(sites: list[Site]) -> None:
    sites[0].subscribed.add(b"room:a")
    found = sites[1].ask(b"room:a")
    sites[0].hub.carry()
    assert found == [{}]


async def test_answers_that_are_faster_than_redis(sites: list[Site]) -> None:
    here, there, _ = sites
    here.enter("alice", b"room:a")
    there.enter("bob", b"room:a")
    here.is_late = True
    found = here.ask(b"room:a")
    here.hub.carry()
    assert found == []
    for done, reply in here.replies:
        done(reply)
    assert found == [{"alice": 1, "bob": 1}]


async def test_questions_are_told_apart(sites: list[Site]) -> None:
    here, there, _ = sites
    here.enter("alice", b"room:a")
    there.enter("bob", b"room:b")
    a, b = here.ask(b"room:a"), here.ask(b"room:b")
    here.hub.carry()
    assert (a, b) == ([{"alice": 1}], [{"bob": 1}])


async def test_a_worker_that_does_not_answer_is_an_error_and_no_half(
    sites: list[Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "ANSWER_SECONDS_MAX", 0.02)
    here, there, _ = sites
    here.enter("alice", b"room:a")
    there.enter("bob", b"room:a")
    found = here.ask(b"room:a")
    here.hub.sites.remove(there)  # it dies with the question
    here.hub.carry()
    while not found:
        await asyncio.sleep(0.005)
    assert isinstance(found[0], Unconfirmed)
    here.presence.answered(b"1 {}")  # and an answer that comes late is nobody's
    assert len(found) == 1
    again = here.ask(b"room:a")
    here.hub.carry()
    assert again == [{"alice": 1}]


async def test_a_question_is_asked_again_when_somebody_who_was_counted_is_found_to_be_gone(
    sites: list[Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "DOUBT_SECONDS", 0.01)
    monkeypatch.setattr(reaper, "JITTER_SECONDS", 0.0)
    monkeypatch.setattr(reaper, "LOOK_SECONDS_MIN", 0.01)
    here, there, _ = sites
    here.enter("alice", b"room:a")
    there.enter("bob", b"room:a")
    found = here.ask(b"room:a")
    there.is_dead = True
    here.hub.carry()
    while not found:
        await asyncio.sleep(0.005)
        here.hub.carry()
    assert found == [{"alice": 1}]
    assert here.workers_cut == 1


async def test_an_answer_to_the_worker_before_is_not_counted(sites: list[Site]) -> None:
    here, there, _ = sites
    there.enter("bob", b"room:a")
    here.ask(b"room:a")  # and is killed: the next one has its name
    here.hub.sites.remove(here)
    heir = Site(here.hub, 0)
    there.enter("carol", b"room:a")
    found = heir.ask(b"room:a")
    here.hub.carry()
    assert found == [{"bob": 1, "carol": 1}]


@pytest.mark.parametrize("error", [BusDown("down"), Unconfirmed("cut"), Refused("OOM")])
async def test_a_question_that_cannot_be_asked(sites: list[Site], error: Exception) -> None:
    found: list[Found] = []
    sites[0].send = lambda name, payload, done: done(error)  # type: ignore[method-assign]
    sites[0].presence.ask(b"room:a", found.append)
    assert found == [error]


@pytest.mark.parametrize("junk", [b"", b"1", b"x y", b"\xff"])
async def test_an_answer_that_is_none(sites: list[Site], junk: bytes) -> None:
    found = sites[0].ask(b"room:a")
    assert found == [{}]
    sites[0].presence.answered(junk)
