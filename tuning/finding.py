"""One limit of a host, judged: what it is, what it should be, why, and how to get there."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from tuning.facts import UNLIMITED, Facts


class Verdict(StrEnum):
    """What a limit means for the target."""

    OK = "ok"
    LOW = "too low"
    WASTEFUL = "wasteful"
    UNKNOWN = "cannot tell"


class Scope(StrEnum):
    """Whose limit it is, hence where it can be changed."""

    HOST = "host"
    NETWORK = "network namespace"
    PROCESS = "process"
    CGROUP = "cgroup"
    DEVICE = "device"


class Kind(StrEnum):
    """How a setting is made."""

    SYSCTL = "sysctl"  # key is its dotted name
    SYSFS = "sysfs"  # key is the path below /sys
    NOFILE = "nofile"  # RLIMIT_NOFILE of the service, soft and hard
    UNIT = "unit"  # key is a directive of the service's systemd unit


@dataclass(frozen=True, slots=True)
class Setting:
    """One value to write. `lowers`: it takes something away, so it is made only when asked for."""

    kind: Kind
    key: str
    value: str
    lowers: bool = False

    def command(self) -> str:
        """What a person would type, or the line a person would write."""
        match self.kind:
            case Kind.SYSCTL:
                return (
                    f'sysctl -w {self.key}="{self.value}"'
                    if " " in self.value
                    else f"sysctl -w {self.key}={self.value}"
                )
            case Kind.SYSFS:
                return f"echo {self.value} > /sys/{self.key}"
            case Kind.NOFILE:
                return f"LimitNOFILE={self.value} in the systemd unit, or `nofile` in /etc/security/limits.d"
            case Kind.UNIT:
                return f"{self.key}={self.value} in the systemd unit"


@dataclass(frozen=True, slots=True)
class Finding:
    """A row of `moorage tuning check`. Values are text as the kernel writes it; None: not known, or nothing needed."""

    name: str
    limits: str  # what it limits, in one sentence
    scope: Scope
    current: str | None
    needed: str | None
    verdict: Verdict
    how: str  # how to set it
    capped_by: str  # who else caps it
    reason: str  # the arithmetic
    error: str  # what one sees when it binds
    source: str
    setting: Setting | None = None  # what to write; an OK finding has one too, for files meant for other hosts
    stops_at: int | None = None  # connections this host holds before this limit binds

    def to_json(self) -> dict[str, Any]:
        """Plain objects for json.dumps."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Limit:
    """What is always true of a limit; `judge` adds one host's figures."""

    name: str
    limits: str
    scope: Scope
    capped_by: str
    error: str
    source: str

    def judge(
        self,
        verdict: Verdict,
        *,
        current: int | str | None,
        needed: int | str | None,
        reason: str,
        setting: Setting | None = None,
        how: str = "",
        stops_at: int | None = None,
    ) -> Finding:
        """The finding. `how` speaks where no `setting` can: hardware, or somebody else's file."""
        return Finding(
            name=self.name,
            limits=self.limits,
            scope=self.scope,
            current=show(current),
            needed=show(needed),
            verdict=verdict,
            how=how or (setting.command() if setting else "nothing to set"),
            capped_by=self.capped_by,
            reason=reason,
            error=self.error,
            source=self.source,
            setting=setting,
            stops_at=stops_at,
        )

    def at_least(
        self,
        facts: Facts,
        current: int | None,
        needed: int,
        reason: str,
        *,
        setting: Setting | None = None,
        how: str = "",
        stops_at: int | None = None,
    ) -> Finding:
        """The commonest finding: a number that must be at least `needed`."""
        if current is None:
            how, reason = how or hidden(self.scope, facts, setting), f"{reason}; the value cannot be read here"
            return self.judge(Verdict.UNKNOWN, current=None, needed=needed, reason=reason, setting=setting, how=how)
        verdict = Verdict.OK if current >= needed else Verdict.LOW
        return self.judge(
            verdict, current=current, needed=needed, reason=reason, setting=setting, how=how, stops_at=stops_at
        )


def hidden(scope: Scope, facts: Facts, setting: Setting | None) -> str:
    """What to do about a value that cannot be read."""
    where = ""
    if scope is Scope.HOST and (facts.container or facts.namespaces.network_is_host is False):
        where = "on the host, outside this container: "
    return where + (setting.command() if setting else "look where it can be read")


def sysctl(name: str, value: int | str, *, lowers: bool = False) -> Setting:
    """A sysctl set to `value`."""
    return Setting(Kind.SYSCTL, name, str(value), lowers)


def show(value: int | str | None) -> str | None:
    """Text for a value; the largest number is "unlimited"."""
    if value == UNLIMITED:
        return "unlimited"
    return None if value is None else str(value)


def count(value: int) -> str:
    """A number in a sentence: 2,000,000."""
    return "unlimited" if value == UNLIMITED else f"{value:,}"


def size(value: float) -> str:
    """Bytes in a sentence, in binary units: 7.6 GiB."""
    for unit in ("B", "KiB", "MiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value == int(value) else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} GiB"
