"""Settings are made, kept over a restart, and put back; a half-made plan says which half. In a directory of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tuning.apply import NoBackup, Roots, Status, apply, latest_backup, summary, undo
from tuning.facts import Facts
from tuning.finding import Kind, Scope, Setting, Verdict, sysctl
from tuning.plan import Step

SOMAXCONN = "proc/sys/net/core/somaxconn"
FILE_MAX = "proc/sys/fs/file-max"
THP = "sys/kernel/mm/transparent_hugepage/enabled"
SYSCTL_CONF = "etc/sysctl.d/90-moorage.conf"


def step(setting: Setting, scope: Scope = Scope.NETWORK) -> Step:
    return Step(setting, scope, Verdict.LOW, None, "because", "tcp(7)")


BACKLOG = step(sysctl("net.core.somaxconn", 65_535))
FILES = step(sysctl("fs.file-max", 2_000_000), Scope.HOST)
NOFILE = step(Setting(Kind.NOFILE, "nofile", "4096"), Scope.PROCESS)


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    """A /proc, a /sys and an /etc; plain files take any value, as sysctls do."""
    for name, text in {SOMAXCONN: "4096\n", FILE_MAX: "1000000\n", THP: "always\n"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return Roots(tmp_path / "proc", tmp_path / "sys", tmp_path)


def text(roots: Roots, name: str) -> str:
    return (roots.files / name).read_text().strip()


def statuses(results: object) -> list[tuple[str, Status]]:
    assert isinstance(results, list)
    return [(result.what.rpartition("/")[2], result.status) for result in results]


def test_settings_are_made_and_undone(roots: Roots) -> None:
    results = apply([BACKLOG, FILES], Facts(), roots)
    assert statuses(results) == [("net.core.somaxconn", Status.SET), ("fs.file-max", Status.SET)]
    assert results[0].detail == "4096 -> 65535"
    assert (text(roots, SOMAXCONN), text(roots, FILE_MAX)) == ("65535", "2000000")
    assert statuses(undo(Facts(), roots)) == [("fs.file-max", Status.RESTORED), ("net.core.somaxconn", Status.RESTORED)]
    assert (text(roots, SOMAXCONN), text(roots, FILE_MAX)) == ("4096", "1000000")
    with pytest.raises(NoBackup):
        undo(Facts(), roots)


def test_what_is_so_already_is_left_alone(roots: Roots) -> None:
    apply([BACKLOG], Facts(), roots)
    assert statuses(apply([BACKLOG], Facts(), roots)) == [("net.core.somaxconn", Status.ALREADY)]
    assert len(list(roots.backups.iterdir())) == 1


def test_two_applies_are_undone_one_by_one(roots: Roots) -> None:
    apply([BACKLOG], Facts(), roots)
    apply([FILES], Facts(), roots)
    assert statuses(undo(Facts(), roots)) == [("fs.file-max", Status.RESTORED)]
    assert text(roots, SOMAXCONN) == "65535"
    assert statuses(undo(Facts(), roots)) == [("net.core.somaxconn", Status.RESTORED)]


def test_applies_at_the_same_time_are_undone_one_by_one(roots: Roots) -> None:
    names = [f"net.core.setting_{i}" for i in range(16)]
    paths = [roots.proc / "sys" / name.replace(".", "/") for name in names]
    for path in paths:
        path.write_text("1\n")
    with ThreadPoolExecutor(len(names)) as pool:
        done = list(pool.map(lambda name: apply([step(sysctl(name, 2))], Facts(), roots), names))
    assert [statuses(results) for results in done] == [[(name, Status.SET)] for name in names]
    undone = [undo(Facts(), roots)[0].what for _ in names]
    assert sorted(undone) == sorted(names)
    assert [path.read_text() for path in paths] == ["1\n"] * len(paths)


def test_a_half_failed_apply_says_which_half(roots: Roots) -> None:
    missing = step(sysctl("net.ipv4.tcp_migrate_req", 1))
    full = roots.proc / "sys/net/ipv4/tcp_mem"
    full.parent.mkdir(parents=True)
    full.symlink_to("/dev/full")  # reads as zeros, and refuses every write: ENOSPC
    refusing = step(sysctl("net.ipv4.tcp_mem", "1 2 3"), Scope.HOST)
    full.unlink()
    full.mkdir()  # EISDIR on reading
    results = apply([BACKLOG, missing, refusing, FILES], Facts(), roots)
    by_name = {result.what: result for result in results}
    assert by_name["net.core.somaxconn"].status is by_name["fs.file-max"].status is Status.SET
    assert by_name["net.ipv4.tcp_migrate_req"].status is by_name["net.ipv4.tcp_mem"].status is Status.FAILED
    assert "[Errno 2] No such file or directory" in by_name["net.ipv4.tcp_migrate_req"].detail
    assert list(summary(results))[-1] == "2 of 4 not made; the others are"
    undo(Facts(), roots)
    assert (text(roots, SOMAXCONN), text(roots, FILE_MAX)) == ("4096", "1000000")


def test_a_write_that_fails_is_not_in_the_backup(roots: Roots, tmp_path: Path) -> None:
    # A link whose target can be read but not written: on most systems /proc/version refuses even root.
    path = roots.proc / "sys/net/ipv4/tcp_fin_timeout"
    path.parent.mkdir(parents=True)
    path.symlink_to("/proc/version")
    results = apply([step(sysctl("net.ipv4.tcp_fin_timeout", 60)), BACKLOG], Facts(), roots)
    assert statuses(results) == [("net.ipv4.tcp_fin_timeout", Status.FAILED), ("net.core.somaxconn", Status.SET)]
    assert results[0].detail.startswith("stays Linux version")
    backup = latest_backup(roots.backups)
    assert backup is not None
    assert [entry["key"] for entry in json.loads(backup.read_text())] == ["net.core.somaxconn"]


def test_a_value_that_the_kernel_clips_is_a_failure(roots: Roots) -> None:
    path = roots.proc / "sys/net/ipv4/tcp_migrate_req"
    path.parent.mkdir(parents=True)
    path.symlink_to("/dev/null")  # takes any value, and has none
    results = apply([step(sysctl("net.ipv4.tcp_migrate_req", 1))], Facts(), roots)
    assert (results[0].status, results[0].detail) == (Status.FAILED, "wrote 1, the kernel made it ")
    assert latest_backup(roots.backups) is None


def test_what_the_kernel_has_clipped_is_undone(roots: Roots) -> None:
    path = roots.proc / "sys/net/ipv4/tcp_migrate_req"
    path.parent.mkdir(parents=True)
    path.symlink_to(f"/proc/{os.getpid()}/comm")  # takes any value, and keeps 15 bytes of it
    before = path.read_text().strip()
    results = apply([step(sysctl("net.ipv4.tcp_migrate_req", "1" * 20))], Facts(), roots)
    assert (results[0].status, path.read_text().strip()) == (Status.FAILED, "1" * 15)
    assert statuses(undo(Facts(), roots)) == [("net.ipv4.tcp_migrate_req", Status.RESTORED)]
    assert path.read_text().strip() == before
    path.write_text(before)  # without the newline, which is a letter here


def test_nothing_is_lowered(roots: Roots) -> None:
    (roots.files / SOMAXCONN).write_text("100000")
    results = apply([BACKLOG], Facts(), roots)
    assert (results[0].status, results[0].detail) == (Status.REFUSED, "would lower it from 100000 to 65535")
    assert text(roots, SOMAXCONN) == "100000"


def test_an_undo_that_would_cut_off_what_is_open_is_refused_until_it_is_closed(roots: Roots) -> None:
    apply([FILES], Facts(), roots)
    busy = Facts(sysctls={"fs.file-nr": "1500000 0 2000000"})
    assert statuses(undo(busy, roots)) == [("fs.file-max", Status.REFUSED)]
    assert text(roots, FILE_MAX) == "2000000"
    assert statuses(undo(Facts(), roots)) == [("fs.file-max", Status.RESTORED)]


def test_an_undo_leaves_what_somebody_else_set_since(roots: Roots) -> None:
    apply([BACKLOG, FILES], Facts(), roots)
    (roots.files / SOMAXCONN).write_text("8192")
    results = undo(Facts(), roots)
    assert statuses(results) == [("fs.file-max", Status.RESTORED), ("net.core.somaxconn", Status.THEIRS)]
    assert "somebody set it to 8192 since" in results[1].detail
    assert results[1].is_fault
    assert text(roots, SOMAXCONN) == "8192"


def test_what_somebody_else_set_is_not_in_the_way_of_earlier_undos(roots: Roots) -> None:
    apply([FILES], Facts(), roots)
    apply([BACKLOG], Facts(), roots)
    (roots.files / SOMAXCONN).write_text("8192")
    assert statuses(undo(Facts(), roots)) == [("net.core.somaxconn", Status.THEIRS)]
    assert statuses(undo(Facts(), roots)) == [("fs.file-max", Status.RESTORED)]
    assert (text(roots, SOMAXCONN), text(roots, FILE_MAX)) == ("8192", "1000000")


def test_files_that_last(roots: Roots) -> None:
    steps = [BACKLOG, NOFILE]
    results = apply(steps, Facts(), roots, persist=steps)
    assert ("nofile", Status.LATER) in statuses(results)
    assert "net.core.somaxconn = 65535" in text(roots, SYSCTL_CONF)
    assert "LimitNOFILE=4096" in text(roots, "etc/systemd/system/moorage.service.d/90-limits.conf")
    assert "moorage hard nofile 4096" in text(roots, "etc/security/limits.d/90-moorage.conf")
    undo(Facts(), roots)
    assert not (roots.files / SYSCTL_CONF).exists()
    assert text(roots, SOMAXCONN) == "4096"


def test_files_that_were_there_are_restored_with_their_mode(roots: Roots) -> None:
    path = roots.files / SYSCTL_CONF
    path.parent.mkdir(parents=True)
    path.write_text("net.core.somaxconn = 1024\n")
    path.chmod(0o600)
    apply([BACKLOG], Facts(), roots, persist=[BACKLOG])
    assert "65535" in path.read_text()
    undo(Facts(), roots)
    assert path.read_text() == "net.core.somaxconn = 1024\n"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_second_apply_keeps_what_the_first_made_last(roots: Roots) -> None:
    apply([BACKLOG], Facts(), roots, persist=[BACKLOG])
    # Now somaxconn is right, so the next plan has only the other; the whole plan has both.
    apply([FILES], Facts(), roots, persist=[BACKLOG, FILES])
    assert "net.core.somaxconn = 65535" in text(roots, SYSCTL_CONF)
    assert "fs.file-max = 2000000" in text(roots, SYSCTL_CONF)


def test_a_second_apply_keeps_what_its_plan_no_longer_names(roots: Roots) -> None:
    huge = step(Setting(Kind.SYSFS, "kernel/mm/transparent_hugepage/enabled", "madvise", lowers=True))
    apply([BACKLOG, huge], Facts(), roots, persist=[BACKLOG, huge])
    apply([FILES], Facts(), roots, persist=[FILES])
    assert "net.core.somaxconn = 65535" in text(roots, SYSCTL_CONF)
    assert "fs.file-max = 2000000" in text(roots, SYSCTL_CONF)
    assert "w /sys/kernel/mm/transparent_hugepage/enabled - - - - madvise" in text(roots, "etc/tmpfiles.d/moorage.conf")


def test_a_second_apply_does_not_keep_what_somebody_else_set_since(roots: Roots) -> None:
    apply([BACKLOG], Facts(), roots, persist=[BACKLOG])
    (roots.files / SOMAXCONN).write_text("100000\n")
    apply([FILES], Facts(), roots, persist=[FILES])
    assert "somaxconn" not in text(roots, SYSCTL_CONF)


def test_a_second_apply_lowers_no_limit_of_the_service(roots: Roots) -> None:
    less = step(Setting(Kind.NOFILE, "nofile", "1024"), Scope.PROCESS)
    apply([NOFILE], Facts(), roots, persist=[NOFILE])
    apply([BACKLOG], Facts(), roots, persist=[BACKLOG, less])
    assert "LimitNOFILE=4096" in text(roots, "etc/systemd/system/moorage.service.d/90-limits.conf")
    assert "moorage hard nofile 4096" in text(roots, "etc/security/limits.d/90-moorage.conf")


def test_what_was_made_without_files_can_be_made_to_last_later(roots: Roots) -> None:
    untouched = step(sysctl("kernel.pid_max", 4_194_304), Scope.HOST)
    apply([BACKLOG], Facts(), roots)
    results = apply([], Facts(), roots, persist=[BACKLOG, untouched])
    assert statuses(results) == [("90-moorage.conf", Status.SET)]
    assert "net.core.somaxconn = 65535" in text(roots, SYSCTL_CONF)
    assert "pid_max" not in text(roots, SYSCTL_CONF)


def test_settings_below_sys_are_read_by_their_brackets(tmp_path: Path, roots: Roots) -> None:
    (roots.files / THP).write_text("always [madvise] never\n")
    setting = Setting(Kind.SYSFS, "kernel/mm/transparent_hugepage/enabled", "madvise", lowers=True)
    assert statuses(apply([step(setting)], Facts(), roots)) == [("enabled", Status.ALREADY)]


def test_without_a_backup_nothing_is_changed(roots: Roots) -> None:
    roots.backups.parent.parent.mkdir(parents=True)
    roots.backups.parent.write_text("in the way")
    with pytest.raises(OSError, match="Not a directory"):
        apply([BACKLOG], Facts(), roots)
    assert text(roots, SOMAXCONN) == "4096"


def test_a_backup_that_cannot_be_read_is_named(roots: Roots) -> None:
    apply([BACKLOG], Facts(), roots)
    backup = latest_backup(roots.backups)
    assert backup is not None
    backup.write_text('[{"kind": "sysctl"}]')
    with pytest.raises(ValueError, match=r"backup-1\.json"):
        undo(Facts(), roots)


@pytest.fixture
def process() -> Iterator[psutil.Process]:
    """A process of ours that waits on a pipe, with a soft limit below its hard one."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 512)); print(flush=True); "
        "sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        yield psutil.Process(child.pid)
        child.communicate()


def test_limits_of_a_running_process(roots: Roots, process: psutil.Process) -> None:
    more = step(Setting(Kind.NOFILE, "nofile", "512"), Scope.PROCESS)
    results = apply([more], Facts(), roots, pid=process.pid)
    assert statuses(results) == [("nofile", Status.SET)]
    assert process.rlimit(psutil.RLIMIT_NOFILE) == (512, 512)
    assert statuses(undo(Facts(), roots)) == [("nofile", Status.RESTORED)]
    assert process.rlimit(psutil.RLIMIT_NOFILE) == (64, 512)


def test_a_hard_limit_that_may_not_be_raised_is_a_failure_with_its_errno(roots: Roots, process: psutil.Process) -> None:
    more = step(Setting(Kind.NOFILE, "nofile", str(2**31)), Scope.PROCESS)  # over any fs.nr_open, even for root
    result = apply([more], Facts(), roots, pid=process.pid)[0]
    assert result.status is Status.FAILED
    assert result.detail.startswith("stays 64 512: [Errno 1] Operation not permitted")
    assert process.rlimit(psutil.RLIMIT_NOFILE) == (64, 512)


def correct_backup(roots: Roots, found: str, wanted: str) -> None:
    """Have the latest backup say something else."""
    backup = latest_backup(roots.backups)
    assert backup is not None
    text = backup.read_text()
    assert found in text
    backup.write_text(text.replace(found, wanted))


def test_undoing_the_limits_of_a_process_that_is_gone(roots: Roots, process: psutil.Process) -> None:
    apply([step(Setting(Kind.NOFILE, "nofile", "512"), Scope.PROCESS)], Facts(), roots, pid=process.pid)
    correct_backup(roots, f'"pid": {process.pid}', '"pid": 999999999')
    assert statuses(undo(Facts(), roots)) == [("nofile", Status.RESTORED)]


def test_undoing_the_limits_of_a_process_whose_number_is_anothers(roots: Roots, process: psutil.Process) -> None:
    apply([step(Setting(Kind.NOFILE, "nofile", "512"), Scope.PROCESS)], Facts(), roots, pid=process.pid)
    correct_backup(roots, f'"started": {process.create_time()}', '"started": 1.0')
    assert statuses(undo(Facts(), roots)) == [("nofile", Status.RESTORED)]
    assert process.rlimit(psutil.RLIMIT_NOFILE) == (512, 512)
    assert latest_backup(roots.backups) is None


def test_an_undo_leaves_a_process_the_descriptors_it_has(roots: Roots, tmp_path: Path) -> None:
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 512)); print(flush=True); "
        "sys.stdin.readline(); held = [open('/dev/null') for _ in range(100)]; print(flush=True); "
        "sys.stdin.readline(); held.clear(); print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None

        def next_step() -> None:
            child.stdin.write(b"\n")
            child.stdin.flush()
            child.stdout.readline()

        child.stdout.readline()
        more = step(Setting(Kind.NOFILE, "nofile", "512"), Scope.PROCESS)
        apply([more], Facts(), roots, pid=child.pid)
        next_step()
        assert statuses(undo(Facts(), roots)) == [("nofile", Status.REFUSED)]
        assert psutil.Process(child.pid).rlimit(psutil.RLIMIT_NOFILE) == (512, 512)
        next_step()
        assert statuses(undo(Facts(), roots)) == [("nofile", Status.RESTORED)]
        assert psutil.Process(child.pid).rlimit(psutil.RLIMIT_NOFILE) == (64, 512)
        child.communicate()
