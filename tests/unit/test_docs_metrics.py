"""docs/metrics.md lists every metric as `/metrics` declares it, and names no other.

`python tests/unit/test_docs_metrics.py` writes anew what is between its markers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.metrics_core import Metric

from server.close import Close
from server.meter import Meter
from server.metrics import WorkerCollector
from server.stats import Pages, Stats

PAGES = [Path(__file__).parents[2] / "README.md", *(Path(__file__).parents[2] / "docs").rglob("*.md")]
PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
BEGIN, END = "<!-- metrics -->\n", "<!-- end -->"
PARTS = {"part": ""}  # of a connection: told when there are enough of them


def families() -> Iterator[Metric]:
    """Every metric, with a sample of each label that it can have."""
    stats = Stats()
    stats.closed[Close.SLOW] = stats.handshake_failures[Close.FULL] = 1
    pages = Pages.create(1)
    pages[0].write(stats, 1.0, os.getpid())
    for family in WorkerCollector(pages, Meter(pages), lambda: [("fds", 1)]).collect():
        if family.name == "moorage_bytes_per_connection" and not family.samples:
            family.add_sample(family.name, PARTS, 0)
        yield family


def name_of(family: Metric) -> str:
    return family.name + "_total" if family.type == "counter" else family.name


def table() -> str:
    rows = ["| Metric | Kind | Labels | What it is |", "|---|---|---|---|"]
    for family in families():
        labels = {label: None for sample in family.samples for label in sample.labels if label != "le"}
        shown = ", ".join(f"`{label}`" for label in labels)
        rows.append(f"| `{name_of(family)}` | {family.type} | {shown} | {family.documentation} |")
    return "\n".join(rows) + "\n"


def written_anew(page: str) -> str:
    """Return `page` with what is generated as the code has it now."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


def test_the_table_is_what_is_declared() -> None:
    page = PAGE.read_text()
    assert page == written_anew(page), f"run: python {Path(__file__).relative_to(PAGE.parents[1])}"


def test_no_page_names_another() -> None:
    known = {name_of(family) for family in families()}
    for page in PAGES:
        named = set(re.findall(r"`(moorage_[a-z_]+)(?:\{[^`]*\})?`", page.read_text()))
        assert named <= known, f"{page.name}: {named - known}"


if __name__ == "__main__":
    PAGE.write_text(written_anew(PAGE.read_text()))
