"""A server that runs already, here or elsewhere: where it listens, and what its admin port says it uses."""

from __future__ import annotations

import argparse
from types import TracebackType

from bench import scrape
from bench.scrape import Address
from bench.settings import Impossible


def addresses(text: str) -> tuple[Address, ...]:
    """Read `HOST:PORT` or several, apart by commas. Raises: ArgumentTypeError."""
    found = []
    for word in text.split(","):
        host, _, port = word.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
            raise argparse.ArgumentTypeError(f"found {word!r}, want HOST:PORT, or several apart by commas")
        found.append((host.strip("[]"), int(port)))
    return tuple(found)


class Remote:
    """Stands where a `Target` stands, for a server that was started by somebody else."""

    def __init__(self, servers: tuple[Address, ...], admin: Address | None) -> None:
        """Ask its admin port, where there is one, so that a mistake shows before the load. Raises: Impossible."""
        self.servers = servers
        self._admin = admin
        self.workers = self._read().get("worker_cpu_seconds_total", (0, 0.0))[0]

    def __enter__(self) -> Remote:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def listens(self, _transport: str) -> Address:
        """Return where clients connect to: the first address that was given."""
        return self.servers[0]

    def cpu_ns(self, role: str = "worker") -> int:
        """Return the CPU time of its workers, as the admin port tells; 0 for others, and without an admin port."""
        return int(1e9 * self._read().get("worker_cpu_seconds_total", (0, 0.0))[1]) if role == "worker" else 0

    def kernel_ns(self) -> int:
        """Return 0: it is not told."""
        return 0

    def memory(self, role: str = "worker") -> int:
        """Return the resident bytes of its workers, with what they share counted in each; 0 for others."""
        return int(self._read().get("worker_resident_bytes", (0, 0.0))[1]) if role == "worker" else 0

    def connections(self) -> int:
        """Return how many sessions it holds; 0 without an admin port. Raises: OSError."""
        return scrape.connections(self._admin) if self._admin else 0

    def _read(self) -> dict[str, tuple[int, float]]:
        """Return how many samples each metric has, and their sum."""
        if self._admin is None:
            return {}
        try:
            return scrape.scrape(self._admin)
        except (OSError, ValueError) as error:
            raise Impossible(f"--admin {self._admin[0]}:{self._admin[1]}: {error}") from error
