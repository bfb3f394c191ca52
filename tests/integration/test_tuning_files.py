"""The real tools take what `emit` prints: systemd, a YAML parser, Ansible. For sysctl see test_tuning_namespaces.py."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tuning import advice
from tuning.emit import FORMATS, Service, emit, files
from tuning.facts import from_json
from tuning.plan import Step, plan, portable
from tuning.target import Target

ROOT = Path(__file__).parent.parent.parent
HOSTS = sorted((ROOT / "tests/data/hosts").glob("*.json"))
ANSIBLE = shutil.which(
    "ansible-playbook", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
)


@pytest.fixture(params=HOSTS, ids=lambda path: path.stem)
def steps(request: pytest.FixtureRequest) -> list[Step]:
    """Everything that could be set on a host, so that every kind of setting is there."""
    facts = from_json(json.loads(request.param.read_text()))
    return plan(advice.findings(facts, Target(2_000_000, workers=4, balancers=100)), frugal=True, whole=True)


def yaml(text: str) -> Any:
    if importlib.util.find_spec("yaml") is None:
        pytest.skip("PyYAML is not installed")
    import yaml

    return yaml.safe_load(text)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_takes_the_drop_in(steps: list[Step], tmp_path: Path) -> None:
    service = Service("moorage-under-test")
    folder = tmp_path / "etc/systemd/system"
    drop_in = tmp_path / service.drop_in
    drop_in.parent.mkdir(parents=True)
    text = emit("systemd", steps, service)
    drop_in.write_text(text)
    unit = folder / "moorage-under-test.service"
    unit.write_text("[Unit]\nDescription=test\n[Service]\nExecStart=/bin/true\n")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{folder}:"},
    )
    complaints = [line for line in done.stderr.splitlines() if "moorage-under-test" in line or "90-limits" in line]
    assert not complaints
    assert "LimitNOFILE=" in text


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_would_complain_of_a_wrong_drop_in(tmp_path: Path) -> None:
    """The check above sees the drop-in at all."""
    folder = tmp_path / "etc/systemd/system/x.service.d"
    folder.mkdir(parents=True)
    (folder / "90-limits.conf").write_text("[Service]\nLimitNOFILE=many\n")
    unit = folder.parent / "x.service"
    unit.write_text("[Service]\nExecStart=/bin/true\n")
    environ = {**os.environ, "SYSTEMD_UNIT_PATH": f"{folder.parent}:"}
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    assert "90-limits.conf" in done.stderr


def test_docker_compose_file(steps: list[Step]) -> None:
    service = yaml(emit("docker", steps))["services"]["moorage"]
    nofile = service["ulimits"]["nofile"]
    assert nofile["soft"] == nofile["hard"] >= 500_000
    assert all(isinstance(value, str) and key.startswith("net.") for key, value in service["sysctls"].items())


def test_kubernetes_patch(steps: list[Step]) -> None:
    patch = yaml(emit("kubernetes", steps))
    assert (patch["apiVersion"], patch["kind"], patch["metadata"]["name"]) == ("apps/v1", "Deployment", "moorage")
    sysctls = patch["spec"]["template"]["spec"]["securityContext"]["sysctls"]
    assert sysctls
    assert all(set(one) == {"name", "value"} and isinstance(one["value"], str) for one in sysctls)


def test_ansible_playbook_holds_the_files(steps: list[Step]) -> None:
    (play,) = yaml(emit("ansible", steps))
    copied = {
        task["ansible.builtin.copy"]["dest"].lstrip("/"): task["ansible.builtin.copy"]["content"]
        for task in play["tasks"]
        if "ansible.builtin.copy" in task
    }
    assert copied == files(steps)
    notified = {task["notify"] for task in play["tasks"] if "notify" in task}
    assert notified == {handler["name"] for handler in play["handlers"]}


@pytest.mark.parametrize("form", ["docker", "kubernetes", "ansible"])
def test_nothing_to_set_is_valid_too(form: str) -> None:
    assert yaml(emit(form, []))


@pytest.mark.skipif(ANSIBLE is None, reason="ansible-playbook is not installed")
def test_ansible_takes_the_playbook(tmp_path: Path) -> None:
    assert ANSIBLE is not None
    facts = from_json(json.loads((ROOT / "tests/data/hosts/server-64-cores.json").read_text()))
    found = advice.findings(facts, Target(2_000_000, workers=4, balancers=100))
    playbooks = []
    for name, one in {"all": plan(found, frugal=True, whole=True), "portable": portable(found), "none": []}.items():
        playbooks.append(tmp_path / f"{name}.yml")
        playbooks[-1].write_text(emit("ansible", one))
    environ = {**os.environ, "HOME": str(tmp_path), "ANSIBLE_LOCAL_TEMP": str(tmp_path), "LC_ALL": "C.UTF-8"}
    command = [ANSIBLE, "--syntax-check", "-i", "localhost,", *map(str, playbooks)]
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_form_ends_its_last_line(steps: list[Step]) -> None:
    for form in FORMATS:
        assert emit(form, steps).endswith("\n")
        assert not emit(form, steps).endswith("\n\n")
