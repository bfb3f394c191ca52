"""The admin port of a running server: what it counts is what happened, and what it is told to do is done."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator
from urllib.parse import quote

import pytest
from harness import Json, Server, wait_until
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

pytestmark = pytest.mark.xdist_group("admin")  # one server for most of them

KEY = "an-admin-key"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(["--workers", "2"]) as made:
        yield made


def scrape(server: Server, accept: str) -> tuple[str, str]:
    """Return the content type and the text of `/metrics`."""
    connection = http.client.HTTPConnection(server.admin[0], server.admin[1], timeout=10)
    connection.request("GET", "/metrics", headers={"Accept": accept})
    response = connection.getresponse()
    assert response.status == 200
    text = response.read().decode()
    connection.close()
    return response.getheader("Content-Type") or "", text


def samples(text: str) -> dict[str, float]:
    """The sum of each metric over its labels."""
    found: dict[str, float] = {}
    for family in parse_text(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0) + sample.value
    return found


def settled(server: Server, **wanted: int) -> Json:
    """Return the totals, once they show `wanted`: workers write their numbers twice a second."""
    found = wait_until(
        lambda: (t := server.stats()["total"]) and all(t[k] == v for k, v in wanted.items()) and t, f"{wanted}"
    )
    assert isinstance(found, dict)
    return found


def test_totals_are_what_happened(server: Server) -> None:
    before = server.stats()["total"]
    lines = [server.joined(f"l{n}", "room:count", f"room:{n}") for n in range(6)]
    streams = [server.event_client(f"user=s{n}&channel=room:count") for n in range(4)]
    for stream in streams:
        stream.expect("connected")
    for number in range(5):
        lines[0].send({"op": "publish", "id": number, "channel": "room:count", "data": number})
        lines[0].expect("published", id=number)
    lines[0].send({"op": "publish", "id": 6, "channel": "$no", "data": 1})
    lines[0].expect("error", id=6)
    for client in lines[1:]:
        client.messages(5)
    with server.line_client() as refused:
        refused.send(b"nonsense\n")
        refused.expect("close")
    total = settled(server, connections_tcp=6, connections_sse=4, accepted=before["accepted"] + 11)
    assert total["connections"] == 10
    assert total["published"] - before["published"] == 5
    assert total["publish_failures"] - before["publish_failures"] == 1
    assert total["deliveries"] - before["deliveries"] == 50
    assert total["handshake_failures"]["bad_request"] - before["handshake_failures"].get("bad_request", 0) == 1
    assert total["handshaking"] == 0

    stats = server.stats()
    for name in ("connections", "accepted", "published", "deliveries", "subscriptions", "open_fds"):
        assert stats["total"][name] == sum(worker[name] for worker in stats["workers"]), name
    assert [worker["worker"] for worker in stats["workers"]] == [0, 1]
    assert {worker["pid"] for worker in stats["workers"]} == {p.pid for p in server.workers().values()}
    assert stats["supervisor"] == server.process.pid
    for line in lines:
        line.close()
    for stream in streams:
        stream.close()
    total = settled(server, connections=0, subscriptions=0)
    assert total["closed"]["3000"] - before["closed"].get("3000", 0) == 10


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text;version=1.0.0"])
def test_a_scrape_shows_all_workers(server: Server, accept: str) -> None:
    with server.joined("scraped", "room:scraped") as client:
        client.send({"op": "publish", "id": 1, "channel": "room:scraped", "data": 1})
        client.expect("published")
        total = settled(server, connections=1)
        content_type, text = scrape(server, accept)
    if accept:
        assert content_type.startswith("application/openmetrics-text")
        assert {family.name for family in parse_openmetrics(text)}  # type: ignore[no-untyped-call]
    else:
        assert content_type.startswith("text/plain")
    found = samples(text.replace("# EOF\n", ""))
    assert found["moorage_connections"] == 1
    assert found["moorage_accepted_total"] == total["accepted"]
    assert found["moorage_published_total"] >= 1
    assert found["moorage_deliveries_total"] == total["deliveries"]
    assert found["moorage_bus_lag_seconds_count"] >= 1
    for name in (
        "handshake_failures", "closed", "received_messages", "writes", "backlogged_connections", "backlog_bytes",
        "fanout_seconds", "loop_lag_seconds", "worker_restarts", "worker_cpu_seconds", "worker_resident_bytes",
        "worker_open_fds", "worker_fd_limit", "kernel_tcp_memory_bytes", "kernel_tcp_sockets", "capacity_connections",
    ):  # fmt: skip
        assert f"# TYPE moorage_{name}" in text, name
    assert 'worker="0"' in text
    assert 'worker="1"' in text


def test_a_backend_publishes(server: Server) -> None:
    with server.joined("reader", "room:x", "room:y") as client, server.event_client("user=reader") as stream:
        stream.expect("connected")
        status, answer = server.request("POST", "/api/publish", {"channel": "room:x", "data": {"n": 1}}, admin=True)
        assert status == 200
        client.expect("message", channel="room:x", position=answer["position"], data={"n": 1}, **{"from": None})
        body = {"channels": ["room:y", "@reader"], "data": 2}
        status, answer = server.request("POST", "/api/publish", body, admin=True)
        assert list(answer["positions"]) == ["room:y", "@reader"]
        assert {m["channel"]: m["position"] for m in client.messages(2)} == answer["positions"]
        assert stream.expect("message")["from"] is None
        status, answer = server.request("POST", "/api/publish", {"channel": "$control", "data": 1}, admin=True)
        assert (status, answer["error"]["code"]) == (403, 4003)
        assert server.request("POST", "/api/publish", {"data": 1}, admin=True)[0] == 400


def test_an_operator_disconnects_a_user_everywhere(server: Server) -> None:
    clients = [server.joined("unwanted") for _ in range(6)]
    stream = server.event_client("user=unwanted")
    stream.expect("connected")
    other = server.joined("wanted")
    assert server.request("POST", "/api/users/unwanted/disconnect", {"reconnect": True}, admin=True) == (
        200,
        {"workers": 2},
    )
    for client in clients:
        assert client.expect("close", code=3011, reconnect=True)["after_ms"] > 0
        assert client.receive() is None
    assert stream.expect("close")["code"] == 3011
    again = server.joined("unwanted")
    assert server.request("POST", "/api/users/unwanted/disconnect", admin=True)[0] == 200
    close = again.expect("close", code=4009, reconnect=False)
    assert "after_ms" not in close
    assert server.request("POST", "/api/users/nobody/disconnect", admin=True)[0] == 200
    other.send({"op": "ping", "id": 1})
    other.expect("pong", id=1)


def test_an_operator_disconnects_a_user_of_any_name(server: Server) -> None:
    for name in ("{a}", "a/b", "плот"):
        client = server.joined(name)
        assert server.request("POST", f"/api/users/{quote(name, safe='')}/disconnect", admin=True)[0] == 200
        client.expect("close", code=4009)


@pytest.mark.parametrize(("path", "name"), [("/api/users/a/disconnect", "reconnect"), ("/api/drain", "seconds")])
def test_what_is_nested_too_deep_to_be_printed(server: Server, path: str, name: str) -> None:
    body = f'{{"{name}":{"[" * 1000}{"]" * 1000}}}'.encode()
    status, answer = server.request("POST", path, body, admin=True)
    assert (status, answer["error"]["code"], answer["error"]["field"]) == (400, 4000, name)


def test_the_dashboard_and_what_is_not_here(server: Server) -> None:
    status, page = server.request("GET", "/", admin=True)
    assert status == 200
    assert "Moorage" in page
    assert server.request("GET", "/healthz", admin=True) == (200, {"status": "ok"})
    assert server.request("GET", "/nowhere", admin=True)[0] == 404
    status, answer = server.request("GET", "/api/publish", admin=True)
    assert (status, answer["error"]["field"]) == (405, "method")


def test_an_admin_key_is_asked_for(start_server: Callable[..., Server]) -> None:
    server = start_server("--workers", "1", env={"MOORAGE_ADMIN_KEY": KEY})
    bearer = {"Authorization": f"Bearer {KEY}"}
    for headers, wanted in (({}, 401), ({"Authorization": "Bearer wrong"}, 401), (bearer, 200)):
        for path in ("/api/stats", "/metrics", "/"):
            assert server.request("GET", path, admin=True, headers=headers)[0] == wanted
        assert server.request("POST", "/api/users/a/disconnect", admin=True, headers=headers)[0] == wanted
    assert server.request("GET", "/healthz", admin=True)[0] == 200
