"""Who is there, over two supervisors on one Redis, and right after one of their workers has died."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness import LineClient, Server, wait_until

from router.embedded import Embedded

pytestmark = pytest.mark.xdist_group("presence")


@pytest.fixture(scope="module")
def servers() -> Iterator[list[Server]]:
    with (
        Embedded() as valkey,
        Server(["--workers", "2", "--redis", valkey.url]) as one,
        Server(["--workers", "1", "--redis", valkey.url]) as other,
    ):
        yield [one, other]


def there(client: LineClient, channel: str) -> dict[str, int]:
    client.send({"op": "presence", "id": 1, "channel": channel})
    found: dict[str, int] = client.expect("presence", id=1, channel=channel)["users"]
    return found


def test_two_supervisors_are_one_server(servers: list[Server]) -> None:
    clients = [servers[n % 2].joined(f"u{n % 3}", "room:p") for n in range(6)]
    for client in clients:
        assert there(client, "room:p") == {"u0": 2, "u1": 2, "u2": 2}
    clients[0].send({"op": "publish", "id": 1, "channel": "room:p", "data": "all"})
    for client in clients:
        client.expect("message", data="all")
    for client in clients[1:]:
        client.close()
    wait_until(lambda: there(clients[0], "room:p") == {"u0": 1}, "who has left is gone")
    clients[0].close()


def test_who_is_online(servers: list[Server]) -> None:
    with servers[0].joined("asker") as asker:
        assert there(asker, "@nobody") == {}
        assert there(asker, "@asker") == {"asker": 1}
        with servers[1].joined("asker"), servers[1].joined("bob"):
            assert there(asker, "@asker") == {"asker": 2}
            assert there(asker, "@bob") == {"bob": 1}
        wait_until(lambda: there(asker, "@bob") == {}, "bob is gone")


def test_the_streams_count_too(servers: list[Server]) -> None:
    stream = servers[1].event_client("user=eve&channel=room:s")
    stream.expect("connected")
    with servers[0].joined("asker", "room:s") as asker:
        assert there(asker, "room:s") == {"asker": 1, "eve": 1}


def test_a_worker_that_is_killed_takes_its_users_along(servers: list[Server]) -> None:
    """Nothing has to be swept: who is gone does not answer, and Redis does not count on it."""
    with servers[1].joined("asker", "room:k") as asker:
        doomed = [servers[0].joined(f"d{n}", "room:k") for n in range(8)]
        assert sum(there(asker, "room:k").values()) == 9
        for worker in servers[0].workers().values():
            worker.kill()

        wait_until(lambda: asked(asker) == {"asker": 1}, "only the asker is left", seconds=10)
        for client in doomed:
            client.close()
        with servers[0].joined("again", "room:k"):
            wait_until(lambda: asked(asker) == {"asker": 1, "again": 1}, "another has taken the place of the worker")


def asked(client: LineClient) -> dict[str, int] | None:
    """Who is in room:k; None when a worker died with the question, which is an error and no half of an answer."""
    client.send({"op": "presence", "id": 2, "channel": "room:k"})
    while (answer := client.receive()) is not None and answer.get("id") != 2:
        pass
    assert answer is not None
    assert answer["op"] == "presence" or answer["code"] == 3006
    return answer.get("users")


def test_what_may_not_be_seen(servers: list[Server]) -> None:
    with servers[0].joined("asker") as asker:
        asker.send({"op": "presence", "id": 1, "channel": "$control"})
        asker.expect("error", id=1, code=4003)
