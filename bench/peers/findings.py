"""What a contest found: figures by scenario and peer, each with its rounds, and ratios to ours and to the floor."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

from bench.peers.catalog import FLOOR, OURS
from bench.peers.peer import Peer
from bench.report import Figure, Report, commit, host, number, table
from bench.settings import Settings

UNITS = {
    ("idle", "user-space memory"): "bytes/connection",
    ("idle", "kernel, one end"): "bytes/connection",
    ("connect", "CPU"): "us/connection",
    ("connect", "arrival"): "connections/s",
    ("fanout", "single, CPU"): "us/delivery",
    ("fanout", "single, until the last has it"): "ms",
    ("fanout", "burst, CPU"): "us/delivery",
    ("fanout", "burst, until the last has it"): "ms",
    ("direct", "fixed rate, CPU"): "us/message",
    ("direct", "fixed rate, latency p50"): "us",
    ("direct", "fixed rate, latency p99"): "us",
    ("direct", "pipelined, CPU"): "us/message",
    ("direct", "pipelined, throughput"): "messages/s",
    ("storm", "until all are back"): "s",
    ("storm", "CPU"): "us/connection",
}
PART = ", of it in Redis"


class Findings(Report):
    """A report whose figures belong to peers. Its results are of the form that `bench report` reads."""

    def __init__(self, scenario: str, settings: Settings) -> None:
        super().__init__(scenario, settings)
        self.entered: list[dict[str, object]] = []
        self.skipped: dict[str, str] = {}
        self.rounds: list[dict[str, Any]] = []
        self.found: dict[tuple[str, str], dict[str, Figure]] = {}

    def enter(self, peer: Peer) -> None:
        """Note a peer, with its versions; one that cannot run here is skipped with the reason."""
        if reason := peer.missing():
            self.skipped[peer.name] = reason
            return
        self.entered.append(
            {
                "name": peer.name,
                "about": peer.about,
                "versions": peer.versions(),
                "cannot": dict(peer.cannot),
                "is_reference": peer.is_reference,
            }
        )

    @contextmanager
    def turn(self, place: int, peer: Peer) -> Iterator[None]:
        """Collect one turn's raw figures."""
        began = time.monotonic()
        self.rounds.append({"round": place + 1, "peer": peer.name, "figures": {}})
        yield
        self.rounds[-1]["seconds"] = round(time.monotonic() - began, 2)

    def record(self, peer: str, scenario: str, name: str, value: float) -> None:
        """Add a turn's value of one of UNITS."""
        unit = UNITS[scenario, name.removesuffix(PART)]
        self.add(f"{peer}, {scenario}: {name}", value, unit)
        self.found.setdefault((scenario, name), {})[peer] = self.figures[f"{peer}, {scenario}: {name}"]
        self.rounds[-1]["figures"][f"{scenario}: {name}"] = round(value, 4)

    def as_object(self) -> dict[str, object]:
        """Return everything, ready for JSON."""
        return {
            **super().as_object(),
            "peers": self.entered,
            "skipped": self.skipped,
            "rounds": self.rounds,
            "results": [
                {"scenario": scenario, "peer": peer, **figure.result(name)}
                for (scenario, name), figures in self.found.items()
                for peer, figure in figures.items()
            ],
        }

    def as_table(self) -> str:
        """Return a table for each figure: peers, medians, spread, ratios."""
        facts = host()
        lines = [
            self._headline(),
            f"on {facts['cores']} cores, Linux {facts['kernel']}, Python {facts['python']}, commit {commit()}",
        ]
        for peer in self.entered:
            versions = ", ".join(f"{name} {text}" for name, text in dict(peer["versions"]).items())  # type: ignore[call-overload]
            lines.append(f"{peer['name']}: {peer['about']}; {versions}")
        lines += [f"{name}: skipped, {reason}" for name, reason in self.skipped.items()]
        for place in UNITS:
            if figures := self.found.get(place):
                lines += ["", *table(self._rows(*place, figures))]
        lines += ["", *(f"note: {text}" for text in self.notes)]
        lines += [f"FAULT, {times:,} times: {text}" for text, times in self.faults.items()]
        if self.interrupted:
            lines.append("interrupted: figures are of what was measured until then")
        return "\n".join(lines)

    def _rows(self, scenario: str, name: str, figures: dict[str, Figure]) -> list[tuple[str, ...]]:
        parts = self.found.get((scenario, name + PART), {})
        title = f"{scenario}: {name}, {UNITS[scenario, name]}"
        rows: list[tuple[str, ...]] = [(title, "median", "min", "max", "x ours", "x floor", "")]
        for peer in [str(each["name"]) for each in self.entered]:
            if peer not in figures:
                rows.append((peer, "n/a", "", "", "", "", ""))
                continue
            values = figures[peer].values
            ratios = [ratio(figures[peer], figures.get(base)) for base in (OURS, FLOOR)]
            part = f"  {number(median(parts[peer].values))} of it in Redis" if peer in parts else ""
            rows.append((peer, *map(number, (median(values), min(values), max(values))), *ratios, part))
        return rows


def ratio(figure: Figure, base: Figure | None) -> str:
    """Return how many times the base a figure is, of medians; "" where there is none to compare with."""
    if base is None or median(base.values) <= 0:
        return ""
    return number(median(figure.values) / median(base.values))
