"""The tightest control group limit counts, in version 1 and 2, in and outside a container."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuning import cgroups
from tuning.facts import UNLIMITED, Cgroup


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def read(root: Path) -> Cgroup:
    return cgroups.read(root / "proc", root / "sys")


def test_version_2_takes_the_group_with_the_least_room(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/system.slice/moorage.service",
            "sys/fs/cgroup/cgroup.controllers": "cpu memory pids",
            "sys/fs/cgroup/system.slice/memory.max": "5000",
            "sys/fs/cgroup/system.slice/memory.current": "4900",
            "sys/fs/cgroup/system.slice/pids.max": "max",
            "sys/fs/cgroup/system.slice/cpu.max": "150000 100000",
            "sys/fs/cgroup/system.slice/moorage.service/memory.max": "2000",
            "sys/fs/cgroup/system.slice/moorage.service/memory.current": "1000",
            "sys/fs/cgroup/system.slice/moorage.service/pids.max": "512",
            "sys/fs/cgroup/system.slice/moorage.service/pids.current": "7",
            "sys/fs/cgroup/system.slice/moorage.service/cpu.max": "max 100000",
        },
    )
    assert read(tmp_path) == Cgroup(2, 5000, 4900, 512, 7, 1.5)


def test_version_2_throttling_counts_as_the_end(tmp_path: Path) -> None:
    here = "sys/fs/cgroup/a"
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/a",
            "sys/fs/cgroup/cgroup.controllers": "memory",
            f"{here}/memory.max": "9000",
            f"{here}/memory.high": "8000",
            f"{here}/memory.current": "10",
        },
    )
    assert read(tmp_path).memory_max == 8000


def test_version_2_throttling_of_one_group_does_not_hide_the_end_of_another(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/slice/service",
            "sys/fs/cgroup/cgroup.controllers": "memory",
            "sys/fs/cgroup/slice/memory.max": "9000",
            "sys/fs/cgroup/slice/memory.current": "8900",
            "sys/fs/cgroup/slice/service/memory.high": "4000",
            "sys/fs/cgroup/slice/service/memory.current": "1000",
        },
    )
    found = read(tmp_path)
    assert (found.memory_max, found.memory_used) == (9000, 8900)


def test_pages_of_files_that_were_read_are_not_in_the_way(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/a",
            "sys/fs/cgroup/cgroup.controllers": "memory",
            "sys/fs/cgroup/a/memory.max": "9000",
            "sys/fs/cgroup/a/memory.current": "8900",
            "sys/fs/cgroup/a/memory.stat": "anon 900\nfile 8000\nactive_file 2000\ninactive_file 6000",
        },
    )
    assert (read(tmp_path).memory_max, read(tmp_path).memory_used) == (9000, 2900)
    older = tmp_path / "older"
    write(
        older,
        {
            "proc/self/cgroup": "4:memory:/\n8:pids:/",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9000",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "8900",
            "sys/fs/cgroup/memory/memory.stat": "inactive_file 0\ntotal_inactive_file 6000",
        },
    )
    assert (read(older).memory_max, read(older).memory_used) == (9000, 2900)


def test_version_2_in_a_container_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    for path in ("0::/", "0::/docker/0123456789abcdef"):
        write(
            tmp_path,
            {
                "proc/self/cgroup": path,
                "sys/fs/cgroup/cgroup.controllers": "memory pids",
                "sys/fs/cgroup/memory.max": "2147483648",
                "sys/fs/cgroup/memory.current": "100",
                "sys/fs/cgroup/pids.max": "100",
                "sys/fs/cgroup/pids.current": "9",
            },
        )
        assert read(tmp_path) == Cgroup(2, 2_147_483_648, 100, 100, 9, None)


def test_no_limit_is_unlimited_not_unknown(tmp_path: Path) -> None:
    write(tmp_path, {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cgroup.controllers": "memory pids"})
    assert read(tmp_path).memory_max == UNLIMITED
    assert read(tmp_path).pids_max == UNLIMITED


def test_version_1(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/docker/abc\n8:pids:/docker/abc\n2:cpu,cpuacct:/docker/abc\n0::/",
            "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": "1073741824",
            "sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes": "5",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            "sys/fs/cgroup/pids/docker/abc/pids.max": "64",
            "sys/fs/cgroup/pids/docker/abc/pids.current": "3",
            "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_quota_us": "50000",
            "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_period_us": "100000",
        },
    )
    assert read(tmp_path) == Cgroup(1, 1_073_741_824, 5, 64, 3, 0.5)


def test_version_1_unset_limits(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/\n8:pids:/",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            "sys/fs/cgroup/pids/pids.current": "3",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        },
    )
    found = read(tmp_path)
    assert (found.memory_max, found.pids_max, found.cpus) == (UNLIMITED, UNLIMITED, None)


def test_nothing_to_read_is_cannot_tell(tmp_path: Path) -> None:
    assert read(tmp_path) == Cgroup()
    write(tmp_path, {"proc/self/cgroup": "0::/a"})
    assert read(tmp_path) == Cgroup()


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"proc/self/cgroup": "0::/kubepods/burstable/pod1"}, "kubernetes"),
        ({"proc/self/cgroup": "0::/system.slice/docker-0123.scope"}, "docker"),
        ({"proc/self/cgroup": "0::/", ".dockerenv": ""}, "docker"),
        ({"proc/self/cgroup": "0::/", "run/.containerenv": ""}, "podman"),
        ({"proc/self/cgroup": "0::/", "run/systemd/container": "lxc"}, "lxc"),
        ({"proc/self/cgroup": "0::/user.slice"}, ""),
    ],
)
def test_containers_are_told_by_their_traces(tmp_path: Path, files: dict[str, str], kind: str) -> None:
    write(tmp_path, files)
    assert cgroups.container(tmp_path / "proc", namespaces_are_host=False) == kind


def test_a_machine_image_made_from_a_container_image_is_a_machine(tmp_path: Path) -> None:
    write(tmp_path, {"proc/self/cgroup": "0::/", ".dockerenv": ""})
    assert cgroups.container(tmp_path / "proc", namespaces_are_host=True) == ""
