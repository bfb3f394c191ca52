"""Network cards: whether packets are spread over the processors."""

from __future__ import annotations

from tuning.facts import Facts, Nic
from tuning.finding import Finding, Kind, Limit, Scope, Setting, Verdict, count

CPUS_MAX = 8192  # CONFIG_NR_CPUS at the most
SOURCE = "Documentation/networking/scaling.rst"
ERROR = "nothing is logged: one CPU spends all its time in softirq (%soft in mpstat), the others idle"

# Names carry the card: "eth0 queues". NO_CARD stands for a host where none can be seen.
QUEUES = Limit(
    name="queues",
    limits="How many processors may take packets from the card at the same time.",
    scope=Scope.DEVICE,
    capped_by="the hardware or the hypervisor; RPS spreads in software what the card does not",
    error=ERROR,
    source=SOURCE,
)
IRQS = Limit(
    name="interrupts",
    limits="Which processors are interrupted by the card's queues.",
    scope=Scope.DEVICE,
    capped_by="irqbalance, which moves them again unless it is told not to",
    error=ERROR,
    source="Documentation/core-api/irq/irq-affinity.rst",
)
XPS = Limit(
    name="XPS",
    limits="Whether a processor sends through a queue of its own instead of a shared one.",
    scope=Scope.DEVICE,
    capped_by="drivers that choose the queue themselves",
    error=ERROR,
    source=SOURCE,
)


def findings(facts: Facts) -> list[Finding]:
    """Three rows a card; one row when no card can be seen."""
    if not facts.nics:
        reason = (
            "no card can be seen from here"
            if facts.nics is None
            else "only virtual interfaces here; look at the host's card"
        )
        return [
            QUEUES.judge(Verdict.UNKNOWN, current=None, needed=None, reason=reason, how="run the check on the host")
        ]
    return [row for nic in facts.nics for row in (_queues(facts, nic), _interrupts(facts, nic), _xps(facts, nic))]


def _named(limit: Limit, nic: Nic) -> Limit:
    return Limit(f"{nic.name} {limit.name}", limit.limits, limit.scope, limit.capped_by, limit.error, limit.source)


def cpu_mask(cpus: int) -> str:
    """A mask of the first `cpus` CPUs as /sys takes it: words of 32 bits, in hex, with commas."""
    digits = f"{(1 << min(cpus, CPUS_MAX)) - 1:x}"
    words = [digits[max(0, end - 8) : end] for end in range(len(digits), 0, -8)]
    return ",".join(reversed(words))


def _queues(facts: Facts, nic: Nic) -> Finding:
    limit, queues, cpus = _named(QUEUES, nic), nic.rx_queues, facts.cpus.online
    if queues is None or cpus is None:
        return limit.judge(
            Verdict.UNKNOWN,
            current=queues,
            needed=cpus,
            reason="queues or processors cannot be read here",
            how="run the check on the host",
        )
    reason = f"{count(queues)} receive queues for {count(cpus)} processors"
    if queues >= cpus:
        return limit.judge(Verdict.OK, current=queues, needed=cpus, reason=reason)
    spread = [one for one in nic.rps_cpus if one > 1]
    if len(spread) == queues:
        reason += f"; RPS spreads every queue over up to {max(spread)} of them"
        return limit.judge(Verdict.OK, current=queues, needed=cpus, reason=reason)
    setting = Setting(Kind.SYSFS, f"class/net/{nic.name}/queues/rx-0/rps_cpus", cpu_mask(cpus))
    how = f"ethtool -L {nic.name} combined {cpus}; where the card has no more: "
    how += "; ".join(
        f"echo {cpu_mask(cpus)} > /sys/class/net/{nic.name}/queues/rx-{i}/rps_cpus" for i in range(min(queues, 2))
    )
    how += "; and so on for every queue" if queues > 2 else ""
    reason += ", and RPS is off" if not spread else f", and RPS covers {len(spread)} of them"
    return limit.judge(
        Verdict.LOW, current=queues, needed=cpus, reason=reason, setting=setting if queues == 1 else None, how=how
    )


def _interrupts(facts: Facts, nic: Nic) -> Finding:
    limit, cpus = _named(IRQS, nic), facts.cpus.online
    if not nic.irq_cpus or cpus is None:
        return limit.judge(
            Verdict.UNKNOWN,
            current=None,
            needed=None,
            reason="the card's interrupts cannot be read here",
            how="run the check on the host",
        )
    busy = {cpu for one in nic.irq_cpus for cpu in one}
    needed = min(cpus, nic.rx_queues or 1)
    reason = (
        f"{len(nic.irq_cpus)} interrupts on {len(busy)} processors; {nic.rx_queues or 1} queues on {cpus} "
        f"processors want {needed}"
    )
    how = (
        "spread /proc/irq/N/smp_affinity_list over the processors, or run irqbalance; numbers: grep "
        f"{nic.name} /proc/interrupts"
    )
    verdict = Verdict.OK if len(busy) >= needed else Verdict.LOW
    return limit.judge(
        verdict,
        current=_cpus(len(busy)),
        needed=_cpus(needed),
        reason=reason,
        how=how if verdict is Verdict.LOW else "",
    )


def _cpus(number: int) -> str:
    return f"{number} CPU" if number == 1 else f"{number} CPUs"


def _xps(facts: Facts, nic: Nic) -> Finding:
    limit = _named(XPS, nic)
    if nic.tx_queues is None:
        return limit.judge(
            Verdict.UNKNOWN,
            current=None,
            needed=None,
            reason="the transmit queues cannot be read here",
            how="run the check on the host",
        )
    if nic.tx_queues == 1:
        return limit.judge(
            Verdict.OK, current="1 queue", needed=None, reason="one transmit queue: nothing to choose from"
        )
    mapped = sum(1 for one in nic.xps_cpus if one)
    reason = f"{mapped} of {nic.tx_queues} transmit queues belong to a processor"
    if mapped == nic.tx_queues:
        return limit.judge(Verdict.OK, current=mapped, needed=nic.tx_queues, reason=reason)
    how = f"one CPU's mask into each /sys/class/net/{nic.name}/queues/tx-N/xps_cpus"
    return limit.judge(Verdict.LOW, current=mapped, needed=nic.tx_queues, reason=reason, how=how)
