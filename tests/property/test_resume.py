"""Whatever has happened, who comes back from any position it was ever told is sent exactly what it has missed, or is told.

A walk of arbitrary steps through a real server: publishes, clients that come, go, are cut in the middle, subscribe late, each from
any position that any of them was told before, and a Redis that loses its data. The walk keeps its own books, and what they say is
due is all that may come. There is one publisher, which waits for its answers: what is due is known at every step.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import redis
from clusters import Cluster
from harness import Json, LineClient, Server, wait_until
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from router.embedded import Embedded

pytestmark = pytest.mark.xdist_group("walks")

FEW = 3  # messages that are kept of some channels
CONFIG = f"""
[[namespace]]
prefix = "few"
history_messages_max = {FEW}
"""
USER = "walker"
PERSONAL = f"@{USER}"
VISITORS_MAX = 3
WORKERS = 2


class Mark(NamedTuple):
    """A position, and what is behind it: of each channel that it speaks of, the last message that it covers."""

    text: str
    life: int
    reached: dict[str, int]


class Due(NamedTuple):
    """What is due to somebody who comes from somewhere: all messages of these, or, unless `whole`, at least a gap."""

    messages: list[int]
    whole: bool


class Visitor:
    """A connection, and the last message that it has had of each of its channels."""

    def __init__(self, client: LineClient) -> None:
        self.client = client
        self.reached: dict[str, int] = {}

    def frames(self) -> Iterator[Json]:
        """Yield what has come, up to the answer to a ping."""
        self.client.send({"op": "ping", "id": "end"})
        while (frame := self.client.receive()) != {"op": "pong", "id": "end"}:
            assert frame is not None
            yield frame


class Walk(RuleBasedStateMachine):
    """One server for many walks, each of which begins with `lose`, which takes all data from Redis."""

    def __init__(self, server: Server, lose: Callable[[], None], *, shards: int) -> None:
        super().__init__()
        self._server, self._lose, self._shards = server, lose, shards
        self.channels = [f"{prefix}:{n}" for prefix in ("room", "few") for n in range(3)]
        self.logs: dict[str, list[int]] = {channel: [] for channel in (*self.channels, PERSONAL)}
        self.life = 0
        self.serial = 0
        self.marks: list[Mark] = []
        self.visitors: list[Visitor] = []
        self._lose_all()
        self.speaker = server.joined("speaker")

    def _lose_all(self) -> None:
        """Lose everything, and let every worker know it: one that has slept through two losses begins an epoch too many."""
        self._lose()
        workers = set[str]()
        while len(workers) < WORKERS:
            with self._server.joined("scout") as scout:
                workers.add(scout.connected["session"].rpartition("-")[0])

    def teardown(self) -> None:
        for client in (self.speaker, *(visitor.client for visitor in self.visitors)):
            client.close()

    # What the books say.

    def due(self, channel: str, mark: Mark) -> Due:
        """Return what is due on a channel to somebody who comes from `mark`."""
        if mark.life != self.life:
            return Due([], False)
        log = self.logs[channel]
        missed = log[bisect_right(log, mark.reached[channel]) :]
        kept = missed[-FEW:] if channel.startswith("few") else missed
        return Due(kept, kept == missed)

    def newest(self, channel: str) -> int:
        return self.logs[channel][-1] if self.logs[channel] else -1

    def note(self, visitor: Visitor, text: str, more: dict[str, int] | None = None) -> None:
        """Keep a position that a visitor was told."""
        self.marks.append(Mark(text, self.life, {**(more or {}), **visitor.reached}))

    def read(self, visitor: Visitor, dues: dict[str, Due], frames: Iterator[Json]) -> None:
        """Read what a visitor is sent: what is due, in the order of each channel, and gaps where something is lacking."""
        found: dict[str, list[int]] = {channel: [] for channel in dues}
        gaps = set()
        for frame in frames:
            channel = frame["channel"]
            if frame["op"] == "gap":
                gaps.add(channel)
            else:
                assert frame["op"] == "message", frame
                found[channel].append(frame["data"])
                visitor.reached[channel] = frame["data"]
            self.note(visitor, frame["position"])
        assert found == {channel: due.messages for channel, due in dues.items()}
        trimmed = {channel for channel, due in dues.items() if due.messages and not due.whole}
        lacking = {channel for channel, due in dues.items() if not due.whole}
        assert trimmed <= gaps <= lacking

    # The steps.

    @rule(data=st.data(), times=st.integers(1, 5))
    def publish(self, data: st.DataObject, times: int) -> None:
        """Publish to one channel: who is there hears it."""
        channel = data.draw(st.sampled_from([*self.channels, PERSONAL]))
        numbers = [self.serial + n + 1 for n in range(times)]
        self.serial += times
        self.speaker.send(*({"op": "publish", "id": n, "channel": channel, "data": n} for n in numbers))
        for number in numbers:
            self.speaker.expect("published", id=number)
        self.logs[channel] += numbers
        for visitor in self.visitors:
            if channel in visitor.reached:
                for frame, number in zip(visitor.client.messages(times), numbers, strict=True):
                    assert (frame["channel"], frame["data"]) == (channel, number)
                    visitor.reached[channel] = number
                    self.note(visitor, frame["position"])

    @rule(data=st.data(), is_back=st.booleans(), cut=st.none() | st.integers(0, 6))
    def come(self, data: st.DataObject, is_back: bool, cut: int | None) -> None:
        """Come, perhaps from a position, and perhaps be cut when some frames have been read."""
        mark = data.draw(st.sampled_from(self.marks)) if is_back and self.marks else None
        known = self.channels if mark is None else [channel for channel in self.channels if channel in mark.reached]
        channels = data.draw(st.lists(st.sampled_from(known), unique=True)) if known else []
        visitor = Visitor(self._server.joined(USER, *channels, **({"position": mark.text} if mark else {})))
        greeting, channels = visitor.client.connected, [PERSONAL, *channels]
        if mark is None or mark.life != self.life:
            assert greeting["recovered"] is (mark is None)
            visitor.reached = {channel: self.newest(channel) for channel in channels}
            others = self.channels if self._shards == 1 else []  # of which it says something that can be relied on
            self.note(visitor, greeting["position"], {channel: self.newest(channel) for channel in others})
            dues = {channel: Due([], mark is None) for channel in channels}
        else:
            dues = {channel: self.due(channel, mark) for channel in channels}
            assert greeting["recovered"] is all(due.whole for due in dues.values())
            visitor.reached = {channel: mark.reached[channel] for channel in channels}
            self.note(visitor, greeting["position"])
        if cut is None:
            self.read(visitor, dues, visitor.frames())
            self.visitors.append(visitor)
        else:
            self._read_some(visitor, dues, cut)
            visitor.client.close()
        if len(self.visitors) > VISITORS_MAX:
            self.visitors.pop(0).client.close()

    def _read_some(self, visitor: Visitor, dues: dict[str, Due], limit: int) -> None:
        """Read a few frames of what is due."""
        left = {channel: list(due.messages) for channel, due in dues.items()}
        for frame, _ in zip(visitor.frames(), range(limit), strict=False):
            channel = frame["channel"]
            if frame["op"] == "message":
                assert frame["data"] == left[channel].pop(0)
                visitor.reached[channel] = frame["data"]
            self.note(visitor, frame["position"])

    @precondition(lambda self: self.visitors)
    @rule(data=st.data(), is_back=st.booleans())
    def subscribe(self, data: st.DataObject, is_back: bool) -> None:
        """Subscribe late, perhaps from a position."""
        visitor = data.draw(st.sampled_from(self.visitors))
        channel = data.draw(st.sampled_from(self.channels))
        known = [mark for mark in self.marks if channel in mark.reached]
        if channel in visitor.reached:
            return
        mark = data.draw(st.sampled_from(known)) if is_back and known else None
        request = {"op": "subscribe", "id": 1, "channel": channel, **({"position": mark.text} if mark else {})}
        visitor.client.send(request)
        answer = visitor.client.expect("subscribed", id=1)
        due = self.due(channel, mark) if mark else Due([], True)
        assert answer["recovered"] is due.whole
        is_known = mark is not None and mark.life == self.life
        visitor.reached[channel] = mark.reached[channel] if mark and is_known else self.newest(channel)
        self.note(visitor, answer["position"])
        self.read(
            visitor, {name: due if name == channel else Due([], True) for name in visitor.reached}, visitor.frames()
        )

    @precondition(lambda self: self.visitors)
    @rule(data=st.data())
    def unsubscribe(self, data: st.DataObject) -> None:
        """Unsubscribe from one channel."""
        visitor = data.draw(st.sampled_from(self.visitors))
        if channels := sorted(visitor.reached.keys() - {PERSONAL}):
            channel = data.draw(st.sampled_from(channels))
            visitor.client.send({"op": "unsubscribe", "id": 1, "channel": channel})
            visitor.client.expect("unsubscribed", id=1)
            del visitor.reached[channel]

    @precondition(lambda self: self.visitors)
    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        """Go away."""
        visitor = data.draw(st.sampled_from(self.visitors))
        self.visitors.remove(visitor)
        visitor.client.close()

    @precondition(lambda self: self.marks)
    @rule()
    def lose_all(self) -> None:
        """Redis loses its data: who is there is told, once on each channel."""
        self._lose_all()
        self.life += 1
        self.logs = {channel: [] for channel in self.logs}
        for visitor in self.visitors:
            frames = [visitor.client.receive() for _ in visitor.reached]
            gaps = [frame["channel"] for frame in frames if frame is not None and frame["op"] == "gap"]
            assert sorted(gaps) == sorted(visitor.reached)
            visitor.reached = dict.fromkeys(visitor.reached, -1)
            if (
                self._shards == 1 and frames[-1] is not None
            ):  # with the last gap, that of her own channel, she knows all
                assert gaps[-1] == PERSONAL
                self.note(visitor, frames[-1]["position"])

    @invariant()
    def nothing_else_comes(self) -> None:
        for visitor in self.visitors:
            assert list(visitor.frames()) == []


def walk(server: Server, lose: Callable[[], None], *, shards: int = 1) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        lambda: Walk(server, lose, shards=shards),
        settings=settings(
            max_examples=30,
            stateful_step_count=30,
            phases=(Phase.reuse, Phase.generate),  # a walk that has failed may go elsewhere the next time
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.fixture
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("config") / "moorage.toml"
    file.write_text(CONFIG)
    return str(file)


def test_on_one_redis(config: str) -> None:
    with Embedded() as valkey, Server(["--workers", str(WORKERS), "--config", config, "--redis", valkey.url]) as server:
        client = redis.Redis.from_url(valkey.url)
        walk(server, client.flushall)
        client.close()


def test_on_a_cluster(config: str) -> None:
    with (
        Cluster(replicas=0) as cluster,
        Server(["--workers", str(WORKERS), "--config", config, "--redis", cluster.url]) as server,
    ):
        wait_until(lambda: server.stats()["total"]["ready"] == WORKERS, "all workers are ready")

        def lose() -> None:
            for member in cluster.members:
                member.client.flushall()

        walk(server, lose, shards=8)
