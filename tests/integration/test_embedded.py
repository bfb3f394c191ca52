"""The embedded Valkey, really started: it answers, comes back on the same socket, and nothing of it is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from router import embedded
from router.embedded import Embedded, EmbeddedError

ROOT = Path(__file__).parents[2]

OWNER = """
import os, signal, sys, time
from pathlib import Path
from router.embedded import Embedded
server = Embedded()
server.start()
print(server.pid, server.url, flush=True)
{then}
"""


def owner(then: str = "time.sleep(60)") -> subprocess.Popen[str]:
    """Start a process of its own that owns an embedded server, and prints its pid and url."""
    command = [sys.executable, "-c", OWNER.format(then=then)]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )


def said(process: subprocess.Popen[str]) -> tuple[int, Path]:
    """Return the pid and the socket of the server of `process`."""
    assert process.stdout
    pid, url = process.stdout.readline().split()
    return int(pid), Path(url.removeprefix("unix://"))


def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.005)


def gone(pid: int) -> bool:
    """Tell whether the process has ended; one that nobody has reaped yet has."""
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def client(server: Embedded) -> redis.Redis:
    return redis.Redis.from_url(server.url, decode_responses=True)


def test_it_starts_answers_and_leaves_nothing() -> None:
    with Embedded() as server:
        home = Path(server.url.removeprefix("unix://")).parent
        assert home.stat().st_mode & 0o777 == 0o700
        with client(server) as peer:
            peer.set("a", "b")
            assert peer.get("a") == "b"
            assert peer.config_get("save") == {"save": ""}
            assert peer.config_get("appendonly") == {"appendonly": "no"}
            assert peer.info("server")["tcp_port"] == 0
        pid = server.pid
        assert pid
        assert server.alive()
    assert gone(pid)
    assert not home.exists()
    assert not server.alive()


def test_starting_takes_a_tenth_of_a_second() -> None:
    took = []
    for _ in range(5):
        began = time.monotonic()
        with Embedded():
            took.append(time.monotonic() - began)
    # 0.06 s on an idle machine; the bound leaves room for a busy one.
    assert min(took) < 0.5, took


def test_a_restart_keeps_the_url_after_a_crash_too() -> None:
    with Embedded() as server:
        url, first = server.url, server.pid
        assert first
        os.kill(first, signal.SIGKILL)
        until(lambda: not server.alive())
        server.restart()
        second = server.pid
        assert server.alive()
        assert server.url == url
        server.restart()
        assert len({first, second, server.pid}) == 3
        with client(server) as peer:
            assert peer.ping()


def test_a_restart_that_fails_may_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "valkey-server"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    with Embedded() as server:
        url = server.url
        with monkeypatch.context() as patch:
            patch.setattr(embedded, "binary", lambda: broken)
            with pytest.raises(EmbeddedError, match="exit code 3"):
                server.restart()
            assert not server.alive()
        server.restart()
        assert server.alive()
        assert server.url == url


def test_a_stopped_one_starts_again() -> None:
    server = Embedded()
    server.start()
    server.stop()
    server.start()
    try:
        assert server.alive()
        with pytest.raises(RuntimeError, match="already started"):
            server.start()
    finally:
        server.stop()


def test_parallel_starts_all_work() -> None:
    owners = [owner() for _ in range(6)]
    try:
        sockets = {said(process)[1] for process in owners}
        assert len(sockets) == 6
        for path in sockets:
            with redis.Redis(unix_socket_path=str(path)) as peer:
                assert peer.ping()
    finally:
        for process in owners:
            end(process)


def test_an_owner_that_is_killed_takes_its_server_along() -> None:
    process = owner()
    pid, path = said(process)
    end(process)
    until(lambda: gone(pid))
    with Embedded():  # removes what the dead owner left, or leaves it to another start that is at it
        until(lambda: not path.parent.exists())


def test_an_owner_killed_at_any_moment_of_the_start_leaves_nothing_running() -> None:
    for hundredths in range(0, 20, 2):
        process = owner("")
        name = f"moorage-valkey-{process.pid}-"
        time.sleep(hundredths / 100)  # no condition to wait for: the moment is what varies
        end(process)
        until(lambda name=name: not running(name))  # type: ignore[misc]
    with Embedded():
        pass  # removes what they left


def running(text: str) -> bool:
    """Tell whether a process has `text` in its command line."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text.encode() in path.read_bytes():
                return True
        except OSError:
            continue
    return False


def test_ctrl_c_does_not_reach_it() -> None:
    process = owner(
        "signal.signal(signal.SIGINT, lambda *_: print('interrupted', flush=True))\n"
        "print('set', flush=True)\n"
        "time.sleep(60)"
    )
    try:
        pid, path = said(process)
        assert process.stdout
        assert process.stdout.readline() == "set\n"
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"
        with redis.Redis(unix_socket_path=str(path)) as peer:
            assert peer.ping()
            assert peer.info("server")["process_id"] == pid
    finally:
        end(process)


def test_a_process_forked_from_the_owner_cannot_stop_it() -> None:
    process = owner(
        "if not os.fork():\n"
        "    server.stop()\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "print(server.alive(), flush=True)\n"
        "server.stop()"
    )
    _, path = said(process)
    try:
        assert process.stdout
        assert process.stdout.read() == "True\n"  # communicate() would not see what is buffered already
        assert process.wait(10) == 0
    finally:
        end(process)
    assert not path.parent.exists()


def test_a_directory_keeps_the_data(tmp_path: Path) -> None:
    data = tmp_path / "data of a mooring"
    with Embedded(data) as server, client(server) as peer:
        peer.set("position", 7)
    with Embedded(data) as server, client(server) as peer:
        assert peer.get("position") == "7"
        assert server.log_tail() is not None


def test_two_servers_never_share_a_directory(tmp_path: Path) -> None:
    with Embedded(tmp_path), pytest.raises(EmbeddedError, match="in use by another embedded Valkey"):
        Embedded(tmp_path).start()
    with Embedded(tmp_path) as server:
        assert server.alive()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedError, match=r"cannot start: .*file/data"):
        Embedded(tmp_path / "file" / "data").start()
