"""Charts of saved reports, as PNG and SVG. The only module that knows matplotlib, which is loaded when it draws."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.archive import Row, Study
from bench.verdicts import is_ours

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_INCHES = 8  # at 100 dots an inch the 800 pixels of a README; PNG has twice that
PNG_DPI = 200
OURS_COLOUR, PEER_COLOUR, REFERENCE_COLOUR = "#0f6fae", "#9aa5b1", "#d9dde2"
LINES = ("#0f6fae", "#c8553d", "#4f9d69", "#8d6cab", "#b8860b", "#5b6770", "#d17ba0", "#3aa6a6")
PANELS = (
    ("idle", "user-space memory", "Memory of an idle connection, bytes"),
    ("connect", "CPU", "Connect and subscribe, CPU µs"),
    ("fanout", "single, CPU", "Deliver one message, CPU µs"),
    ("fanout", "burst, CPU", "Deliver one of a burst, CPU µs"),
    ("direct", "fixed rate, CPU", "1:1 message at a fixed rate, CPU µs"),
    ("direct", "pipelined, CPU", "1:1 message of a stream, CPU µs"),
    ("storm", "until all are back", "All reconnect at once, seconds"),
    ("storm", "CPU", "Reconnect, CPU µs"),
)
GROWTH = (("connections", "connections"), ("channels", "channels"), ("subscribers", "subscribers"))
SEPARATE = ("workers", "idle, workers", "idle, workers, of it in the kernel")  # of a curve's point: in another unit


class NoMatplotlib(Exception):
    """Charts need a package that is not installed."""


def draw(studies: Iterable[Study], home: Path) -> list[str]:
    """Draw what there is to draw into `home`; return the names of the files. Raises: NoMatplotlib, OSError."""
    try:
        import matplotlib as mpl
    except ImportError:
        raise NoMatplotlib("charts need the package matplotlib: pip install '.[bench]' in a checkout") from None
    mpl.use("Agg")
    style: dict[Any, Any] = {
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.hashsalt": "moorage",  # the same names in every run, so that a chart changes only with its figures
    }
    names: list[str] = []
    for study in studies:
        drawing = _contest if study.peers else _growth if study.scenario == "growth" else None
        with mpl.rc_context(style):
            figure = drawing(study) if drawing and (study.rows or study.curve) else None
            if figure is not None:
                names += _save(figure, home, study.scenario)
    return names


def _save(figure: Figure, home: Path, name: str) -> list[str]:
    figure.savefig(home / f"{name}.png", dpi=PNG_DPI)
    figure.savefig(home / f"{name}.svg", metadata={"Date": None})
    return [f"{name}.png", f"{name}.svg"]


def _figure(rows: int, columns: int, height_inches: float) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    return figure, [axes for line in grid for axes in line]


def _contest(study: Study) -> Figure | None:
    """Draw a panel for each of the main figures: a bar a peer, its spread over the rounds, its value beside it."""
    panels = [(study.rows_of(scenario, name), title) for scenario, name, title in PANELS]
    panels = [(rows, title) for rows, title in panels if rows]
    if not panels:
        return None
    columns = min(2, len(panels))
    deep = -(-len(panels) // columns)
    most = max(len(rows) for rows, _ in panels)
    figure, grid = _figure(deep, columns, deep * (0.75 + 0.21 * most) + 0.4)
    references = {str(peer["name"]) for peer in study.peers if peer.get("is_reference")}
    for axes, (rows, title) in zip(grid, panels, strict=False):
        _bars(axes, [row for row in rows.values() if row.value > 0], title, references)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    figure.suptitle(
        f"{study.settings.get('connections', 0):,} connections, server side; less is better; lines: lowest to highest round",
        fontsize=9,
        color="#5b6770",
    )
    return figure


def _bars(axes: Axes, rows: Sequence[Row], title: str, references: set[str]) -> None:
    """Draw one panel, the best on top. The axis is logarithmic: a thousand lies between the first and the last."""
    ordered = sorted(rows, key=lambda row: -row.value)
    places = range(len(ordered))
    colours = [
        OURS_COLOUR if is_ours(row.peer) else REFERENCE_COLOUR if row.peer in references else PEER_COLOUR
        for row in ordered
    ]
    axes.set_title(title, loc="left")
    axes.set_xscale("log")
    axes.barh(places, [row.value for row in ordered], color=colours, height=0.72)
    for place, row in zip(places, ordered, strict=True):
        low, high = max(row.min, row.value / 1e3), row.max
        axes.plot([low, high], [place, place], color="#2b2f33", linewidth=0.9, solid_capstyle="butt")
        axes.annotate(
            _short(row.value), (max(high, row.value), place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8
        )  # fmt: skip
    axes.set_yticks(places, [row.peer for row in ordered])
    for label, row in zip(axes.get_yticklabels(), ordered, strict=True):
        label.set_fontweight("bold" if is_ours(row.peer) else "normal")
    if ordered:
        least, most = min(row.value for row in ordered), max(row.max for row in ordered)
        axes.set_xlim(least / 3, most * (most / least) ** 0.16 * 1.6)
        low, high = axes.get_xlim()
        axes.set_xticks(
            ticks := _decades(low, high, (1,) if high / low > 50 else (1, 3)), [f"{tick:g}" for tick in ticks]
        )
    axes.minorticks_off()
    axes.tick_params(axis="x", labelsize=7.5, colors="#5b6770")
    axes.tick_params(axis="y", length=0)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _growth(study: Study) -> Figure | None:
    """Draw bytes and CPU each over the number of connections, and over channels and subscribers where they were run."""
    panels: list[tuple[str, str, dict[str, list[tuple[float, float]]]]] = []
    for key, label in GROWTH:
        points = [point for point in study.curve if key in point]
        for unit, wanted in (("Bytes each", True), ("CPU µs each", False)):
            series = _series(points, key, in_bytes=wanted)
            if series:
                panels.append((label, unit, series))
    if not panels:
        return None
    columns = min(2, len(panels))
    deep = -(-len(panels) // columns)
    figure, grid = _figure(deep, columns, 3.1 * deep)
    for axes, (label, unit, series) in zip(grid, panels, strict=False):
        _lines(axes, label, unit, series)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    return figure


def _series(points: list[dict[str, Any]], key: str, *, in_bytes: bool) -> dict[str, list[tuple[float, float]]]:
    """Return the curves of bytes, or all the others: a name, and its points in order."""
    found: dict[str, list[tuple[float, float]]] = {}
    for point in points:
        for name, value in point.items():
            is_bytes = any(word in name for word in ("user space", "memory", "slab", "bytes"))
            if name != key and name not in SEPARATE and is_bytes == in_bytes and value > 0:
                found.setdefault(name, []).append((point[key], value))
    return {name: sorted(points) for name, points in found.items()}


def _lines(axes: Axes, label: str, unit: str, series: dict[str, list[tuple[float, float]]]) -> None:
    axes.set_title(f"{unit}, by {label}", loc="left")
    axes.set_xscale("log")
    axes.set_yscale("log")
    for colour, (name, points) in zip(LINES, series.items(), strict=False):
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, linewidth=1.6, color=colour, label=name)
    ticks = sorted({x for points in series.values() for x, _ in points})
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks], rotation=20)
    axes.minorticks_off()
    values = [y for points in series.values() for _, y in points]
    axes.set_ylim(min(values) / 1.6, max(values) * 1.9)
    axes.yaxis.set_major_formatter(lambda value, _: _short(value))
    axes.set_yticks(_decades(min(values) / 1.6, max(values) * 1.9, (1, 2, 5)))
    axes.grid(axis="y", color="#e5e8ec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(fontsize=7.5, frameon=False, ncols=2)


def _decades(low: float, high: float, digits: Sequence[int]) -> list[float]:
    """Return what lies between the two of each power of ten, times each of `digits`."""
    steps = [digit * 10.0**power for power in range(-4, 9) for digit in digits]
    return [step for step in steps if low <= step <= high]
