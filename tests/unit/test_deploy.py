"""The image and the manifest: they fit the server's options, and their numbers fit each other."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from dockerfile import copied, instructions

from commands import COMMANDS, serve
from server import config, limits
from server.config import Config

ROOT = Path(__file__).parents[2]
SECRET = "s" * 64


def behind_drain() -> float:
    """The seconds that a server may take after its drain window."""
    return limits.DRAIN_EXTRA_SECONDS + limits.DRAIN_QUEUE_SECONDS + limits.STOP_SECONDS_MAX


def parsed(argv: list[str], environ: dict[str, str], read_file: dict[str, Path] | None = None) -> Config:
    """What `moorage` makes of `argv`, with the files of the container read from here."""
    assert argv[0] == "serve"
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    args = vars(parser.parse_args(argv[1:]))
    path = args.pop("config", None)
    flags = {name: value for name, value in args.items() if name in config.OPTIONS}
    return config.load(flags, environ, str(read_file[path]) if read_file and path else None)


# The image.


def test_everything_that_is_copied_is_there_and_let_through() -> None:
    ignore = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().splitlines()
    for sources, _ in copied():
        for source in sources:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in ignore


def test_everything_that_ships_is_copied() -> None:
    assert {source for sources, _ in copied() for source in sources} >= {
        "commands",
        "server",
        "router",
        "tuning",
        "bench",
        "workers.py",
        "requirements.lock",
    }


def test_the_image_runs_the_server_as_nobody() -> None:
    found = dict(instructions())
    command = json.loads(found["CMD"])
    assert json.loads(found["ENTRYPOINT"]) == ["moorage"]
    assert command[0] in COMMANDS
    options = parsed(command, {"MOORAGE_AUTH_SECRET": SECRET})
    assert {address.port for address in (*options.tcp, *options.http)} == {
        int(port) for port in found["EXPOSE"].split()
    }
    assert not any(address.is_loopback for address in (*options.tcp, *options.http))
    assert options.admin.is_loopback
    with pytest.raises(config.ConfigError):
        parsed(command, {})
    assert int(found["USER"].split(":")[0]) > 0
    assert f"127.0.0.1:{options.http[0].port}/healthz" in found["HEALTHCHECK"]
    bases = [rest.split()[0] for name, rest in instructions() if name == "FROM"]
    assert len(set(bases)) == 1, "the environment is moved from one to the other"


def test_the_versions_that_build_are_found_in_the_lock() -> None:
    (script,) = re.findall(r"sed -n '(.*?)' requirements-dev\.lock", (ROOT / "deploy" / "Dockerfile").read_text())
    assert script == r"s/^\([a-z].*\) \\$/\1/p"
    pins = re.findall(r"^([a-z].*) \\$", (ROOT / "requirements-dev.lock").read_text(), re.MULTILINE)
    assert any(pin.startswith("hatchling==") for pin in pins)


# The manifest.


@pytest.fixture(scope="module")
def manifest() -> dict[str, dict[str, Any]]:
    """Every object by its kind and name."""
    found = yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text())
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in found}


@pytest.fixture(scope="module")
def pod(manifest: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = manifest["Deployment/moorage"]["spec"]["template"]["spec"]
    return found


@pytest.fixture
def options(manifest: dict[str, Any], pod: dict[str, Any], tmp_path: Path) -> Config:
    """What the server in the pod runs with."""
    (container,) = pod["containers"]
    file = tmp_path / "moorage.toml"
    file.write_text(manifest["ConfigMap/moorage"]["data"]["moorage.toml"])
    secrets = {"redis": "redis://redis:6379", "auth-secret": SECRET, "admin-key": SECRET}
    environ = {each["name"]: secrets[each["valueFrom"]["secretKeyRef"]["key"]] for each in container["env"]}
    return parsed(container["args"], environ, {"/etc/moorage/moorage.toml": file})


def test_the_pod_runs_a_configuration_that_the_server_takes(pod: dict[str, Any], options: Config) -> None:
    (container,) = pod["containers"]
    known = {option.variable for option in config.OPTIONS.values()}
    assert {each["name"] for each in container["env"]} <= known
    assert options.admin_key is not None
    assert not options.is_open
    assert options.workers == int(container["resources"]["requests"]["cpu"])
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts["config"] == "/etc/moorage"
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}


def test_a_pod_has_the_time_to_drain(pod: dict[str, Any], options: Config) -> None:
    (container,) = pod["containers"]
    before = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert before > 0
    assert pod["terminationGracePeriodSeconds"] > before + options.drain_seconds + behind_drain()


def test_probes_ask_the_ports_that_the_server_has(
    pod: dict[str, Any], options: Config, manifest: dict[str, Any]
) -> None:
    (container,) = pod["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"tcp": options.tcp[0].port, "http": options.http[0].port, "admin": options.admin.port}
    paths = {"startupProbe": "/healthz", "readinessProbe": "/readyz", "livenessProbe": "/healthz"}
    for probe, path in paths.items():
        assert container[probe]["httpGet"] == {"path": path, "port": "http"}
    ready, alive = container["readinessProbe"], container["livenessProbe"]
    assert ready["periodSeconds"] * ready["failureThreshold"] <= 5
    assert alive["periodSeconds"] * alive["failureThreshold"] >= 30
    for name in ("Service/moorage", "Service/moorage-admin"):
        assert {port["targetPort"] for port in manifest[name]["spec"]["ports"]} <= ports.keys()
    assert "admin" not in {port["targetPort"] for port in manifest["Service/moorage"]["spec"]["ports"]}


def test_a_rolling_update_takes_nobody_away_first(
    manifest: dict[str, Any], pod: dict[str, Any], options: Config
) -> None:
    spec = manifest["Deployment/moorage"]["spec"]
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert spec["progressDeadlineSeconds"] > pod["terminationGracePeriodSeconds"]
    assert manifest["PodDisruptionBudget/moorage"]["spec"]["maxUnavailable"] == 1
    labels = spec["template"]["metadata"]["labels"]
    for selector in (
        spec["selector"]["matchLabels"],
        manifest["Service/moorage"]["spec"]["selector"],
        manifest["Service/moorage-admin"]["spec"]["selector"],
        manifest["PodDisruptionBudget/moorage"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()


def test_the_pod_may_do_little(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    user = dict(instructions())["USER"]
    assert f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" == user
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["enableServiceLinks"] is False
    assert container["image"].startswith("moorage:")
