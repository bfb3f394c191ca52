"""docs/metrics.md lists every metric as `/metrics` declares it, and names no other.

`python tests/unit/test_docs_metrics.py` writes anew what is between its markers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from pages import DOCS, table, written_anew
from prometheus_client.metrics_core import Metric

from server.close import Close
from server.meter import Meter
from server.metrics import WorkerCollector
from server.stats import Pages, Stats

PAGE = DOCS / "metrics.md"
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


def parts() -> dict[str, str]:
    """Return what is generated, as the code has it now."""
    rows = [("Metric", "Kind", "Labels", "What it is")]
    for family in families():
        labels = {label: None for sample in family.samples for label in sample.labels if label != "le"}
        shown = ", ".join(f"`{label}`" for label in labels)
        rows.append((f"`{name_of(family)}`", family.type, shown, family.documentation))
    return {"metrics": table(*rows)}


def test_the_table_is_what_is_declared() -> None:
    page = PAGE.read_text()
    assert page == written_anew(page, parts()), (
        f"run: PYTHONPATH=tests .venv/bin/python {Path(__file__).relative_to(PAGE.parents[1])}"
    )


def test_no_page_names_another() -> None:
    known = {name_of(family) for family in families()}
    for page in [*DOCS.parent.glob("*.md"), *DOCS.rglob("*.md")]:
        named = set(re.findall(r"`(moorage_[a-z_]+)(?:\{[^`]*\})?`", page.read_text()))
        assert named <= known, f"{page.name}: {named - known}"


if __name__ == "__main__":
    PAGE.write_text(written_anew(PAGE.read_text(), parts()))
