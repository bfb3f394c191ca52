"""Two reports of one scenario side by side: which figures differ by more than the rounds of each did."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bench.report import number, table

ABOUT = "two saved reports of one scenario: which figures differ by more than their spread"
BAD_INPUT = 2


def run(before: str, after: str) -> int:
    """Print the comparison; 0 when the spreads of all figures meet, 1 when some do not, 2 for a file that is no report."""
    try:
        first, second = _read(before), _read(after)
        if first["scenario"] != second["scenario"]:
            raise ValueError(f"{before} is of {first['scenario']}, {after} of {second['scenario']}")
    except (OSError, ValueError) as error:
        print(f"bench compare: {error}", file=sys.stderr)
        return BAD_INPUT
    rows = compared(first, second)
    print(f"{first['scenario']}: {before} (commit {_commit(first)}) and {after} (commit {_commit(second)})")
    for name in sorted(first["settings"].keys() | second["settings"].keys()):
        if (one := first["settings"].get(name)) != (other := second["settings"].get(name)):
            print(f"setting {name}: {one} and {other}")
    print()
    print("\n".join(table([("", "before", "spread", "after", "spread", "change", ""), *rows])))
    return int(any(row[-1] for row in rows))


def compared(first: dict[str, Any], second: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return a row for each figure that both have: values, spreads, the change, and whether the spreads are apart."""
    others = {each["name"]: each for each in second["results"]}
    rows: list[tuple[str, ...]] = []
    for one in first["results"]:
        other = others.get(one["name"])
        if other is None:
            continue
        change = f"{100 * (other['value'] / one['value'] - 1):+.1f} %" if one["value"] else "-"
        values = number(one["value"]), _spread(one), number(other["value"]), _spread(other)
        rows.append((f"{one['name']}, {one['unit']}", *values, change, "apart" if are_apart(one, other) else ""))
    return rows


def are_apart(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """True when every round of one was above every round of the other; a single round says nothing of that."""
    if min(one["n"], other["n"]) < 2:
        return False
    return bool(one["min"] > other["max"] or other["min"] > one["max"])


def _spread(result: dict[str, Any]) -> str:
    return f"{number(result['min'])}..{number(result['max'])}" if result["n"] > 1 else "one round"


def _read(path: str) -> dict[str, Any]:
    try:
        found = json.loads(Path(path).read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict) or not {"scenario", "results", "settings", "host"} <= found.keys():
        raise ValueError(f"{path} is not what `moorage bench SCENARIO --save FILE` writes")
    return found


def _commit(report: dict[str, Any]) -> str:
    return str(report["host"].get("commit"))
