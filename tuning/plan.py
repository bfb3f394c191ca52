"""From findings to the settings to make: what, from what, why, and by whose word."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from tuning.facts import UNLIMITED, Facts
from tuning.finding import Finding, Kind, Scope, Setting, Verdict
from tuning.ports import PORT_RANGE, RESERVED_PORTS, TW_REUSE, reserved_ports

# Made first: others cannot be made, or do harm, before them.
FIRST = ("fs.nr_open", RESERVED_PORTS.name)

# A smaller number is not less of these.
UNORDERED = (RESERVED_PORTS.name, TW_REUSE.name, "vm.overcommit_memory", "vm.zone_reclaim_mode")


@dataclass(frozen=True, slots=True)
class Step:
    """One setting to make."""

    setting: Setting
    scope: Scope
    verdict: Verdict
    now: str | None
    reason: str
    source: str


def plan(found: Iterable[Finding], *, frugal: bool = False, whole: bool = False) -> list[Step]:
    """The steps that `found` asks for: whatever is too low.

    frugal: also what is wasteful, which lowers something. whole: also what is right already or cannot be read; a value
    that is higher than needed stays as it is.
    """
    wanted = (
        {Verdict.LOW} | ({Verdict.WASTEFUL} if frugal else set()) | ({Verdict.OK, Verdict.UNKNOWN} if whole else set())
    )
    steps: dict[tuple[Kind, str], Step] = {}
    for one in found:
        if one.setting is None or one.verdict not in wanted:
            continue
        setting = one.setting if one.verdict is not Verdict.OK else _kept(one.setting, one.current)
        # The balancer's finding is about this sysctl, and shows a count of ports as its current value.
        now = None if setting.key == PORT_RANGE.name else one.current
        step = Step(setting, one.scope, one.verdict, now, one.reason, one.source)
        known = steps.get((setting.kind, setting.key))
        steps[setting.kind, setting.key] = step if known is None else _joined(known, step)
    return sorted(steps.values(), key=lambda step: step.setting.key not in FIRST)


def portable(found: Iterable[Finding], *, frugal: bool = False) -> list[Step]:
    """The steps for a file that another host or a container will load.

    What is right here stays out when it is the host's: pinned, it could lower another host's. It stays in when it is a
    network namespace's, because a new one starts with the kernel's defaults whatever its host is set to.
    """
    steps = plan(found, frugal=frugal, whole=True)
    return [
        step
        for step in steps
        if step.verdict is not Verdict.OK or step.scope is Scope.NETWORK or step.setting.kind is Kind.NOFILE
    ]


def numbers(text: str) -> tuple[int, ...] | None:
    """The numbers a value is made of; None when it is not."""
    try:
        return tuple(int(word) for word in text.split()) or None
    except ValueError:
        return UNLIMITED_NUMBERS if text.strip() == "unlimited" else None


UNLIMITED_NUMBERS = (UNLIMITED,)


def _kept(setting: Setting, current: str | None) -> Setting:
    """`setting` with whatever is higher now left as it is; only sysctls outlive the service they are for."""
    if setting.kind is not Kind.SYSCTL or setting.key in UNORDERED or current is None:
        return setting
    have, want = numbers(current), numbers(setting.value)
    if have is None or want is None or len(have) != len(want):
        return setting
    return replace(setting, value=" ".join(str(max(pair)) for pair in zip(have, want, strict=True)))


def _joined(one: Step, other: Step) -> Step:
    """Two findings about one setting: the larger wish; for the port range the wider one."""
    a, b = numbers(one.setting.value), numbers(other.setting.value)
    if a is None or b is None or len(a) != len(b):
        return other
    larger = (b[0] < a[0]) if one.setting.key == PORT_RANGE.name else b > a
    return other if larger else one


def lowers(key: str, now: str, value: str) -> bool:
    """Whether writing `value` over `now` takes something away."""
    if key in UNORDERED:
        return False
    have, want = numbers(now), numbers(value)
    if have is None or want is None or len(have) != len(want):
        return False
    if key == PORT_RANGE.name:
        return want[0] > have[0] or want[1] < have[1]
    return any(new < old for old, new in zip(have, want, strict=True))


def same(key: str, one: str, other: str) -> bool:
    """Whether two texts are one value: the kernel sorts ports and joins them to ranges, and fills masks with zeros."""
    if key == RESERVED_PORTS.name:
        return reserved_ports(one) == reserved_ports(other)
    if key.endswith("_cpus"):
        one, other = (text.replace(",", "").lstrip("0") for text in (one, other))
    return one.split() == other.split()


def in_use(key: str, facts: Facts) -> int | None:
    """How much of the limit is used at this moment; None when nobody counts it."""
    process = facts.process
    match key:
        case "fs.file-max":
            return facts.number("fs.file-nr")
        case "fs.nr_open":
            return process.nofile_hard if process.nofile_hard != UNLIMITED else None
        case "nofile":
            return process.descriptors
        case "net.netfilter.nf_conntrack_max":
            return facts.number("net.netfilter.nf_conntrack_count")
        case "net.ipv4.tcp_mem":
            return facts.sockets.tcp_pages
        case "kernel.pid_max" | "kernel.threads-max":
            return facts.tasks
        case "vm.nr_hugepages":
            return facts.memory.huge_pages_in_use
        case PORT_RANGE.name:
            open_now, waiting = facts.sockets.tcp_inuse, facts.sockets.tcp_time_wait
            return None if open_now is None else open_now + (waiting or 0)
    return None


def refusal(setting: Setting, now: str | None, facts: Facts, *, undo: bool = False) -> str | None:
    """Why `setting` must not be written over `now`; None when it may be.

    Nothing is lowered unless that was asked for (`lowers`, or an undo), and never below what is in use.
    """
    if now is None or not lowers(setting.key, now, setting.value):
        return None
    if not (setting.lowers or undo):
        return f"would lower it from {now} to {setting.value}"
    used, want = in_use(setting.key, facts), numbers(setting.value)
    if used is None or want is None:
        return None
    room = want[0] if setting.kind is Kind.NOFILE else want[-1]  # the soft limit is the one that ends it
    if setting.key == PORT_RANGE.name and len(want) == 2:
        room = want[1] - want[0] + 1
    return f"{setting.value} is below what is in use now: {used}" if room < used else None
