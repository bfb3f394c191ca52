"""`moorage bench report`: a page of Markdown and charts from reports that were saved."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bench import charts
from bench.archive import Row, Study, Unreadable, load
from bench.report import number
from bench.settings import shown
from bench.verdicts import FLOOR, OURS, goals, losses

ABOUT = "draw charts and write a page from saved reports"
PAGE = "README.md"
HOME = Path("bench/results")
PART = ", of it in Redis"


def run(files: Sequence[str], out: str) -> int:
    """Write the page and its charts into the directory `out`; return the exit code, 2 for a file that is no report."""
    home = Path(out)
    try:
        studies = [load(Path(file)) for file in files]
        home.mkdir(parents=True, exist_ok=True)
        drawn = charts.draw(studies, home)
        (home / PAGE).write_text("\n".join(lines(studies, drawn)) + "\n")
    except (Unreadable, charts.NoMatplotlib, OSError) as error:
        print(f"bench report: {error}", file=sys.stderr)
        return 2
    for name in (PAGE, *drawn):
        print(home / name)
    return 0


def lines(studies: Sequence[Study], drawn: Iterable[str]) -> Iterator[str]:
    """Return the page. `drawn` are the names of the charts beside it."""
    drawn = list(drawn)
    yield "# Results"
    yield ""
    yield "Written by `moorage bench report` from the JSON files beside it; how it is measured is in docs/benchmarks.md."
    for study in studies:
        yield from ("", f"## {study.scenario}", "")
        yield from (f"![{study.scenario}]({name})" for name in drawn if name == f"{study.scenario}.svg")
        if study.peers:
            yield from _contest(study)
        else:
            yield from _alone(study)
        yield from _circumstances(study)


def _contest(study: Study) -> Iterator[str]:
    """Return the tables of a comparison."""
    yield from ("", "| | what | versions |", "|---|---|---|")
    for peer in study.peers:
        versions = ", ".join(f"{name} {text}" for name, text in peer["versions"].items())
        yield f"| {peer['name']} | {peer['about']} | {versions} |"
    for name, reason in study.skipped.items():
        yield f"| {name} | skipped | {reason} |"
    yield from _goals(study)
    yield from _losses(study)
    for scenario, name in study.figures():
        if not name.endswith(PART):
            yield from _comparison(study, scenario, name)


def _comparison(study: Study, scenario: str, name: str) -> Iterator[str]:
    rows, parts = study.rows_of(scenario, name), study.rows_of(scenario, name + PART)
    unit = next(iter(rows.values())).unit
    yield from ("", f"### {scenario}: {name}, {unit}", "")
    yield f"| | median | min to max | x ours | x floor |{' of it in Redis |' if parts else ''}"
    yield f"|---|---:|---:|---:|---:|{'---:|' if parts else ''}"
    for peer in [str(each["name"]) for each in study.peers]:
        cells = _cells(rows, peer, dict(next(each for each in study.peers if each["name"] == peer).get("cannot", {})))
        if parts:
            cells.append(number(parts[peer].value) if peer in parts else "")
        yield f"| {' | '.join(cells)} |"


def _cells(rows: dict[str, Row], peer: str, cannot: dict[str, str]) -> list[str]:
    row = rows.get(peer)
    label = f"**{peer}**" if peer == OURS else peer
    if row is None:
        return [label, "n/a", next(iter(cannot.values()), "see faults"), "", ""]
    ratios = [
        number(row.value / rows[base].value) if base in rows and rows[base].value > 0 else "" for base in (OURS, FLOOR)
    ]
    return [label, number(row.value), f"{number(row.min)} to {number(row.max)}", *ratios]


def _goals(study: Study) -> Iterator[str]:
    if found := goals(study):
        yield from ("", "### What it was to reach", "", "| goal | found | |", "|---|---|---|")
        yield from (f"| {goal.text} | {goal.found} | {'met' if goal.met else '**missed**'} |" for goal in found)


def _losses(study: Study) -> Iterator[str]:
    found = losses(study)
    yield from ("", "### Where we lose", "")
    if not found:
        yield "Nowhere, by the medians of this run."
        return
    yield "By the medians of this run; in brackets where the spreads overlap. The floor is no server and left out."
    yield from ("", "| at | to, by how many times |", "|---|---|")
    by_figure: dict[tuple[str, str], list[str]] = {}
    for loss in found:
        text = f"{loss.peer} {number(loss.times)}"
        by_figure.setdefault((loss.scenario, loss.name), []).append(text if loss.is_clear else f"({text})")
    for (scenario, name), peers in by_figure.items():
        yield f"| {scenario}: {name} | {', '.join(peers)} |"


def _alone(study: Study) -> Iterator[str]:
    """Return the table of a scenario in which only we are measured."""
    yield from ("", "| | median | min to max | unit |", "|---|---:|---:|---|")
    for row in study.rows:
        yield f"| {row.name} | {number(row.value)} | {number(row.min)} to {number(row.max)} | {row.unit} |"
    for name, value in study.counts.items():
        yield f"| {name} | {value:,} | | |"


def _circumstances(study: Study) -> Iterator[str]:
    """Return what the figures hold for, and what was not as it should be."""
    host = study.host
    memory = f"{host['memory_bytes'] / 2**30:.0f} GiB" if "memory_bytes" in host else "?"
    yield from ("", f"`{study.command}`, commit {host.get('commit', '?')}, {host.get('at', '?')}, file {study.file}")
    yield (
        f"on {host.get('cores', '?')} cores ({host.get('cpu', '?')}), {memory}, Linux {host.get('kernel', '?')}, "
        f"Python {host.get('python', '?')}, in {host.get('seconds', '?')} s."
    )
    yield f"Settings: {', '.join(f'{name} {shown(value)}' for name, value in study.settings.items())}."
    yield from (f"- note: {note}" for note in study.notes)
    yield from (f"- **fault**, {times:,} times: {text}" for text, times in study.faults.items())
