"""Queues, interrupts and masks of network cards."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import psutil
import pytest

from tuning import cards
from tuning.facts import Nic

Stats = namedtuple("Stats", "speed")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A card with two queues, one that is down, and a loopback interface."""
    monkeypatch.setattr(psutil, "net_if_stats", lambda: {"eth0": Stats(25_000), "eth1": Stats(0), "lo": Stats(0)})
    net = tmp_path / "sys/class/net"
    for queue, mask in (("rx-0", "ff"), ("rx-1", "00000000,0000ffff")):
        write(net / f"eth0/queues/{queue}/rps_cpus", mask)
    write(net / "eth0/queues/tx-0/xps_cpus", "1")
    write(net / "eth0/operstate", "up")
    write(net / "eth0/device/numa_node", "1")
    write(net / "eth0/device/msi_irqs/41", "msi")
    write(net / "eth0/device/msi_irqs/40", "msi")
    write(net / "eth1/device/numa_node", "-1")
    write(net / "eth1/operstate", "down")
    write(net / "lo/operstate", "unknown")
    write(tmp_path / "proc/irq/40/effective_affinity_list", "2")
    write(tmp_path / "proc/irq/41/smp_affinity_list", "0-3")
    return tmp_path


def test_a_card_is_read(host: Path) -> None:
    expected = Nic("eth0", 25_000, 2, 1, 1, irq_cpus=((2,), (0, 1, 2, 3)), rps_cpus=(8, 16), xps_cpus=(1,))
    assert cards.read(host / "proc", host / "sys") == (expected,)


def test_cards_of_another_namespace_are_left_out(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "net_if_stats", lambda: {"lo": Stats(0)})
    assert cards.read(host / "proc", host / "sys") == ()


def test_virtio_cards_have_their_interrupts_one_directory_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "net_if_stats", lambda: {"eth0": Stats(0)})
    write(tmp_path / "pci/msi_irqs/7", "msix")
    (tmp_path / "pci/virtio0").mkdir()
    write(tmp_path / "sys/class/net/eth0/operstate", "unknown")
    (tmp_path / "sys/class/net/eth0/device").symlink_to(tmp_path / "pci/virtio0")
    write(tmp_path / "proc/irq/7/effective_affinity_list", "1")
    assert cards.read(tmp_path / "proc", tmp_path / "sys") == (Nic("eth0", irq_cpus=((1,),)),)


@pytest.mark.parametrize(("text", "cpus"), [("0-2,7", (0, 1, 2, 7)), ("5", (5,)), ("", ()), ("none", ()), ("1-x", ())])
def test_cpu_lists(text: str, cpus: tuple[int, ...]) -> None:
    assert cards.cpu_list(text) == cpus
