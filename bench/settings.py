"""What can be set about a scenario: a frozen dataclass each, from which the command line derives."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, TypeVar

TRANSPORTS = ("tcp", "sse")
T = TypeVar("T")
Kind = TypeVar("Kind", bound="Settings")


class Impossible(Exception):
    """The settings ask for what this machine does not allow; the text names the flag, and what would do."""


def option(
    default: T, about: str, read: Callable[[str], object], choices: tuple[str, ...] = (), metavar: str = "N"
) -> T:
    """Declare a setting: its default, its help, and what reads its text. Raises from `read`: ArgumentTypeError."""
    told = {"about": about, "read": read, "choices": choices, "metavar": metavar}
    declared: T = field(default=default, metadata=told)
    return declared


def flag(about: str) -> bool:
    """Declare a setting that is off unless its flag is given."""
    declared: bool = field(default=False, metadata={"about": about, "read": bool, "choices": ()})
    return declared


def at_least(least: int) -> Callable[[str], int]:
    """Return a reader of whole numbers from `least` on."""

    def read(text: str) -> int:
        try:
            value = int(text.replace(",", "").replace("_", ""))
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"found {text!r}, want a whole number of at least {least}")
        return value

    return read


def amount(text: str) -> float:
    """Read a number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"found {text!r}, want a number of at least 0")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What every scenario has."""

    connections: int = option(10_000, "client connections", at_least(1))
    transport: str = option("tcp", "tcp or sse", str, TRANSPORTS)
    workers: int = option(1, "worker processes of the server", at_least(1))
    rounds: int = option(5, "times to measure, alternating with what it is compared to", at_least(1))
    rate: float = option(0.0, "connections opened a second; 0: as fast as they are answered", amount)
    client_processes: int | None = option(None, "client processes (default: as many as descriptors need)", at_least(1))
    redis: str | None = option(None, "URL of a Redis to use instead of the embedded one", str, metavar="URL")


def options(kind: type[Settings]) -> list[Field[Any]]:
    """Return the settings of a scenario in the order in which its help shows them."""
    return [each for each in fields(kind) if each.default is not MISSING]


def add_arguments(parser: argparse.ArgumentParser, kind: type[Settings]) -> None:
    """Add a flag for every setting of `kind`."""
    for each in options(kind):
        about = each.metadata["about"]
        if each.metadata["read"] is bool:
            parser.add_argument("--" + each.name.replace("_", "-"), action="store_true", help=about)
            continue
        parser.add_argument(
            "--" + each.name.replace("_", "-"),
            type=each.metadata["read"],
            default=each.default,
            choices=each.metadata["choices"] or None,
            metavar=None if each.metadata["choices"] else each.metadata["metavar"],
            help=about if each.default in (None, ()) else f"{about} (default: {shown(each.default)})",
        )


def shown(value: object) -> str:
    """Return a setting as a person reads it: 15,000, 25, tcp."""
    if isinstance(value, tuple):
        return ",".join(":".join(map(str, each)) if isinstance(each, tuple) else str(each) for each in value)
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


def from_arguments(args: argparse.Namespace, kind: type[Kind]) -> Kind:
    """Return the settings that were given on the command line."""
    return kind(**{each.name: getattr(args, each.name) for each in options(kind)})
