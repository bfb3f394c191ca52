"""Who may import whom, and who alone knows a library."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {
    "commands": {"workers", "server", "router", "tuning", "bench"},
    "workers": {"server", "tuning"},
    "server": {"router"},
    "router": set[str](),
    "tuning": set[str](),
    "bench": set[str](),
}
SANS_IO = {"server/lines.py", "server/sse.py", "server/proxy.py", "router/table.py", "tuning/advice.py"}
DOES_IO = {"asyncio", "socket", "ssl", "select", "time", "logging", "redis", "aiohttp", "uvloop"}
# Servers of our own making that ours is compared with; each runs as a process of its own.
PROGRAMS = {"bench/peers/programs/aiohttp_hub.py", "bench/peers/programs/uvloop_hub.py"}
# auth and keys: a key set is fetched with aiohttp.
KNOWN_BY = {
    "hiredis": {"router/pipe.py"},
    "redis": {"router/topology.py", "router/clients.py", "router/sentinel.py"},
    "aiohttp": {"server/http.py", "server/web.py", "server/admin.py", "server/auth.py", "server/keys.py", *PROGRAMS},
    "uvloop": {"server/shard.py", *PROGRAMS},
    "matplotlib": {"bench/charts.py"},
}


def first_party_files() -> list[str]:
    """Return the paths of all our modules, relative to the top."""
    found = [path for name in MAY_IMPORT for path in (ROOT / name).rglob("*.py")]
    found += [path for path in [ROOT / "workers.py"] if path.exists()]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def imports(path: str) -> set[str]:
    """Return the top-level names that a module imports, wherever in it, except for type checkers only."""
    return set(_imported(ast.parse((ROOT / path).read_bytes())))


def _imported(node: ast.AST) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "relative imports hide the arrows"
            yield (child.module or "").partition(".")[0]
        else:
            yield from _imported(child)


@pytest.mark.parametrize("path", first_party_files())
def test_arrows_point_one_way(path: str) -> None:
    home = path.partition("/")[0].removesuffix(".py")
    strays = imports(path) & (MAY_IMPORT.keys() - {home}) - MAY_IMPORT[home]
    assert not strays, f"{path} must not import {strays}"


@pytest.mark.parametrize("path", sorted(SANS_IO.intersection(first_party_files())))
def test_codecs_and_tables_do_no_io(path: str) -> None:
    assert not imports(path) & DOES_IO


@pytest.mark.parametrize("path", first_party_files())
def test_only_one_place_knows_a_library(path: str) -> None:
    strays = {name for name in imports(path) & KNOWN_BY.keys() if path not in KNOWN_BY[name]}
    assert not strays, f"{path} must not import {strays}"


def test_the_top_level_is_as_agreed() -> None:
    assert {path.partition("/")[0].removesuffix(".py") for path in first_party_files()} <= MAY_IMPORT.keys()
    assert not [path.name for path in ROOT.glob("*.py") if path.name != "workers.py"]
