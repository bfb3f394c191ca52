from pathlib import Path

import pytest

from bench import preflight, sysctls
from bench.preflight import Machine, check, needed_bytes, worker_holds
from bench.settings import Impossible

LARGE = Machine(descriptors=20_000, files_max=10_000_000, is_privileged=False, available_bytes=10**12)


def test_a_worker_keeps_room_for_being_the_fullest() -> None:
    assert 19_000 < worker_holds(20_000) < 19_900 - 600
    assert 106 * worker_holds(20_000) > 2_000_000
    assert worker_holds(200) >= 1


def test_a_machine_that_is_large_enough_passes() -> None:
    check(2_000_000, 106, 103, LARGE)


def test_everything_that_is_missing_is_told_at_once_with_what_would_do() -> None:
    small = LARGE._replace(files_max=100_000, available_bytes=4_000_000_000)
    with pytest.raises(Impossible) as refused:
        check(1_000_000, 20, 10, small)
    text = str(refused.value)
    for wanted in (
        "sysctl -w fs.file-max=2010000",
        "--workers",
        "client processes hold",
        "GB are needed",
        "--connections",
    ):
        assert wanted in text


def test_the_number_that_would_fit_does_fit() -> None:
    small = LARGE._replace(available_bytes=6_000_000_000)
    with pytest.raises(Impossible) as refused:
        check(1_000_000, 60, 60, small)
    fits = int(str(refused.value).rsplit("--connections ", 1)[1])
    assert 100_000 < fits < 1_000_000
    check(fits, 60, 60, small)


def test_a_number_that_would_fit_is_told_also_where_the_processes_alone_do_not() -> None:
    with pytest.raises(Impossible) as refused:
        check(100_000_000, 6_000, 6_000, LARGE._replace(available_bytes=24_000_000_000))
    assert 2_000_000 < int(str(refused.value).rsplit("--connections ", 1)[1]) < 3_000_000
    with pytest.raises(Impossible, match=r"available$"):
        check(1_000_000, 60, 60, LARGE._replace(available_bytes=500_000_000))


def test_what_a_container_does_not_see_is_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("fs/file-max", "100"), ("net/core/somaxconn", "100")):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(value)
    monkeypatch.setattr(sysctls, "ROOT", tmp_path)
    assert preflight.settings(1_000_000, 2) == {"fs.file-max": "2010000", "net.core.somaxconn": "65535"}


def test_who_is_privileged_may_exceed_the_files_of_the_machine() -> None:
    check(1_000, 2, 1, LARGE._replace(files_max=10, is_privileged=True))


def test_a_server_elsewhere_takes_one_end_only() -> None:
    assert needed_bytes(1_000_000, 0, 50) < needed_bytes(1_000_000, 53, 50) / 2 + preflight.RESERVE_BYTES


def test_this_machine_can_be_read() -> None:
    machine = preflight.read()
    assert machine.descriptors > 0
    assert machine.available_bytes > 0
    assert preflight.drops() >= 0
    hints = preflight.hints(preflight.settings(100_000_000, 1))
    assert any("fs.file-max" in hint for hint in hints)


def test_a_setting_that_may_not_be_written_is_told_and_the_others_are_put_back() -> None:
    name = "net.core.somaxconn"
    was = sysctls.read(name)
    with (
        pytest.raises(Impossible, match=r"kernel\.random\.boot_id"),
        sysctls.changed({name: was, "kernel.random.boot_id": "x"}),
    ):
        raise AssertionError("not reached")
    assert sysctls.read(name) == was
