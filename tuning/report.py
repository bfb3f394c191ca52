"""Findings, plans and results as text for a terminal of any width, or for a file."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tuning.advice import stops
from tuning.finding import Finding, Scope, Verdict
from tuning.plan import Step

COLOURS = {Verdict.OK: "32", Verdict.LOW: "1;31", Verdict.WASTEFUL: "33", Verdict.UNKNOWN: "36"}
HOSTS_OWN = " *"
VALUE_WIDTH_MIN = 12
SENTENCE_WIDTH_MIN = 30  # a narrower last column is left out


@dataclass(frozen=True, slots=True)
class Paper:
    """What is written on. `width` None: a file or a pipe, nothing is cut or wrapped."""

    width: int | None = None
    colour: bool = False

    def paint(self, text: str, code: str) -> str:
        """`text` in a colour, where there are colours."""
        return f"\033[{code}m{text}\033[0m" if self.colour else text

    def field(self, label: str, text: str, label_width: int) -> Iterator[str]:
        """`label`, then `text` wrapped beside it."""
        head = f"  {label:<{label_width}} "
        if self.width is None:
            yield head + text
            return
        wide = max(20, self.width - len(head))
        for i, line in enumerate(textwrap.wrap(text, wide, break_long_words=False, break_on_hyphens=False)):
            yield (head if i == 0 else " " * len(head)) + line


def check(found: Sequence[Finding], paper: Paper, *, inside: str = "", long: bool = False) -> Iterator[str]:
    """One row a limit, then what to do about those that are not ok (`long`: about each), then the sum.

    inside: the kind of container this is; then the limits that only its host can set are marked.
    """
    yield from _rows(found, paper, HOSTS_OWN if inside else "")
    if inside:
        yield f"{HOSTS_OWN.strip()} the host's: cannot be set from inside this container ({inside})"
    for one in found:
        if long or one.verdict in (Verdict.LOW, Verdict.WASTEFUL):
            yield ""
            yield from _details(one, paper)
    yield ""
    yield from _sum(found)


def plan(steps: Sequence[Step], paper: Paper) -> Iterator[str]:
    """The settings with the reason and the source of every value."""
    if not steps:
        yield "nothing to set: no limit that can be set here is too low"
    for step in steps:
        yield paper.paint(step.setting.command(), "1")
        if step.now is not None:
            yield from paper.field("now", figures(step.now), 7)
        yield from paper.field("because", step.reason, 7)
        yield from paper.field("source", step.source, 7)


def figures(text: str | None) -> str:
    """Numbers with their thousands set apart; "-" for what is not known or not needed."""
    if text is None:
        return "-"
    return " ".join(f"{int(word):,}" if word.isdigit() else word for word in text.split()) or "(empty)"


def _rows(found: Sequence[Finding], paper: Paper, mark: str) -> Iterator[str]:
    head = ("verdict", "limit", "current", "needed")
    names = [one.name + (mark if one.scope in (Scope.HOST, Scope.DEVICE) else "") for one in found]
    values = [(figures(one.current), figures(one.needed)) for one in found]
    cells = [(one.verdict.value, name, *pair) for one, name, pair in zip(found, names, values, strict=True)]
    widths = [max(len(row[column]) for row in (head, *cells)) for column in range(len(head))]
    if paper.width is not None:
        widths = _fitted(widths, paper.width)
    left = None if paper.width is None else paper.width - sum(widths) - 2 * len(widths)
    with_sentence = left is None or left >= SENTENCE_WIDTH_MIN
    yield paper.paint(_row(head, widths) + ("  what it limits" if with_sentence else ""), "1")
    for one, row in zip(found, cells, strict=True):
        line = _row(row, widths)
        verdict, rest = line[: widths[0]], line[widths[0] :]
        sentence = "  " + (one.limits if left is None else _cut(one.limits, left)) if with_sentence else ""
        yield (paper.paint(verdict, COLOURS[one.verdict]) + rest + sentence).rstrip()


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(f"{_cut(cell, width):<{width}}" for cell, width in zip(cells, widths, strict=True))


def _fitted(widths: list[int], width: int) -> list[int]:
    """`widths` narrowed to `width`: the wider of the two values first, as names must be whole to be looked up."""
    while sum(widths) + 2 * (len(widths) - 1) > width:
        widest = max((2, 3), key=lambda column: widths[column])
        if widths[widest] <= VALUE_WIDTH_MIN:
            widest = 1
        widths[widest] -= 1
    return widths


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def _details(one: Finding, paper: Paper) -> Iterator[str]:
    yield f"{paper.paint(one.verdict.value, COLOURS[one.verdict])}: {one.name} ({one.scope.value})"
    for label, text in (
        ("limits", one.limits),
        ("because", one.reason),
        ("set", one.how),
        ("capped by", one.capped_by),
        ("you see", one.error),
        ("source", one.source),
    ):
        yield from paper.field(label, text, 9)


def _sum(found: Iterable[Finding]) -> Iterator[str]:
    found = list(found)
    counts = Counter(one.verdict for one in found)
    yield ", ".join(f"{counts[verdict]} {verdict.value}" for verdict in Verdict)
    for one in stops(found)[:1]:
        yield f"first to stop this host: {one.name}, at {one.stops_at:,} connections"
