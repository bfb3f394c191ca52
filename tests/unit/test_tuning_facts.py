"""Facts survive JSON, and bad JSON is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tuning.facts import Facts, Nic, from_json, to_json

HOSTS = sorted((Path(__file__).parent.parent / "data/hosts").glob("*.json"))


@pytest.mark.parametrize("path", HOSTS, ids=lambda path: path.stem)
def test_recorded_hosts_survive_json(path: Path) -> None:
    facts = from_json(json.loads(path.read_text()))
    assert from_json(json.loads(json.dumps(to_json(facts)))) == facts


def test_nothing_known_survives_json() -> None:
    assert from_json({}) == Facts() == from_json(to_json(Facts()))


def test_fields_of_a_newer_release_are_ignored() -> None:
    assert from_json({"kernel": "7.0", "quantum": 1, "cpus": {"qubits": 4}}).kernel == "7.0"


@pytest.mark.parametrize(
    ("document", "fault"),
    [
        ([], "facts: found [], wanted an object"),
        ({"kernel": 6}, "facts.kernel: found 6, wanted str"),
        ({"cpus": {"online": "4"}}, "facts.cpus.online: found '4', wanted int"),
        ({"cpus": {"online": True}}, "facts.cpus.online: found True, wanted int"),
        ({"cpus": 4}, "facts.cpus: found 4, wanted an object"),
        ({"nics": {}}, "facts.nics: found {}, wanted a list"),
        ({"nics": [{"name": "eth0", "irq_cpus": [["0"]]}]}, r"facts.nics[0].irq_cpus[0][0]: found '0', wanted int"),
        ({"nics": [{}]}, "facts.nics[0]: "),
        ({"sysctls": {"fs.nr_open": 5}}, "facts.sysctls: found {'fs.nr_open': 5}, wanted an object of strings"),
    ],
)
def test_what_is_wrong_is_named(document: object, fault: str) -> None:
    with pytest.raises(ValueError, match="facts") as caught:
        from_json(document)
    assert str(caught.value).startswith(fault)


def test_whole_numbers_serve_as_a_quota() -> None:
    assert from_json({"cgroup": {"cpus": 2}}).cgroup.cpus == 2.0


def test_sysctls_as_numbers() -> None:
    facts = Facts(sysctls={"a": "4096 131072 6291456", "b": "", "c": "cubic", "d": "7"})
    assert facts.three("a") == (4096, 131072, 6291456)
    assert facts.number("a") == 4096
    assert facts.number("d") == 7
    assert (facts.number("b"), facts.number("c"), facts.number("e"), facts.three("d")) == (None, None, None, None)


def test_a_card_needs_only_its_name() -> None:
    assert from_json({"nics": [{"name": "eth0"}]}).nics == (Nic("eth0"),)
