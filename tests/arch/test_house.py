"""The size of modules and functions, the table of commands, and words that belong in no committed file."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from commands import COMMANDS
from server.config import OPTIONS

ROOT = Path(__file__).parents[2]
MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60
# Paths of a machine, and talk about how the text came to be. Each is split, so that this file does not hold it.
UNWANTED = re.compile(
    "|".join(
        [
            r"(?<![\w.:}])/" + r"(work|root|tmp/notes)/\w",
            "helper" + " session",
            "sub" + "agent",
            "as an? " + "AI",
            "clau" + r"de\b",
            "chat" + "gpt",
        ]
    ),
    re.IGNORECASE,
)


def tracked() -> list[str]:
    """Return the files that are committed or would be, relative to the top."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("not a git checkout")
    return sorted(name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file())


def modules() -> list[str]:
    """Return the paths of the modules that ship."""
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    tops = [ROOT / name for name in packages["only-include"]]
    files = [file for top in tops for file in ([top] if top.suffix else top.rglob("*.py")) if file.exists()]
    return sorted(file.relative_to(ROOT).as_posix() for file in files)


@pytest.mark.parametrize("path", modules())
def test_a_module_is_one_noun_long(path: str) -> None:
    assert len((ROOT / path).read_text().splitlines()) <= MODULE_LINES_MAX


@pytest.mark.parametrize("path", modules())
def test_a_function_fits_a_screen(path: str) -> None:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [node for node in ast.walk(ast.parse((ROOT / path).read_bytes())) if isinstance(node, functions)]
    sizes = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in found}
    assert not {name: size for name, size in sizes.items() if size > FUNCTION_LINES_MAX}


def test_the_table_of_commands_is_what_there_is() -> None:
    present = {path.stem for path in (ROOT / "commands").glob("*.py")} - {"__init__", "__main__"}
    assert present == COMMANDS.keys()


def test_every_option_with_a_limit_is_named_with_its_unit_last() -> None:
    numbers = {name for name, option in OPTIONS.items() if type(option.default) in {int, float}}
    counts = {"workers", "listen_backlog", "presence_connections_max"}
    assert all(
        re.search(r"_(seconds|bytes)(_max)?$|_per_second$|_per_\w+_max$|^connections_max$", n) for n in numbers - counts
    )


def test_no_file_says_where_or_how_it_was_written() -> None:
    found = []
    for path in tracked():
        try:
            text = (ROOT / path).read_text()
        except UnicodeDecodeError:
            continue
        found += [f"{path}: {match[0]}" for match in [UNWANTED.search(text)] if match]
    assert not found
