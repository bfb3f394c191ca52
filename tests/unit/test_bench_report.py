import json
from collections.abc import Callable

import pytest

from bench.report import Figure, Report, host, masked, table
from bench.settings import Settings


def report(**settings: str) -> Report:
    return Report("fanout", Settings(**settings))  # type: ignore[arg-type]


def test_a_figure_has_its_median_its_spread_and_its_goal() -> None:
    figure = Figure("us", 2.0, [3.0, 1.0, 2.0])
    assert figure.summary() == {
        "unit": "us",
        "median": 2.0,
        "min": 1.0,
        "max": 3.0,
        "rounds": 3,
        "goal_max": 2.0,
        "met": True,
    }
    assert not Figure("us", 1.9, [2.0]).met
    assert "met" not in Figure("us", None, [2.0]).summary()


def test_json_has_figures_counts_settings_and_the_host() -> None:
    found = report()
    found.add("single", 1.5, "us")
    found.count("deliveries", 10, 10)
    read = json.loads(found.as_json())
    assert read["scenario"] == "fanout"
    assert read["figures"]["single"]["median"] == 1.5
    assert read["counts"] == {"deliveries": 10}
    assert read["settings"]["connections"] == 10_000
    assert {"cores", "kernel", "python", "packages", "commit", "command"} <= read["host"].keys()


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda found: None, 0),
        (lambda found: found.add("single", 9.0, "us", 1.0), 0),
        (lambda found: found.count("deliveries", 9, 10), 1),
        (lambda found: found.blame({"lost: closed by the server": 2}), 1),
        (lambda found: setattr(found, "interrupted", True), 130),
    ],
    ids=["all well", "goal missed", "count off", "client's fault", "interrupted"],
)
def test_what_is_not_exact_fails_and_a_goal_missed_does_not(spoil: Callable[[Report], None], code: int) -> None:
    found = report()
    spoil(found)
    assert found.exit_code == code


def test_the_table_says_what_was_missed_lost_and_interrupted() -> None:
    found = report()
    found.add("single", 9.0, "us", 1.0)
    found.count("deliveries", 9, 10)
    found.interrupted = True
    text = found.as_table()
    assert "<= 1  MISSED" in text
    assert "FAULT, 1 times: deliveries: 9 instead of 10" in text
    assert "interrupted" in text
    assert "connections 10,000" in text


def test_columns_line_up() -> None:
    assert table([("", "a", "goal"), ("long name", "1,000", "x")]) == ["               a  goal", "long name  1,000  x"]


def test_a_password_is_not_printed() -> None:
    assert masked("redis://me:secret@host:1/0") == "redis://me:***@host:1/0"
    assert masked("--redis=rediss://:secret@host") == "--redis=rediss://:***@host"
    assert masked("redis://host:6379/0") == "redis://host:6379/0"
    assert "secret" not in report(redis="redis://:secret@host").as_json()


def test_the_host_names_the_commit_it_ran_from() -> None:
    commit = host()["commit"]
    assert isinstance(commit, str)
    assert commit
