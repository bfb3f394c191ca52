"""Text for people: every width, with and without colour."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tuning import advice, report
from tuning.facts import from_json
from tuning.finding import Finding
from tuning.plan import plan
from tuning.report import Paper
from tuning.target import Target

HOST = Path(__file__).parent.parent / "data/hosts/server-64-cores.json"


@pytest.fixture(scope="module")
def found() -> list[Finding]:
    return advice.findings(from_json(json.loads(HOST.read_text())), Target(2_000_000, workers=64, kernel_bytes=3800))


@pytest.mark.parametrize("width", [60, 80, 100, 132, 240])
def test_rows_fit_the_terminal(found: list[Finding], width: int) -> None:
    lines = list(report.check(found, Paper(width)))
    assert max(map(len, lines[: len(found) + 1])) <= width
    assert max(map(len, lines)) <= max(width, 90)  # a command or a path is not broken in two


@pytest.mark.parametrize("width", [80, 132, None])
def test_names_are_whole_so_that_they_can_be_looked_up(found: list[Finding], width: int | None) -> None:
    text = "\n".join(report.check(found, Paper(width)))
    assert all(one.name in text for one in found)


def test_a_pipe_gets_one_row_a_limit_with_its_sentence_and_no_colour(found: list[Finding]) -> None:
    lines = list(report.check(found, Paper()))
    assert all(one.name in line and line.endswith(one.limits) for one, line in zip(found, lines[1:], strict=False))
    assert "\033" not in "".join(lines)
    assert lines[-1].startswith("first to stop this host: fs.file-max, at ")


def test_colour_only_where_it_is_wanted(found: list[Finding]) -> None:
    assert "\033[1;31mtoo low" in "\n".join(report.check(found, Paper(120, colour=True)))


def test_what_is_not_ok_is_explained_and_long_explains_all(found: list[Finding]) -> None:
    short, long = (list(report.check(found, Paper(100), long=long)) for long in (False, True))
    assert sum(line.startswith("  capped by") for line in long) == len(found)
    assert 0 < sum(line.startswith("  capped by") for line in short) < len(found)


def test_in_a_container_the_hosts_limits_are_marked(found: list[Finding]) -> None:
    text = "\n".join(report.check(found, Paper(120), inside="docker"))
    assert "fs.file-max *" in text
    assert "net.core.somaxconn  " in text
    assert "* the host's: cannot be set from inside this container (docker)" in text


def test_a_plan_shows_the_arithmetic(found: list[Finding]) -> None:
    text = "\n".join(report.plan(plan(found), Paper()))
    assert "sysctl -w net.core.somaxconn=4096" in text
    assert "2,000,000 connections back within 60 s = 33,334/s, / 64 workers x 1 s without accept = 521" in text
    assert list(report.plan([], Paper())) == ["nothing to set: no limit that can be set here is too low"]


def test_figures() -> None:
    assert report.figures("4096 131072 6291456") == "4,096 131,072 6,291,456"
    assert (report.figures(None), report.figures(""), report.figures("madvise")) == ("-", "(empty)", "madvise")
