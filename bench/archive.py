"""Reports that were saved, read again: whatever the scenario, rows of name, value, spread and unit."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROW_KEYS = ("name", "value", "unit", "min", "max", "n")


class Unreadable(Exception):
    """A file is not a report of `moorage bench`; the text says which, and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Row:
    """One figure: its median and spread over `n` rounds. `peer` is "" where only we were measured."""

    scenario: str
    name: str
    value: float
    unit: str
    min: float
    max: float
    n: int
    peer: str = ""


@dataclass(frozen=True, slots=True)
class Study:
    """A report: what it found, and what that holds for."""

    file: str
    scenario: str
    rows: tuple[Row, ...]
    host: dict[str, Any]
    settings: dict[str, Any]
    curve: tuple[dict[str, float], ...]
    counts: dict[str, int]
    faults: dict[str, int]
    notes: tuple[str, ...]
    peers: tuple[dict[str, Any], ...]
    skipped: dict[str, str]

    def rows_of(self, scenario: str, name: str) -> dict[str, Row]:
        """Return a figure's rows by peer, in the order of the peers."""
        return {row.peer: row for row in self.rows if (row.scenario, row.name) == (scenario, name)}

    def figures(self) -> list[tuple[str, str]]:
        """Return the scenario and name of each figure, once."""
        return list(dict.fromkeys((row.scenario, row.name) for row in self.rows))

    @property
    def command(self) -> str:
        """Return the command that made it."""
        return " ".join(map(str, self.host.get("command", ["moorage", "bench", self.scenario])))


def load(path: Path) -> Study:
    """Read a report. Raises: Unreadable."""
    try:
        found = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise Unreadable(f"{path}: {error}") from error
    except json.JSONDecodeError as error:
        raise Unreadable(
            f"{path}: found no JSON ({error}), want what `moorage bench SCENARIO --json` prints"
        ) from error
    if not isinstance(found, dict) or not isinstance(found.get("scenario"), str):
        raise Unreadable(f"{path}: found no `scenario`, want what `moorage bench SCENARIO --json` prints")
    try:
        return Study(
            file=path.name,
            scenario=found["scenario"],
            rows=tuple(_rows(found["scenario"], found.get("results", []))),
            host=dict(found.get("host", {})),
            settings=dict(found.get("settings", {})),
            curve=tuple(found.get("curve", [])),
            counts=dict(found.get("counts", {})),
            faults=dict(found.get("faults", {})),
            notes=tuple(found.get("notes", [])),
            peers=tuple(found.get("peers", [])),
            skipped=dict(found.get("skipped", {})),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise Unreadable(f"{path}: not as a report is: {error!r}") from error


def _rows(scenario: str, results: Iterable[dict[str, Any]]) -> Iterable[Row]:
    for result in results:
        known = {key: result[key] for key in ROW_KEYS}
        yield Row(**known, scenario=result.get("scenario", scenario), peer=result.get("peer", ""))
