"""Kernel settings for the time of a run: written at its start, put back at its end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bench.settings import Impossible

ROOT = Path("/proc/sys")


def read(name: str) -> str:
    """Return the value of a setting such as `net.core.somaxconn`, its numbers apart by single spaces."""
    return " ".join(_path(name).read_text().split())


@contextmanager
def changed(wanted: Mapping[str, str]) -> Iterator[None]:
    """Set these while the context lasts. Raises: Impossible when one may not be written; the others are put back."""
    before: dict[str, str] = {}
    try:
        for name, value in wanted.items():
            was = read(name)
            try:
                _path(name).write_text(value)
            except OSError as error:
                raise Impossible(
                    f"--tune: {name}: {error.strerror}; it takes root, in the host's own namespace"
                ) from error
            before[name] = was
        yield
    finally:
        for name, value in before.items():
            _path(name).write_text(value)


def _path(name: str) -> Path:
    return ROOT / name.replace(".", "/")
