"""How long the kernel keeps a connection that is idle, dead or half closed."""

from __future__ import annotations

from tuning.facts import Facts
from tuning.finding import Finding, Limit, Scope, Verdict, sysctl

FIN_TIMEOUT_KERNEL = 60  # seconds

FIN_TIMEOUT = Limit(
    name="net.ipv4.tcp_fin_timeout",
    limits="How many seconds a connection we closed waits for the peer's own close before it is forgotten.",
    scope=Scope.NETWORK,
    capped_by="net.ipv4.tcp_max_orphans: past it such connections are reset at once",
    error="kernel log: TCP: too many orphaned sockets",
    source="tcp(7), Documentation/networking/ip-sysctl.rst",
)
KEEPALIVE = {
    name: Limit(
        name=name,
        limits=limits,
        scope=Scope.NETWORK,
        capped_by="Moorage sets its own for every connection: TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT",
        error="nothing is logged: peers that vanished keep their descriptor and memory until the last probe fails",
        source="tcp(7)",
    )
    for name, limits in (
        ("net.ipv4.tcp_keepalive_time", "After how many idle seconds a socket with keepalive sends its first probe."),
        ("net.ipv4.tcp_keepalive_intvl", "How many seconds lie between two probes."),
        ("net.ipv4.tcp_keepalive_probes", "After how many unanswered probes a connection is given up."),
    )
}


def findings(facts: Facts) -> list[Finding]:
    """What decides how long a dead connection costs something."""
    return [_fin_timeout(facts)] + [_keepalive(limit, facts) for limit in KEEPALIVE.values()]


def _fin_timeout(facts: Facts) -> Finding:
    current = facts.number(FIN_TIMEOUT.name)
    reason = (
        f"a mass disconnect leaves a socket for each peer that does not answer; {FIN_TIMEOUT_KERNEL} s is the "
        "kernel's own"
    )
    if current is None:
        return FIN_TIMEOUT.at_least(facts, None, FIN_TIMEOUT_KERNEL, reason)
    if current > FIN_TIMEOUT_KERNEL:
        setting = sysctl(FIN_TIMEOUT.name, FIN_TIMEOUT_KERNEL, lowers=True)
        return FIN_TIMEOUT.judge(
            Verdict.WASTEFUL, current=current, needed=FIN_TIMEOUT_KERNEL, reason=reason, setting=setting
        )
    return FIN_TIMEOUT.judge(Verdict.OK, current=current, needed=None, reason=reason)


def _keepalive(limit: Limit, facts: Facts) -> Finding:
    current = facts.number(limit.name)
    numbers = [facts.number(name) for name in KEEPALIVE]
    reason = "the server sets its own on every connection, so these are for the host's other programs"
    if all(number is not None for number in numbers):
        idle, interval, probes = (number or 0 for number in numbers)
        reason += f": {idle} + {interval} x {probes} = {idle + interval * probes} s until a dead peer is noticed"
    verdict = Verdict.UNKNOWN if current is None else Verdict.OK
    return limit.judge(verdict, current=current, needed=None, reason=reason)
