"""The dispatcher: which command runs, what is loaded for it, what it exits with."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Mapping
from types import SimpleNamespace

import pytest

import commands


def test_without_a_command_the_help_goes_to_stderr_and_it_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main([]) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert all(name in captured.err and about in captured.err for name, about in commands.COMMANDS.items())


def test_help_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        commands.main(["--help"])
    assert left.value.code == 0
    assert "moorage COMMAND --help" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["--version"]) == 0
    assert re.fullmatch(r"moorage \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


@pytest.mark.parametrize("word", ["srve", "--verbose", "commands", "__main__"])
def test_an_unknown_command_is_refused(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        commands.main([word])
    assert left.value.code == 2
    assert "serve" in capsys.readouterr().err


def run_with(monkeypatch: pytest.MonkeyPatch, outcome: int | BaseException) -> list[tuple[argparse.Namespace, object]]:
    """Put a command in the place of `serve` that ends with `outcome`, and return the list of its calls."""
    calls: list[tuple[argparse.Namespace, object]] = []

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--colour")

    def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
        calls.append((args, environ))
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setitem(sys.modules, "commands.serve", SimpleNamespace(add_arguments=add_arguments, run=run))
    return calls


def test_a_command_gets_its_arguments_and_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOORAGE_WORKERS", "3")
    calls = run_with(monkeypatch, 7)
    assert commands.main(["serve", "--colour", "red"]) == 7
    ((args, environ),) = calls
    assert args.colour == "red"
    assert isinstance(environ, Mapping)
    assert environ["MOORAGE_WORKERS"] == "3"


def test_a_flag_cannot_be_abbreviated(monkeypatch: pytest.MonkeyPatch) -> None:
    run_with(monkeypatch, 0)
    with pytest.raises(SystemExit) as left:
        commands.main(["serve", "--col", "red"])
    assert left.value.code == 2


def test_control_c_exits_as_shells_report_it(monkeypatch: pytest.MonkeyPatch) -> None:
    run_with(monkeypatch, KeyboardInterrupt())
    assert commands.main(["serve"]) == 130


@pytest.mark.parametrize(
    ("argv", "unwanted"),
    [
        (["--version"], {"argparse", "asyncio", "server", "redis", "aiohttp", "uvloop"}),
        (["serve", "--check-config"], {"asyncio", "redis", "aiohttp", "uvloop", "workers", "importlib.metadata"}),
    ],
)
def test_only_what_a_command_needs_is_loaded(argv: list[str], unwanted: set[str]) -> None:
    code = (
        "import sys; from commands import main; code = main(sys.argv[2:]); "
        "sys.exit(code or ', '.join(set(sys.argv[1].split()) & sys.modules.keys()) or None)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, " ".join(unwanted), *argv], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
