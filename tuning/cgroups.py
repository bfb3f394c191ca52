"""Control groups, versions 1 and 2, and what kind of container this is.

A limit counts wherever it is set between the process's own group and the root, so the tightest one is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from tuning.facts import UNLIMITED, Cgroup

# memcontrol.c: version 1 prints an unset limit as PAGE_COUNTER_MAX pages, just under 2**63 bytes.
V1_UNSET = 2**62

MARKS = {"kubepods": "kubernetes", "docker": "docker", "libpod": "podman", "lxc": "lxc", "machine.slice": "nspawn"}
TRACES = {"run/secrets/kubernetes.io": "kubernetes", ".dockerenv": "docker", "run/.containerenv": "podman"}


def read(proc: Path, sys: Path, pid: int | None = None) -> Cgroup:
    """The limits on process `pid`; of this process when None."""
    try:
        paths = _paths((proc / (str(pid) if pid else "self") / "cgroup").read_text())
    except OSError:
        return Cgroup()
    root = sys / "fs/cgroup"
    if (root / "cgroup.controllers").exists() and "" in paths:
        return _version_2(root, paths[""])
    return _version_1(root, paths) if len(paths) > 1 else Cgroup()


def container(proc: Path, *, namespaces_are_host: bool) -> str:
    """What kind of container this process is in, "" when nothing says that it is in one.

    namespaces_are_host: it shares the host's, so that a file which a runtime leaves behind proves nothing: machine
    images are made from container images.
    Raises: OSError when /proc cannot be read.
    """
    paths = (proc / "self/cgroup").read_text()
    for mark, kind in MARKS.items():
        if mark in paths:
            return kind
    if namespaces_are_host:
        return ""
    # With a cgroup namespace of its own a container sees only "/"; the runtimes leave these behind.
    root = proc.parent
    for path, kind in TRACES.items():
        if (root / path).exists():
            return kind
    try:
        return (root / "run/systemd/container").read_text().strip()  # systemd in a container writes down what it is in
    except OSError:
        return ""


def _paths(text: str) -> dict[str, str]:
    """Controller -> path from /proc/PID/cgroup (cgroups(7)); version 2 is the controller ""."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        paths |= dict.fromkeys(controllers.split(","), path)
    return paths


def _up(root: Path, path: str) -> Iterator[Path]:
    """The directories from the process's group up to `root`.

    In a container without a cgroup namespace the path is the host's and not to be seen: then `root` is the group.
    """
    here = PurePosixPath(path).relative_to("/")
    if not (root / here).is_dir():
        here = PurePosixPath()
    yield from (root / part for part in (here, *here.parents))


def _number(path: Path) -> int | None:
    """A limit or a count; UNLIMITED for `max`, None when it cannot be read."""
    try:
        text = path.read_text().strip()
        return UNLIMITED if text == "max" else int(text)
    except (OSError, ValueError):
        return None


def _held(group: Path, used: str, cache: str) -> int | None:
    """Bytes in use by `group`, without `cache` of its memory.stat: pages of files that the kernel drops before it kills."""
    count = _number(group / used)
    try:
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return None if count is None else max(0, count - int(stat[cache]))
    except (OSError, ValueError, KeyError):
        return count


def _tightest(
    directories: list[Path], limits: tuple[str, ...], used: Callable[[Path], int | None]
) -> tuple[int | None, int | None]:
    """The limit with the least room left, and how much is used of it; (UNLIMITED, used) when none is set."""
    if not directories or not directories[-1].is_dir():
        return None, None
    found = [(_number(here / limit), used(here)) for here in directories for limit in limits]
    bounded = [(bound, count) for bound, count in found if bound is not None and bound < V1_UNSET]
    if not bounded:
        return UNLIMITED, used(directories[0])
    return min(bounded, key=lambda pair: pair[0] - (pair[1] or 0))


def _version_2(root: Path, path: str) -> Cgroup:
    here = list(_up(root, path))
    # Above `high` the kernel throttles and reclaims: for a server that is as good as the end.
    memory_max, memory_used = _tightest(
        here, ("memory.max", "memory.high"), lambda group: _held(group, "memory.current", "inactive_file")
    )
    pids_max, pids_used = _tightest(here, ("pids.max",), lambda group: _number(group / "pids.current"))
    quotas = [quota for one in here if (quota := _quota(one / "cpu.max")) is not None]
    return Cgroup(2, memory_max, memory_used, pids_max, pids_used, min(quotas, default=None))


def _quota(path: Path) -> float | None:
    try:
        quota, period = path.read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _version_1(root: Path, paths: dict[str, str]) -> Cgroup:
    memory = list(_up(root / "memory", paths.get("memory", "/")))
    pids = list(_up(root / "pids", paths.get("pids", "/")))
    cpu = list(_up(root / "cpu", paths.get("cpu", "/")))
    memory_max, memory_used = _tightest(
        memory,
        ("memory.limit_in_bytes",),
        lambda group: _held(group, "memory.usage_in_bytes", "total_inactive_file"),
    )
    pids_max, pids_used = _tightest(pids, ("pids.max",), lambda group: _number(group / "pids.current"))
    quotas = []
    for one in cpu:
        quota, period = _number(one / "cpu.cfs_quota_us"), _number(one / "cpu.cfs_period_us")
        if quota is not None and period and quota > 0:
            quotas.append(quota / period)
    return Cgroup(1, memory_max, memory_used, pids_max, pids_used, min(quotas, default=None))
