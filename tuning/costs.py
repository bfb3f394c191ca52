"""What one connect, one message, one delivery cost a server in processor time, from what it did in many windows; pure.

The processor time of a window is taken as a sum: so much for each thing done, so much for each connection held for a
second, and so much for each second that the workers run at all. Least squares over all windows finds the prices. A price
is only told when the thing was done often enough, and when it did not always rise and fall with another: a broadcast of
one publish to always as many subscribers shows what both cost together, never what each does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

# What is priced: its name in a window, the name of its price, and how often it must have been done.
PRICED = (
    ("connection_seconds", "held_us", 10_000),
    ("seconds", "empty_us", 10),
    ("accepted", "connect_us", 1_000),
    ("writes", "delivery_us", 10_000),  # one write carries as many deliveries as have come together, at one price
    ("published", "publish_us", 1_000),
    ("received_messages", "receive_us", 1_000),
)
OWN_SHARE_MIN = 0.05  # of a column's square that no other column explains; below, the two cannot be told apart
NEGLIGIBLE = 1e-12

Window = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Prices:
    """Microseconds of processor time each, and why a price is missing.

    `held_us` is for one connection and second, `empty_us` for all workers and one second, whoever is connected.
    `delivery_us` is for as many deliveries a write as there were.
    """

    us: Mapping[str, float] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)
    within: Mapping[str, str] = field(default_factory=dict)  # a missing price -> the price that includes it


def prices(windows: Iterable[Window]) -> Prices:
    """The prices that `windows` tell."""
    seen = list(windows)
    unknown: dict[str, str] = {}
    within: dict[str, str] = {}
    kept: list[tuple[str, str]] = []
    for name, price, least in PRICED:
        done = sum(window[name] for window in seen)
        if done < least:
            unknown[price] = f"not measured yet: {done:,.0f} {name.replace('_', ' ')}, {least:,} are needed"
        else:
            kept.append((name, price))
    rows = [_row(window, [name for name, _ in kept]) for window in seen if window["seconds"] > 0]
    kept, rows = _apart(kept, rows, unknown, within)
    if len(rows) < len(kept):
        unknown |= {price: f"not measured yet: {len(rows)} windows" for _, price in kept}
        return Prices({}, unknown, within)
    found = _least_squares(rows, len(kept))
    for (name, price), seconds in zip(kept, found, strict=True):
        if seconds <= 0:
            within[price] = "the others"
            unknown[price] = (
                f"not measured apart from the others: {name.replace('_', ' ')} made no difference that shows"
            )
    us = {price: seconds * 1e6 for (_, price), seconds in zip(kept, found, strict=True) if seconds > 0}
    if "delivery_us" in us:
        us["write_us"] = us["delivery_us"]
        us["delivery_us"] *= sum(window["writes"] for window in seen) / sum(window["deliveries"] for window in seen)
    return Prices(us, unknown, within)


def _row(window: Window, names: Sequence[str]) -> list[float]:
    """What was done, and last the processor seconds: weighted, because noise grows with the square root of the time."""
    weight = 1 / math.sqrt(window["seconds"])
    return [weight * window[name] for name in (*names, "cpu_seconds")]


def _apart(
    kept: list[tuple[str, str]], rows: list[list[float]], unknown: dict[str, str], within: dict[str, str]
) -> tuple[list[tuple[str, str]], list[list[float]]]:
    """Take out every column that those before it explain."""
    told: list[int] = []
    bases: list[list[float]] = []
    for column, (name, price) in enumerate(kept):
        values = [row[column] for row in rows]
        own, nearest = _own_part(values, bases)
        if _dot(own, own) >= OWN_SHARE_MIN * _dot(values, values) > 0:
            told.append(column)
            bases.append(own)
            continue
        with_name, with_price = kept[told[nearest]] if told else (name, price)
        within[price] = with_price
        unknown[price] = f"not measured apart from {with_price}: {name.replace('_', ' ')} came as {with_name} did"
    return [kept[i] for i in told], [[row[i] for i in told] + [row[-1]] for row in rows]


def _own_part(values: list[float], bases: Sequence[list[float]]) -> tuple[list[float], int]:
    """`values` without what `bases`, orthogonal to each other, explain; and which of them explains most."""
    own, nearest, most = values, 0, -1.0
    for i, base in enumerate(bases):
        share = _dot(values, base) / _dot(base, base)
        own = [a - share * b for a, b in zip(own, base, strict=True)]
        if (explained := share * share * _dot(base, base)) > most:
            nearest, most = i, explained
    return own, nearest


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def _least_squares(rows: Sequence[Sequence[float]], columns: int) -> list[float]:
    """The coefficients that explain the last column best; none is negative: what would be is left out."""
    active = list(range(columns))
    while active:
        square = [[_dot_columns(rows, i, j) for j in (*active, columns)] for i in active]
        found = _solved(square)
        worst = min(range(len(active)), key=lambda i: found[i])
        if found[worst] >= 0:
            by_column = dict(zip(active, found, strict=True))
            return [by_column.get(i, 0.0) for i in range(columns)]
        del active[worst]
    return [0.0] * columns


def _dot_columns(rows: Sequence[Sequence[float]], i: int, j: int) -> float:
    return math.fsum(row[i] * row[j] for row in rows)


def _solved(square: list[list[float]]) -> list[float]:
    """Gaussian elimination; columns are scaled, because seconds and deliveries are far apart."""
    size = len(square)
    scale = [math.sqrt(square[i][i]) or 1.0 for i in range(size)]
    rows = [
        [square[i][j] / (scale[i] * scale[j]) for j in range(size)] + [square[i][size] / scale[i]] for i in range(size)
    ]
    for i in range(size):
        pivot = max(range(i, size), key=lambda k: abs(rows[k][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        if abs(rows[i][i]) < NEGLIGIBLE:
            rows[i][i] = NEGLIGIBLE
        for k in range(size):
            if k != i:
                factor = rows[k][i] / rows[i][i]
                rows[k] = [a - factor * b for a, b in zip(rows[k], rows[i], strict=True)]
    return [rows[i][size] / rows[i][i] / scale[i] for i in range(size)]
