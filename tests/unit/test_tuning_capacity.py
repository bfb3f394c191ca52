"""The capacity model: what is left, divided by what a connection takes."""

from __future__ import annotations

from tuning import advice
from tuning.capacity import Measured, ceilings, host_limits, worker_full_at
from tuning.facts import Facts
from tuning.target import Target

MEASURED = Measured(
    connections=2000,
    user_bytes=350,
    kernel_bytes=3650,
    memory_room=400_000_000,
    cpu_cores_used=0.1,
    cpu_cores=2,
    descriptors=((1050, 20_000), (1090, 20_000)),
    peers={"10.0.0.1": 1200, "10.0.0.2": 790, "192.0.2.7": 10},
    ports=28_232,
    tcp_pages=1512,
    tcp_pages_max=101_512,
)


def test_every_ceiling_by_its_arithmetic() -> None:
    found = {one.limit: one for one in ceilings(MEASURED)}
    assert found["memory"].more == 400_000_000 // 4000
    assert found["fds"].more == 2 * (20_000 - 1090)
    assert found["ports"].more == 2 * (28_232 - 1200)
    assert found["cpu"].connections == 40_000
    assert found["tcp_mem"].connections == round((101_512 - 512) / 0.5)
    for one in found.values():
        assert one.connections == one.more + MEASURED.connections
        assert one.because
        assert one.moves


def test_the_first_to_bind_comes_first() -> None:
    assert [one.limit for one in ceilings(MEASURED)] == ["fds", "cpu", "ports", "memory", "tcp_mem"]
    with_host = Measured(10, host_limits={"fs.file-max": 500, "fs.epoll.max_user_watches": 400})
    assert [one.limit for one in ceilings(with_host)] == ["fs.epoll.max_user_watches", "fs.file-max"]


def test_what_the_server_is_told_to_hold_is_a_ceiling() -> None:
    (told,) = ceilings(Measured(1000, connections_max=1500))
    assert (told.limit, told.connections, told.more, told.moves) == ("connections_max", 1500, 500, "--connections-max")
    assert ceilings(Measured(1501, connections_max=1500))[0].more == 0


def test_what_was_not_measured_has_no_ceiling() -> None:
    assert ceilings(Measured(1000)) == []
    assert ceilings(Measured(0, cpu_cores_used=1.0, cpu_cores=2, tcp_pages=9000, tcp_pages_max=10_000)) == []


def test_idle_sockets_hold_no_pages() -> None:
    assert ceilings(Measured(1000, tcp_pages=500, tcp_pages_max=10_000, cpu_cores=2)) == []


def test_clients_that_come_directly_do_not_run_out_of_ports() -> None:
    peers = {f"192.0.2.{i}": 3 for i in range(200)}
    assert ceilings(Measured(600, peers=peers, ports=28_232)) == []


def test_destinations_multiply_the_ports() -> None:
    found = ceilings(Measured(1000, peers={"10.0.0.1": 1000}, ports=28_232, destinations=4))
    assert found[0].connections == 4 * 28_232


def test_past_the_limit_nothing_more_fits() -> None:
    found = ceilings(Measured(5000, descriptors=((20_000, 20_000),), host_limits={"fs.file-max": 10}))
    assert [one.more for one in found] == [0, 0]


def test_a_worker_is_full_at_the_exact_connection() -> None:
    assert worker_full_at(500, 540, 1024) == 984
    assert worker_full_at(984, 1024, 1024) == 984


def test_limits_of_the_host_that_no_server_measures() -> None:
    facts = Facts(sysctls={"fs.file-max": "10000", "fs.file-nr": "900 0 10000", "fs.epoll.max_user_watches": "5000"})
    found = host_limits(advice.findings(facts, Target(1000)))
    assert found == {"fs.file-max": 9000, "fs.epoll.max_user_watches": 4900}
