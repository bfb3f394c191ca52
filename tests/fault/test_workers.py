"""Workers that die, hang or are told to stop, and what their supervisor does about it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from harness import DEADLINE_SECONDS, Json, LineClient, Server, wait_until

from router.embedded import Embedded

StartServer = Callable[..., Server]


def worker_of(client: LineClient) -> int:
    return int(client.connected["session"].split("-")[1])


def joined_at(server: Server, number: int, user: str, *channels: str) -> LineClient:
    """Return a client that landed on worker `number`."""

    def attempt() -> LineClient | None:
        client = server.joined(user, *channels)
        if worker_of(client) == number:
            return client
        client.close()
        return None

    found = wait_until(attempt, f"a connection to worker {number}")
    assert isinstance(found, LineClient)
    return found


def is_gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


# Workers that die.


def test_a_killed_worker_is_replaced_and_the_others_are_unhurt(start_server: StartServer) -> None:
    server = start_server("--workers", "2")
    killed = server.workers()[0]
    there = [joined_at(server, 0, f"there{n}", "room:load") for n in range(5)]
    here = [joined_at(server, 1, f"here{n}", "room:load") for n in range(5)]
    speaker, stop = joined_at(server, 1, "speaker"), threading.Event()
    sent = 0

    def speak() -> None:
        nonlocal sent
        while not stop.is_set():
            speaker.send({"op": "publish", "id": sent, "channel": "room:load", "data": sent})
            speaker.expect("published", id=sent)
            sent += 1

    speaking = threading.Thread(target=speak)
    speaking.start()
    wait_until(lambda: sent > 50 and server.stats()["workers"][0]["accepted"] >= 5, "load")
    killed.kill()
    at = time.monotonic()
    for client in there:
        assert client.ends()
    replacement = wait_until(
        lambda: (p := server.workers().get(0)) and p.pid != killed.pid and p, "another process is worker 0"
    )
    assert time.monotonic() - at < 1.0
    wait_until(
        lambda: server.stats()["workers"][0]["ready"] and server.stats()["workers"][0]["pid"] == replacement.pid,
        "ready",
    )
    back = joined_at(server, 0, "back", "room:load")
    heard_after = back.messages(1)[0]["data"]
    stop.set()
    speaking.join()
    for client in here:
        assert [m["data"] for m in client.messages(sent)] == list(range(sent))
    assert heard_after < sent
    workers = server.stats()["workers"]
    assert [worker["restarts"] for worker in workers] == [1, 0]
    assert workers[0]["accepted"] >= 5, "its counters go on"


def test_the_queue_of_a_killed_worker_is_not_reset(start_server: StartServer) -> None:
    server = start_server("--workers", "2")
    stopped = server.workers()[0]
    stopped.suspend()
    waiting = [server.line_client(user=f"w{n}") for n in range(60)]
    streams = []
    for number in range(60):
        sock = socket.create_connection(server.http, timeout=20)
        sock.sendall(f"GET /events?user=s{number} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        streams.append(sock)
    stopped.kill()
    sessions = {client.expect("connected")["session"].split("-")[1] for client in waiting}
    assert sessions == {"0", "1"}, "some of them waited for the worker that was killed"
    for sock in streams:
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")
        sock.close()


def test_a_silent_worker_is_replaced(start_server: StartServer) -> None:
    server = start_server("--workers", "2", before="from server import limits; limits.SILENT_SECONDS_MAX = 1.0")
    silent = server.workers()[1]
    client, other = joined_at(server, 1, "client"), joined_at(server, 0, "other", "room:a")
    silent.suspend()
    wait_until(lambda: any("worker 1" in line and "silent" in line for line in server.log), "it is noticed")
    assert client.ends()
    wait_until(lambda: (p := server.workers().get(1)) and p.pid != silent.pid, "it is replaced")
    other.send({"op": "publish", "id": 1, "channel": "room:a", "data": 1})
    other.expect("message")
    joined_at(server, 1, "back")
    assert sum("silent" in line for line in server.log) == 1


def test_a_worker_told_to_stop_drains_and_is_replaced(start_server: StartServer) -> None:
    server = start_server("--workers", "1", "--drain-seconds", "0")
    client, before = server.joined("client"), server.workers()[0]
    before.terminate()
    assert client.expect("close", code=3001)["after_ms"] > 0
    wait_until(lambda: (p := server.workers().get(0)) and p.pid != before.pid, "it is replaced")
    server.joined("back")


def test_a_worker_killed_by_a_signal_without_a_name_is_replaced(start_server: StartServer) -> None:
    server = start_server("--workers", "1")
    before = server.workers()[0]
    before.send_signal(signal.SIGRTMIN + 6)
    wait_until(lambda: (p := server.workers().get(0)) and p.pid != before.pid, "it is replaced")
    server.joined("back")
    assert f"killed by signal {signal.SIGRTMIN + 6}" in "".join(server.log)


def test_the_admin_process_is_replaced(start_server: StartServer) -> None:
    server = start_server("--workers", "1")
    first = server.stats()["admin"]
    os.kill(first, signal.SIGKILL)

    def another() -> Json | None:
        try:
            stats = server.stats()
        except OSError:
            return None
        return stats if stats["admin"] != first else None

    stats = wait_until(another, "another admin process answers")
    assert [worker["restarts"] for worker in stats["workers"]] == [0]
    assert server.request("GET", "/metrics", admin=True)[0] == 200


FULL_LOG = 'import os; os.dup2(os.open("/dev/full", os.O_WRONLY), 2)'


def test_a_log_that_cannot_be_written_costs_nothing_but_the_log(start_server: StartServer, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(DEADLINE_SECONDS)
        env = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        server = start_server("--workers", "2", before=FULL_LOG, env=env, wait=False)
        assert manager.recv(4096).startswith(b"READY=1\n")
    killed = server.workers()[0]
    killed.kill()
    wait_until(lambda: (p := server.workers().get(0)) and p.pid != killed.pid, "it is replaced")
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(20) == 0


NO_FORK = """
import errno, os

fork = os.fork

def fork_():
    if os.path.exists(os.environ["NO_FORK"]):
        raise OSError(errno.EAGAIN, "no more processes")
    return fork()

os.fork = fork_
"""


def test_a_worker_that_cannot_be_replaced_yet_is_replaced_later(start_server: StartServer, tmp_path: Path) -> None:
    full = tmp_path / "no fork"
    server = start_server("--workers", "2", before=NO_FORK, env={"NO_FORK": str(full)})
    other, killed = joined_at(server, 1, "other"), server.workers()[0]
    full.touch()
    killed.kill()
    wait_until(lambda: "no more processes" in "".join(server.log), "it is tried")
    other.send({"op": "ping", "id": 1})
    other.expect("pong")
    full.unlink()
    wait_until(lambda: 0 in server.workers(), "it is replaced")
    joined_at(server, 0, "back")
    assert server.stats()["total"]["restarts"] == 1


def test_a_server_without_any_process_waits_for_some(start_server: StartServer, tmp_path: Path) -> None:
    full = tmp_path / "no fork"
    server = start_server("--workers", "1", before=NO_FORK, env={"NO_FORK": str(full)})
    full.touch()
    for process in server.family()[1:]:
        if process.name() != "valkey-server":
            process.kill()
    wait_until(lambda: sum("no more processes" in line for line in server.log) >= 2, "both are tried")
    full.unlink()
    server.joined("back")


def test_workers_that_cannot_be_forked_are_no_boot(start_server: StartServer) -> None:
    server = start_server("--workers", "2", before=NO_FORK, env={"NO_FORK": "/"}, wait=False)
    assert server.process.wait(20) == 3
    wait_until(lambda: "no more processes" in "".join(server.log), "it says why")
    assert "Traceback" not in "".join(server.log)


def test_a_valkey_that_has_lost_its_directory(start_server: StartServer) -> None:
    """Its socket cannot be made again: the server ends, and says so to everybody."""
    server = start_server("--workers", "1")
    client, redis = server.joined("client"), server.redis()
    shutil.rmtree(redis.cwd())
    redis.kill()
    client.expect("close", code=3009)
    assert server.process.wait(20) == 4
    assert "the embedded Valkey keeps ending" in "".join(server.log)


# Exit codes.


def test_a_crash_loop_ends_the_server(start_server: StartServer) -> None:
    server = start_server("--workers", "1")
    killed: set[int] = set()
    while server.process.poll() is None and len(killed) < 50:
        for process in server.workers().values():
            killed.add(process.pid)
            process.kill()
            wait_until(lambda p=process: is_gone(p), "it is dead")  # type: ignore[misc]
    assert server.process.wait(20) == 4
    assert len(killed) == 11
    assert "more than 10 restarts" in "".join(server.log)


def test_a_worker_that_crashes_by_itself_says_why(start_server: StartServer) -> None:
    fault = "from server import heartbeat; heartbeat.Heartbeat.tick = lambda self: 1 // 0"
    server = start_server("--workers", "2", before=fault, wait=False)
    assert server.process.wait(20) == 4
    wait_until(lambda: "ZeroDivisionError" in "".join(server.log), "the trace is in the log")


BUGS = """
from server.listener import Listener
from server.requests import Requests
from server.shard import Shard

received, identify, react = Requests.received, Shard.identify, Listener.react

def received_(self, session, data):
    assert b"boom" not in data
    received(self, session, data)

def identify_(self, token, user):
    assert user != "boom"
    return identify(self, token, user)

def react_(self, events):
    react(self, events)
    assert self._pool.stats.accepted < 10

Requests.received, Shard.identify, Listener.react = received_, identify_, react_
"""


def test_a_bug_costs_only_who_hits_it(start_server: StartServer) -> None:
    server = start_server("--workers", "1", before=BUGS)
    other, client = server.joined("other", "room:a"), server.joined("client", "room:a")
    client.send(b'{"op":"ping","id":"boom"}\n')
    assert client.expect("close", code=3008, reconnect=True)["after_ms"] > 0
    assert server.line_client(user="boom").expect("close", code=3008, reconnect=True)["after_ms"] > 0
    with server.event_client("user=boom") as stream:
        assert stream.status == 200
        assert stream.expect("close")["code"] == 3008
    assert server.request("POST", "/publish?user=boom", {"channel": "room:a", "data": 1})[1]["error"]["code"] == 3008
    other.send({"op": "publish", "id": 1, "channel": "room:a", "data": 1})
    other.expect("message")
    assert server.stats()["total"]["restarts"] == 0
    wait_until(lambda: server.stats()["total"]["connections"] == 1, "one has ended")
    assert "AssertionError" in "".join(server.log)


def test_a_bug_in_what_all_share_ends_the_worker_and_not_the_server(start_server: StartServer) -> None:
    server = start_server("--workers", "1", before=BUGS)
    clients = [server.joined(f"c{n}") for n in range(9)]
    server.line_client()
    for client in clients:
        assert client.ends()
    wait_until(lambda: server.stats()["total"]["restarts"] == 1, "it is replaced")
    assert "worker 0 crashed" in "".join(server.log)


@pytest.mark.parametrize("name", ["tcp", "http", "admin"])
def test_an_address_in_use_is_no_boot(start_server: StartServer, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        server = start_server("--workers", "2", f"--{name}", address, wait=False)
        assert server.process.wait(20) == 3
    wait_until(lambda: f"cannot listen on {address}: Address already in use" in "".join(server.log), "it says why")


def test_an_address_of_another_moorage_is_in_use(start_server: StartServer) -> None:
    first = start_server("--workers", "1")
    second = start_server("--workers", "1", "--tcp", "{}:{}".format(*first.tcp), wait=False)
    assert second.process.wait(20) == 3


@pytest.mark.parametrize(
    "options",
    [
        ("--auth-key", __file__),
        ("--redis", "rediss://127.0.0.1:1?ssl_ca_certs=/nowhere"),
    ],
    ids=["key", "tls"],
)
def test_what_cannot_be_used_is_no_boot(start_server: StartServer, options: tuple[str, ...]) -> None:
    server = start_server("--workers", "2", *options, wait=False)
    assert server.process.wait(20) == 3
    text = "".join(server.log)
    assert "cannot start" in text
    assert "Traceback" not in text


def test_a_bad_option_is_exit_code_2(start_server: StartServer) -> None:
    server = start_server("--workers", "-1", "--heartbeat-seconds", "never", wait=False)
    assert server.process.wait(20) == 2
    wait_until(lambda: len(server.log) == 2, f"one line each: {server.log}")
    for name in ("workers", "heartbeat_seconds"):
        assert any(line.startswith(name) for line in server.log)


def test_open_mode_is_for_this_machine_only(start_server: StartServer) -> None:
    server = start_server("--http", "0.0.0.0:0", wait=False)
    assert server.process.wait(20) == 2
    wait_until(lambda: "want an auth_secret or auth_key, loopback addresses, or no_auth" in "".join(server.log), "why")
    open_to_all = start_server("--workers", "1", "--http", "0.0.0.0:0", "--no-auth")
    assert open_to_all.addresses["http"][0][0] == "0.0.0.0"


# Stopping.


def test_sigterm_drains_then_exits(start_server: StartServer) -> None:
    server = start_server("--workers", "2", "--drain-seconds", "1.5")
    lines = [server.joined(f"l{n}") for n in range(20)]
    streams = [server.event_client(f"user=s{n}") for n in range(20)]
    for stream in streams:
        stream.expect("connected")
    began = time.monotonic()
    ended: list[tuple[float, Json]] = []

    def read(client: LineClient) -> None:
        close = client.expect("close")
        ended.append((time.monotonic() - began, close))
        assert client.receive() is None

    def read_stream(number: int) -> None:
        close = next(e for e in streams[number].events() if e.get("event") == "close")
        ended.append((time.monotonic() - began, json.loads(close["data"])))
        assert int(close["retry"]) == ended[-1][1]["after_ms"]

    readers = [threading.Thread(target=read, args=(client,)) for client in lines]
    readers += [threading.Thread(target=read_stream, args=(number,)) for number in range(20)]
    for reader in readers:
        reader.start()
    server.process.send_signal(signal.SIGTERM)

    # Meanwhile: who asks is told, and who comes is told when to come back.
    wait_until(
        lambda: server.request("GET", "/readyz") == (503, {"status": "not ready", "reason": "draining"}), "not ready"
    )
    assert server.request("GET", "/healthz")[0] == 200
    late = server.line_client(user="late")
    close = late.expect("close", code=3001, reconnect=True)
    assert close["after_ms"] > 0
    with server.event_client("user=late") as stream:
        assert stream.status == 200
        event = stream.receive()
        assert event is not None
        assert (event["event"], json.loads(event["data"])["code"]) == ("close", 3001)
        assert int(event["retry"]) > 0
    wait_until(lambda: server.stats()["total"]["draining"] == 2, "it shows")

    for reader in readers:
        reader.join(20)
    assert server.process.wait(20) == 0
    assert 1.0 < time.monotonic() - began < 15.0, "the clients do not close: they have two seconds to read it"
    assert len(ended) == 40
    assert {close["code"] for _, close in ended} == {3001}
    assert {close["reason"] for _, close in ended} == {"draining"}
    assert all(close["reconnect"] for _, close in ended)
    assert len({close["after_ms"] for _, close in ended}) > 20, "jittered"
    moments = sorted(moment for moment, _ in ended)
    assert moments[-1] - moments[0] > 0.5, "spread over the window; how evenly is shown where it is longer"


def test_a_drain_ends_when_nobody_is_left(start_server: StartServer) -> None:
    server = start_server("--workers", "2", "--drain-seconds", "60")
    client = server.joined("client")
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: server.stats()["total"]["draining"], "it drains")
    client.close()
    assert server.process.wait(5) == 0


SLOW_TO_BEGIN = """
import os, time
from server.shard import Shard

begin = Shard.__init__

def begin_(self, *given):
    while not os.path.exists(os.environ["MAY_BEGIN"]):
        time.sleep(0.01)
    begin(self, *given)

Shard.__init__ = begin_
"""


def test_sigterm_while_it_starts(start_server: StartServer, tmp_path: Path) -> None:
    """More workers than may be replaced in a minute: none of them has to be."""
    may_begin = tmp_path / "may begin"
    server = start_server(
        "--workers", "12", "--drain-seconds", "1",
        wait=False, before=SLOW_TO_BEGIN, env={"MAY_BEGIN": str(may_begin)},
    )  # fmt: skip
    wait_until(lambda: len(server.workers()) == 12, "all workers are born")
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "draining" in "".join(server.log), "it is told to stop")
    may_begin.touch()
    assert server.process.wait(20) == 0
    assert "replacing it" not in "".join(server.log)


BOOTING = """
import signal, sys, workers

def serve(*_given):
    print("booting", file=sys.stderr, flush=True)
    while True:
        signal.pause()

workers.serve = serve
"""


def test_signals_before_there_are_workers(start_server: StartServer) -> None:
    """The Valkey runs, and nobody watches it yet."""
    server = start_server(wait=False, before=BOOTING)
    wait_until(lambda: "booting\n" in server.log, "its Valkey runs")
    home = Path(server.redis().cwd())
    server.process.send_signal(signal.SIGHUP)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 0
    assert not home.exists()


@pytest.mark.parametrize(
    "signals", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT), (signal.SIGINT,)]
)
def test_stopping_now(start_server: StartServer, signals: tuple[signal.Signals, ...]) -> None:
    server = start_server("--workers", "2", "--drain-seconds", "60")
    clients = [server.joined(f"c{n}") for n in range(10)]
    family = server.family()
    for signum in signals[:-1]:
        server.process.send_signal(signum)
        wait_until(lambda: server.stats()["total"]["draining"] == 2, "it drains")
    began = time.monotonic()
    server.process.send_signal(signals[-1])
    for client in clients:
        assert client.expect("close")["code"] in (3001, 3009)
        assert client.ends()
    assert server.process.wait(10) == 0
    assert time.monotonic() - began < 3.0
    assert all(is_gone(process) for process in family)


def test_a_killed_supervisor_leaves_nothing_running(start_server: StartServer) -> None:
    server = start_server("--workers", "2")
    family = server.family()
    assert len(family) == 5  # supervisor, two workers, admin, valkey
    server.process.kill()
    wait_until(lambda: all(is_gone(process) for process in family), f"all of {family} are gone", seconds=5)


def test_sighup_harms_nobody(start_server: StartServer) -> None:
    server = start_server("--workers", "2")
    clients = [joined_at(server, 0, "c0", "room:a"), joined_at(server, 1, "c1", "room:a")]
    for process in server.family()[1:-1]:
        process.send_signal(signal.SIGHUP)
    server.process.send_signal(signal.SIGHUP)
    clients[0].send({"op": "publish", "id": 1, "channel": "room:a", "data": 1})
    for client in clients:
        client.expect("message")
    assert server.stats()["total"]["restarts"] == 0


def test_processes_say_what_they_are(start_server: StartServer) -> None:
    server = start_server("--workers", "2")
    titles = {process.cmdline()[0] for process in server.family()}
    ours = {"moorage: supervisor", "moorage: worker 0", "moorage: worker 1", "moorage: admin"}
    assert titles >= ours
    assert all(title.startswith("moorage: valkey ") for title in titles - ours)


# Several servers.


def test_two_servers_on_one_redis_are_one(start_server: StartServer, valkey: Embedded) -> None:
    servers = [start_server("--workers", "1", "--redis", valkey.url) for _ in range(2)]
    apart = start_server("--workers", "1", "--redis", valkey.url, "--redis-prefix", "other:")
    one, two = (server.joined("same", "room:a") for server in servers)
    other = apart.joined("same", "room:a")
    assert one.connected["session"] != two.connected["session"]
    one.send({"op": "publish", "id": 1, "channel": "room:a", "data": "from one"})
    position = one.expect("message")["position"]
    two.expect("message", data="from one", position=position)
    status, answer = servers[1].request("POST", "/api/publish", {"channel": "@same", "data": "to both"}, admin=True)
    assert status == 200
    for client in (one, two):
        client.expect("message", channel="@same", data="to both", position=answer["position"], **{"from": None})
    assert servers[0].request("POST", "/api/users/same/disconnect", {}, admin=True) == (200, {"workers": 2})
    for client in (one, two):
        client.expect("close", code=4009, reconnect=False)
    other.send({"op": "publish", "id": 1, "channel": "room:a", "data": "alone"})
    assert other.messages(1)[0]["data"] == "alone"
