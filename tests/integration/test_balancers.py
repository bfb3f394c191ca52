"""Both transports through HAProxy and nginx, with TLS, run from the files in deploy/."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import httpx_sse
import pytest
from balancers import NAME, Balancer, Haproxy, Nginx
from harness import wait_until

from router.embedded import Embedded

pytestmark = pytest.mark.xdist_group("balancers")

OPTIONS = ("--workers", "1", "--log-level", "debug", "--drain-seconds", "20")


@pytest.fixture(scope="module")
def valkey() -> Iterator[Embedded]:
    with Embedded() as embedded:
        yield embedded


@pytest.fixture(scope="module", params=[Haproxy, Nginx])
def balancer(request: pytest.FixtureRequest, valkey: Embedded, tmp_path_factory: Any) -> Iterator[Balancer]:
    kind: type[Balancer] = request.param
    with kind(tmp_path_factory.mktemp("balancer"), valkey.url, *OPTIONS) as made:
        yield made


def web(balancer: Balancer, source: str | None = None) -> httpx.Client:
    """A client of the HTTPS port."""
    return httpx.Client(
        base_url="https://{}:{}".format(*balancer.web),
        headers={"Host": NAME},
        transport=httpx.HTTPTransport(verify=balancer.trusted, local_address=source),
        timeout=20,
    )


SNI = {"sni_hostname": NAME}


def said(balancer: Balancer, text: str) -> bool:
    """True when a node has logged it."""
    servers = [node.server for node in (balancer.a, balancer.b) if node.server is not None]
    return any(text in line for server in servers for line in server.log)


def is_present(balancer: Balancer, user: str) -> bool:
    """True while a node has a connection of that user."""
    assert balancer.a.server is not None
    status, answer = balancer.a.server.request("GET", f"/api/channels/@{user}/presence", admin=True)
    assert status == 200, answer
    return user in answer["users"]


def test_the_shipped_files_are_taken_without_a_warning(balancer: Balancer) -> None:
    found = balancer.check()
    said = (found.stdout + found.stderr).lower().splitlines()
    assert not [line for line in said if "warn" in line and "http2" not in line]  # which newer ones deprecate


def test_lines_and_events_through_tls(balancer: Balancer) -> None:
    with web(balancer) as client, balancer.joined("alice", "room:a") as alice:
        query = {"user": "bob", "channel": "room:a"}
        with httpx_sse.connect_sse(client, "GET", "/events", params=query, extensions=SNI) as source:
            events = source.iter_sse()
            assert next(events).event == "connected"
            alice.send({"op": "publish", "id": 1, "channel": "room:a", "data": "from alice"})
            assert alice.expect("message")["data"] == "from alice"
            assert next(events).json()["data"] == "from alice"
            body = {"channel": "room:a", "data": "from bob"}
            with web(balancer) as another:
                assert another.post("/publish?user=bob", json=body, extensions=SNI).status_code == 200
            assert alice.expect("message", **{"from": "bob"})["data"] == "from bob"
            assert next(events).json()["data"] == "from bob"


def test_the_nodes_see_where_clients_come_from(balancer: Balancer) -> None:
    with balancer.joined("carol", source="127.0.0.7"), web(balancer, "127.0.0.8") as client:
        wait_until(lambda: said(balancer, "carol comes from 127.0.0.7 by tcp"), "carol's address in a log")
        query = {"user": "dave"}
        # What a client says of itself is not passed on.
        claims = {"X-Forwarded-For": "203.0.113.1", "Forwarded": "for=203.0.113.1"}
        with httpx_sse.connect_sse(client, "GET", "/events", params=query, headers=claims, extensions=SNI) as source:
            assert next(source.iter_sse()).event == "connected"
        wait_until(lambda: said(balancer, "dave comes from 127.0.0.8 by sse"), "dave's address in a log")
        body = {"channel": "room:a", "data": 1}
        assert client.post("/publish?user=erin", json=body, headers=claims, extensions=SNI).status_code == 200
        wait_until(lambda: said(balancer, "erin publishes from 127.0.0.8"), "erin's address in a log")


def test_a_client_that_leaves_is_gone_from_its_node_at_once(balancer: Balancer) -> None:
    """Long before a heartbeat, every 25 s, would find out."""
    with balancer.joined("frank"):
        assert is_present(balancer, "frank")
    wait_until(lambda: not is_present(balancer, "frank"), "frank is gone", 15)
    query = {"user": "grace"}
    with (
        web(balancer) as client,
        httpx_sse.connect_sse(client, "GET", "/events", params=query, extensions=SNI) as source,
    ):
        events = source.iter_sse()  # as long as this is there, so is the connection
        assert next(events).event == "connected"
        assert is_present(balancer, "grace")
    wait_until(lambda: not is_present(balancer, "grace"), "grace is gone", 15)


def test_with_no_node_left_a_browser_is_told_to_come_again(valkey: Embedded, tmp_path: Path, kind: Any) -> None:
    with kind(tmp_path, valkey.url, "--workers", "1") as balancer, web(balancer) as client:
        balancer.a.stop()
        balancer.b.stop()
        answer = client.get("/events?user=ivan", extensions=SNI)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream"
        field, _, value = answer.text.strip().partition(": ")
        assert field == "retry"
        assert 1000 <= int(value) <= 10_000
        assert answer.text.endswith("\n\n")
        published = client.post("/publish?user=ivan", json={"channel": "room:a", "data": 1}, extensions=SNI)
        assert published.status_code in (502, 503)


@pytest.fixture(params=[Haproxy, Nginx])
def kind(request: pytest.FixtureRequest) -> type[Balancer]:
    found: type[Balancer] = request.param
    return found


def test_haproxy_takes_a_draining_node_out_and_back_in(valkey: Embedded, tmp_path: Path) -> None:
    with Haproxy(tmp_path, valkey.url, *OPTIONS) as balancer:
        a = balancer.a
        assert a.server is not None
        assert balancer.states("a") == balancer.states("b") == {"UP"}
        with a.server.joined("judy"):  # somebody to wait for
            a.server.process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            wait_until(lambda: balancer.states("a") == {"DOWN"}, "out", 10)
            print(f"down after {time.monotonic() - began:.1f} s")
            before = balancer.sent("a"), balancer.sent("b")
            for number in range(6):
                balancer.joined(f"k{number}").close()
            assert (balancer.sent("a"), balancer.sent("b")) == (before[0], before[1] + 6)
        wait_until(lambda: a.server is None or a.server.process.poll() is not None, "nobody is left")
        a.stop()
        a.start()
        wait_until(lambda: balancer.states("a") == {"UP"}, "back in", 10)
        for number in range(6):
            balancer.joined(f"k{number}").close()
        wait_until(lambda: balancer.sent("a") > before[0], "it is sent connections again")


@pytest.mark.long
@pytest.mark.timeout(300)
def test_idle_connections_outlive_the_timeouts(valkey: Embedded, tmp_path: Path, kind: Any) -> None:
    """Nothing but heartbeats, every 25 s, for longer than two of the 60 s after which a silent connection is closed."""
    with kind(tmp_path, valkey.url, "--workers", "1") as balancer, web(balancer) as client:
        query = {"user": "lisa", "channel": "room:idle"}
        with (
            balancer.joined("mike", "room:idle") as mike,
            httpx_sse.connect_sse(client, "GET", "/events", params=query, extensions=SNI, timeout=60) as source,
        ):
            events = source.iter_sse()
            assert next(events).event == "connected"
            time.sleep(130)
            mike.send({"op": "publish", "id": 1, "channel": "room:idle", "data": "still here"})
            assert mike.expect("message")["data"] == "still here"
            heard = next(event for event in events if event.data)  # httpx-sse makes an empty one of a heartbeat
            assert heard.json()["data"] == "still here"
            assert mike.heartbeats >= 4
