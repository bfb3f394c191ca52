"""Redis that freezes, dies, is not there yet, or carries what is not ours."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import redis
from balancers import free_ports, loopback_host
from harness import Json, LineClient, Server, wait_until

from router.embedded import Embedded

StartServer = Callable[..., Server]


class Load(threading.Thread):
    """Publishes one message after the other, and keeps every answer."""

    def __init__(self, client: LineClient, channel: str) -> None:
        super().__init__(daemon=True)
        self._client, self._channel = client, channel
        self._stopping = threading.Event()
        self.answers: list[Json] = []

    def run(self) -> None:
        while not self._stopping.is_set():
            number = len(self.answers)
            self._client.send({"op": "publish", "id": number, "channel": self._channel, "data": number})
            while (answer := self._client.receive()) is None or answer["op"] == "gap":  # of its personal channel
                assert answer is not None
            assert answer["id"] == number
            self.answers.append(answer)
            if answer["op"] == "error":
                self._stopping.wait(0.05)

    def stop(self) -> None:
        self._stopping.set()
        self.join(20)

    def codes(self) -> set[int]:
        """The codes of all errors so far."""
        return {answer["code"] for answer in list(self.answers) if answer["op"] == "error"}


def readiness(server: Server) -> int:
    return server.request("GET", "/readyz")[0]


def check_nothing_was_lost_in_silence(client: LineClient, load: Load) -> bool:
    """Everything that was taken is heard, once and in order, but for what lies at a gap; return whether one was told."""
    taken = [answer["id"] for answer in load.answers if answer["op"] == "published"]
    heard: list[int] = []
    gap_behind = -1
    while not heard or heard[-1] != taken[-1]:
        message = client.receive()
        assert message is not None
        if message["op"] == "gap" and gap_behind < 0 and heard:
            gap_behind = heard[-1]
        elif message["op"] == "message":
            heard.append(message["data"])
    assert heard == sorted(set(heard))
    missed = set(taken) - set(heard)
    if missed:
        assert gap_behind >= 0, f"missed without a word: {missed}"
        after_gap = next(number for number in heard if number > gap_behind)
        assert all(gap_behind < number < after_gap for number in missed), missed
    return gap_behind >= 0


def test_a_frozen_redis(start_server: StartServer) -> None:
    server = start_server("--workers", "2")
    listener, events = server.joined("listener", "room:load"), server.event_client("user=e&channel=room:quiet")
    events.expect("connected")
    load = Load(server.joined("speaker"), "room:load")
    load.start()
    wait_until(lambda: len(load.answers) > 50, "load")
    frozen = server.redis()
    frozen.suspend()
    began = time.monotonic()
    try:
        wait_until(lambda: readiness(server) == 503, "not ready", seconds=5)
        assert time.monotonic() - began < 5
        wait_until(lambda: {3005, 3006} <= load.codes(), "the publisher is told, of the one under way too", seconds=6)
        assert all(a["after_ms"] > 0 for a in load.answers if a["op"] == "error")
        wait_until(lambda: server.stats()["total"]["bus_connected"] == 0, "every worker has given it up")
        status, answer = server.request("POST", "/publish?user=a", {"channel": "room:load", "data": "http"})
        assert (status, answer["error"]["code"]) == (503, 3005)
        status, answer = server.request("POST", "/api/publish", {"channel": "room:load", "data": "admin"}, admin=True)
        assert (status, answer["error"]["code"] in (3005, 3006)) == (503, True)
        assert server.request("GET", "/healthz")[0] == 200

        # Sessions are held, and made, with or without Redis.
        meanwhile = server.joined("meanwhile", "room:quiet")
        assert meanwhile.connected["recovered"] is False
        meanwhile.send({"op": "ping", "id": 1}, {"op": "subscribe", "id": 2, "channel": "room:more"})
        meanwhile.expect("pong", id=1)
        meanwhile.expect("subscribed", id=2, recovered=False)
    finally:
        frozen.resume()
    wait_until(lambda: readiness(server) == 200, "ready again, by itself", seconds=10)
    wait_until(lambda: server.stats()["total"]["bus_connected"] == 2, "every worker is back")
    count = len(load.answers)
    wait_until(lambda: any(a["op"] == "published" for a in load.answers[count:]), "publishing works again")
    load.stop()
    check_nothing_was_lost_in_silence(listener, load)
    for channel in ("room:quiet", "room:more"):
        listener.send({"op": "publish", "id": 1, "channel": channel, "data": "back"})
        meanwhile.expect("message", channel=channel, data="back")
    assert events.expect("message")["data"] == "back"
    assert server.stats()["total"]["restarts"] == 0


def test_a_redis_that_dies_is_started_again(start_server: StartServer) -> None:
    server = start_server("--workers", "2")
    listener = server.joined("listener", "room:load")
    events = server.event_client("user=e&channel=room:load")
    before = events.expect("connected")["position"]
    load = Load(server.joined("speaker"), "room:load")
    load.start()
    wait_until(lambda: len(load.answers) > 50, "load")
    died = server.redis()
    died.kill()
    wait_until(lambda: server.redis(but=died), "another Valkey runs")
    wait_until(lambda: server.stats()["total"]["bus_reconnects"] >= 2, "every worker is back")
    assert readiness(server) == 200
    count = len(load.answers)
    wait_until(lambda: any(a["op"] == "published" for a in load.answers[count:]), "publishing works again")
    load.stop()
    assert check_nothing_was_lost_in_silence(listener, load) is True
    gap = events.expect("gap")
    assert gap["channel"] in ("@e", "room:load")
    after = events.expect("message")["position"]
    assert before.split("-")[0] != after.split("-")[0], "its data are gone, so this is another epoch"
    assert load.codes() <= {3005, 3006}


def test_who_has_been_further_elsewhere_is_sent_nothing_twice(
    start_server: StartServer, valkey: Embedded, tmp_path: Path
) -> None:
    """One server is cut off from Redis while another goes on: what it repairs then is not new to everybody."""
    way = tmp_path / "redis.sock"
    way.symlink_to(valkey.url.removeprefix("unix://"))
    behind = start_server("--workers", "1", "--redis", f"unix://{way}")
    ahead = start_server("--workers", "1", "--redis", valkey.url)
    alice, elsewhere = behind.joined("alice"), ahead.joined("elsewhere", "room:a")
    way.unlink()
    with redis.Redis.from_url(valkey.url) as operator:
        operator.client_kill_filter(_type="pubsub")
    wait_until(lambda: behind.stats()["total"]["bus_connected"] == 0, "one is cut off")
    wait_until(lambda: readiness(ahead) == 200, "the other is back")
    for number in range(3):
        ahead.publish("room:a", number)
    subscribe = {"op": "subscribe", "channel": "room:a", "position": elsewhere.messages(3)[-1]["position"]}
    alice.send({**subscribe, "id": 1})
    assert alice.expect("error", id=1, code=3005)["after_ms"] > 0
    way.symlink_to(valkey.url.removeprefix("unix://"))
    wait_until(lambda: readiness(behind) == 200, "it is back")
    alice.send({**subscribe, "id": 2})
    alice.expect("subscribed", id=2, recovered=True)
    ahead.publish("room:a", "new")
    assert alice.messages(1)[0]["data"] == "new"


def test_who_comes_before_the_bus_waits_for_it_and_misses_nothing(
    start_server: StartServer, valkey: Embedded, tmp_path: Path
) -> None:
    """A server that has just been started again: whoever left it comes back in its first moments."""
    before = start_server("--workers", "1", "--redis", valkey.url)
    position = before.joined("alice", "room:a").connected["position"]
    before.publish("room:a", "missed")
    way = tmp_path / "redis.sock"
    host = loopback_host()
    (port,) = free_ports(host, 1)
    server = start_server(
        "--workers", "1", "--redis", f"unix://{way}", "--tcp", f"{host}:{port}", wait=False
    )  # fmt: skip
    wait_until(lambda: any("trying again" in line for line in server.log), "it has no bus yet")
    with LineClient((host, port)) as alice:
        alice.send({"op": "connect", "user": "alice", "channels": ["room:a"], "position": position})
        way.symlink_to(valkey.url.removeprefix("unix://"))
        alice.expect("connected", recovered=True)
        assert alice.messages(1)[0]["data"] == "missed"


def test_a_redis_that_is_not_there_yet(start_server: StartServer, valkey: Embedded) -> None:
    assert valkey.pid is not None
    os.kill(valkey.pid, signal.SIGKILL)
    wait_until(lambda: not valkey.alive(), "it is down")
    server = start_server("--workers", "1", "--redis", valkey.url, wait=False)
    wait_until(lambda: any("trying again" in line for line in server.log), "it says so")
    assert server.process.poll() is None
    assert "ready\n" not in server.log
    valkey.restart()
    server.wait_ready()
    server.joined("alice")


def test_a_cut_connection_is_made_again_and_nothing_is_missed(start_server: StartServer, valkey: Embedded) -> None:
    server = start_server("--workers", "1", "--redis", valkey.url)
    client = server.joined("alice", "room:load")
    load = Load(server.joined("speaker"), "room:load")
    load.start()
    with redis.Redis.from_url(valkey.url) as operator:
        for number in range(1, 4):
            count = len(load.answers)
            wait_until(lambda n=count: len(load.answers) > n + 50, "load")  # type: ignore[misc]
            assert operator.client_kill_filter(_type="pubsub") == 1
            wait_until(lambda n=number: server.stats()["total"]["bus_reconnects"] == n, "it is back")  # type: ignore[misc]
    count = len(load.answers)
    wait_until(lambda: load.answers[-1]["op"] == "published" and len(load.answers) > count, "publishing works again")
    load.stop()
    assert check_nothing_was_lost_in_silence(client, load) is False, "the journal fills every hole"
    assert server.stats()["total"]["bus_reconnects"] == 3


def test_what_others_publish_on_our_channels_is_harmless(start_server: StartServer, valkey: Embedded) -> None:
    server = start_server("--workers", "1", "--redis", valkey.url)
    client = server.joined("alice", "room:a")
    with redis.Redis.from_url(valkey.url) as other:
        for junk in (b"hello", b"", b"a b", b"\xff\xfe", b'{"user":1}', b"[]", b"x" * 1_000_000):
            for channel in ("room:a", "@alice", "$control"):
                assert other.publish(f"moorage:{channel}", junk) == 1
    client.send({"op": "publish", "id": 1, "channel": "room:a", "data": "ours"})
    assert client.messages(1)[0]["data"] == "ours"
    assert server.stats()["total"]["bus_reconnects"] == 0
