import json
from pathlib import Path

import pytest

from bench import compare
from bench.report import Report
from bench.settings import Settings


def report(*values: float) -> Report:
    made = Report("fanout", Settings())
    for value in values:
        made.add("single", value, "CPU us/delivery")
    return made


def saved(path: Path, *values: float) -> str:
    path.write_text(report(*values).as_json())
    return str(path)


def test_every_scenario_has_the_same_results() -> None:
    found = json.loads(report(3.0, 1.0, 2.0).as_json())
    assert found["results"] == [
        {"name": "single", "value": 2.0, "unit": "CPU us/delivery", "min": 1.0, "max": 3.0, "n": 3}
    ]
    assert found["rounds"] == [{"single": 3.0}, {"single": 1.0}, {"single": 2.0}]


@pytest.mark.parametrize(
    ("before", "after", "apart"),
    [
        ((1.0, 2.0), (1.5, 3.0), False),
        ((1.0, 2.0), (2.5, 3.0), True),
        ((2.5, 3.0), (1.0, 2.0), True),
        ((1.0,), (9.0,), False),
    ],
)
def test_figures_are_apart_when_no_round_of_one_is_like_any_of_the_other(
    before: tuple[float, ...], after: tuple[float, ...], apart: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = saved(tmp_path / "a.json", *before), saved(tmp_path / "b.json", *after)
    assert compare.run(*files) == int(apart)
    output = capsys.readouterr().out
    assert output.rstrip().endswith("apart") == apart
    assert "single, CPU us/delivery" in output


def test_what_is_no_report_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.json"
    for content in ("[1]", "no JSON"):
        other.write_text(content)
        assert compare.run(saved(tmp_path / "a.json", 1.0), str(other)) == 2
        assert f"{other} is not what `moorage bench SCENARIO --save FILE` writes" in capsys.readouterr().err
    assert compare.run(str(tmp_path / "none.json"), str(other)) == 2


def test_reports_of_different_scenarios_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.json"
    other.write_text(Report("idle", Settings()).as_json())
    assert compare.run(saved(tmp_path / "a.json", 1.0), str(other)) == 2
    assert "is of fanout" in capsys.readouterr().err
