"""Memory: what the host has, what a control group allows, and how the kernel hands it out."""

from __future__ import annotations

from tuning.facts import UNLIMITED, Facts
from tuning.finding import Finding, Kind, Limit, Scope, Setting, Verdict, count, size, sysctl
from tuning.target import Target

ARENA_BYTES = 1024 * 1024  # Python 3.10 and newer take memory from the kernel in arenas of 1 MiB
MAPS_OF_A_WORKER = 1000  # libraries, stacks, the shared page, before any connection
OVERCOMMIT_NEVER = 2

AVAILABLE = Limit(
    name="memory available",
    limits="How many connections fit the host: what each costs in the server and in the kernel.",
    scope=Scope.HOST,
    capped_by="other programs of the host; a memory cgroup",
    error="accept4: [Errno 12] Cannot allocate memory (ENOMEM) or [Errno 105] No buffer space available (ENOBUFS); "
    "kernel log: Out of memory: Killed process",
    source="proc_meminfo(5): MemAvailable",
)
CGROUP_MEMORY = Limit(
    name="cgroup memory",
    limits="How much memory the service's control group may take, kernel memory of its sockets included.",
    scope=Scope.CGROUP,
    capped_by="every control group above it; memory.high throttles before memory.max kills",
    error="kernel log: Memory cgroup out of memory: Killed process; the supervisor replaces the worker",
    source="Documentation/admin-guide/cgroup-v2.rst: memory.max, memory.high",
)
OVERCOMMIT = Limit(
    name="vm.overcommit_memory",
    limits="Whether the kernel promises memory it may not have; the fork of a worker asks for a promise.",
    scope=Scope.HOST,
    capped_by="CommitLimit, where it is 2",
    error="fork: [Errno 12] Cannot allocate memory (ENOMEM); Valkey's log: Can't save in background: fork",
    source="Documentation/mm/overcommit-accounting.rst, proc_sys_vm(5)",
)
MAX_MAP_COUNT = Limit(
    name="vm.max_map_count",
    limits="How many memory mappings one process may have.",
    scope=Scope.HOST,
    capped_by="nobody",
    error="MemoryError, or mmap: [Errno 12] Cannot allocate memory, with memory free",
    source="Documentation/admin-guide/sysctl/vm.rst",
)
TRANSPARENT = Limit(
    name="transparent huge pages",
    limits="Whether the kernel backs memory with pages of 2 MiB without being asked.",
    scope=Scope.HOST,
    capped_by="nobody",
    error="nothing is logged: a little-used page costs 2 MiB; Valkey warns of latency and memory at its start",
    source="Documentation/admin-guide/mm/transhuge.rst",
)
HUGE_PAGES = Limit(
    name="vm.nr_hugepages",
    limits="Memory set aside as explicit huge pages, which sockets and Python cannot use.",
    scope=Scope.HOST,
    capped_by="nobody",
    error="nothing is logged: MemAvailable is that much smaller",
    source="Documentation/admin-guide/mm/hugetlbpage.rst",
)
SWAP = Limit(
    name="swap",
    limits="Whether pages of the server may be on disk when a message needs them.",
    scope=Scope.HOST,
    capped_by="memory.swap.max of a cgroup",
    error="nothing is logged: a worker's loop lags by milliseconds a page; at 10 s without a sign the supervisor "
    "replaces it",
    source="Documentation/admin-guide/sysctl/vm.rst: swappiness",
)


def findings(facts: Facts, target: Target) -> list[Finding]:
    """Every limit on memory."""
    return [
        _available(facts, target),
        _cgroup(facts, target),
        _overcommit(facts, target),
        _maps(facts, target),
        _transparent(facts),
        _huge_pages(facts),
        _swap(facts),
    ]


def _need(target: Target) -> tuple[int, str] | None:
    """Bytes still to be taken, and the arithmetic; None while the kernel's part has not been measured."""
    if target.kernel_bytes is None:
        return None
    need = target.more * (target.user_bytes + target.kernel_bytes) + target.workers * target.worker_bytes
    return need, (
        f"{count(target.more)} more connections x ({target.user_bytes} B user + {target.kernel_bytes} B "
        "kernel, measured)"
        f" + {count(target.workers)} workers x {size(target.worker_bytes)} = {size(need)}"
    )


def _holds(room: int, target: Target) -> int:
    """Connections in all once `room` bytes are filled."""
    each = target.user_bytes + (target.kernel_bytes or 0)
    return target.held + max(0, room - target.workers * target.worker_bytes) // max(1, each)


def _against(limit: Limit, facts: Facts, target: Target, room: int | None, how: str) -> Finding:
    """`room` bytes against the need."""
    need = _need(target)
    if need is None or room is None:
        reason = (
            "the kernel's bytes per connection have not been measured"
            if need is None
            else f"{need[1]}; the room cannot be read here"
        )
        return limit.judge(
            Verdict.UNKNOWN,
            current=room,
            needed=need and need[0],
            reason=reason,
            how="run the check as root, or say --kernel-bytes",
        )
    reason = f"{need[1]}; room for {size(room)}" if room != UNLIMITED else f"{need[1]}; no limit is set"
    stops_at = None if room == UNLIMITED else _holds(room, target)
    return limit.at_least(facts, room, need[0], reason, how=how, stops_at=stops_at)


def _available(facts: Facts, target: Target) -> Finding:
    return _against(AVAILABLE, facts, target, facts.memory.available, "more memory, or fewer connections on this host")


def _cgroup(facts: Facts, target: Target) -> Finding:
    most, used = facts.cgroup.memory_max, facts.cgroup.memory_used
    room = most if most is None or most == UNLIMITED else max(0, most - (used or 0))
    return _against(
        CGROUP_MEMORY, facts, target, room, "MemoryMax= of the unit, --memory of the container, the pod's memory limit"
    )


def _overcommit(facts: Facts, target: Target) -> Finding:
    current = facts.number(OVERCOMMIT.name)
    memory = facts.memory
    if current != OVERCOMMIT_NEVER:
        reason = "0 and 1 let workers and Valkey fork; Valkey itself asks for 1"
        verdict = Verdict.UNKNOWN if current is None else Verdict.OK
        return OVERCOMMIT.judge(verdict, current=current, needed="0 or 1", reason=reason)
    need = target.more * target.user_bytes + target.workers * target.worker_bytes
    reason = (
        f"2 promises no more than CommitLimit; the server needs {count(target.more)} x {target.user_bytes} B"
        f" + {count(target.workers)} workers x {size(target.worker_bytes)} = {size(need)}"
    )
    room = None if memory.commit_limit is None or memory.committed is None else memory.commit_limit - memory.committed
    if room is not None:
        reason += f", and {size(max(0, room))} is left"
    verdict = Verdict.OK if room is not None and room >= need else Verdict.LOW
    return OVERCOMMIT.judge(
        verdict, current=current, needed="0 or 1", reason=reason, setting=sysctl(OVERCOMMIT.name, 0)
    )


def _maps(facts: Facts, target: Target) -> Finding:
    arenas = -(-target.per_worker * target.user_bytes // ARENA_BYTES)
    needed = MAPS_OF_A_WORKER + arenas
    reason = (
        f"{count(target.per_worker)} connections of the fullest worker x {target.user_bytes} B / "
        f"{size(ARENA_BYTES)} an arena"
        f" = {count(arenas)} + {count(MAPS_OF_A_WORKER)} for the program = {count(needed)}"
    )
    return MAX_MAP_COUNT.at_least(
        facts, facts.number(MAX_MAP_COUNT.name), needed, reason, setting=sysctl(MAX_MAP_COUNT.name, needed)
    )


def _transparent(facts: Facts) -> Finding:
    current = facts.memory.transparent_huge_pages
    reason = "the server's memory is small objects; `madvise` leaves huge pages to programs that ask"
    needed = "madvise or never"
    if current != "always":
        verdict = Verdict.UNKNOWN if current is None else Verdict.OK
        return TRANSPARENT.judge(verdict, current=current, needed=needed, reason=reason)
    setting = Setting(Kind.SYSFS, "kernel/mm/transparent_hugepage/enabled", "madvise", lowers=True)
    return TRANSPARENT.judge(Verdict.WASTEFUL, current=current, needed=needed, reason=reason, setting=setting)


def _huge_pages(facts: Facts) -> Finding:
    pages, in_use, each = facts.memory.huge_pages, facts.memory.huge_pages_in_use, facts.memory.huge_page_bytes
    if not pages:
        verdict = Verdict.UNKNOWN if pages is None else Verdict.OK
        return HUGE_PAGES.judge(verdict, current=pages, needed=0, reason="nothing in Moorage uses them")
    in_use = pages if in_use is None else in_use
    reason = (
        f"{count(pages)} pages x {size(each or 0)} = {size(pages * (each or 0))} set aside, {count(in_use)} of "
        "them used by somebody"
    )
    if in_use >= pages:
        return HUGE_PAGES.judge(Verdict.OK, current=pages, needed=None, reason=reason)
    setting = sysctl(HUGE_PAGES.name, in_use, lowers=True)
    return HUGE_PAGES.judge(Verdict.WASTEFUL, current=pages, needed=in_use, reason=reason, setting=setting)


def _swap(facts: Facts) -> Finding:
    total, used = facts.memory.swap_total, facts.memory.swap_used
    if total is None or used is None:
        return SWAP.judge(Verdict.UNKNOWN, current=None, needed=0, reason="swap cannot be read here")
    reason = f"{size(used)} of {size(total)} swapped out"
    swappiness = facts.number("vm.swappiness")
    if swappiness is not None:
        reason += f", swappiness {swappiness}"
    if not used:
        return SWAP.judge(Verdict.OK, current=used, needed=0, reason=reason)
    how = "more memory; MemorySwapMax=0 in the systemd unit keeps the server itself in memory"
    return SWAP.judge(Verdict.LOW, current=used, needed=0, reason=f"{reason}: memory was short", how=how)
