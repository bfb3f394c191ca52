import argparse
from dataclasses import fields

import pytest

from bench.scenarios import SCENARIOS
from bench.settings import add_arguments, at_least, from_arguments
from commands import bench


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser("moorage bench")
    bench.add_arguments(made)
    return made


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_setting_of_a_scenario_is_a_flag_with_its_default(name: str) -> None:
    kind = SCENARIOS[name].settings
    args = parser().parse_args([name])
    assert from_arguments(args, kind) == kind()
    made = argparse.ArgumentParser()
    add_arguments(made, kind)
    flags = {"--" + each.name.replace("_", "-") for each in fields(kind)}
    assert flags <= {flag for action in made._actions for flag in action.option_strings}


def test_flags_become_settings() -> None:
    args = parser().parse_args(["fanout", "--connections", "1,000", "--transport", "sse", "--burst", "5", "--json"])
    settings = from_arguments(args, SCENARIOS["fanout"].settings)
    assert (settings.connections, settings.transport, args.json) == (1000, "sse", True)


@pytest.mark.parametrize(
    ("flag", "value", "wanted"),
    [
        ("--connections", "0", "found '0', want a whole number of at least 1"),
        ("--rounds", "many", "found 'many', want a whole number of at least 1"),
        ("--rate", "-1", "found '-1', want a number of at least 0"),
        ("--rate", "nan", "found 'nan', want a number of at least 0"),
        ("--transport", "udp", "invalid choice: 'udp'"),
    ],
)
def test_a_bad_value_is_refused_with_what_was_found_and_what_is_wanted(
    flag: str, value: str, wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        parser().parse_args(["fanout", flag, value])
    assert refused.value.code == 2
    error = capsys.readouterr().err
    assert flag in error
    assert wanted in error


def test_whole_numbers_may_have_separators() -> None:
    assert at_least(1)("2_000_000") == at_least(1)("2,000,000") == 2_000_000
