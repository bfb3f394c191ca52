"""What a host says about itself, as data: recorded on one machine, judged on another.

Every item may be None, which means "cannot tell": the file is missing, unreadable, or hidden by a container.
`host.read` fills these in; nothing here touches a host.
"""

from __future__ import annotations

import re
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

UNLIMITED = 2**63 - 1
"""A limit that is not set: RLIM_INFINITY, or `max` in a cgroup file."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Namespaces:
    """Whether what this process sees is the host's own; a container usually has its own of each."""

    network_is_host: bool | None = None
    pid_is_host: bool | None = None
    user_is_host: bool | None = None


@dataclass(frozen=True, slots=True)
class Cpus:
    """Processors: in the machine, and those this process may run on."""

    online: int | None = None
    usable: int | None = None
    clocksource: str | None = None
    numa_nodes: int | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes, where the name does not say otherwise."""

    total: int | None = None
    available: int | None = None
    swap_total: int | None = None
    swap_used: int | None = None
    page_bytes: int | None = None
    commit_limit: int | None = None
    committed: int | None = None
    transparent_huge_pages: str | None = None  # always, madvise or never
    huge_page_bytes: int | None = None
    huge_pages: int | None = None
    huge_pages_free: int | None = None
    huge_pages_reserved: int | None = None  # of the free ones, those promised to somebody who has not touched them yet

    @property
    def huge_pages_in_use(self) -> int | None:
        """Those that somebody has or was promised."""
        if self.huge_pages is None or self.huge_pages_free is None:
            return None
        return self.huge_pages - self.huge_pages_free + (self.huge_pages_reserved or 0)


@dataclass(frozen=True, slots=True)
class Cgroup:
    """The tightest limits on the way from this process's control group up to the root; UNLIMITED when none is set."""

    version: int | None = None
    memory_max: int | None = None  # bytes
    memory_used: int | None = None  # without what the kernel can drop at once
    pids_max: int | None = None  # tasks: threads count
    pids_used: int | None = None
    cpus: float | None = None  # the CPU quota in cores, None when there is no quota


@dataclass(frozen=True, slots=True)
class Process:
    """The process whose limits count: a running worker by its pid, else the one that reads."""

    pid: int | None = None
    name: str | None = None
    nofile_soft: int | None = None
    nofile_hard: int | None = None
    nproc_soft: int | None = None
    descriptors: int | None = None
    may_raise: bool | None = None  # CAP_SYS_RESOURCE: may lift its own hard limits


@dataclass(frozen=True, slots=True)
class Sockets:
    """The kernel's own counts. `tcp_pages`, `softnet_drops` are the host's, the others the network namespace's."""

    tcp_inuse: int | None = None
    tcp_time_wait: int | None = None
    tcp_pages: int | None = None
    listen_overflows: int | None = None
    softnet_drops: int | None = None


@dataclass(frozen=True, slots=True)
class Nic:
    """A network card: its queues and which processors serve them."""

    name: str
    speed_mbit: int | None = None
    rx_queues: int | None = None
    tx_queues: int | None = None
    numa_node: int | None = None
    irq_cpus: tuple[tuple[int, ...], ...] = ()  # per interrupt of the card: the CPUs it is delivered to
    rps_cpus: tuple[int, ...] = ()  # per receive queue: how many CPUs its mask holds
    xps_cpus: tuple[int, ...] = ()  # per transmit queue


@dataclass(frozen=True, slots=True)
class Facts:
    """One host, as one process sees it."""

    kernel: str | None = None
    container: str | None = None  # "docker", "kubernetes", ...; "" when it is none; None: cannot tell
    namespaces: Namespaces = Namespaces()
    cpus: Cpus = Cpus()
    memory: Memory = Memory()
    cgroup: Cgroup = Cgroup()
    process: Process = Process()
    sockets: Sockets = Sockets()
    tasks: int | None = None  # threads alive on the host
    nics: tuple[Nic, ...] | None = None
    sysctls: Mapping[str, str] = field(default_factory=dict)  # by dotted name; what cannot be read is absent

    def is_older_than(self, major: int, minor: int) -> bool:
        """Whether the kernel says that it is; False where it says nothing."""
        found = re.match(r"(\d+)\.(\d+)", self.kernel or "")
        return found is not None and (int(found[1]), int(found[2])) < (major, minor)

    def numbers(self, name: str) -> tuple[int, ...] | None:
        """The numbers of sysctl `name`; None when it is absent or not made of numbers."""
        words = self.sysctls.get(name, "").split()
        try:
            return tuple(int(word) for word in words) or None
        except ValueError:
            return None

    def number(self, name: str) -> int | None:
        """The first number of sysctl `name`, or None."""
        numbers = self.numbers(name)
        return numbers[0] if numbers else None

    def three(self, name: str) -> tuple[int, int, int] | None:
        """A sysctl of three numbers: low, pressure, high or min, default, max."""
        numbers = self.numbers(name)
        return (numbers[0], numbers[1], numbers[2]) if numbers is not None and len(numbers) == 3 else None


def to_json(facts: Facts) -> dict[str, Any]:
    """`facts` as plain objects for json.dumps."""
    plain = asdict(facts)
    plain["sysctls"] = dict(facts.sysctls)
    return plain


def from_json(document: object) -> Facts:
    """Facts from what `to_json` made. A missing field is None, an unknown one (of a newer release) is ignored.

    Raises: ValueError naming the field, what was found and what is wanted.
    """
    return _build(Facts, document, "facts")


def _build(kind: type[T], document: object, where: str) -> T:
    if not isinstance(document, dict):
        raise ValueError(f"{where}: found {document!r:.80}, wanted an object")
    assert is_dataclass(kind)
    hints = get_type_hints(kind)
    names = [f.name for f in fields(kind)]
    try:
        values: dict[str, Any] = {
            name: _value(hints[name], document[name], f"{where}.{name}") for name in names if name in document
        }
        return kind(**values)
    except TypeError as fault:  # a Nic without its name
        raise ValueError(f"{where}: {fault}") from None


def _value(hint: object, found: object, where: str) -> object:
    """`found` as the type `hint` says."""
    if get_origin(hint) in (Union, types.UnionType):
        if found is None:
            return None
        hint = next(choice for choice in get_args(hint) if choice is not type(None))
    if is_dataclass(hint):
        assert isinstance(hint, type)
        return _build(hint, found, where)
    if get_origin(hint) is tuple:
        if not isinstance(found, list | tuple):
            raise ValueError(f"{where}: found {found!r:.80}, wanted a list")
        return tuple(_value(get_args(hint)[0], item, f"{where}[{i}]") for i, item in enumerate(found))
    if get_origin(hint) is Mapping:
        if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
            raise ValueError(f"{where}: found {found!r:.80}, wanted an object of strings")
        return {str(key): value for key, value in found.items()}
    if hint is float and type(found) is int:
        found = float(found)
    if type(found) is not hint:
        raise ValueError(f"{where}: found {found!r:.80}, wanted {getattr(hint, '__name__', hint)}")
    return found
