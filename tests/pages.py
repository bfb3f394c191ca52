"""Pages of docs/ of which a part is written by a test, between `<!-- name -->` and `<!-- end -->`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
END = "<!-- end -->"


def table(*lines: Iterable[str]) -> str:
    """Return a table of Markdown; the first of `lines` is its head."""
    head, *body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join([head, "|" + "---|" * (head.count(" | ") + 1), *body])


def written_anew(page: str, parts: Mapping[str, str]) -> str:
    """Return the text of a page with what is written of it as `parts` have it, by name."""
    for name, part in parts.items():
        begin = f"<!-- {name} -->\n"
        before, rest = page.split(begin)
        page = before + begin + part + "\n" + END + rest.partition(END)[2]
    return page
