"""`moorage tuning` as a person or a script uses it: output, exit codes, and a real terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
HOSTS = ROOT / "tests/data/hosts"
SERVER = str(HOSTS / "server-64-cores.json")


def tuning(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "commands", "tuning", *words]
    return subprocess.run(command, capture_output=True, text=True, input=stdin, cwd=ROOT, timeout=60)


def test_check_of_this_host_as_json() -> None:
    done = tuning("check", "--json", "--connections", "1000")
    assert done.returncode in (0, 1), done.stderr
    document = json.loads(done.stdout)
    assert set(document) == {"target", "findings", "facts"}
    verdicts = {one["verdict"] for one in document["findings"]}
    assert verdicts <= {"ok", "too low", "wasteful", "cannot tell"}
    assert (done.returncode == 1) == ("too low" in verdicts)
    for key in ("name", "limits", "current", "needed", "verdict", "how", "capped_by"):
        assert all(key in one for one in document["findings"])


def test_exit_code_0_when_all_is_well_1_when_something_is_too_low(tmp_path: Path) -> None:
    well = tmp_path / "well.json"
    facts = json.loads(Path(SERVER).read_text())
    facts["sysctls"] |= {
        "net.core.somaxconn": "65535",
        "net.ipv4.tcp_syncookies": "1",
        "net.ipv4.tcp_migrate_req": "1",
        "net.core.netdev_max_backlog": "5000",
    }
    facts["nics"] = []
    well.write_text(json.dumps(facts))
    words = ("--connections", "100000", "--kernel-bytes", "3800")
    assert tuning("check", "--facts", str(well), *words).returncode == 0
    assert tuning("check", "--facts", SERVER, *words).returncode == 1


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (("check", "--connections", "0"), "connections: found 0, wanted at least 1"),
        (("check", "--connections", "many"), "invalid int value: 'many'"),
        (("check", "--busy-percent", "101"), "busy_percent: found 101, wanted at most 100"),
        (("check", "--pid", "999999999"), "--pid: no process has pid 999999999"),
        (("check", "--facts", "/nowhere.json"), "--facts /nowhere.json: "),
        (("check", "--facts", __file__), ": line 1 column 3 (char 2)), wanted what `moorage tuning facts` prints"),
        (("plan", "--only", "fs.nonsense"), "--only: found fs.nonsense, wanted one of "),
        (("emit",), "--format"),
        (("emit", "--format", "puppet"), "invalid choice: 'puppet'"),
        (("apply", "--only", "net.ipv4.tcp_migrate_req", "--root", "/nowhere"), "say --yes"),
        ((), "check|plan|apply|emit"),
    ],
)
def test_bad_input_is_exit_code_2_and_names_the_fault(words: tuple[str, ...], fault: str, tmp_path: Path) -> None:
    done = tuning(*words)
    if "say --yes" in fault and done.returncode == 0:
        pytest.skip("net.ipv4.tcp_migrate_req is set on this host: there is nothing to ask about")
    assert done.returncode == 2, done.stdout + done.stderr
    assert fault in done.stderr
    assert "Traceback" not in done.stderr


def test_facts_with_a_wrong_field_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text('{"cpus": {"online": "four"}}')
    done = tuning("check", "--facts", str(path))
    assert (done.returncode, "facts.cpus.online: found 'four', wanted int" in done.stderr) == (2, True)


def test_recorded_facts_are_judged_the_same_elsewhere(tmp_path: Path) -> None:
    first = tuning("check", "--json", "--kernel-bytes", "3800", "--workers", "4")
    path = tmp_path / "host.json"
    path.write_text(first.stdout)
    again = tuning("check", "--json", "--kernel-bytes", "3800", "--workers", "4", "--facts", str(path))
    assert again.stdout == first.stdout


def test_facts_are_printed_for_use_elsewhere() -> None:
    facts = json.loads(tuning("facts", "--pid", str(os.getpid())).stdout)
    assert facts["process"]["pid"] == os.getpid()


def test_plan_shows_reason_and_source() -> None:
    done = tuning("plan", "--facts", SERVER, "--connections", "2000000")
    assert done.returncode == 0
    assert "sysctl -w net.core.somaxconn=4096" in done.stdout
    assert "2,000,000 connections back within 60 s = 33,334/s" in done.stdout
    steps = json.loads(tuning("plan", "--facts", SERVER, "--json").stdout)
    assert all(step["reason"] and step["source"] for step in steps)


def test_emit_prints_files() -> None:
    done = tuning("emit", "--format", "sysctl.d", "--facts", SERVER, "--connections", "2000000")
    assert done.returncode == 0
    assert "\nfs.file-max = " in done.stdout


def test_nothing_to_undo(tmp_path: Path) -> None:
    done = tuning("apply", "--undo", "--yes", "--root", str(tmp_path))
    assert done.returncode == 1
    assert "no backup in" in done.stderr


def on_a_terminal(columns: int, *words: str, answer: str = "", no_colour: bool = False) -> tuple[int, str]:
    """Exit code and output of `moorage tuning` on a terminal of its own."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environ = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    environ |= {"NO_COLOR": "1"} if no_colour else {}
    command = [sys.executable, "-m", "commands", "tuning", *words]
    with subprocess.Popen(command, stdin=child, stdout=child, stderr=child, cwd=ROOT, env=environ) as process:
        os.close(child)
        os.write(parent, answer.encode())
        output = b""
        try:
            while chunk := os.read(parent, 4096):
                output += chunk
        except OSError:  # EIO: the other end is closed
            pass
    os.close(parent)
    return process.returncode, output.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("columns", [80, 120, 200])
def test_the_table_fits_a_terminal(columns: int) -> None:
    _, text = on_a_terminal(columns, "check", "--facts", SERVER, "--kernel-bytes", "3800", no_colour=True)
    table = text.split("\n\n")[0].splitlines()
    assert len(table) > 35
    assert max(map(len, table)) <= columns
    assert ("what it limits" in table[0]) == (columns > 120)


def test_colour_on_a_terminal_and_none_in_a_pipe() -> None:
    assert "\033[1;31mtoo low" in on_a_terminal(100, "check", "--facts", SERVER)[1]
    assert "\033" not in on_a_terminal(100, "check", "--facts", SERVER, no_colour=True)[1]
    assert "\033" not in tuning("check", "--facts", SERVER).stdout


@pytest.mark.parametrize("answer", ["n\n", "\x04"])  # Control-D
def test_apply_asks_and_takes_no_for_an_answer(tmp_path: Path, answer: str) -> None:
    words = (
        "apply",
        "--only",
        "net.ipv4.tcp_migrate_req",
        "--persist",
        "--root",
        str(tmp_path),
        "--kernel-bytes",
        "3800",
    )
    code, text = on_a_terminal(100, *words, answer=answer)
    assert "[y/N]" in text
    assert (code, "nothing was changed" in text) == (1, True)
    assert list(tmp_path.iterdir()) == []
