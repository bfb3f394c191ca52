"""`/api/stats`: what all workers of the host have counted and use, each and together, as JSON."""

from __future__ import annotations

import os
import time
from typing import Any

from server import host
from server.stats import FIELDS, Histogram, Pages, Stats, total


class Overview:
    """Reads pages and processes when asked. For one thread."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._processes = host.Processes()

    def read(self, clock: float) -> dict[str, Any]:
        """The state at `clock`, in seconds of the workers' clock; some 0.1 ms a worker.

        A worker that has not written yet has `pid` 0, one whose process is gone lacks what the kernel counts.
        """
        snapshots = [page.read() for page in self._pages]
        self._processes.keep({s.pid for s in snapshots})
        workers = []
        for i, snapshot in enumerate(snapshots):
            usage = self._processes.usage(snapshot.pid) if snapshot.pid else None
            workers.append(
                {
                    "worker": i,
                    "pid": snapshot.pid,
                    "restarts": self._pages.restarts(i),
                    "silent_seconds": round(max(0.0, clock - snapshot.clock), 3) if snapshot.pid else None,
                    "uptime_seconds": round(max(0.0, clock - snapshot.started), 3) if snapshot.pid else 0.0,
                    **(usage._asdict() if usage else {}),
                    **as_json(snapshot.stats),
                }
            )
        tcp = host.kernel_tcp()
        return {
            "at": int(time.time() * 1000),
            "supervisor": self._pages.supervisor_pid,
            "admin": os.getpid(),
            "workers": workers,
            "drain": self._drain(clock, sum(s.stats.connections for s in snapshots)),
            "total": {**_used(workers), **as_json(total(s.stats for s in snapshots))},
            "kernel": {"tcp_sockets": tcp.sockets, "tcp_memory_bytes": tcp.memory_bytes} if tcp else {},
        }

    def _drain(self, clock: float, left: int) -> dict[str, Any] | None:
        """How far it has come; None while the server is not left."""
        if (window := self._pages.window) is None:
            return None
        return {
            "seconds": window.seconds,
            "seconds_left": round(window.seconds_left(clock), 3),
            "sessions": window.sessions,
            "sessions_left": left,
        }


def _used(workers: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums of what is not in `Stats`; resident memory is not among them, because workers share pages."""
    names = ("restarts", "cpu_seconds", "open_fds", "fd_limit")
    return {name: sum(worker.get(name, 0) for worker in workers) for name in names}


def as_json(stats: Stats) -> dict[str, Any]:
    """Every number by its attribute's name; of counts by close code those that are not zero."""
    shown: dict[str, Any] = {"connections": stats.connections}
    for field in FIELDS:
        value = getattr(stats, field.name)
        if isinstance(value, Histogram):
            shown[field.metric] = {"count": sum(value.counts), "sum": round(value.total, 6)}
        elif isinstance(value, dict):
            label = (lambda code: code.name.lower()) if field.by_close == "reason" else (lambda code: str(int(code)))
            shown[field.name] = {label(code): count for code, count in value.items() if count}
        else:
            shown[field.name] = value
    return shown
