"""Joins and leaves when workers and nodes die: who has gone leaves once, who has come back has not been away."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from harness import LineClient, Server, wait_until

from router.embedded import Embedded

BACK, GONE = 6, 4
GRACE_SECONDS = 3.0
# Shorter than they are, each in the same relation to the others.
SHORT = f"""
import router.roster, router.rosters
router.roster.GRACE_SECONDS = {GRACE_SECONDS}
router.rosters.SILENT_SECONDS_MAX, router.rosters.BEAT_SECONDS = 3.0, 1.0
"""


@pytest.fixture(scope="module")
def valkey() -> Iterator[Embedded]:
    with Embedded() as embedded:
        yield embedded


@contextmanager
def nodes(valkey: Embedded, tmp_path: Path) -> Iterator[list[Server]]:
    file = tmp_path / "moorage.toml"
    file.write_text('[[namespace]]\nprefix = "hall"\njoin_leave = true\n')
    options = ["--config", str(file), "--redis", valkey.url]
    with (
        Server(["--workers", "2", *options], before=SHORT) as one,
        Server(["--workers", "1", *options], before=SHORT) as other,
    ):
        yield [one, other]


def crowd(server: Server, channel: str) -> list[LineClient]:
    return [server.joined(f"u{n}", channel) for n in range(BACK + GONE)]


def told(witness: LineClient, seconds: float) -> list[str]:
    """What is told within `seconds`, in order."""
    found, until = [], time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        try:
            news = witness.receive(left)
        except TimeoutError:
            break
        assert news is not None
        found.append(f"{news['op']} {news.get('user')}")
    return found


def await_joins(witness: LineClient, count: int) -> None:
    assert len({witness.expect("join")["user"] for _ in range(count)}) == count


def test_a_worker_that_is_killed(valkey: Embedded, tmp_path: Path) -> None:
    """The users of a dead worker leave within 10 s of the grace, once; those who come back in time do neither."""
    with nodes(valkey, tmp_path) as (here, there):
        witnesses = [here.joined(f"w{n}", "hall:k") for n in range(2)]
        clients = crowd(there, "hall:k")
        for witness in witnesses:
            await_joins(witness, 2 + len(clients))
        (worker,) = there.workers().values()
        worker.kill()
        died = time.monotonic()
        for n in range(BACK):
            here.joined(f"u{n}", "hall:k")
        leaves = {f"leave u{n}" for n in range(BACK, BACK + GONE)}
        found = [f"leave {witnesses[0].expect('leave')['user']}" for _ in range(GONE)]
        assert set(found) == leaves
        assert GRACE_SECONDS - 1 < time.monotonic() - died < GRACE_SECONDS + 10
        assert told(witnesses[0], 2) == []
        assert set(told(witnesses[1], 0.5)) == leaves, "and nothing else"


def test_a_node_that_dies_without_a_word(valkey: Embedded, tmp_path: Path) -> None:
    """Its connections stay open as far as Redis knows: only its beats are missing."""
    with nodes(valkey, tmp_path) as (here, there):
        witness = here.joined("w", "hall:n")
        clients = crowd(there, "hall:n")
        await_joins(witness, 1 + len(clients))
        family: list[psutil.Process] = there.family()
        for process in family:
            process.send_signal(signal.SIGSTOP)
        died = time.monotonic()
        try:
            for n in range(BACK):
                here.joined(f"u{n}", "hall:n")
            found = {witness.expect("leave")["user"] for _ in range(GONE)}
            assert found == {f"u{n}" for n in range(BACK, BACK + GONE)}
            assert time.monotonic() - died < GRACE_SECONDS + 10
            assert told(witness, 1.5) == []
        finally:
            for process in family:
                process.send_signal(signal.SIGCONT)


def test_redis_away_is_nobody_gone(valkey: Embedded, tmp_path: Path) -> None:
    with nodes(valkey, tmp_path) as (here, there):
        witness = here.joined("w", "hall:r")
        clients = crowd(there, "hall:r")
        await_joins(witness, 1 + len(clients))
        server = psutil.Process(valkey.pid)
        server.send_signal(signal.SIGSTOP)
        clients[0].close()
        for node in (here, there):
            wait_until(lambda node=node: node.request("GET", "/readyz")[0] == 503, "every worker has given it up")  # type: ignore[misc]
        server.send_signal(signal.SIGCONT)
        assert witness.expect("leave")["user"] == "u0"
        assert told(witness, 3) == []
