"""Who is better at what: one figure of ours beside a peer's, with regard to the spread of both."""

from __future__ import annotations

from typing import NamedTuple

from bench.archive import Row, Study

OURS = "moorage"
FLOOR = "floor"
MORE_IS_BETTER = {"connections/s", "messages/s", "deliveries/s"}

KERNELS = {("idle", "kernel, one end")}  # the same sockets for all, and measured of the whole machine


class Loss(NamedTuple):
    """A figure at which a peer beats ours; `times` is how many times better it is."""

    scenario: str
    name: str
    peer: str
    times: float
    is_clear: bool
    """False when the spreads overlap, so that another run might say otherwise."""


class Goal(NamedTuple):
    """What was set out to be reached, what was found, and whether that is enough."""

    text: str
    found: str
    met: bool


def is_ours(peer: str) -> bool:
    """Tell whether a row is Moorage, in whatever setting."""
    return peer == OURS or peer.startswith(f"{OURS}-")


def times_better(row: Row, ours: Row) -> float:
    """Return how many times better than ours a figure is; below 1 it is worse, 0 when that cannot be said."""
    if min(row.value, ours.value) <= 0:
        return 0.0
    return row.value / ours.value if ours.unit in MORE_IS_BETTER else ours.value / row.value


def losses(study: Study) -> list[Loss]:
    """Return every figure at which a server beats ours at its defaults, the worst first. The floor is no server."""
    references = {str(peer["name"]) for peer in study.peers if peer.get("is_reference")}
    found = []
    for scenario, name in study.figures():
        rows = study.rows_of(scenario, name)
        ours = rows.get(OURS)
        if ours is None or (scenario, name) in KERNELS:
            continue
        for peer, row in rows.items():
            times = times_better(row, ours)
            if times > 1 and not is_ours(peer) and peer not in references:
                overlap = row.min <= ours.max and ours.min <= row.max
                found.append(Loss(scenario, name, peer, times, not overlap))
    return sorted(found, key=lambda loss: -loss.times)


def goals(study: Study) -> list[Goal]:
    """Return what ours was to reach beside the peers, as far as it was measured."""
    bounds = (
        ("idle", "user-space memory", "fewest user-space bytes of all, Redis included", None, 1.0),
        ("fanout", "single, CPU", "least CPU per delivery of all, single messages", None, 1.0),
        ("fanout", "burst, CPU", "least CPU per delivery of all, bursts", None, 1.0),
        ("connect", "CPU", "CPU of a connect within 1.1 x nchan's", "nchan", 1.1),
        ("direct", "fixed rate, CPU", "CPU of a 1:1 message at most a quarter of ejabberd's", "ejabberd", 0.25),
        ("direct", "pipelined, CPU", "the same in a stream", "ejabberd", 0.25),
    )
    return [goal for bound in bounds if (goal := _goal(study, *bound))]


def _goal(study: Study, scenario: str, name: str, text: str, peer: str | None, most: float) -> Goal | None:
    """Hold ours against one peer, or against the best of all that are servers."""
    references = {str(each["name"]) for each in study.peers if each.get("is_reference")}
    rows = study.rows_of(scenario, name)
    others = [row for row in rows.values() if not is_ours(row.peer) and row.peer not in references and row.value > 0]
    if peer is not None:
        others = [row for row in others if row.peer == peer]
    if OURS not in rows or not others:
        return None
    best = min(others, key=lambda row: row.value)
    share = rows[OURS].value / best.value
    return Goal(text, f"{share:.2f} x {best.peer}'s", share <= most)
