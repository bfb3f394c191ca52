"""Facts of different hosts, recorded, against targets: one finding per limit, with the right verdict."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tuning import advice
from tuning.facts import Facts, Memory, from_json
from tuning.finding import Finding, Scope, Verdict
from tuning.target import Target

HOSTS = Path(__file__).parent.parent / "data/hosts"
MILLION = Target(1_000_000, workers=8, balancers=8, kernel_bytes=3800)
LOW, OK, WASTEFUL, UNKNOWN = Verdict.LOW, Verdict.OK, Verdict.WASTEFUL, Verdict.UNKNOWN


def facts_of(name: str) -> Facts:
    return from_json(json.loads((HOSTS / f"{name}.json").read_text()))


def judged(name: str, target: Target = MILLION) -> dict[str, Finding]:
    return {finding.name: finding for finding in advice.findings(facts_of(name), target)}


def with_sysctls(facts: Facts, **sysctls: str) -> Facts:
    return replace(
        facts, sysctls={**facts.sysctls, **{key.replace("__", "."): value for key, value in sysctls.items()}}
    )


# Every limit that the verdicts of these hosts are about; None: there is no such row.
EXPECTED: dict[str, dict[str, Verdict | None]] = {
    "laptop": {
        "RLIMIT_NOFILE soft": OK,  # 1,024, but the server raises it to the hard limit
        "RLIMIT_NOFILE hard": OK,
        "fs.file-max": OK,
        "net.core.somaxconn": OK,
        "net.ipv4.tcp_max_syn_backlog": OK,
        "net.ipv4.tcp_migrate_req": LOW,
        "balancer ports": LOW,
        "net.ipv4.tcp_mem": OK,
        "net.ipv4.tcp_wmem": WASTEFUL,
        "net.netfilter.nf_conntrack_max": None,
        "memory available": OK,
        "transparent huge pages": OK,
        "swap": LOW,
        "wlp3s0 queues": LOW,
        "clocksource": OK,
        "NUMA": OK,
    },
    "container-cgroup-v2": {
        "RLIMIT_NOFILE hard": OK,
        "net.core.netdev_max_backlog": UNKNOWN,
        "net.ipv4.tcp_mem": UNKNOWN,
        "net.core.rmem_max": UNKNOWN,
        "cgroup memory": LOW,
        "cgroup pids": OK,
        "processors": LOW,
        "transparent huge pages": WASTEFUL,
        "clocksource": OK,
        "queues": UNKNOWN,
    },
    "server-64-cores": {
        "RLIMIT_NOFILE hard": OK,
        "fs.file-max": LOW,
        "net.core.somaxconn": LOW,
        "net.ipv4.tcp_max_syn_backlog": LOW,
        "net.ipv4.tcp_syncookies": LOW,
        "net.core.netdev_max_backlog": LOW,
        "vm.nr_hugepages": WASTEFUL,
        "NUMA": WASTEFUL,
        "eth0 queues": LOW,
        "eth0 interrupts": LOW,
        "eth0 XPS": LOW,
        "eth1 queues": OK,
        "eth1 interrupts": OK,
        "eth1 XPS": OK,
    },
    "conntrack-loaded": {
        "net.netfilter.nf_conntrack_max": LOW,
        "net.ipv4.ip_local_reserved_ports": LOW,
        "net.ipv4.tcp_mem": WASTEFUL,
        "ens5 queues": OK,
    },
    "hardened": {
        "RLIMIT_NOFILE hard": LOW,
        "net.core.somaxconn": LOW,
        "fs.nr_open": UNKNOWN,
        "net.ipv4.tcp_mem": UNKNOWN,
        "net.ipv4.tcp_rmem": UNKNOWN,
        "vm.overcommit_memory": UNKNOWN,
        "cgroup memory": UNKNOWN,
        "clocksource": UNKNOWN,
        "queues": UNKNOWN,
    },
    "virtual-machine": {
        "RLIMIT_NOFILE soft": LOW,
        "RLIMIT_NOFILE hard": LOW,
        "fs.epoll.max_user_watches": OK,
        "net.netfilter.nf_conntrack_max": OK,  # loaded, but nothing is tracked
        "eth0 queues": LOW,
        "memory available": OK,
    },
}


@pytest.mark.parametrize(
    ("host", "limit", "verdict"), [(host, limit, v) for host, rows in EXPECTED.items() for limit, v in rows.items()]
)
def test_verdicts_on_recorded_hosts(host: str, limit: str, verdict: Verdict | None) -> None:
    found = judged(host)
    if verdict is None:
        assert limit not in found
    else:
        assert found[limit].verdict is verdict, found[limit]


@pytest.mark.parametrize("host", sorted(EXPECTED))
def test_every_finding_is_whole(host: str) -> None:
    found = advice.findings(facts_of(host), MILLION)
    assert len({one.name for one in found}) == len(found) > 35
    for one in found:
        assert one.limits.endswith("."), one
        assert all((one.reason, one.source, one.error, one.capped_by, one.how)), one
        if one.verdict is LOW:
            assert one.needed is not None, one
            assert one.how != "nothing to set", one


def test_a_container_says_which_limits_are_the_hosts() -> None:
    found = judged("container-cgroup-v2")
    assert found["net.ipv4.tcp_mem"].scope is Scope.HOST
    assert found["net.ipv4.tcp_mem"].how.startswith("on the host")
    assert found["net.core.somaxconn"].scope is Scope.NETWORK


def test_a_host_of_which_nothing_is_known() -> None:
    found = advice.findings(Facts(), MILLION)
    assert {one.verdict for one in found if one.name != "balancer ports"} == {UNKNOWN}


def test_descriptors_bind_at_the_exact_connection() -> None:
    facts = facts_of("virtual-machine")
    hard = {one.name: one for one in advice.findings(facts, Target(19_900))}["RLIMIT_NOFILE hard"]
    assert (hard.verdict, hard.stops_at, hard.needed) == (OK, 19_900, "20000")
    hard = {one.name: one for one in advice.findings(facts, Target(19_901))}["RLIMIT_NOFILE hard"]
    assert (hard.verdict, hard.stops_at) == (LOW, 19_900)


def test_more_workers_are_offered_where_descriptors_cannot_be_had() -> None:
    how = judged("virtual-machine", Target(2_000_000, workers=2))["RLIMIT_NOFILE hard"].how
    workers = int(how.rpartition(" ")[2])
    assert Target(2_000_000, workers=workers).descriptors <= 20_000
    assert workers < 110


@pytest.mark.parametrize(
    ("balancers", "destinations", "verdict", "stops_at"),
    [(1, 1, LOW, 28_232), (2, 1, LOW, 56_464), (4, 1, OK, 112_928), (2, 2, OK, 112_928), (0, 1, OK, None)],
)
def test_ports_of_a_balancer_and_the_cliff_at_half_the_range(
    balancers: int, destinations: int, verdict: Verdict, stops_at: int | None
) -> None:
    target = Target(50_000, balancers=balancers, destinations=destinations)
    ports = judged("virtual-machine", target)["balancer ports"]
    assert (ports.verdict, ports.stops_at) == (verdict, stops_at)


def test_reserved_ports_are_not_the_balancers() -> None:
    facts = with_sysctls(facts_of("virtual-machine"), net__ipv4__ip_local_reserved_ports="32768-33767,8080")
    found = {one.name: one for one in advice.findings(facts, Target(1000, balancers=1))}
    assert found["balancer ports"].current == str(28_232 - 1000)


def test_widening_the_range_over_listening_ports_reserves_them() -> None:
    found = judged("virtual-machine", Target(30_000, balancers=1))
    assert found["balancer ports"].setting is not None
    assert found["balancer ports"].setting.value == "5532 65535"
    assert found["net.ipv4.ip_local_reserved_ports"].needed == "7400,7480,7490"


def test_huge_pages_that_are_promised_are_no_waste() -> None:
    def found(free: int, reserved: int | None) -> Finding:
        memory = Memory(huge_pages=100, huge_pages_free=free, huge_pages_reserved=reserved)
        return next(one for one in advice.findings(Facts(memory=memory), MILLION) if one.name == "vm.nr_hugepages")

    assert found(90, 90).verdict is OK
    assert (found(90, 60).verdict, found(90, 60).needed) == (WASTEFUL, "70")
    assert (found(90, None).verdict, found(90, None).needed) == (WASTEFUL, "10")
    assert found(0, 0).verdict is OK


def test_overcommit_2_is_judged_by_what_is_left() -> None:
    strict = with_sysctls(facts_of("virtual-machine"), vm__overcommit_memory="2")
    full = replace(strict, memory=replace(strict.memory, commit_limit=1000, committed=999))
    room = replace(strict, memory=replace(strict.memory, commit_limit=2**40, committed=0))
    for facts, verdict in ((full, LOW), (room, OK)):
        assert {one.name: one for one in advice.findings(facts, MILLION)}["vm.overcommit_memory"].verdict is verdict


def test_memory_is_not_guessed_without_a_measurement() -> None:
    target = replace(MILLION, kernel_bytes=None)
    assert judged("laptop", target)["memory available"].verdict is UNKNOWN
    assert judged("laptop", target)["cgroup memory"].verdict is UNKNOWN


def test_memory_stops_at_what_fits() -> None:
    facts = replace(Facts(), memory=replace(Facts().memory, available=4_000_000 + 1000 * 4000))
    found = {one.name: one for one in advice.findings(facts, Target(1000, user_bytes=300, kernel_bytes=3700))}
    assert (found["memory available"].verdict, found["memory available"].stops_at) == (OK, 1000)
    found = {one.name: one for one in advice.findings(facts, Target(1001, user_bytes=300, kernel_bytes=3700))}
    assert found["memory available"].verdict is LOW


def test_a_server_that_runs_is_not_counted_twice() -> None:
    facts = facts_of("virtual-machine")
    fresh = {one.name: one for one in advice.findings(facts, Target(2_000_000, kernel_bytes=3800))}
    running = {one.name: one for one in advice.findings(facts, Target(2_000_000, held=1_900_000, kernel_bytes=3800))}
    for name in ("fs.file-max", "memory available"):
        assert int(running[name].needed or 0) < int(fresh[name].needed or 0)


def test_start_lines_name_the_first_stop() -> None:
    lines = advice.start_lines(facts_of("virtual-machine"), workers=2)
    assert lines[0] == "this host stops at 19,900 connections per worker: RLIMIT_NOFILE is 20,000"
    assert len(lines) == 2
    assert "net.ipv4.tcp_migrate_req" in lines[1]


def test_start_lines_name_another_limit_when_it_is_the_first() -> None:
    facts = with_sysctls(facts_of("laptop"), fs__epoll__max_user_watches="50000")
    assert advice.start_lines(facts, workers=1)[0] == (
        "this host stops at 49,900 connections: fs.epoll.max_user_watches is 50000"
    )


@pytest.mark.parametrize("host", sorted(EXPECTED))
def test_start_lines_are_no_wall(host: str) -> None:
    lines = advice.start_lines(facts_of(host), workers=4, kernel_bytes=3800)
    assert len(lines) <= 2
    assert all(len(line) < 160 for line in lines)
    assert advice.start_lines(Facts(), workers=4) == []
