"""The floor: a bare loop of writes to as many sockets of the same kind, drained by another process meanwhile.

It writes the very bytes a subscriber received, from a process on the CPU of the server's worker, to sockets that had a
request and an answer as the server's had (when TCP acknowledges depends on that), and its clients are the same code on
the same CPU as the server's. What a server uses beyond this is its own.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterable
from multiprocessing.connection import Connection
from types import TracebackType

from bench.clients import Plan, raise_descriptor_limit
from bench.load import FORK, Crowd, Failed, sources
from bench.wire import CONNECTED, renumbered

WAIT_SECONDS_MAX = 30.0


class Floor:
    """A forked process that holds accepted sockets and writes to all of them, and the clients that drain them."""

    def __init__(self, connections: int, cpus: Iterable[int] = (), client_cpus: Iterable[int] = ()) -> None:
        """Start it on `cpus` with its clients on `client_cpus`, and open the connections."""
        self.connections = connections
        self._number = 0
        listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self._link, theirs = FORK.Pipe()
        self._process = FORK.Process(target=_serve, args=(theirs, self._link, listener, tuple(cpus)), daemon=True)
        self._process.start()
        theirs.close()
        self._crowd = Crowd(1, client_cpus)
        plan = Plan("tcp", listener.getsockname(), 0, connections, tuple(sources(connections)))
        listener.close()
        try:
            self._link.send(connections)
            opened = self._crowd.open(plan)
            if opened.faults or self._link.recv() != connections:
                raise Failed(f"the bare loop did not get its {connections} connections: {dict(opened.faults)}")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Floor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def us_per_write(self, frame: bytes, passes: int = 1) -> float:
        """Write `frame` to every socket, `passes` times, and return the CPU microseconds of one write.

        Raises: Failed when a write fell short or a client did not receive every frame.
        """
        spent_ns = 0
        for _ in range(passes):
            self._link.send(renumbered(frame, self._number))
            self._number += 1
            self._crowd.expect(self._number, WAIT_SECONDS_MAX)
            spent_ns += self._link.recv()
            tally = self._crowd.arrived()
            if tally.faults or tally.received != self._number * self.connections:
                raise Failed(f"the bare loop's clients received {tally.received} frames: {dict(tally.faults)}")
        return spent_ns / 1000 / (passes * self.connections)

    def close(self) -> None:
        """End the processes."""
        self._link.close()
        self._crowd.stop()
        self._process.join(5)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()


def write_all(descriptors: list[int], frame: bytes) -> int:
    """Write `frame` to every descriptor; return the CPU nanoseconds of it. Raises: OSError, Failed."""
    write, size = os.write, len(frame)
    began = time.process_time_ns()
    for fd in descriptors:
        if write(fd, frame) != size:
            raise Failed("a bare write fell short: its client did not drain the frame before")
    return time.process_time_ns() - began


def _serve(control: Connection, other: Connection, listener: socket.socket, cpus: tuple[int, ...]) -> None:
    other.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise_descriptor_limit()
    if cpus:
        os.sched_setaffinity(0, cpus)
    try:
        descriptors = [_accepted(listener) for _ in range(control.recv())]
        control.send(len(descriptors))
        while True:
            control.send(write_all(descriptors, control.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _accepted(listener: socket.socket) -> int:
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.recv(4096)
    connection.sendall(b"{" + CONNECTED + b"}\n")
    connection.setblocking(False)
    return connection.detach()
