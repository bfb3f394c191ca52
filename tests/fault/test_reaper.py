"""A node that dies without a word: Redis goes on counting its workers, until somebody misses an answer."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from clusters import Cluster
from harness import LineClient, Server, wait_until

from router.embedded import Embedded

PROMISED_SECONDS = 10.0
SHORT = "import router.reaper\nrouter.reaper.SILENT_SECONDS_MAX = 3"
ROOM = "room:d"
USERS = 3


@pytest.fixture
def valkey() -> Iterator[Embedded]:
    with Embedded() as embedded:
        yield embedded


@contextmanager
def frozen(server: Server) -> Iterator[float]:
    """All of a node stands still: to everybody else it is as if it had no power, and no connection is closed."""
    family = server.family()
    for process in family:  # the supervisor first, who would miss its workers
        process.send_signal(signal.SIGSTOP)
    try:
        yield time.monotonic()
    finally:
        for process in reversed(family):
            process.send_signal(signal.SIGCONT)


def asked(client: LineClient) -> Any:
    """Who is there; None when not everybody has answered, which is an error and no half of an answer."""
    client.send({"op": "presence", "id": 1, "channel": ROOM})
    while (answer := client.receive()) is not None and answer.get("id") != 1:
        pass
    assert answer is not None
    assert answer["op"] == "presence" or answer["code"] == 3006
    return answer.get("users")


def asked_over_http(server: Server) -> Any:
    """The same at the admin port."""
    status, answer = server.request("GET", f"/api/channels/{ROOM}/presence", admin=True)
    assert status == 200 or answer["error"]["code"] == 3006
    return answer.get("users")


def see_it_die(url: str, ask: Callable[[Server, LineClient], Any], before: str = "") -> None:
    """Have one of two nodes die, and come back: presence is right in time, and nobody has lost anything."""
    with (
        Server(["--workers", "2", "--redis", url], before=before) as here,
        Server(["--workers", "1", "--redis", url]) as there,
    ):
        asker = here.joined("asker", ROOM)
        users = [there.joined(f"u{n}", ROOM) for n in range(USERS)]
        everybody = {"asker": 1} | {f"u{n}": 1 for n in range(USERS)}
        assert ask(here, asker) == everybody
        with frozen(there) as died:
            left = died + PROMISED_SECONDS - time.monotonic()
            wait_until(lambda: ask(here, asker) == {"asker": 1}, "only the asker is left", left)
            assert time.monotonic() - died < PROMISED_SECONDS
            for n in range(USERS):
                here.publish(ROOM, n)
        wait_until(lambda: ask(here, asker) == everybody, "they are back")
        here.publish(ROOM, "again")
        for user in users:  # each message once, and no gap
            assert [user.receive()["data"] for _ in range(USERS + 1)] == [*range(USERS), "again"]  # type: ignore[index]
        assert wait_until(lambda: here.stats()["total"]["workers_cut"], "it is counted") == 1
        assert here.stats()["total"]["bus_reconnects"] == 0, "those who live were let alone"


def test_presence_is_right_again_within_ten_seconds(valkey: Embedded) -> None:
    see_it_die(valkey.url, lambda _, asker: asked(asker))


def test_asked_over_http_only(valkey: Embedded) -> None:
    see_it_die(valkey.url, lambda here, _: asked_over_http(here), SHORT)


def test_on_a_cluster() -> None:
    with Cluster() as cluster:
        see_it_die(cluster.url, lambda _, asker: asked(asker), SHORT)
