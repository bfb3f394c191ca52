"""Facts of a host + a target -> one finding per limit. Pure: no file, no clock, no socket."""

from __future__ import annotations

from collections.abc import Iterable

from tuning import buffers, descriptors, lifetimes, machine, memory, nic, ports, queues
from tuning.facts import UNLIMITED, Facts
from tuning.finding import Finding, Scope, Verdict, count
from tuning.target import RESERVED_DESCRIPTORS, Target

CONNECTIONS = 1_000_000  # judged by a starting server whose descriptors are not limited


def findings(facts: Facts, target: Target) -> list[Finding]:
    """One finding per limit, in the order in which a connection meets them."""
    return [
        *descriptors.findings(facts, target),
        *queues.findings(facts, target),
        *ports.findings(facts, target),
        *buffers.findings(facts, target),
        *lifetimes.findings(facts),
        *memory.findings(facts, target),
        *machine.findings(facts, target),
        *nic.findings(facts),
    ]


def too_low(found: Iterable[Finding]) -> list[Finding]:
    """Those that will stop the server short of its target."""
    return [finding for finding in found if finding.verdict is Verdict.LOW]


def stops(found: Iterable[Finding]) -> list[Finding]:
    """The limits that end in a number of connections, the tightest first."""
    known = [finding for finding in found if finding.stops_at is not None]
    return sorted(known, key=lambda finding: finding.stops_at or 0)


def start_lines(facts: Facts, workers: int, kernel_bytes: int | None = None) -> list[str]:
    """What a starting server says, in at most two lines: what stops it first, and what is set too low for that many.

    facts: of the server's own process. kernel_bytes: of a connection, when it was measured; else memory is not judged.
    """
    hard = facts.process.nofile_hard
    holds = Target(1, workers=workers).held_by(hard) if hard is not None and hard != UNLIMITED else CONNECTIONS
    target = Target(max(1, holds), workers=workers, kernel_bytes=kernel_bytes)
    found = findings(facts, target)
    lines = [_first_stop(stop, facts) for stop in stops(found)[:1]]
    # Those that end in a number of connections are in the first line; a card is a matter of speed, not of the end.
    short = [
        one.name for one in too_low(found) if one.stops_at is None and one.setting and one.scope is not Scope.DEVICE
    ]
    if short:
        more = f" and {len(short) - 3} more" if len(short) > 3 else ""
        lines.append(
            f"too low for {count(target.connections)}: {', '.join(short[:3])}{more}; see `moorage tuning check`"
        )
    return lines


def _first_stop(stop: Finding, facts: Facts) -> str:
    hard = facts.process.nofile_hard
    if stop.name == descriptors.NOFILE_HARD.name and hard is not None:
        worker = max(0, hard - RESERVED_DESCRIPTORS)
        return f"this host stops at {count(worker)} connections per worker: RLIMIT_NOFILE is {count(hard)}"
    return f"this host stops at {count(stop.stops_at or 0)} connections: {stop.name} is {stop.current}"
