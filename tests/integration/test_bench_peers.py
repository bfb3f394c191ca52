"""Every peer in small, as a person runs it: a turn of each, all scenarios, nothing missing; times are not judged."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness import wait_until

from bench.peers.catalog import peers
from bench.peers.findings import UNITS
from bench.peers.peer import SCENARIOS

ROOT = Path(__file__).parents[2]
TINY = [
    "--connections", "60", "--base", "20", "--rounds", "1", "--singles", "2", "--burst", "5", "--seconds", "0.1",
    "--message-rate", "200", "--messages", "100", "--pairs", "5", "--workers", "2", "--calm", "0.02",
]  # fmt: skip


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "commands", "bench", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)


@pytest.mark.parametrize("name", [peer.name for peer in peers()])
def test_a_peer_does_all_the_work_and_loses_nothing(name: str) -> None:
    done = bench("peers", "--peers", name, *TINY, "--json")
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    if reason := found["skipped"].get(name):
        pytest.skip(reason)
    assert (found["faults"], done.returncode) == ({}, 0), done.stderr
    (peer,) = found["peers"]
    assert peer["name"] == name
    assert all(any(digit in text for digit in "0123456789") for text in peer["versions"].values())
    wanted = {place for place in UNITS if place[0] not in peer["cannot"]}
    assert {(row["scenario"], row["name"]) for row in found["results"]} >= wanted
    assert all(row["peer"] == name and row["n"] == 1 for row in found["results"])
    (turn,) = found["rounds"]
    assert turn["peer"] == name
    assert turn["figures"]["direct: pipelined, throughput"] > 0


def test_a_table_has_ratios() -> None:
    few = ["--peers", "uvloop,floor", "--scenarios", "fanout", *TINY]
    done = bench("peers", *few)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "x floor" in done.stdout
    assert "fanout: single, CPU, us/delivery" in done.stdout
    assert done.stderr == "", "progress is for terminals"


def test_a_run_ends_in_its_time() -> None:
    done = bench(
        "peers", "--peers", "floor", "--scenarios", "connect", *TINY, "--rounds", "50", "--seconds-max", "2", "--json"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert 1 <= len(found["rounds"]) < 50
    assert any("--seconds-max" in note for note in found["notes"])


def test_an_interrupt_ends_the_server_and_says_what_there_is() -> None:
    command = [
        sys.executable,
        "-m",
        "commands",
        "bench",
        "peers",
        "--peers",
        "uvloop",
        *TINY,
        "--seconds",
        "300",
        "--json",
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        family = psutil.Process(process.pid)
        wait_until(lambda: len(family.children()) == 3, "server, subscribers and pairs", 60)
        children = family.children()
        process.send_signal(signal.SIGINT)
        output, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    found = json.loads(output)
    assert found["interrupted"]
    assert [row for row in found["results"] if row["scenario"] == "fanout"]
    _, left = psutil.wait_procs(children, timeout=20)
    assert not left


def test_what_cannot_be_is_said_with_what_can() -> None:
    done = bench("peers", "--peers", "mosquitto,nobody")
    assert done.returncode == 2
    assert "--peers: found nobody, want some of moorage" in done.stderr
    done = bench("peers", "--scenarios", "sleep")
    assert f"--scenarios: found sleep, want some of {', '.join(SCENARIOS)}" in done.stderr


def test_saved_reports_become_a_page_with_charts(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="drawing takes the extra `bench`")
    saved = bench("peers", "--peers", "floor,uvloop", "--scenarios", "fanout", *TINY, "--json")
    (tmp_path / "peers.json").write_text(saved.stdout)
    done = bench("report", str(tmp_path / "peers.json"), "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "out" / "README.md").read_text()
    assert "### fanout: single, CPU, us/delivery" in page
    assert "![peers](peers.svg)" in page
    assert (tmp_path / "out" / "peers.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "<svg" in (tmp_path / "out" / "peers.svg").read_text()
