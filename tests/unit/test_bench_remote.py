import argparse

import pytest

from bench.remote import Remote, addresses
from bench.scrape import sums
from bench.settings import Impossible

METRICS = """# HELP moorage_worker_cpu_seconds Processor time
moorage_worker_cpu_seconds_total{worker="0"} 1.5
moorage_worker_cpu_seconds_total{worker="1"} 2.5
moorage_worker_resident_bytes{worker="0"} 5.0e+07
python_info{version="3"} 1.0
"""


def test_metrics_of_all_workers_are_added_up() -> None:
    assert sums(METRICS) == {"worker_cpu_seconds_total": (2, 4.0), "worker_resident_bytes": (1, 5e7)}


def test_addresses_are_read() -> None:
    assert addresses("10.0.0.1:7400,[::1]:7401") == (("10.0.0.1", 7400), ("::1", 7401))
    for bad in ("7400", "host:", "host:0", "host:99999", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="want HOST:PORT"):
            addresses(bad)


def test_without_an_admin_port_nothing_is_known_of_it() -> None:
    with Remote((("127.0.0.1", 1),), None) as remote:
        assert (remote.workers, remote.cpu_ns(), remote.memory(), remote.connections()) == (0, 0, 0, 0)


def test_an_admin_port_that_does_not_answer_is_told() -> None:
    with pytest.raises(Impossible, match="--admin"):
        Remote((("127.0.0.1", 1),), ("127.0.0.1", 1))
