"""Whatever is not known of a host, whatever nonsense its files hold: findings, plan and files are made all the same."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuning import advice, report
from tuning.emit import FORMATS, emit
from tuning.facts import Facts, from_json, to_json
from tuning.finding import Kind, Verdict
from tuning.host import SYSCTLS
from tuning.plan import lowers, plan, portable
from tuning.target import Target

HOSTS = {
    path.stem: from_json(json.loads(path.read_text()))
    for path in sorted((Path(__file__).parent.parent / "data/hosts").glob("*.json"))
}

targets = st.builds(
    Target,
    connections=st.integers(1, 10**9),
    held=st.integers(0, 10**6),
    workers=st.integers(1, 1024),
    balancers=st.integers(0, 300),
    destinations=st.integers(1, 64),
    user_bytes=st.integers(0, 50_000),
    kernel_bytes=st.none() | st.integers(1, 20_000),
    busy_percent=st.integers(0, 100),
)


def leaves(document: Any, where: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every field of a facts document, and every sysctl."""
    if not isinstance(document, dict):
        return [where]
    return [leaf for key, value in document.items() for leaf in leaves(value, (*where, key))]


def without(document: Any, gone: set[tuple[str, ...]], where: tuple[str, ...] = ()) -> Any:
    if not isinstance(document, dict):
        return document
    return {key: without(value, gone, (*where, key)) for key, value in document.items() if (*where, key) not in gone}


def judge_everything(facts: Facts, target: Target) -> None:
    found = advice.findings(facts, target)
    assert all(isinstance(one.verdict, Verdict) for one in found)
    assert all(one.stops_at is None or one.stops_at >= 0 for one in found)
    json.dumps([one.to_json() for one in found])
    assert len(advice.start_lines(facts, target.workers, target.kernel_bytes)) <= 2
    for width in (None, 80):
        assert list(report.check(found, report.Paper(width)))
    for step in (one for one in plan(found) + portable(found) if one.setting.kind is Kind.SYSCTL):
        assert step.setting.lowers or step.now is None or not lowers(step.setting.key, step.now, step.setting.value)
    for form in FORMATS:
        assert emit(form, portable(found, frugal=True)).endswith("\n")


@pytest.mark.parametrize("host", sorted(HOSTS))
@settings(deadline=None, max_examples=30)
@given(data=st.data(), target=targets)
def test_any_subset_of_facts_may_be_missing(host: str, data: st.DataObject, target: Target) -> None:
    document = to_json(HOSTS[host])
    gone = data.draw(st.sets(st.sampled_from(leaves(document))))
    facts = from_json(without(document, gone))
    judge_everything(facts, target)
    assert from_json(json.loads(json.dumps(to_json(facts)))) == facts


text = st.one_of(
    st.text(max_size=12),
    st.integers(-(2**63), 2**64).map(str),
    st.lists(st.integers(0, 2**40), max_size=4).map(lambda numbers: " ".join(map(str, numbers))),
)


@settings(deadline=None, max_examples=100)
@given(sysctls=st.dictionaries(st.sampled_from(SYSCTLS), text), target=targets)
def test_any_text_may_stand_in_a_sysctl(sysctls: dict[str, str], target: Target) -> None:
    judge_everything(replace(HOSTS["server-64-cores"], sysctls=sysctls), target)


def scrambled(value: Any, data: st.DataObject) -> Any:
    """`value` with every number of every dataclass drawn anew."""
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{one.name: scrambled(getattr(value, one.name), data) for one in fields(value)})
    if isinstance(value, int) and not isinstance(value, bool):
        return data.draw(st.integers(0, 2**63 - 1))
    return value


@settings(deadline=None, max_examples=50)
@given(data=st.data(), target=targets)
def test_any_number_may_stand_in_the_facts(data: st.DataObject, target: Target) -> None:
    judge_everything(scrambled(HOSTS["server-64-cores"], data), target)


@settings(deadline=None, max_examples=100)
@given(target=targets, more=st.integers(1, 10**6))
def test_more_connections_never_need_less(target: Target, more: int) -> None:
    larger = replace(target, connections=target.connections + more)
    small, large = (
        {one.name: one for one in advice.findings(HOSTS["conntrack-loaded"], asked)} for asked in (target, larger)
    )
    for name, one in small.items():
        if one.needed and one.needed.isdigit() and large[name].needed:
            assert int(large[name].needed or 0) >= int(one.needed), name
