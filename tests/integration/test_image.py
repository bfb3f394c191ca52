"""What the image's file says, done without an engine: what it copies makes the wheel, its check checks, its signal drains."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from dockerfile import copied, health_command, instructions
from harness import ROOT, Server, wait_until

StartServer = Callable[..., Server]


def test_what_is_copied_makes_a_wheel_that_is_whole(tmp_path: Path) -> None:
    source, out = tmp_path / "src", tmp_path / "wheels"
    source.mkdir()
    for names, target in copied():
        for name in names:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, source / target, ignore=shutil.ignore_patterns("__pycache__", "results"))
            else:
                shutil.copy(ROOT / name, source / target)
    ran = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--no-index",
         "--disable-pip-version-check", "--wheel-dir", out, source],
        capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (wheel,) = out.glob("moorage-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    tops = [ROOT / name for names, _ in copied() for name in names if (ROOT / name).is_dir()]
    ours = {path.relative_to(ROOT).as_posix() for top in tops for path in top.rglob("*.py")}
    assert packed >= ours | {"workers.py"}


def test_its_check_is_for_the_living_and_its_signal_drains(start_server: StartServer) -> None:
    server = start_server("--workers", "1", "--drain-seconds", "60")
    check = [sys.executable if word == "python" else word for word in health_command()]
    (port,) = {"7480"} & set(dict(instructions())["EXPOSE"].split())
    check = [word.replace(f"127.0.0.1:{port}", "{}:{}".format(*server.http)) for word in check]
    assert subprocess.run(check, capture_output=True).returncode == 0

    client = server.joined("alice")
    server.process.send_signal(signal.Signals[dict(instructions())["STOPSIGNAL"]])
    wait_until(lambda: server.request("GET", "/readyz")[0] == 503, "it drains")
    assert subprocess.run(check, capture_output=True).returncode == 0, "an engine must not kill who drains"
    client.close()
    assert server.process.wait(20) == 0
    assert subprocess.run(check, capture_output=True).returncode == 1
