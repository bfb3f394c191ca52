"""Gaps of live-only channels: told to those who asked, of the channels they asked about, when it may be told."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import pytest
from sinks import Keeper, Worker

from router import watchers
from router.message import Message
from router.namespaces import Namespace, Namespaces
from router.watchers import Watchers


class Lane:
    """Says what kind of thing a frame is."""

    def encode(self, message: Message) -> bytes:
        return b"%b %b %b\n" % (message.op, message.channel, message.position)


class Stage:
    here = b"7"
    gaps = 0
    is_steady = True


class Scene:
    """A worker, and those who watch."""

    def __init__(self) -> None:
        self.worker = Worker()
        self.stage = Stage()
        self.later: deque[Callable[[], None]] = deque()
        namespaces = Namespaces(named=(Namespace("typing", durable=False),))
        self.watchers = Watchers(self.stage, self.worker.carousel, namespaces, self.later.append)

    def keeper(self, user: str, *rooms: str) -> Keeper:
        return self.worker.keeper(user, *rooms, lane=Lane())  # type: ignore[arg-type]

    def run(self) -> None:
        while self.later:
            self.later.popleft()()


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_only_who_asked_is_told_and_only_of_what_is_not_kept(scene: Scene) -> None:
    asked, other = scene.keeper("asked", "room:a", "typing:a"), scene.keeper("other", "typing:a")
    scene.watchers.watch(asked)
    scene.worker.table.add(asked, b"typing:b")  # later, and meant too
    scene.watchers.restored()
    assert asked.writes == [b"gap typing:a 7\ngap typing:b 7\n"]
    assert other.writes == []
    assert scene.stage.gaps == 2


def test_one_channel_may_be_watched(scene: Scene) -> None:
    one = scene.keeper("one", "typing:a", "typing:b")
    scene.watchers.watch(one, b"typing:b")
    scene.watchers.restored()
    assert one.writes == [b"gap typing:b 7\n"]
    scene.watchers.unwatch(one, b"typing:b")
    scene.watchers.restored()
    assert len(one.writes) == 1
    scene.watchers.watch(one)
    scene.watchers.watch(one, b"typing:a")  # all of them already
    scene.watchers.rejoined(b"typing:b")
    assert one.writes[1:] == [b"gap typing:b 7\n"]


def test_a_channel_that_redis_had_unsubscribed(scene: Scene) -> None:
    one, both = scene.keeper("one", "typing:a"), scene.keeper("both", "typing:a", "typing:b")
    scene.watchers.watch(one)
    scene.watchers.watch(both)
    scene.watchers.rejoined(b"room:a")
    scene.watchers.rejoined(b"typing:b")
    assert (one.writes, both.writes) == ([], [b"gap typing:b 7\n"])


def test_what_was_to_come_before_comes_before(scene: Scene) -> None:
    asked = scene.keeper("asked", "typing:a")
    scene.watchers.watch(asked)
    scene.worker.publish("typing:a")
    scene.watchers.restored()
    assert asked.writes == [b"message typing:a 1\n", b"gap typing:a 7\n"]


def test_it_waits_while_the_position_would_be_wrong(scene: Scene) -> None:
    asked = scene.keeper("asked", "typing:a")
    scene.watchers.watch(asked)
    scene.stage.is_steady = False
    scene.watchers.restored()
    scene.run()
    assert asked.writes == []
    scene.stage.is_steady, scene.stage.here = True, b"9"
    scene.watchers.tick()
    scene.run()
    scene.watchers.tick()
    assert asked.writes == [b"gap typing:a 9\n"]


def test_many_are_told_in_turns_and_who_leaves_meanwhile_is_not(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchers, "TURN_SINKS", 2)
    asked = [scene.keeper(f"u{n}", "typing:a") for n in range(5)]
    for sink in asked:
        scene.watchers.watch(sink)
    asked[0].has_room = False  # is ended, and takes its neighbour along
    scene.worker.carousel._on_full = lambda _sink: scene.watchers.forget(asked[1])
    scene.watchers.restored()
    scene.watchers.forget(asked[4])
    scene.run()
    assert [len(sink.writes) for sink in asked] == [0, 0, 1, 1, 0]
    scene.watchers.lost()
    assert not scene.later
