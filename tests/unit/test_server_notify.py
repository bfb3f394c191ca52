"""What a service manager hears, from a manager that is a socket; and what it hears from systemd's own program."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.notify import Manager


@pytest.fixture(params=["path", "abstract"])
def ear(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """An address as NOTIFY_SOCKET has it, and the socket that hears."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@moorage-test-{os.getpid()}-{id(request)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address.replace("@", "\0", 1))
        sock.settimeout(5)
        yield address, sock


def test_what_is_told(ear: tuple[str, socket.socket]) -> None:
    address, heard = ear
    environ = {"NOTIFY_SOCKET": address, "OTHER": "x"}
    manager = Manager.from_environ(environ)
    assert environ == {"OTHER": "x"}, "no child is to speak for us"
    manager.ready("two workers")
    assert heard.recv(4096) == b"READY=1\nSTATUS=two workers"
    manager.stopping("draining", 68.5)
    assert heard.recv(4096) == b"STOPPING=1\nSTATUS=draining\nEXTEND_TIMEOUT_USEC=68500000"
    manager.status("draining: 3 left")
    assert heard.recv(4096) == b"STATUS=draining: 3 left"
    manager.reloading()
    reloading, clock = heard.recv(4096).split(b"\n")
    assert reloading == b"RELOADING=1"
    assert clock.removeprefix(b"MONOTONIC_USEC=").isdigit()
    assert heard.recv(4096) == b"READY=1"


def test_it_is_what_systemd_notify_sends(ear: tuple[str, socket.socket]) -> None:
    if (program := shutil.which("systemd-notify")) is None:
        pytest.skip("systemd-notify is not installed (package systemd)")
    address, heard = ear
    subprocess.run([program, "--no-block", "--ready", "--status=up"], env={"NOTIFY_SOCKET": address}, check=True)
    theirs = heard.recv(4096)
    Manager(address).ready("up")
    assert heard.recv(4096) == theirs


@pytest.mark.parametrize(
    ("variables", "beats"),
    [
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(os.getpid())}, [0.0, 5.0, 10.5]),
        ({"WATCHDOG_USEC": "10000000"}, [0.0, 5.0, 10.5]),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "1"}, []),
        ({"WATCHDOG_USEC": "soon"}, []),
        ({}, []),
    ],
)
def test_the_watchdog_is_fed_twice_as_often_as_it_asks(
    tmp_path: Path, variables: dict[str, str], beats: list[float]
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(tmp_path / "notify"))
        heard.setblocking(False)
        manager = Manager.from_environ({"NOTIFY_SOCKET": str(tmp_path / "notify"), **variables})
        found = []
        for now in (0.0, 0.25, 4.9, 5.0, 9.9, 10.5, 15.4):
            manager.beat(now)
            try:
                assert heard.recv(4096) == b"WATCHDOG=1"
                found.append(now)
            except BlockingIOError:
                pass
        assert found == beats


def test_nobody_to_tell(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Manager().ready("up")
    Manager.from_environ({}).beat(1.0)
    gone = Manager(str(tmp_path / "nothing"))
    gone.ready("up")
    gone.ready("up")
    assert len(caplog.records) == 1, "said once"


def test_a_manager_that_is_stuck_does_not_stop_us(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(tmp_path / "notify"))
        manager = Manager(str(tmp_path / "notify"))
        for _ in range(2000):
            manager.status("x" * 500)


def test_it_is_told_where_no_descriptor_is_left(ear: tuple[str, socket.socket]) -> None:
    address, heard = ear
    manager = Manager(address)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        manager.status("full")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert heard.recv(4096) == b"STATUS=full"


def test_one_that_cannot_be_told_is_no_reason_to_end(caplog: pytest.LogCaptureFixture) -> None:
    manager = Manager("/" + "x" * 200)
    manager.ready("up")
    manager.status("up")
    assert len(caplog.messages) == 1
    assert "is not told any more" in caplog.messages[0]
