"""What a host is asked to hold: the target that findings are measured against, with its arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass

RESERVED_DESCRIPTORS = 100
"""Descriptors of a worker that are not connections: its epoll set, listeners, Redis pipes, log, shared page, and slack
for requests that aiohttp holds for a moment."""

LISTEN_BACKLOG = 65_535
"""What Moorage passes to listen(2); the kernel takes the smaller of this and net.core.somaxconn."""

SIGMAS = 4
"""SO_REUSEPORT spreads connections by hash, so the fullest worker has more than the mean: 4 standard deviations more is
not exceeded in 30,000 fillings of a worker."""

PACKETS_PER_CONNECT = 3
"""Packets that arrive for one new connection before its first message is answered: SYN, ACK, the first line."""

SOFTIRQ_PAUSE_SECONDS = 0.01
"""How long a CPU may leave its packet queue alone: softirq yields to other work for a few ticks."""


@dataclass(frozen=True, slots=True)
class Target:
    """Connections this host should hold, and the shape of the traffic.

    Raises: ValueError naming the field that makes no sense.
    """

    connections: int
    held: int = 0  # of them, those that are open already: their memory and descriptors are spent
    workers: int = 1
    balancers: int = 0  # source addresses that connections come from; 0: clients connect directly
    destinations: int = 1  # address:port pairs that a balancer may connect to
    ports: tuple[int, ...] = (7400, 7480, 7490)  # that Moorage listens on
    user_bytes: int = 350  # a connection in user space; Moorage's budget until a running server was measured
    kernel_bytes: int | None = None  # a connection in the kernel: measured, never assumed
    worker_bytes: int = 4_000_000  # private memory of a worker without connections
    storm_seconds: int = 60  # after an outage all clients are back within this time
    pause_seconds: float = 1.0  # the longest a worker may leave its accept queue alone
    busy_percent: int = 10  # connections that have unsent or unread bytes in the kernel at one moment

    def __post_init__(self) -> None:
        for name, least in {
            "connections": 1,
            "held": 0,
            "workers": 1,
            "balancers": 0,
            "destinations": 1,
            "user_bytes": 0,
            "worker_bytes": 0,
            "storm_seconds": 1,
            "busy_percent": 0,
        }.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}: found {getattr(self, name)}, wanted at least {least}")
        if self.kernel_bytes is not None and self.kernel_bytes < 1:
            raise ValueError(f"kernel_bytes: found {self.kernel_bytes}, wanted at least 1")
        if self.busy_percent > 100:
            raise ValueError(f"busy_percent: found {self.busy_percent}, wanted at most 100")
        if not self.pause_seconds > 0:
            raise ValueError(f"pause_seconds: found {self.pause_seconds}, wanted more than 0")
        if bad := [port for port in self.ports if not 0 < port < 65_536]:
            raise ValueError(f"ports: found {bad[0]}, wanted 1 to 65535")

    @property
    def per_worker(self) -> int:
        """Connections on the fullest worker: the mean and `SIGMAS` standard deviations of a fair hash."""
        mean = self.connections / self.workers
        return min(self.connections, math.ceil(mean + SIGMAS * math.sqrt(mean * (1 - 1 / self.workers))))

    @property
    def descriptors(self) -> int:
        """Descriptors that the fullest worker needs."""
        return self.per_worker + RESERVED_DESCRIPTORS

    @property
    def more(self) -> int:
        """Connections still to come."""
        return max(0, self.connections - self.held)

    @property
    def accepts_per_second(self) -> int:
        """Connections arriving at the whole host in a reconnect storm, a second."""
        return math.ceil(self.connections / self.storm_seconds)

    @property
    def busy(self) -> int:
        """Connections that hold kernel buffers at one moment."""
        return math.ceil(self.connections * self.busy_percent / 100)

    def held_by(self, descriptors: int) -> int:
        """The connections this host holds when its fullest worker may have `descriptors` descriptors.

        The inverse of `descriptors`: mean + SIGMAS * sqrt(mean * (1 - 1/workers)) = room, solved for the mean.
        """
        room = descriptors - RESERVED_DESCRIPTORS
        if room <= 0:
            return 0
        spread = SIGMAS * math.sqrt(1 - 1 / self.workers)
        root = (math.sqrt(spread * spread + 4 * room) - spread) / 2
        return max(room, int(root * root * self.workers))
