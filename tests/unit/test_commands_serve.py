"""`moorage serve` up to where the supervisor takes over."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from commands import main
from server.config import Config


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No moorage.toml of this checkout is read."""
    monkeypatch.chdir(tmp_path)


def test_check_config_prints_what_is_in_effect_and_where_from(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOORAGE_AUTH_SECRET", "x" * 32)
    assert main(["serve", "--check-config", "--workers", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "workers = 3  # flag --workers" in lines
    assert 'auth_secret = "***"  # environment MOORAGE_AUTH_SECRET' in lines
    assert 'tcp = ["127.0.0.1:7400"]  # default' in lines


@pytest.mark.parametrize("check", [[], ["--check-config"]])
def test_everything_wrong_is_printed_and_it_exits_with_2(check: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--workers", "x", "--tcp", "7400", *check]) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert [line.split()[0] for line in captured.err.splitlines()] == ["tcp", "workers"]


def test_a_file_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "other.toml"
    file.write_text("workers = 5\n")
    assert main(["serve", "--config", str(file), "--check-config"]) == 0
    assert f"workers = 5  # file {file}" in capsys.readouterr().out.splitlines()


def test_the_supervisor_gets_the_configuration_and_gives_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[tuple[Config, str]] = []

    def serve(config: Config, redis_url: str) -> int:
        served.append((config, redis_url))
        return 9

    monkeypatch.setitem(sys.modules, "workers", SimpleNamespace(serve=serve))
    assert main(["serve", "--workers", "3", "--no-auth", "--redis", "unix:///run/valkey.sock"]) == 9
    expected = Config(workers=3, no_auth=True, redis="unix:///run/valkey.sock")
    assert served == [(expected, "unix:///run/valkey.sock")]
