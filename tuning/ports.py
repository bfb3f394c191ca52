"""Ports and the table of flows: what stands between a balancer and the server."""

from __future__ import annotations

from tuning.facts import Facts
from tuning.finding import Finding, Limit, Scope, Verdict, count, sysctl
from tuning.target import Target

WIDEST = (1024, 65_535)  # below are the well-known ports
OUTGOING_PER_WORKER = 8  # Redis pipes of a worker and their replacements in TIME_WAIT

PORT_RANGE = Limit(
    name="net.ipv4.ip_local_port_range",
    limits="The local ports that connections made by this host are given, per remote address and port.",
    scope=Scope.NETWORK,
    capped_by="16 bits; net.ipv4.ip_local_reserved_ports takes ports out of it",
    error="connect: [Errno 99] Cannot assign requested address (EADDRNOTAVAIL)",
    source="ip(7), Documentation/networking/ip-sysctl.rst",
)
RESERVED_PORTS = Limit(
    name="net.ipv4.ip_local_reserved_ports",
    limits="Ports that no outgoing connection is given, so that a restarted server finds its own free.",
    scope=Scope.NETWORK,
    capped_by="nobody",
    error="bind: [Errno 98] Address already in use (EADDRINUSE), now and then, at start",
    source="Documentation/networking/ip-sysctl.rst",
)
BALANCER_PORTS = Limit(
    name="balancer ports",
    limits="How many connections one address of a balancer can have open to one address and port of the server.",
    scope=Scope.NETWORK,
    capped_by="the balancer's own net.ipv4.ip_local_port_range (this host's is assumed to be the same) and its "
    "RLIMIT_NOFILE",
    error="balancer: Cannot assign requested address (EADDRNOTAVAIL) while connecting to upstream; clients get 502 "
    "or 503",
    source="ip(7); __inet_hash_connect() in net/ipv4/inet_hashtables.c tries the ports of one parity first",
)
TW_REUSE = Limit(
    name="net.ipv4.tcp_tw_reuse",
    limits="Whether a port in TIME_WAIT can be used for a new outgoing connection after a second.",
    scope=Scope.NETWORK,
    capped_by="net.ipv4.tcp_timestamps of both ends",
    error="connect: [Errno 99] Cannot assign requested address (EADDRNOTAVAIL) for 60 s after many connections ended",
    source="tcp(7), Documentation/networking/ip-sysctl.rst",
)
CONNTRACK = Limit(
    name="net.netfilter.nf_conntrack_max",
    limits="How many connections the firewall keeps track of; one more is dropped.",
    scope=Scope.HOST,
    capped_by="memory, about one entry of the nf_conntrack slab each; nf_conntrack_buckets should be a quarter of "
    "it or more",
    error="kernel log: nf_conntrack: nf_conntrack: table full, dropping packet; clients: [Errno 110] Connection "
    "timed out",
    source="Documentation/networking/nf_conntrack-sysctl.rst",
)


def findings(facts: Facts, target: Target) -> list[Finding]:
    """Every limit on ports and flows; conntrack only where it is loaded."""
    found = [_port_range(facts, target), _reserved(facts, target), _balancer(facts, target), _tw_reuse(facts, target)]
    if any(name.startswith("net.netfilter.nf_conntrack") for name in facts.sysctls):
        found.append(_conntrack(facts, target))
    return found


def reserved_ports(text: str) -> set[int]:
    """The ports of ip_local_reserved_ports: "8080,9000-9002". What is not a number is passed over."""
    ports: set[int] = set()
    for part in text.replace(" ", "").split(","):
        first, _, last = part.partition("-")
        if first.isdigit() and (not last or last.isdigit()):
            ports |= set(range(int(first), min(int(last or first), 65_535) + 1))
    return ports


def usable(facts: Facts) -> tuple[int, int, int] | None:
    """First and last local port and how many of that range are not reserved."""
    bounds = facts.numbers(PORT_RANGE.name)
    if bounds is None or len(bounds) != 2 or bounds[1] < bounds[0]:
        return None
    first, last = bounds
    kept = {port for port in reserved_ports(facts.sysctls.get(RESERVED_PORTS.name, "")) if first <= port <= last}
    return first, last, last - first + 1 - len(kept)


def widened(facts: Facts, target: Target, needed: int) -> tuple[int, int]:
    """The present range, widened downwards as far as `needed` free ports ask for; no further than `WIDEST`."""
    last = WIDEST[1]
    taken = len(reserved_ports(facts.sysctls.get(RESERVED_PORTS.name, "")) | set(target.ports))
    bounds = usable(facts)
    first = min(last + 1 - needed - taken, bounds[0] if bounds else last)
    # An even first and an odd last port: the kernel asks for different parities, and says so in its log.
    return max(WIDEST[0], first - first % 2), last


def _balancer_need(target: Target) -> int:
    """Ports that each address of the balancer uses to each address and port of the server."""
    return -(-target.connections // (target.balancers * target.destinations)) if target.balancers else 0


def _balancer_range(facts: Facts, target: Target) -> tuple[int, int] | None:
    """The range to set for the balancer; None where the present one does, or where no range would."""
    bounds, needed = usable(facts), _balancer_need(target)
    widest = WIDEST[1] - WIDEST[0] + 1 - len(target.ports)
    if bounds is None or needed <= bounds[2] // 2 or needed > widest // 2:
        return None
    return widened(facts, target, 2 * needed)


def _own_range(facts: Facts, target: Target) -> tuple[int, int] | None:
    """The range to set for this host's own connections; None where the present one does."""
    bounds, needed = usable(facts), OUTGOING_PER_WORKER * target.workers
    return None if bounds is None or bounds[2] >= needed else widened(facts, target, 2 * needed)


def _port_range(facts: Facts, target: Target) -> Finding:
    bounds = usable(facts)
    needed = OUTGOING_PER_WORKER * target.workers
    reason = (
        f"this host connects out to Redis: {target.workers} workers x {OUTGOING_PER_WORKER} = {count(needed)} ports"
    )
    current = facts.sysctls.get(PORT_RANGE.name)
    wanted = f"{count(needed)} ports"
    if bounds is None:
        reason += "; the range cannot be read here"
        return PORT_RANGE.judge(
            Verdict.UNKNOWN, current=current, needed=wanted, reason=reason, how="look where it can be read"
        )
    reason += f"; the range has {count(bounds[2])} free of reservations"
    to_be = _own_range(facts, target)
    if to_be is None:
        return PORT_RANGE.judge(Verdict.OK, current=current, needed=wanted, reason=reason)
    setting = sysctl(PORT_RANGE.name, f"{to_be[0]} {to_be[1]}")
    return PORT_RANGE.judge(Verdict.LOW, current=current, needed=wanted, reason=reason, setting=setting)


def _reserved(facts: Facts, target: Target) -> Finding:
    bounds = usable(facts)
    text = facts.sysctls.get(RESERVED_PORTS.name)
    ports = ",".join(map(str, target.ports))
    if bounds is None or text is None:
        reason = f"ports {ports} must not be inside the local port range; it or the reservations cannot be read here"
        setting = sysctl(RESERVED_PORTS.name, ports)
        return RESERVED_PORTS.judge(Verdict.UNKNOWN, current=text, needed=None, reason=reason, how=setting.command())
    # The lower of two that are wanted includes the other: both end at the last port.
    wanted = [one for one in (_balancer_range(facts, target), _own_range(facts, target)) if one is not None]
    range_to_be = min(wanted, default=(bounds[0], bounds[1]))
    inside = {port for port in target.ports if range_to_be[0] <= port <= range_to_be[1]}
    missing = inside - reserved_ports(text)
    everything = ",".join(part for part in (text, ",".join(map(str, sorted(missing)))) if part)
    where = f"listening ports {ports}, local port range {range_to_be[0]} to {range_to_be[1]}"
    if not missing:
        reason = f"{where}: {'none is inside' if not inside else 'those inside are reserved'}"
        return RESERVED_PORTS.judge(Verdict.OK, current=text, needed=None, reason=reason)
    reason = f"{where}: {', '.join(map(str, sorted(missing)))} inside and not reserved"
    setting = sysctl(RESERVED_PORTS.name, everything)
    return RESERVED_PORTS.judge(Verdict.LOW, current=text, needed=everything, reason=reason, setting=setting)


def _balancer(facts: Facts, target: Target) -> Finding:
    if not target.balancers:
        reason = "clients connect directly, each from an address of its own; with a balancer say --balancers N"
        return BALANCER_PORTS.judge(Verdict.OK, current=None, needed=None, reason=reason)
    pairs = target.balancers * target.destinations
    needed = _balancer_need(target)
    arithmetic = (
        f"{count(target.connections)} connections / ({target.balancers} balancer addresses x {target.destinations}"
        f" server addresses and ports) = {count(needed)} ports each"
    )
    bounds = usable(facts)
    if bounds is None:
        reason = f"{arithmetic}; the local port range cannot be read here"
        return BALANCER_PORTS.judge(
            Verdict.UNKNOWN, current=None, needed=needed, reason=reason, how=_more_pairs(needed)
        )
    free = bounds[2]
    # connect() tries the ports of one parity first: past half of the range every call walks all of the used half.
    comfortable = free // 2
    reason = (
        f"{arithmetic}; the range has {count(free)}, of which the first half, {count(comfortable)}, is found fast:"
        " past it every connect() of the balancer first searches the whole used half"
    )
    if needed <= comfortable:
        return BALANCER_PORTS.judge(Verdict.OK, current=free, needed=needed, reason=reason, stops_at=pairs * free)
    to_be = _balancer_range(facts, target)
    setting = sysctl(PORT_RANGE.name, f"{to_be[0]} {to_be[1]}") if to_be else None
    more = -(-target.connections // (max(1, comfortable) * target.balancers))
    how = f"on the balancer: {setting.command()}; or " if setting else ""
    how += f"{more} server addresses and ports (--tcp repeats), or as many times the balancer addresses"
    return BALANCER_PORTS.judge(
        Verdict.LOW, current=free, needed=needed, reason=reason, setting=setting, how=how, stops_at=pairs * free
    )


def _more_pairs(needed: int) -> str:
    return f"the balancer needs a range of {count(2 * needed)} ports, or more addresses on either side"


def _tw_reuse(facts: Facts, target: Target) -> Finding:
    current = facts.number(TW_REUSE.name)
    if current is not None and not target.balancers:
        reason = "it concerns connections made by this host; the server only accepts them"
        return TW_REUSE.judge(Verdict.OK, current=current, needed=None, reason=reason)
    reason = "a balancer that reconnects everybody needs every port again at once, not after 60 s of TIME_WAIT"
    if facts.number("net.ipv4.tcp_timestamps") == 0:
        reason += "; without effect while net.ipv4.tcp_timestamps is 0"
    if current == 2:
        reason += "; 2 is for loopback only"
        return TW_REUSE.judge(Verdict.LOW, current=2, needed=1, reason=reason, setting=sysctl(TW_REUSE.name, 1))
    return TW_REUSE.at_least(facts, current, 1, reason, setting=sysctl(TW_REUSE.name, 1))


def _conntrack(facts: Facts, target: Target) -> Finding:
    current = facts.number(CONNTRACK.name)
    tracked = facts.number("net.netfilter.nf_conntrack_count")
    if tracked == 0 and facts.sockets.tcp_inuse:
        # The module registers its hooks once a rule asks for a state; until then it sees no packet.
        reason = "loaded, but it tracks nothing although there are connections: no rule asks it to"
        return CONNTRACK.judge(Verdict.OK, current=current, needed=None, reason=reason)
    needed = target.more + (tracked or 0)
    reason = (
        f"{count(target.more)} more connections + {count(tracked) if tracked is not None else 'an unknown number'}"
        f" tracked now = {count(needed)}"
    )
    buckets = facts.number("net.netfilter.nf_conntrack_buckets")
    if buckets and needed > 4 * buckets:
        wanted = count(-(-needed // 4))
        reason += f"; {count(buckets)} buckets: raise nf_conntrack_buckets to {wanted} too, or lookups get slow"
    stops_at = None if current is None else max(0, current - needed + target.connections)
    how = f"{sysctl(CONNTRACK.name, needed).command()}; or do not track the port at all: a `notrack` rule for it"
    return CONNTRACK.at_least(
        facts, current, needed, reason, setting=sysctl(CONNTRACK.name, needed), how=how, stops_at=stops_at
    )
