"""Every scenario in small, as a person runs it: counts must be exact and figures there; times are not judged."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness import Server

SMALL = {
    "idle": ["--connections", "300", "--base", "100", "--rounds", "2", "--seconds", "0.5", "--client-processes", "2"],
    "connect": ["--connections", "60", "--rounds", "2"],
    "fanout": ["--connections", "200", "--rounds", "2"],
    "presence": ["--connections", "100", "--users", "60", "--rounds", "1", "--questions", "4"],
    "storm": ["--connections", "60", "--missed", "5", "--rounds", "2", "--room-size", "3", "--tokens"],
    "direct": ["--connections", "40", "--rounds", "1", "--seconds", "0.3", "--messages", "600", "--rate", "400"],
}
TCP_ONLY = {  # the rest of the list says enough about the other transport
    "million": [
        *("--connections", "200", "--workers", "2", "--client-processes", "2", "--hold", "0.3", "--rounds", "2"),
        *("--resume", "50", "--missed", "3"),
    ],
    "admission": ["--connections", "200", "--rounds", "1", "--rate", "200", "--sessions", "10", "--ping-rate", "50"],
    "growth": [
        *("--sizes", "50", "--channels", "150", "--subscribers", "20", "--rounds", "2", "--messages", "60"),
        *("--hold", "0.2"),
    ],
    "rooms": [
        *("--connections", "60", "--room-size", "3", "--rounds", "1", "--seconds", "0.3", "--message-rate", "200"),
        *("--messages", "300"),
    ],
    "publish": ["--rounds", "2", "--messages", "700"],
}
# Noise of a few connections, differences of two, and what took less than a clock shows.
MAY_BE_ANYTHING = {
    *("CPU us/connection", "bytes/connection", "bytes/channel", "calls/connection", "us/connection"),
    *("cores", "MB", "s"),
}


@contextmanager
def bench(*arguments: str, stderr: int = subprocess.PIPE, home: str | None = None) -> Iterator[subprocess.Popen[str]]:
    environ = {**os.environ, "TMPDIR": home} if home else None
    command = [sys.executable, "-m", "commands", "bench", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, env=environ, text=True) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()


def measured(*arguments: str) -> dict[str, Any]:
    with bench(*arguments, "--json") as process:
        output, error = process.communicate(timeout=110)
    assert process.returncode == 0, error + output
    found: dict[str, Any] = json.loads(output)
    return found


BOTH = [(scenario, transport) for scenario in SMALL for transport in ("tcp", "sse")]


@pytest.mark.parametrize(("scenario", "transport"), [*BOTH, *((scenario, "tcp") for scenario in TCP_ONLY)])
def test_a_scenario_in_small_counts_exactly(scenario: str, transport: str) -> None:
    found = measured(scenario, *{**SMALL, **TCP_ONLY}[scenario], "--transport", transport)
    assert found["scenario"] == scenario
    assert found["faults"] == {}
    assert found["figures"]
    for name, figure in found["figures"].items():
        assert figure["min"] > 0 or figure["unit"] in MAY_BE_ANYTHING, name
    assert found["settings"]["transport"] == transport
    CHECKS[scenario](found["counts"], found)


def check_idle(counts: dict[str, int], found: dict[str, Any]) -> None:
    assert counts["connections open"] == 2 * 300
    assert counts["received of one broadcast"] == 2 * 300
    assert [point["connections"] for point in found["curve"]] == 2 * [100, 150, 200, 250, 300]
    assert all(point["workers"] > 0 and point["others"] > 0 and point["slab"] > 0 for point in found["curve"])


def check_connect(counts: dict[str, int], found: dict[str, Any]) -> None:
    assert list(counts.values()) == 3 * [60 + 30]  # a warm-up as large as one round
    assert found["figures"]["signature check alone"]["rounds"] == 2


def check_fanout(counts: dict[str, int], found: dict[str, Any]) -> None:
    assert counts["subscribers"] == 200
    assert counts["deliveries"] == 200 * ((1 + 20) + 2 * (6 + 20))  # a warm-up; two rounds of six singles and a burst
    assert found["figures"]["bare loop"]["rounds"] == 2


def check_direct(counts: dict[str, int], found: dict[str, Any]) -> None:
    assert counts["connections open"] == 40
    assert 0 < counts["pairs"] <= 20
    assert counts["messages answered"] == counts["messages received"] == 600 + 600
    assert found["figures"]["fixed rate, latency p99"]["median"] > 0


def check_admission(counts: dict[str, int], found: dict[str, Any]) -> None:
    assert counts["sessions"] == 2 * 10
    assert counts["pings answered"] == 4 * 25
    assert counts["accepted where there is no limit"] == 200
    assert counts["refused where nobody is let in"] == 199, "the first finds a full bucket"
    assert counts["allowed rate: refused"] == 0
    assert counts["allowed rate: served"] == 100
    assert counts["twice the rate, all let in: served"] == counts["twice the rate, all let in: offered"] == 200
    assert (
        counts["twice the rate: served"] + counts["twice the rate: refused"] == counts["twice the rate: offered"] == 200
    )
    in_time = found["figures"]["twice the rate: offered"]["median"] > 1.8 * 200  # or it was no overload
    assert counts["twice the rate: refused"] > 0 or not in_time


def check_presence(counts: dict[str, int], found: dict[str, Any]) -> None:
    assert counts["personal channels"] == 100
    assert counts["users in the room"] == counts["users found in the room"] == 60
    assert counts["users found online"] == 1
    figures = {name: figure["median"] for name, figure in found["figures"].items()}
    assert figures["the room, answer"] > 60 * len('"v0":1,')
    assert figures["the room, time of an answer p50"] > 0
    assert all(
        figures[f"{what}, CPU of {whose}"] >= 0
        for what in ("the room", "one user")
        for whose in ("all workers", "Redis")
    )
    assert found["host"]["seconds"] < 20, "no wait for quiet was in vain"


def check_storm(counts: dict[str, int], found: dict[str, Any]) -> None:
    assert counts == {"connections open": 60, "back": 2 * 60, "messages received": 2 * 5 * 60}
    assert found["figures"]["until connected, p99"]["rounds"] == 2
    assert found["figures"]["Redis, evalsha"]["median"] > 0


def check_million(counts: dict[str, int], found: dict[str, Any]) -> None:
    assert counts["opened"] == 200
    assert counts["resumed"] == 50
    assert counts["messages they had missed, received"] == 3 * 50
    assert counts["messages received by all"] == (2 + 3) * 200
    assert counts["refused or not answered"] == counts["lost while held"] == counts["lost at the end"] == 0
    assert counts["connections the server still holds"] == 0
    assert found["figures"]["broadcast, until the last has it"]["rounds"] == 2
    assert any(point.get("connections") == 200 and point["workers"] > 0 for point in found["curve"])


def check_growth(counts: dict[str, int], found: dict[str, Any]) -> None:
    assert counts["messages received, 150 channels"] == 2 * 60
    assert counts["deliveries"] == 2 * 60
    assert counts["50 connections, missing"] == 0
    assert [point["channels"] for point in found["curve"] if "channels" in point] == [150]
    assert [point["subscribers"] for point in found["curve"] if "subscribers" in point] == [20]


def check_rooms(counts: dict[str, int], found: dict[str, Any]) -> None:
    assert counts == {"connections open": 60, "messages answered": 60 + 300, "deliveries": 3 * (60 + 300)}
    assert found["figures"]["fixed rate, latency, p99.9"]["median"] > 0


def check_publish(counts: dict[str, int], found: dict[str, Any]) -> None:
    assert counts == {"answered, durable": 2 * 700, "answered, live-only": 2 * 700}
    assert {each["name"]: each["n"] for each in found["results"]}["durable"] == 2
    assert len(found["rounds"]) == 2


CHECKS = {
    "storm": check_storm,
    "million": check_million,
    "growth": check_growth,
    "rooms": check_rooms,
    "publish": check_publish,
    "idle": check_idle,
    "connect": check_connect,
    "fanout": check_fanout,
    "direct": check_direct,
    "admission": check_admission,
    "presence": check_presence,
}


def test_the_table_is_for_people() -> None:
    with bench("fanout", *SMALL["fanout"]) as process:
        output, error = process.communicate(timeout=110)
    assert process.returncode == 0, error
    assert "single, ratio to the bare loop, x" in output
    assert "<= 1.15" in output
    assert error == "", "progress is for terminals"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_everything_and_reports_what_was_measured(number: signal.Signals) -> None:
    with holding() as (process, family):
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    found = json.loads(output)
    assert found["interrupted"]
    assert found["counts"]["received of one broadcast"] == 100
    assert "user-space memory, all processes" in found["figures"]
    _, left = psutil.wait_procs(family, timeout=20)
    assert not left


def test_nothing_outlives_a_bench_that_is_killed() -> None:
    with tempfile.TemporaryDirectory() as home:  # it cannot remove its own directory
        with holding(home) as (process, family):
            process.kill()
        _, left = psutil.wait_procs(family, timeout=60)
        assert not left


@contextmanager
def holding(home: str | None = None) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """Run a bench on a terminal until it says that it holds its connections; yield it and its descendants."""
    ours, terminal = os.openpty()
    try:
        with bench(
            "idle", "--connections", "100", "--rounds", "1", "--seconds", "300", "--json", stderr=terminal, home=home
        ) as process:
            said = b""
            while b"holding for 300 s" not in said:
                assert select.select([ours], [], [], 60)[0], said.decode()
                said += os.read(ours, 4096)
            yield process, psutil.Process(process.pid).children(recursive=True)
    finally:
        os.close(ours)
        os.close(terminal)


def test_a_server_that_runs_already_is_driven_and_asked_what_it_used(server: Server) -> None:
    tcp, admin = (f"{host}:{port}" for host, port in (server.tcp, server.admin))
    found = measured("million", *TCP_ONLY["million"], "--server", tcp, "--admin", admin)
    assert found["faults"] == {}
    assert found["counts"]["opened"] == 200
    assert found["figures"]["server with Redis, whole"]["median"] > 0


def test_saved_reports_are_compared(tmp_path: Path) -> None:
    saved = str(tmp_path / "a.json")
    measured("publish", *TCP_ONLY["publish"], "--save", saved)
    with bench("compare", saved, saved) as process:
        output, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert "durable, CPU us/message" in output


def test_what_the_machine_lacks_is_told_before_anything_is_started() -> None:
    with bench("million", "--connections", "1,000,000,000") as process:
        output, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "GB are needed" in error
    assert "--connections" in error
    assert output == ""
