"""Processors, tasks and clocks."""

from __future__ import annotations

from tuning.facts import UNLIMITED, Facts
from tuning.finding import Finding, Kind, Limit, Scope, Setting, Verdict, count, sysctl
from tuning.target import Target

OTHER_TASKS = 50  # supervisor, admin process, the embedded Valkey and its threads, a shell to look after them
TASKS_MIN = 4096
FAST_CLOCKS = ("tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page", "timebase", "tod")

PID_MAX = Limit(
    name="kernel.pid_max",
    limits="How many processes and threads can have a number at one time.",
    scope=Scope.HOST,
    capped_by="kernel.threads-max; 4,194,304 on 64-bit",
    error="fork: [Errno 11] Resource temporarily unavailable (EAGAIN)",
    source="proc_sys_kernel(5), fork(2)",
)
THREADS_MAX = Limit(
    name="kernel.threads-max",
    limits="How many threads the host can have at one time.",
    scope=Scope.HOST,
    capped_by="kernel.pid_max, RLIMIT_NPROC, memory",
    error="fork: [Errno 11] Resource temporarily unavailable (EAGAIN)",
    source="proc_sys_kernel(5), fork(2)",
)
NPROC = Limit(
    name="RLIMIT_NPROC",
    limits="How many threads the service's user may have at one time.",
    scope=Scope.PROCESS,
    capped_by="systemd's LimitNPROC=, pam_limits; root is exempt",
    error="fork: [Errno 11] Resource temporarily unavailable (EAGAIN)",
    source="getrlimit(2), fork(2)",
)
CGROUP_PIDS = Limit(
    name="cgroup pids",
    limits="How many processes and threads the service's control group may have.",
    scope=Scope.CGROUP,
    capped_by="every control group above it; systemd's TasksMax=, Docker's --pids-limit, the kubelet's podPidsLimit",
    error="fork: [Errno 11] Resource temporarily unavailable (EAGAIN); kernel log: cgroup: fork rejected by pids "
    "controller",
    source="Documentation/admin-guide/cgroup-v2.rst: pids.max",
)
CPUS = Limit(
    name="processors",
    limits="How many workers run at the same time.",
    scope=Scope.CGROUP,
    capped_by="cpu.max of a control group (CPUQuota=, --cpus, the pod's CPU limit), CPUAffinity=, cpusets",
    error="nothing is logged: the loops lag; nr_throttled in the group's cpu.stat rises",
    source="Documentation/admin-guide/cgroup-v2.rst: cpu.max, sched_setaffinity(2)",
)
NUMA = Limit(
    name="NUMA",
    limits="Whether memory is near the processor that uses it.",
    scope=Scope.HOST,
    capped_by="the hardware",
    error="nothing is logged: numa_miss in numastat rises, memory of a full node is reclaimed while another has room",
    source="numa(7), Documentation/admin-guide/sysctl/vm.rst: zone_reclaim_mode; sysctl/kernel.rst: numa_balancing",
)
CLOCKSOURCE = Limit(
    name="clocksource",
    limits="What a look at the clock costs; the server looks several times a turn.",
    scope=Scope.HOST,
    capped_by="the hardware and the hypervisor",
    error="kernel log: clocksource: timekeeping watchdog: Marking clocksource 'tsc' as unstable",
    source="vdso(7), Documentation/timers/timekeeping.rst",
)


def findings(facts: Facts, target: Target) -> list[Finding]:
    """Every limit on processors and tasks."""
    return [*_tasks(facts, target), _cpus(facts, target), _numa(facts), _clock(facts)]


def _roomy(tasks: int) -> int:
    """A limit that is there against runaways, not to be met: it must not be what stops one more worker."""
    return max(TASKS_MIN, 2 * tasks)


def _tasks(facts: Facts, target: Target) -> list[Finding]:
    ours = target.workers + OTHER_TASKS
    needed = ours + (facts.tasks or 0)
    mine = f"{count(target.workers)} workers + {OTHER_TASKS} other tasks of the service"
    all_tasks = (
        f"{mine} + {count(facts.tasks) if facts.tasks is not None else 'an unknown number'} alive now = {count(needed)}"
    )
    numbers = [
        limit.at_least(facts, facts.number(limit.name), needed, all_tasks, setting=sysctl(limit.name, needed))
        for limit in (PID_MAX, THREADS_MAX)
    ]
    nproc = NPROC.at_least(
        facts,
        facts.process.nproc_soft,
        ours,
        f"{mine} = {count(ours)}",
        setting=Setting(Kind.UNIT, "LimitNPROC", str(_roomy(ours))),
    )
    return [*numbers, nproc, _cgroup_pids(facts, ours, mine)]


def _cgroup_pids(facts: Facts, ours: int, mine: str) -> Finding:
    most, used = facts.cgroup.pids_max, facts.cgroup.pids_used
    # In the root group everything alive on the host is counted, but then there is no limit either.
    needed = ours + (used or 0 if most not in (None, UNLIMITED) else 0)
    reason = f"{mine} + {count(needed - ours)} in the group now = {count(needed)}"
    setting = Setting(Kind.UNIT, "TasksMax", str(_roomy(needed)))
    return CGROUP_PIDS.at_least(facts, most, needed, reason, setting=setting)


def _cpus(facts: Facts, target: Target) -> Finding:
    usable = facts.cpus.usable or facts.cpus.online
    how = "raise the quota or the affinity, or start as many workers as there are processors"
    if usable is None:
        reason = f"{target.workers} workers; the processors cannot be read here"
        return CPUS.judge(Verdict.UNKNOWN, current=None, needed=target.workers, reason=reason, how=how)
    quota = facts.cgroup.cpus
    allowed = usable if quota is None else min(float(usable), quota)
    reason = f"{usable} processors usable of {facts.cpus.online or usable}"
    reason += f", quota {quota:g}" if quota is not None else ", no quota"
    wanted = min(target.workers, facts.cpus.online or usable)  # more workers than processors: for their descriptors
    verdict = Verdict.OK if allowed >= wanted else Verdict.LOW
    return CPUS.judge(
        verdict, current=f"{allowed:g}", needed=wanted, reason=reason, how=how if verdict is Verdict.LOW else ""
    )


def _numa(facts: Facts) -> Finding:
    nodes = facts.cpus.numa_nodes
    if nodes is None or nodes == 1:
        verdict = Verdict.UNKNOWN if nodes is None else Verdict.OK
        reason = "one node: all memory is equally near" if nodes else "the nodes cannot be read here"
        return NUMA.judge(verdict, current=nodes and f"{nodes} node", needed=None, reason=reason)
    cards = ", ".join(f"{nic.name} on node {nic.numa_node}" for nic in facts.nics or () if nic.numa_node is not None)
    reason = (
        f"{nodes} nodes{'; ' + cards if cards else ''}; workers do best on the node of the card (numactl --cpunodebind)"
    )
    if facts.number("vm.zone_reclaim_mode"):
        reason += "; zone_reclaim_mode frees memory of a full node while another has room"
        setting = sysctl("vm.zone_reclaim_mode", 0)
        return NUMA.judge(
            Verdict.LOW,
            current=f"{nodes} nodes, zone_reclaim_mode on",
            needed="zone_reclaim_mode 0",
            reason=reason,
            setting=setting,
        )
    if facts.number("kernel.numa_balancing"):
        reason += "; numa_balancing scans all memory to move it, for programs that bind themselves in vain"
        setting = sysctl("kernel.numa_balancing", 0, lowers=True)
        return NUMA.judge(
            Verdict.WASTEFUL,
            current=f"{nodes} nodes, numa_balancing on",
            needed="numa_balancing 0",
            reason=reason,
            setting=setting,
        )
    return NUMA.judge(Verdict.OK, current=f"{nodes} nodes", needed=None, reason=reason)


def _clock(facts: Facts) -> Finding:
    current = facts.cpus.clocksource
    reason = "read in user space by the vDSO; hpet, acpi_pm and xen take a system call or a slow port each time"
    how = "boot with tsc=reliable where the hardware's TSC is, or change the hypervisor's clock"
    if current is None:
        return CLOCKSOURCE.judge(Verdict.UNKNOWN, current=None, needed="tsc or its like", reason=reason, how=how)
    verdict = Verdict.OK if current in FAST_CLOCKS else Verdict.LOW
    return CLOCKSOURCE.judge(
        verdict, current=current, needed="tsc or its like", reason=reason, how=how if verdict is Verdict.LOW else ""
    )
