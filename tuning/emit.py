"""Writes settings in the words of other tools: files of a host, containers, configuration management.

Values come from `plan`; each carries the arithmetic that led to it, so that whoever finds the file later can redo it.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tuning.finding import Kind, Scope
from tuning.plan import Step

SYSCTL_FILE = "etc/sysctl.d/90-moorage.conf"
LIMITS_FILE = "etc/security/limits.d/90-moorage.conf"
TMPFILES_FILE = "etc/tmpfiles.d/moorage.conf"

# Kubernetes' list of sysctls a pod may set without the kubelet's leave (kubernetes.io/docs: "Using sysctls").
KUBERNETES_SAFE = frozenset(
    f"net.ipv4.{name}"
    for name in (
        "ip_local_port_range",
        "ip_local_reserved_ports",
        "ip_unprivileged_port_start",
        "tcp_fin_timeout",
        "tcp_keepalive_intvl",
        "tcp_keepalive_probes",
        "tcp_keepalive_time",
        "tcp_rmem",
        "tcp_syncookies",
        "tcp_wmem",
    )
)


@dataclass(frozen=True, slots=True)
class Service:
    """How the server is called on the host."""

    name: str = "moorage"
    user: str = "moorage"

    @property
    def unit(self) -> str:
        """Its systemd unit; the suffix may be said."""
        return f"{self.name.removesuffix('.service')}.service"

    @property
    def drop_in(self) -> str:
        """The systemd drop-in, below the root."""
        return f"etc/systemd/system/{self.unit}.d/90-limits.conf"


MOORAGE = Service()


def emit(form: str, steps: Sequence[Step], service: Service = MOORAGE) -> str:
    """`steps` in the form called `form`, one of `FORMATS`; ends with a newline.

    Raises: KeyError for another form.
    """
    return FORMATS[form](steps, service)


def files(steps: Sequence[Step], service: Service = MOORAGE) -> dict[str, str]:
    """Path below the root -> text: everything that makes `steps` last over a restart. Empty files are left out."""
    kinds = {step.setting.kind for step in steps}
    found = {}
    if Kind.SYSCTL in kinds:
        found[SYSCTL_FILE] = sysctl_d(steps, service)
    if Kind.NOFILE in kinds:
        found[LIMITS_FILE] = limits_d(steps, service)
    if kinds & {Kind.NOFILE, Kind.UNIT}:
        found[service.drop_in] = systemd(steps, service)
    if Kind.SYSFS in kinds:
        found[TMPFILES_FILE] = tmpfiles_d(steps, service)
    return found


def sysctl_d(steps: Sequence[Step], _: Service) -> str:
    """sysctl.d(5)."""
    blocks = [
        # Conntrack's sysctls exist once its module is loaded, which may be after boot: "-" lets that pass.
        f"{_why(step)}{'-' if 'nf_conntrack' in step.setting.key else ''}{step.setting.key} = {step.setting.value}\n"
        for step in _of(steps, Kind.SYSCTL)
    ]
    return "# Kernel settings for Moorage, by `moorage tuning`.\n\n" + "\n".join(blocks)


def limits_d(steps: Sequence[Step], service: Service) -> str:
    """limits.conf(5): for whoever starts the server from a login; systemd does not read it."""
    lines = [
        f"{_why(step)}{service.user} soft nofile {step.setting.value}\n{service.user} hard nofile "
        f"{step.setting.value}\n"
        for step in _of(steps, Kind.NOFILE)
    ]
    return "# Limits of Moorage's user, by `moorage tuning`.\n\n" + "\n".join(lines)


def systemd(steps: Sequence[Step], service: Service) -> str:
    """A drop-in for the service's unit, systemd.exec(5)."""
    blocks = [f"{_why(step)}LimitNOFILE={step.setting.value}\n" for step in _of(steps, Kind.NOFILE)]
    blocks += [f"{_why(step)}{step.setting.key}={step.setting.value}\n" for step in _of(steps, Kind.UNIT)]
    return f"# Limits of {service.unit}, by `moorage tuning`.\n[Service]\n" + "\n".join(blocks)


def tmpfiles_d(steps: Sequence[Step], _: Service) -> str:
    """tmpfiles.d(5): what is written to /sys at every boot."""
    lines = [f"{_why(step)}w /sys/{step.setting.key} - - - - {step.setting.value}\n" for step in _of(steps, Kind.SYSFS)]
    return "# Settings below /sys for Moorage, by `moorage tuning`.\n\n" + "\n".join(lines)


def docker(steps: Sequence[Step], service: Service) -> str:
    """A Compose file's part for the service; what only the host can set is a comment."""
    inside, outside = _split(steps)
    out = ["# docker-compose.yml: the limits of the service, by `moorage tuning`.\n", _outside(outside)]
    out.append(f"services:\n  {service.name}:\n")
    nofile = [step.setting.value for step in _of(steps, Kind.NOFILE)]
    out += [f"    ulimits:\n      nofile:\n        soft: {value}\n        hard: {value}\n" for value in nofile]
    out += [
        f"    pids_limit: {step.setting.value}\n" for step in _of(steps, Kind.UNIT) if step.setting.key == "TasksMax"
    ]
    if inside:
        out.append("    sysctls:\n")
        out += [f"{_why(step, 6)}      {step.setting.key}: {json.dumps(step.setting.value)}\n" for step in inside]
    if len(out) == 3:
        out[-1] = f"services:\n  {service.name}: {{}}\n"
    return "".join(out)


def kubernetes(steps: Sequence[Step], service: Service) -> str:
    """A patch for a Deployment; `kubectl patch --patch-file` or a kustomization takes it."""
    inside, outside = _split(steps)
    unsafe = [step.setting.key for step in inside if step.setting.key not in KUBERNETES_SAFE]
    out = ["# A patch for the Deployment, by `moorage tuning`.\n"]
    if unsafe:
        out.append("# The kubelet of every node must allow these first:\n")
        out.append(f"#   --allowed-unsafe-sysctls={','.join(unsafe)}\n")
    for step in _of(steps, Kind.NOFILE):
        out.append(
            "# A pod cannot set RLIMIT_NOFILE; it has its container runtime's. On every node, in the runtime's unit:\n"
        )
        out.append(f"#   LimitNOFILE={step.setting.value}\n")
    out.append(_outside(outside))
    out.append(
        f"apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: {service.name}\nspec:\n  template:\n    spec:\n"
    )
    out.append("      securityContext:\n")
    out.append("        sysctls:\n" if inside else "        sysctls: []\n")
    for step in inside:
        out.append(f"{_why(step, 10)}          - name: {step.setting.key}\n")
        out.append(f"            value: {json.dumps(step.setting.value)}\n")
    return "".join(out)


def ansible(steps: Sequence[Step], service: Service) -> str:
    """A playbook of modules that ansible-core itself has."""
    out = ["# Kernel settings for Moorage, by `moorage tuning`.\n- name: Kernel limits for Moorage\n"]
    out.append(f"  hosts: {service.name}\n  become: true\n  tasks:\n")
    written = files(steps, service)
    # limits.d needs no command: every login reads it.
    commands = {**_LOADS, service.drop_in: "systemctl daemon-reload"}
    loads = {path: commands[path] for path in written if path in commands}
    for path, text in written.items():
        folder = path.rpartition("/")[0]
        out.append(f"    - name: Make /{folder}\n      ansible.builtin.file:\n        path: /{folder}\n")
        out.append('        state: directory\n        mode: "0755"\n')
        out.append(f"    - name: Write /{path}\n      ansible.builtin.copy:\n        dest: /{path}\n")
        out.append(f'        mode: "0644"\n        content: |\n{textwrap.indent(text, " " * 10)}')
        out.append(f"      notify: Load /{path}\n" if path in loads else "")
    if not written:
        out[-1] = out[-1].replace("tasks:\n", "tasks: []\n")
    if loads:
        out.append("  handlers:\n")
    for path, command in loads.items():
        out.append(f"    - name: Load /{path}\n      ansible.builtin.command: {command}\n      changed_when: true\n")
    return "".join(out)


_LOADS = {
    SYSCTL_FILE: f"sysctl --load /{SYSCTL_FILE}",
    TMPFILES_FILE: f"systemd-tmpfiles --create /{TMPFILES_FILE}",
}

FORMATS: dict[str, Callable[[Sequence[Step], Service], str]] = {
    "sysctl.d": sysctl_d,
    "limits.d": limits_d,
    "systemd": systemd,
    "docker": docker,
    "kubernetes": kubernetes,
    "ansible": ansible,
}


def _of(steps: Iterable[Step], kind: Kind) -> list[Step]:
    return [step for step in steps if step.setting.kind is kind]


def _split(steps: Sequence[Step]) -> tuple[list[Step], list[Step]]:
    """What a container may set for its own network namespace, and what only its host can."""
    sysctls = _of(steps, Kind.SYSCTL)
    inside = [step for step in sysctls if step.scope is Scope.NETWORK]
    return inside, [step for step in sysctls if step.scope is not Scope.NETWORK] + _of(steps, Kind.SYSFS)


def _outside(steps: Sequence[Step]) -> str:
    """Comments that say what to set on the host."""
    lines = [f"#   {step.setting.command()}\n" for step in steps]
    return "".join(["# On every host, outside the container:\n", *lines]) if lines else ""


def _why(step: Step, indent: int = 0) -> str:
    """The reason and the source as comment lines."""
    lines = textwrap.wrap(step.reason, 110 - indent) + textwrap.wrap(f"Source: {step.source}", 110 - indent)
    return "".join(f"{' ' * indent}# {line}\n" for line in lines)
