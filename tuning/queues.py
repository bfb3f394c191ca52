"""Queues where new connections and packets wait while nobody serves them."""

from __future__ import annotations

from tuning.facts import Facts
from tuning.finding import Finding, Limit, Scope, Verdict, count, sysctl
from tuning.target import LISTEN_BACKLOG, PACKETS_PER_CONNECT, SOFTIRQ_PAUSE_SECONDS, Target

SOMAXCONN_KERNEL = 4096  # SOMAXCONN since Linux 5.4; 128 before, and in old container images' sysctl files
NETDEV_BACKLOG_KERNEL = 1000
MIGRATE_REQ_SINCE = (5, 14)

SOMAXCONN = Limit(
    name="net.core.somaxconn",
    limits="How many finished connections may wait at one listener until a worker accepts them.",
    scope=Scope.NETWORK,
    capped_by=f"the backlog Moorage passes to listen(2): {LISTEN_BACKLOG:,}",
    error="nothing but TcpExtListenOverflows in nstat; clients wait 1, 3, 7 s, then [Errno 110] Connection timed out",
    source="listen(2), Documentation/admin-guide/sysctl/net.rst",
)
SYN_BACKLOG = Limit(
    name="net.ipv4.tcp_max_syn_backlog",
    limits="How many half-open connections one listener keeps when SYN cookies are off.",
    scope=Scope.NETWORK,
    capped_by="net.core.somaxconn: a listener's half-open connections are never more than its accept queue is long",
    error="kernel log: TCP: request_sock_TCP: Possible SYN flooding on port N. Dropping request.",
    source="tcp(7), Documentation/networking/ip-sysctl.rst; tcp_conn_request() in net/ipv4/tcp_input.c",
)
SYNCOOKIES = Limit(
    name="net.ipv4.tcp_syncookies",
    limits="Whether a full queue of half-open connections is answered with cookies or dropped.",
    scope=Scope.NETWORK,
    capped_by="nobody",
    error="kernel log: TCP: request_sock_TCP: Possible SYN flooding on port N. Dropping request.",
    source="tcp(7), Documentation/networking/ip-sysctl.rst",
)
NETDEV_BACKLOG = Limit(
    name="net.core.netdev_max_backlog",
    limits="How many packets may wait at one CPU for the kernel to look at them.",
    scope=Scope.HOST,
    capped_by="the receive ring of the card, and net.core.netdev_budget for one round",
    error="nothing is logged: the second column of /proc/net/softnet_stat counts what was dropped; clients retransmit",
    source="Documentation/admin-guide/sysctl/net.rst",
)
MIGRATE_REQ = Limit(
    name="net.ipv4.tcp_migrate_req",
    limits="Whether connections waiting at a listener that closes move to another listener of its port or are reset.",
    scope=Scope.NETWORK,
    capped_by="nobody; Linux 5.14 or newer",
    error="client: [Errno 104] Connection reset by peer, when the number of workers is changed or the server restarted",
    source="Documentation/networking/ip-sysctl.rst",
)


def findings(facts: Facts, target: Target) -> list[Finding]:
    """Every queue."""
    return [
        _somaxconn(facts, target),
        _syn_backlog(facts, target),
        _syncookies(facts),
        _netdev_backlog(facts, target),
        _migrate_req(facts),
    ]


def _waiting(target: Target) -> tuple[int, str]:
    """Connections that gather at one listener while its worker looks away, and the arithmetic."""
    burst = target.accepts_per_second * target.pause_seconds / target.workers
    needed = min(LISTEN_BACKLOG, max(SOMAXCONN_KERNEL, round(burst)))
    return needed, (
        f"{count(target.connections)} connections back within {target.storm_seconds} s"
        f" = {count(target.accepts_per_second)}/s,"
        f" / {count(target.workers)} workers x {target.pause_seconds:g} s without accept = {count(round(burst))};"
        f" not below the kernel's own {count(SOMAXCONN_KERNEL)}"
    )


def _somaxconn(facts: Facts, target: Target) -> Finding:
    needed, reason = _waiting(target)
    if facts.sockets.listen_overflows:
        reason += f"; {count(facts.sockets.listen_overflows)} connections were turned away since boot (ListenOverflows)"
    current = facts.number("net.core.somaxconn")
    return SOMAXCONN.at_least(facts, current, needed, reason, setting=sysctl(SOMAXCONN.name, needed))


def _syn_backlog(facts: Facts, target: Target) -> Finding:
    needed, reason = _waiting(target)
    current = facts.number(SYN_BACKLOG.name)
    if current is not None and facts.number(SYNCOOKIES.name):
        reason += "; SYN cookies are on, so the kernel never looks at it"
        return SYN_BACKLOG.judge(Verdict.OK, current=current, needed=None, reason=reason)
    return SYN_BACKLOG.at_least(facts, current, needed, reason, setting=sysctl(SYN_BACKLOG.name, needed))


def _syncookies(facts: Facts) -> Finding:
    current = facts.number(SYNCOOKIES.name)
    setting = sysctl(SYNCOOKIES.name, 1)
    if current == 2:
        reason = "2 sends a cookie to everybody, for tests: cookies carry fewer TCP options"
        return SYNCOOKIES.judge(
            Verdict.WASTEFUL, current=current, needed=1, reason=reason, setting=sysctl(SYNCOOKIES.name, 1, lowers=True)
        )
    reason = "1: cookies only once the queue is full, which is what a reconnect storm does"
    return SYNCOOKIES.at_least(facts, current, 1, reason, setting=setting)


def _netdev_backlog(facts: Facts, target: Target) -> Finding:
    current = facts.number(NETDEV_BACKLOG.name)
    cpus = facts.cpus.online or 1
    burst = round(PACKETS_PER_CONNECT * target.accepts_per_second / cpus * SOFTIRQ_PAUSE_SECONDS)
    needed = max(NETDEV_BACKLOG_KERNEL, burst)
    reason = (
        f"{PACKETS_PER_CONNECT} packets x {count(target.accepts_per_second)} connections/s / {cpus} CPUs"
        f" x {SOFTIRQ_PAUSE_SECONDS:g} s = {count(burst)}; not below the kernel's own {count(NETDEV_BACKLOG_KERNEL)}"
    )
    drops = facts.sockets.softnet_drops
    if drops:
        needed *= 2
        reason += f"; twice that, as {count(drops)} packets were dropped since boot (softnet_stat)"
    return NETDEV_BACKLOG.at_least(facts, current, needed, reason, setting=sysctl(NETDEV_BACKLOG.name, needed))


def _migrate_req(facts: Facts) -> Finding:
    reason = "every worker has a listener of its own: without it, whoever waits at one that closes is reset"
    current = facts.number(MIGRATE_REQ.name)
    if current is None and facts.is_older_than(*MIGRATE_REQ_SINCE):
        # A setting would be worse than none: a container with a sysctl that its kernel does not have is not started.
        how = "a newer kernel"
        return MIGRATE_REQ.judge(
            Verdict.UNKNOWN, current=None, needed=1, reason=f"{reason}; not in this kernel", how=how
        )
    return MIGRATE_REQ.at_least(facts, current, 1, reason, setting=sysctl(MIGRATE_REQ.name, 1))
