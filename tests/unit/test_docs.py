"""The pages for people: links lead somewhere, and every command, option and test that a page names is there."""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from commands import COMMANDS

ROOT = Path(__file__).parents[2]
DECISIONS = ROOT / "docs" / "decisions"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
# Options of other programs, that stand alone in a page: docker, pip, systemd.
FOREIGN = {"--stop-timeout", "--ulimit", "--pids-limit"}


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@cache
def heading_anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@cache
def parser_of(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(command)
    importlib.import_module(f"commands.{command}").add_arguments(parser)
    return parser


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found[0].choices) if found else {}


def all_options(parser: argparse.ArgumentParser) -> set[str]:
    """Return the options of a command and of its subcommands."""
    return set(parser._option_string_actions).union(*map(all_options, subcommands(parser).values()))


def code_of(page: Path) -> Iterator[str]:
    """Yield every code span of a page, and every line of its code blocks, continued lines as one."""
    text = page.read_text()
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield from re.sub(r"\\\n\s*", "", block).splitlines()
    yield from re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def command_faults(code: str) -> Iterator[str]:
    """Yield what a command line in a page says that the command does not know."""
    found = re.search(r"(?:^|[\s/])moorage ([a-z]+)\b([^#|;]*)", code)
    if found is None:
        return
    command, rest = found.groups()
    if command not in COMMANDS:
        yield f"no command {command}"
        return
    parser, words = parser_of(command), rest.split()
    if (known := subcommands(parser)) and words and re.match(r"[a-z]", words[0]):
        named = words[0].split("|")
        yield from (f"no {command} {name}" for name in named if name not in known)
        parser = known.get(named[0], parser)
    options = re.findall(r"(?<!\S)\[?(--[a-z-]+)", rest)
    yield from (f"no option {option}" for option in options if option not in all_options(parser) | {"--help"})


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert not anchor or anchor in heading_anchors(there), target


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_command_in_a_page_can_be_typed(page: Path) -> None:
    faults = {code: list(command_faults(code)) for code in code_of(page)}
    assert not {code: fault for code, fault in faults.items() if fault}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_option_in_a_page_exists(page: Path) -> None:
    known = FOREIGN.union(*(all_options(parser_of(command)) for command in COMMANDS))
    named = {found[1] for code in code_of(page) if (found := re.match(r"(--[a-z-]+)(?:[ =]|$)", code))}
    assert named <= known, named - known


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_test_in_a_page_is_there(page: Path) -> None:
    for path, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text()):
        assert (ROOT / path).is_file(), path
        assert not name or re.search(rf"^\s*(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE), name


def test_every_command_and_page_is_found_from_the_first_page() -> None:
    text = (ROOT / "README.md").read_text()
    assert [name for name in COMMANDS if not re.search(rf"moorage {name}\b", text) and name != "serve"] == []
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"(docs/{page.name})" not in text] == []


def test_every_decision_is_in_the_list_of_decisions() -> None:
    listed = re.findall(r"\((\d{3}-[\w-]+\.md)\)", (DECISIONS / "README.md").read_text())
    assert listed == sorted(page.name for page in DECISIONS.glob("[0-9]*.md"))
