"""From findings to steps: what is too low, in order, never lowering what is in use."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tuning import advice
from tuning.facts import Facts, Memory, Process, Sockets, from_json
from tuning.finding import Kind, Scope, Setting, sysctl
from tuning.plan import in_use, lowers, plan, portable, refusal, same
from tuning.target import Target

HOSTS = sorted((Path(__file__).parent.parent / "data/hosts").glob("*.json"))
TARGET = Target(2_000_000, workers=8, balancers=100, kernel_bytes=3800)


def facts_of(path: Path) -> Facts:
    return from_json(json.loads(path.read_text()))


@pytest.mark.parametrize("path", HOSTS, ids=lambda path: path.stem)
def test_a_plan_never_lowers_and_its_whole_form_keeps_what_is_higher(path: Path) -> None:
    found = advice.findings(facts_of(path), TARGET)
    for step in plan(found) + plan(found, whole=True):
        if step.now is not None and step.setting.kind is Kind.SYSCTL:
            assert not lowers(step.setting.key, step.now, step.setting.value), step


@pytest.mark.parametrize("path", HOSTS, ids=lambda path: path.stem)
def test_steps_carry_their_arithmetic_and_their_source(path: Path) -> None:
    steps = plan(advice.findings(facts_of(path), TARGET), frugal=True)
    assert steps
    assert all(step.reason and step.source for step in steps)
    keys = [(step.setting.kind, step.setting.key) for step in steps]
    assert len(set(keys)) == len(keys)


def test_ports_are_reserved_before_the_range_is_widened() -> None:
    host = facts_of(next(path for path in HOSTS if path.stem == "virtual-machine"))
    keys = [step.setting.key for step in plan(advice.findings(host, Target(30_000, balancers=1)))]
    assert keys.index("net.ipv4.ip_local_reserved_ports") < keys.index("net.ipv4.ip_local_port_range")


def test_frugal_also_lowers_what_is_wasteful() -> None:
    host = facts_of(next(path for path in HOSTS if path.stem == "server-64-cores"))
    found = advice.findings(host, TARGET)
    more = {step.setting.key for step in plan(found, frugal=True)} - {step.setting.key for step in plan(found)}
    assert {"vm.nr_hugepages", "kernel/mm/transparent_hugepage/enabled", "net.ipv4.tcp_wmem"} <= more


def test_files_for_other_hosts_pin_nothing_that_is_right_on_this_one() -> None:
    host = facts_of(next(path for path in HOSTS if path.stem == "laptop"))
    steps = portable(advice.findings(host, Target(1000)))
    keys = {step.setting.key for step in steps}
    assert "fs.file-max" not in keys
    assert "net.core.somaxconn" in keys  # a new network namespace starts with the kernel's own
    assert "nofile" in keys
    assert all(step.scope is not Scope.HOST for step in steps)


@pytest.mark.parametrize(
    ("key", "now", "value", "expected"),
    [
        ("net.core.somaxconn", "4096", "128", True),
        ("net.core.somaxconn", "128", "4096", False),
        ("net.ipv4.tcp_mem", "10 20 30", "10 25 29", True),
        ("net.ipv4.ip_local_port_range", "32768 60999", "1024 65535", False),
        ("net.ipv4.ip_local_port_range", "32768 60999", "40000 65535", True),
        ("net.ipv4.tcp_tw_reuse", "2", "1", False),
        ("nofile", "unlimited", "4096", True),
        ("net.core.somaxconn", "", "4096", False),
        ("net.ipv4.tcp_congestion_control", "bbr", "cubic", False),
    ],
)
def test_what_lowers(key: str, now: str, value: str, expected: bool) -> None:
    assert lowers(key, now, value) is expected


USED = Facts(
    process=Process(descriptors=900, nofile_hard=20_000),
    memory=Memory(huge_pages=10, huge_pages_free=4),
    sockets=Sockets(tcp_inuse=300, tcp_time_wait=20, tcp_pages=55),
    tasks=400,
    sysctls={"fs.file-nr": "5000 0 100000", "net.netfilter.nf_conntrack_count": "70"},
)


@pytest.mark.parametrize(
    ("key", "used"),
    [
        ("fs.file-max", 5000),
        ("fs.nr_open", 20_000),
        ("nofile", 900),
        ("net.netfilter.nf_conntrack_max", 70),
        ("net.ipv4.tcp_mem", 55),
        ("kernel.pid_max", 400),
        ("vm.nr_hugepages", 6),
        ("net.ipv4.ip_local_port_range", 320),
        ("net.core.somaxconn", None),
    ],
)
def test_what_is_in_use(key: str, used: int | None) -> None:
    assert in_use(key, USED) == used
    assert in_use(key, Facts()) is None


def test_nothing_is_lowered_unasked() -> None:
    assert refusal(sysctl("fs.file-max", 10_000), "20000", USED) == "would lower it from 20000 to 10000"
    assert refusal(sysctl("fs.file-max", 30_000), "20000", USED) is None
    assert refusal(sysctl("fs.file-max", 10_000), None, USED) is None


def test_nothing_is_lowered_below_its_use_even_when_asked() -> None:
    assert refusal(sysctl("fs.file-max", 10_000, lowers=True), "20000", USED) is None
    assert refusal(sysctl("fs.file-max", 10_000), "20000", USED, undo=True) is None
    for asked in (
        refusal(sysctl("fs.file-max", 4999, lowers=True), "20000", USED),
        refusal(sysctl("fs.file-max", 4999), "20000", USED, undo=True),
    ):
        assert asked == "4999 is below what is in use now: 5000"
    narrow = sysctl("net.ipv4.ip_local_port_range", "40000 40199")
    assert refusal(narrow, "1024 65535", USED, undo=True) == "40000 40199 is below what is in use now: 320"


def test_a_process_keeps_the_descriptors_it_has() -> None:
    fewer = Setting(Kind.NOFILE, "nofile", "100 100", lowers=True)
    assert refusal(fewer, "20000 20000", USED) == "100 100 is below what is in use now: 900"


def applied(facts: Facts, target: Target) -> Facts:
    """`facts` with the plan's values in place, as the kernel would show them."""
    values = {}
    for step in plan(advice.findings(facts, target), frugal=True):
        if step.setting.kind is Kind.SYSCTL:
            values[step.setting.key] = step.setting.value
    return replace(facts, sysctls={**facts.sysctls, **values})


@pytest.mark.parametrize("path", HOSTS, ids=lambda path: path.stem)
def test_what_was_planned_is_right_once_it_is_made(path: Path) -> None:
    made = applied(facts_of(path), TARGET)
    left = {
        step.setting.key
        for step in plan(advice.findings(made, TARGET), frugal=True)
        if step.setting.kind is Kind.SYSCTL
    }
    assert left <= {"vm.nr_hugepages"}  # its pages are counted in /proc/meminfo


def test_the_kernels_own_way_of_writing_a_value_is_the_same_value() -> None:
    ports, mask = "net.ipv4.ip_local_reserved_ports", "class/net/eth0/queues/rx-0/rps_cpus"
    assert same(ports, "7400-7401,7480,8080", "8080,7401,7400,7480")
    assert not same(ports, "7400-7401", "7400")
    assert same(mask, "00000000,0000000f", "f")
    assert not same(mask, "00000001,00000000", "1")
    assert same("net.ipv4.tcp_mem", "1 2 3", "1\t2\t3")
    assert not same("net.core.somaxconn", "128", "4096")


@pytest.mark.parametrize(
    ("kernel", "has"), [("5.10.0-30-amd64", False), ("4.18.0", False), ("5.14.0", True), (None, True)]
)
def test_no_file_sets_what_the_kernel_does_not_have(kernel: str | None, has: bool) -> None:
    """Docker starts no container with a sysctl that is not there."""
    facts = Facts(kernel=kernel, sysctls={"net.core.somaxconn": "4096"})
    keys = {step.setting.key for step in portable(advice.findings(facts, TARGET))}
    assert ("net.ipv4.tcp_migrate_req" in keys) is has


@pytest.mark.parametrize("balancers", [0, 100])
def test_a_range_widened_for_the_hosts_own_connections_reserves_the_listening_ports(balancers: int) -> None:
    facts = Facts(sysctls={"net.ipv4.ip_local_port_range": "5000 5099", "net.ipv4.ip_local_reserved_ports": ""})
    steps = plan(advice.findings(facts, replace(TARGET, workers=16, balancers=balancers)))
    values = {step.setting.key: step.setting.value for step in steps}
    assert values["net.ipv4.ip_local_port_range"].endswith(" 65535")
    assert values["net.ipv4.ip_local_reserved_ports"] == "7400,7480,7490"
