"""Limits on descriptors: of one process, of the whole host, and of what epoll may watch."""

from __future__ import annotations

from dataclasses import replace

from tuning.facts import UNLIMITED, Facts
from tuning.finding import Finding, Kind, Limit, Scope, Setting, Verdict, count, sysctl
from tuning.target import RESERVED_DESCRIPTORS, SIGMAS, Target

NR_OPEN_MAX = 2**31 - 64  # fs/file.c: sysctl_nr_open_max, INT_MAX rounded down to the bits of a long

NOFILE_SOFT = Limit(
    name="RLIMIT_NOFILE soft",
    limits="How many descriptors, hence connections, one worker may have open.",
    scope=Scope.PROCESS,
    capped_by="the hard limit; Moorage raises the soft limit to it by itself at start",
    error="accept4: [Errno 24] Too many open files (EMFILE)",
    source="getrlimit(2)",
)
NOFILE_HARD = Limit(
    name="RLIMIT_NOFILE hard",
    limits="How far a worker may raise its own soft limit on descriptors.",
    scope=Scope.PROCESS,
    capped_by="fs.nr_open; systemd's LimitNOFILE=, pam_limits, Docker's --ulimit or containerd's own limit, "
    "whichever starts the service",
    error="accept4: [Errno 24] Too many open files (EMFILE)",
    source="getrlimit(2), systemd.exec(5), limits.conf(5)",
)
NR_OPEN = Limit(
    name="fs.nr_open",
    limits="The highest RLIMIT_NOFILE that any process may be given, root included.",
    scope=Scope.HOST,
    capped_by=f"the kernel: at most {NR_OPEN_MAX:,}",
    error="setrlimit: [Errno 1] Operation not permitted (EPERM); systemd: Failed to adjust resource limit "
    "RLIMIT_NOFILE",
    source="proc_sys_fs(5), getrlimit(2)",
)
FILE_MAX = Limit(
    name="fs.file-max",
    limits="How many files and sockets all processes of the host may have open together.",
    scope=Scope.HOST,
    capped_by="memory; a process with CAP_SYS_ADMIN is exempt",
    error="accept4: [Errno 23] Too many open files in system (ENFILE); kernel log: VFS: file-max limit N reached",
    source="proc_sys_fs(5)",
)
EPOLL_WATCHES = Limit(
    name="fs.epoll.max_user_watches",
    limits="How many descriptors all epoll sets of one user may watch together.",
    scope=Scope.HOST,
    capped_by="memory: the kernel starts it at 4 % of it; every container of the same user shares it",
    error="epoll_ctl: [Errno 28] No space left on device (ENOSPC)",
    source="epoll(7)",
)


def findings(facts: Facts, target: Target) -> list[Finding]:
    """Every limit on descriptors."""
    return [
        _soft(facts, target),
        _hard(facts, target),
        _nr_open(facts, target),
        _file_max(facts, target),
        _epoll(facts, target),
    ]


def _per_worker(target: Target) -> str:
    """The arithmetic of `Target.descriptors`."""
    if target.workers == 1:
        return (
            f"{count(target.connections)} connections + {RESERVED_DESCRIPTORS} reserved = {count(target.descriptors)}"
        )
    mean = target.connections // target.workers
    return (
        f"{count(target.connections)} connections / {count(target.workers)} workers = {count(mean)}, "
        f"+ {count(target.per_worker - mean)} for the fullest worker ({SIGMAS} standard deviations of a fair hash), "
        f"+ {RESERVED_DESCRIPTORS} reserved = {count(target.descriptors)}"
    )


def _room(limit: int, target: Target) -> str:
    return (
        f"; {count(limit)} is {count(max(0, limit - RESERVED_DESCRIPTORS))} connections a worker"
        if limit != UNLIMITED
        else ""
    )


def _soft(facts: Facts, target: Target) -> Finding:
    soft, hard = facts.process.nofile_soft, facts.process.nofile_hard
    reason = _per_worker(target)
    if soft is not None and hard is not None and soft < target.descriptors <= hard:
        # Not a fault: the server lifts it without any privilege.
        reason += "; the hard limit is enough and Moorage raises the soft one to it"
        return NOFILE_SOFT.judge(Verdict.OK, current=soft, needed=target.descriptors, reason=reason)
    return NOFILE_SOFT.at_least(facts, soft, target.descriptors, reason, setting=_nofile(target))


def _hard(facts: Facts, target: Target) -> Finding:
    hard = facts.process.nofile_hard
    if hard is None:
        return NOFILE_HARD.at_least(facts, None, target.descriptors, _per_worker(target), setting=_nofile(target))
    enough = -(-target.connections // max(1, hard - RESERVED_DESCRIPTORS))
    how = _nofile(target).command()
    if hard < target.descriptors and hard > RESERVED_DESCRIPTORS:
        how += f"; or more workers: --workers {_workers_for(target, hard, enough)}"
    return NOFILE_HARD.at_least(
        facts,
        hard,
        target.descriptors,
        _per_worker(target) + _room(hard, target),
        setting=_nofile(target),
        how=how,
        stops_at=target.held_by(hard) if hard != UNLIMITED else None,
    )


def _workers_for(target: Target, hard: int, least: int) -> int:
    """The fewest workers whose fullest one stays under `hard`."""
    workers = least
    while replace(target, workers=workers).descriptors > hard:
        workers += max(1, workers // 100)
    return workers


def _nofile(target: Target) -> Setting:
    """A round number above the need, so that the file needs no edit for every hundred users more."""
    return Setting(Kind.NOFILE, "nofile", str(round_up(target.descriptors, 1024)))


def round_up(value: int, step: int) -> int:
    """`value` rounded up to a multiple of `step`."""
    return -(-value // step) * step


def _nr_open(facts: Facts, target: Target) -> Finding:
    needed = round_up(target.descriptors, 1024)
    reason = f"must not be below RLIMIT_NOFILE: {_per_worker(target)}, rounded up to {count(needed)}"
    current = facts.number("fs.nr_open")
    return NR_OPEN.at_least(facts, current, needed, reason, setting=sysctl("fs.nr_open", min(needed, NR_OPEN_MAX)))


def _file_max(facts: Facts, target: Target) -> Finding:
    current = facts.number("fs.file-max")
    used = facts.number("fs.file-nr")
    needed = target.more + target.workers * RESERVED_DESCRIPTORS + (used or 0)
    reason = (
        f"{count(target.more)} more connections + {count(target.workers)} workers x {RESERVED_DESCRIPTORS} reserved"
        f" + {count(used) if used is not None else 'an unknown number'} open now (fs.file-nr) = {count(needed)}"
    )
    stops_at = None if current is None else max(0, current - (needed - target.connections))
    setting = sysctl("fs.file-max", round_up(needed, 1024))
    return FILE_MAX.at_least(facts, current, needed, reason, setting=setting, stops_at=stops_at)


def _epoll(facts: Facts, target: Target) -> Finding:
    current = facts.number("fs.epoll.max_user_watches")
    needed = target.connections + target.workers * RESERVED_DESCRIPTORS
    reason = (
        f"every connection is in one epoll set: {count(target.connections)} + {count(target.workers)} workers"
        f" x {RESERVED_DESCRIPTORS} = {count(needed)}"
    )
    stops_at = None if current is None else max(0, current - target.workers * RESERVED_DESCRIPTORS)
    setting = sysctl("fs.epoll.max_user_watches", round_up(needed, 1024))
    return EPOLL_WATCHES.at_least(facts, current, needed, reason, setting=setting, stops_at=stops_at)
