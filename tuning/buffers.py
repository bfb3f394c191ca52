"""Socket buffers: what the kernel may hold for connections whose bytes have not been read or sent."""

from __future__ import annotations

from tuning.facts import Facts
from tuning.finding import Finding, Limit, Scope, Verdict, count, size, sysctl
from tuning.target import Target

PAGE_BYTES = 4096
MESSAGE_BYTES_MAX = 64 * 1024  # one message must fit the window, or its sender waits for round trips
BUFFER_MAX = 256 * 1024  # as much as Moorage itself keeps for a slow peer before it ends the connection
MEMORY_SHARE_MAX = 0.5  # of RAM in socket buffers: beyond, the host is out of memory before the limit binds

TCP_MEM = Limit(
    name="net.ipv4.tcp_mem",
    limits="How many pages the buffers of all TCP sockets of the host may take: low, pressure, high.",
    scope=Scope.HOST,
    capped_by="memory; the kernel starts it at about 9 % of it (high); a memory cgroup counts the same pages again",
    error="kernel log: TCP: out of memory -- consider tuning tcp_mem; sends stall, TCPMemoryPressures in nstat rises",
    source="tcp(7), Documentation/networking/ip-sysctl.rst",
)
TCP_RMEM = Limit(
    name="net.ipv4.tcp_rmem",
    limits="How many bytes one socket may hold unread: least, at first, and at most by autotuning.",
    scope=Scope.NETWORK,
    capped_by="net.ipv4.tcp_mem for all sockets together",
    error="nothing is logged: the sender's window closes, a large message takes more round trips",
    source="tcp(7), Documentation/networking/ip-sysctl.rst",
)
TCP_WMEM = Limit(
    name="net.ipv4.tcp_wmem",
    limits="How many bytes one socket may hold unsent or unacknowledged: least, at first, and at most by autotuning.",
    scope=Scope.NETWORK,
    capped_by="net.ipv4.tcp_mem for all sockets together",
    error="send: [Errno 11] Resource temporarily unavailable (EAGAIN): Moorage keeps the rest as the connection's "
    "backlog",
    source="tcp(7), Documentation/networking/ip-sysctl.rst",
)
CORE_MAX = {
    name: Limit(
        name=name,
        limits=f"The largest buffer a program may ask for with {option}.",
        scope=Scope.HOST,
        capped_by="nobody; autotuning does not look at it but at tcp_rmem and tcp_wmem",
        error="nothing is logged: setsockopt(2) is silently clipped",
        source="socket(7), Documentation/admin-guide/sysctl/net.rst",
    )
    for name, option in (("net.core.rmem_max", "SO_RCVBUF"), ("net.core.wmem_max", "SO_SNDBUF"))
}


def findings(facts: Facts, target: Target) -> list[Finding]:
    """Every limit on socket buffers."""
    found = [_tcp_mem(facts, target), _per_socket(TCP_RMEM, facts, target), _per_socket(TCP_WMEM, facts, target)]
    return found + [_core_max(limit, facts) for limit in CORE_MAX.values()]


def _tcp_mem(facts: Facts, target: Target) -> Finding:
    page = facts.memory.page_bytes or PAGE_BYTES
    used = facts.sockets.tcp_pages or 0
    # Pressure, not high, is what must not be reached: from there on the kernel shrinks everybody's buffers.
    pressure = target.busy + used
    triple = (pressure * 3 // 4, pressure, pressure * 3 // 2)  # tcp_init_mem() keeps these ratios
    needed = " ".join(map(str, triple))
    reason = (
        f"{count(target.connections)} connections x {target.busy_percent} % busy x 1 page of {size(page)} = "
        f"{count(target.busy)}"
        f" + {count(used)} in use = {count(pressure)} pages ({size(pressure * page)}) before pressure;"
        " low and high at 3/4 and 3/2 of it, as the kernel sets them; an idle socket takes none"
    )
    current = facts.three(TCP_MEM.name)
    setting = sysctl(TCP_MEM.name, needed)
    if current is None:
        return TCP_MEM.judge(
            Verdict.UNKNOWN,
            current=facts.sysctls.get(TCP_MEM.name),
            needed=needed,
            reason=reason + "; the value cannot be read here",
            how=f"on the host: {setting.command()}",
        )
    text = " ".join(map(str, current))
    share = target.busy_percent / 100
    stops_at = int(max(0, current[1] - used) / share) if share else None
    total = facts.memory.total
    if total and triple[2] * page > total * MEMORY_SHARE_MAX:
        how = "more memory, or fewer busy connections: this much buffer does not fit the host"
        reason += f"; more than half of the host's {size(total)}"
        verdict = Verdict.OK if current[1] >= pressure else Verdict.LOW
        return TCP_MEM.judge(verdict, current=text, needed=needed, reason=reason, how=how, stops_at=stops_at)
    if current[1] < pressure:
        raised = " ".join(str(max(pair)) for pair in zip(triple, current, strict=True))
        return TCP_MEM.judge(
            Verdict.LOW,
            current=text,
            needed=needed,
            reason=reason,
            setting=sysctl(TCP_MEM.name, raised),
            stops_at=stops_at,
        )
    if total and current[2] * page > total * MEMORY_SHARE_MAX:
        reason += f"; high is {size(current[2] * page)} of {size(total)}: the host runs out of memory before it binds"
        high = int(total * MEMORY_SHARE_MAX / page)
        lowered = sysctl(TCP_MEM.name, f"{high // 2} {high * 2 // 3} {high}", lowers=True)
        return TCP_MEM.judge(
            Verdict.WASTEFUL, current=text, needed=needed, reason=reason, setting=lowered, stops_at=stops_at
        )
    return TCP_MEM.judge(Verdict.OK, current=text, needed=needed, reason=reason, stops_at=stops_at)


def _per_socket(limit: Limit, facts: Facts, target: Target) -> Finding:
    """tcp_rmem and tcp_wmem: at least one message, at most what all busy sockets together may take."""
    current = facts.three(limit.name)
    reason = f"the maximum must hold one message of {size(MESSAGE_BYTES_MAX)}"
    if current is None:
        text = facts.sysctls.get(limit.name)
        reason += "; the value cannot be read here"
        return limit.judge(Verdict.UNKNOWN, current=text, needed=None, reason=reason, how="look where it can be read")
    text = " ".join(map(str, current))
    least, first, most = current
    if most < MESSAGE_BYTES_MAX:
        wanted = f"{least} {first} {BUFFER_MAX}"
        return limit.judge(Verdict.LOW, current=text, needed=wanted, reason=reason, setting=sysctl(limit.name, wanted))
    return _worst_case(limit, facts, target, current, reason)


def _worst_case(limit: Limit, facts: Facts, target: Target, current: tuple[int, int, int], reason: str) -> Finding:
    """Wasteful when the busy sockets, each filled to the brim, take more than the host's socket memory."""
    text = " ".join(map(str, current))
    pages = facts.three(TCP_MEM.name)
    page = facts.memory.page_bytes or PAGE_BYTES
    bound = pages[2] * page if pages else int((facts.memory.total or 0) * MEMORY_SHARE_MAX)
    worst = target.busy * current[2]
    if not bound or worst <= bound or current[2] <= BUFFER_MAX:
        return limit.judge(Verdict.OK, current=text, needed=None, reason=reason)
    wanted = f"{current[0]} {min(current[1], BUFFER_MAX)} {BUFFER_MAX}"
    reason += (
        f"; {count(target.busy)} busy connections x {size(current[2])} = {size(worst)}, but all sockets together have"
        f" {size(bound)}: a few slow peers can take everybody's; {size(BUFFER_MAX)} is what Moorage keeps for "
        "one itself"
    )
    setting = sysctl(limit.name, wanted, lowers=True)
    return limit.judge(Verdict.WASTEFUL, current=text, needed=wanted, reason=reason, setting=setting)


def _core_max(limit: Limit, facts: Facts) -> Finding:
    reason = f"a program that asks should be given one message of {size(MESSAGE_BYTES_MAX)}; Moorage does not ask"
    setting = sysctl(limit.name, BUFFER_MAX)
    return limit.at_least(facts, facts.number(limit.name), MESSAGE_BYTES_MAX, reason, setting=setting)
