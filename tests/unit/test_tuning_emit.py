"""Settings in the words of other tools. That the tools take them is in integration/test_tuning_files.py."""

from __future__ import annotations

import pytest

from tuning.emit import FORMATS, SYSCTL_FILE, TMPFILES_FILE, Service, emit, files
from tuning.finding import Kind, Scope, Setting, Verdict, sysctl
from tuning.plan import Step


def step(setting: Setting, scope: Scope) -> Step:
    return Step(setting, scope, Verdict.LOW, "1", "because 1 + 1 = 2", "tcp(7)")


STEPS = [
    step(sysctl("net.core.somaxconn", 65_535), Scope.NETWORK),
    step(sysctl("net.ipv4.tcp_rmem", "4096 131072 262144"), Scope.NETWORK),
    step(sysctl("fs.file-max", 2_000_000), Scope.HOST),
    step(sysctl("net.netfilter.nf_conntrack_max", 2_000_000), Scope.HOST),
    step(Setting(Kind.NOFILE, "nofile", "1048576"), Scope.PROCESS),
    step(Setting(Kind.UNIT, "TasksMax", "4096"), Scope.CGROUP),
    step(Setting(Kind.SYSFS, "kernel/mm/transparent_hugepage/enabled", "madvise"), Scope.HOST),
]


def lines(form: str) -> list[str]:
    return [line for line in emit(form, STEPS).splitlines() if line and not line.lstrip().startswith("#")]


def test_sysctl_d() -> None:
    assert lines("sysctl.d") == [
        "net.core.somaxconn = 65535",
        "net.ipv4.tcp_rmem = 4096 131072 262144",
        "fs.file-max = 2000000",
        "-net.netfilter.nf_conntrack_max = 2000000",
    ]


def test_limits_d_and_systemd() -> None:
    assert lines("limits.d") == ["moorage soft nofile 1048576", "moorage hard nofile 1048576"]
    assert lines("systemd") == ["[Service]", "LimitNOFILE=1048576", "TasksMax=4096"]
    assert "chat hard nofile 1048576" in emit("limits.d", STEPS, Service("chat-server", "chat"))


def test_a_unit_may_be_named_with_its_suffix() -> None:
    paths = [path for path in files(STEPS, Service("chat.service")) if "systemd" in path]
    assert paths == ["etc/systemd/system/chat.service.d/90-limits.conf"]
    assert emit("systemd", STEPS, Service("chat.service")) == emit("systemd", STEPS, Service("chat"))


def test_containers_set_only_what_is_theirs() -> None:
    for form in ("docker", "kubernetes"):
        text = emit(form, STEPS)
        assert "net.core.somaxconn" in "".join(lines(form))
        assert "fs.file-max" not in "".join(lines(form))
        assert "#   sysctl -w fs.file-max=2000000" in text
        assert "#   echo madvise > /sys/kernel/mm/transparent_hugepage/enabled" in text


def test_kubernetes_names_what_the_kubelet_must_allow() -> None:
    assert "#   --allowed-unsafe-sysctls=net.core.somaxconn\n" in emit("kubernetes", STEPS)
    assert "LimitNOFILE=1048576" in emit("kubernetes", STEPS)


@pytest.mark.parametrize("form", [form for form in FORMATS if form not in ("ansible", "kubernetes")])
def test_reasons_and_sources_stand_by_the_values(form: str) -> None:
    text = emit(form, STEPS)
    if form != "docker":
        assert text.count("# because 1 + 1 = 2\n") == text.count("# Source: tcp(7)\n") >= 1
    assert text.endswith("\n")


def test_files_of_a_host() -> None:
    drop_in = "etc/systemd/system/moorage.service.d/90-limits.conf"
    assert set(files(STEPS)) == {SYSCTL_FILE, TMPFILES_FILE, drop_in, "etc/security/limits.d/90-moorage.conf"}
    assert set(files(STEPS[:1])) == {SYSCTL_FILE}
    assert files([]) == {}
    assert "w /sys/kernel/mm/transparent_hugepage/enabled - - - - madvise\n" in files(STEPS)[TMPFILES_FILE]


def test_a_form_nobody_knows() -> None:
    with pytest.raises(KeyError):
        emit("puppet", STEPS)
