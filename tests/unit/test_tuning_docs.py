"""docs/tuning.md knows every limit that `check` reports, and every flag it shows exists."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import pytest

from commands import tuning
from tuning import advice
from tuning.facts import from_json
from tuning.target import Target

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "docs/tuning.md").read_text()


@pytest.mark.parametrize("host", ["server-64-cores", "conntrack-loaded", "container-cgroup-v2"])
def test_every_limit_is_in_the_docs(host: str) -> None:
    facts = from_json(json.loads((ROOT / f"tests/data/hosts/{host}.json").read_text()))
    for one in advice.findings(facts, Target(1_000_000)):
        words = one.name.split()
        if words[-1] in ("queues", "interrupts", "XPS"):
            words = words[-1:]
        name = " ".join(words)
        # A row may name several: "tcp_rmem, tcp_wmem", "tcp_keepalive_time, _intvl, _probes".
        short = name.rpartition(".")[2]
        assert name in TEXT or short in TEXT or f"_{short.rpartition('_')[2]}" in TEXT, name


def test_every_flag_in_the_docs_exists() -> None:
    parser = argparse.ArgumentParser()
    tuning.add_arguments(parser)
    actions = next(one for one in parser._actions if isinstance(one, argparse._SubParsersAction))
    known = {flag for action in actions.choices.values() for flag in action._option_string_actions}
    others = {"--ulimit", "--cpus", "--pids-limit", "--tcp"}
    assert set(re.findall(r"--[a-z][a-z-]+", TEXT)) - others <= known
