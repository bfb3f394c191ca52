"""Reads the network cards: queues, interrupts, and which processors serve them.

Virtual interfaces (lo, veth, bridges) have no device behind them and are left out: they have no interrupts to spread.
"""

from __future__ import annotations

from pathlib import Path

import psutil

from tuning.facts import Nic


def read(proc: Path, sys: Path) -> tuple[Nic, ...]:
    """The cards that are up, by name.

    /sys may show another network namespace's cards: those that psutil does not see are not ours.

    Raises: OSError when /sys/class/net cannot be read.
    """
    stats = psutil.net_if_stats()
    cards = sorted(one for one in (sys / "class/net").iterdir() if (one / "device").exists())
    return tuple(_card(proc, one, stats[one.name].speed) for one in cards if one.name in stats and _is_up(one))


def _is_up(card: Path) -> bool:
    return _text(card / "operstate") in ("up", "unknown")


def _card(proc: Path, card: Path, speed_mbit: int) -> Nic:
    queues = card / "queues"
    receive = sorted(queues.glob("rx-*"))
    transmit = sorted(queues.glob("tx-*"))
    speed = speed_mbit or _int(card / "speed") or 0
    node = _int(card / "device/numa_node")
    return Nic(
        name=card.name,
        speed_mbit=speed if speed > 0 else None,  # -1 and 0: a virtual card does not know
        rx_queues=len(receive) or None,
        tx_queues=len(transmit) or None,
        numa_node=node if node is not None and node >= 0 else None,
        irq_cpus=_irq_cpus(proc, card),
        rps_cpus=tuple(_mask_size(queue / "rps_cpus") for queue in receive),
        xps_cpus=tuple(_mask_size(queue / "xps_cpus") for queue in transmit),
    )


def _irq_cpus(proc: Path, card: Path) -> tuple[tuple[int, ...], ...]:
    """Where each interrupt of `card` goes: PCI lists them below the device; virtio cards sit one directory deeper."""
    for directory in (card / "device/msi_irqs", card / "device/../msi_irqs"):
        if directory.is_dir():
            numbers = sorted(int(one.name) for one in directory.iterdir() if one.name.isdigit())
            return tuple(cpus for number in numbers if (cpus := _affinity(proc / "irq" / str(number))))
    return ()


def _affinity(irq: Path) -> tuple[int, ...]:
    """The CPUs that really get the interrupt (effective), else those that may."""
    text = _text(irq / "effective_affinity_list") or _text(irq / "smp_affinity_list") or ""
    return cpu_list(text)


def cpu_list(text: str) -> tuple[int, ...]:
    """The numbers of a kernel CPU list (cpuset(7)): "0-2,7" is 0, 1, 2, 7. Nothing for what is not one."""
    cpus: list[int] = []
    try:
        for part in text.strip().split(","):
            first, _, last = part.partition("-")
            cpus += range(int(first), int(last or first) + 1)
    except ValueError:
        return ()
    return tuple(cpus)


def _mask_size(path: Path) -> int:
    """How many CPUs a mask such as "ff,ffffffff" holds; 0 when it is not set or cannot be read."""
    try:
        return int((_text(path) or "0").replace(",", ""), 16).bit_count()
    except ValueError:
        return 0


def _int(path: Path) -> int | None:
    try:
        return int(_text(path) or "")
    except ValueError:
        return None


def _text(path: Path) -> str | None:
    """The file's text; None when it cannot be read (a card that is down answers EINVAL)."""
    try:
        return path.read_text().strip()
    except OSError:
        return None
