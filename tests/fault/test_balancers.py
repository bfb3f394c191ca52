"""A node behind a balancer is drained and started again, under a crowd of clients and steady publishing."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from balancers import NAME, Balancer, Haproxy, Nginx, Node
from crowd import CHANNEL, DRAINING, STOPPED, Crowd, Way, chart, histogram
from harness import wait_until

from router.embedded import Embedded


class Publisher:
    """Publishes 0, 1, 2, ... through the balancer, one after the other, until it is told to stop."""

    def __init__(self, balancer: Balancer) -> None:
        self.count = 0
        self.again = 0  # publishes that had to be tried again
        self._stopping = False
        self._url = "https://{}:{}/publish?user=publisher".format(*balancer.web)
        self._client = httpx.AsyncClient(verify=balancer.trusted, timeout=20)

    async def run(self, pause_seconds: float) -> None:
        async with self._client as client:
            while not self._stopping:
                await self._publish(client)
                await asyncio.sleep(pause_seconds)

    async def _publish(self, client: httpx.AsyncClient) -> None:
        body = {"channel": CHANNEL, "data": self.count, "idempotency": f"n{self.count}"}
        extensions = {"sni_hostname": NAME}
        while True:
            with contextlib.suppress(httpx.TransportError):
                answer = await client.post(self._url, json=body, headers={"Host": NAME}, extensions=extensions)
                if answer.status_code == 200:
                    self.count += 1
                    return
                assert answer.status_code >= 500, answer.text
            self.again += 1
            await asyncio.sleep(0.05)

    def stop(self) -> None:
        self._stopping = True


@contextlib.asynccontextmanager
async def inside(balancer: Balancer, size: int) -> AsyncIterator[Crowd]:
    """A crowd that has come in."""
    crowd = Crowd(Way(balancer.lines, balancer.web, balancer.trusted, NAME), size)
    try:
        await crowd.gather()
        yield crowd
    finally:
        await crowd.close()


async def drain(node: Node, seconds: float) -> None:
    """Ask `node` to leave, and wait until it has, with exit code 0."""
    assert node.server is not None
    process = node.server.process
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(seconds):
        while process.poll() is None:
            await asyncio.sleep(0.02)
    assert process.returncode == 0, "".join(node.server.log)
    await asyncio.to_thread(node.stop)


async def drain_in_sight(balancer: Balancer, crowd: Crowd, seconds: float) -> None:
    """Drain node a; HAProxy has to notice at once, and to send nobody there any more."""
    began = time.monotonic()
    draining = asyncio.create_task(drain(balancer.a, seconds))
    if isinstance(balancer, Haproxy):
        await crowd.until(lambda: balancer.states("a") == {"DOWN"}, 20)
        before = balancer.sent("a")
        print(f"out of HAProxy's sight after {time.monotonic() - began:.1f} s")
    await draining
    print(f"the drain took {time.monotonic() - began:.1f} s")
    if isinstance(balancer, Haproxy):
        assert balancer.sent("a") == before


async def drained_and_restarted(balancer: Balancer, size: int, window: float, pause: float) -> None:
    """Drain node a and start it again, and account for everything."""
    a, b = balancer.a, balancer.b
    publisher = Publisher(balancer)
    async with inside(balancer, size) as crowd:
        publishing = asyncio.create_task(publisher.run(pause))
        held = await asyncio.to_thread(held_by, a, b, size)
        began = time.monotonic()
        await drain_in_sight(balancer, crowd, 3 * window + 30)
        await asyncio.to_thread(a.start)
        if isinstance(balancer, Haproxy):
            await crowd.until(lambda: balancer.states("a") == {"UP"}, 20)
        await crowd.until(lambda: all(member.is_in for member in crowd.members))
        publisher.stop()
        await publishing
        await crowd.until(lambda: not crowd.lacking(publisher.count))
        report(crowd, publisher, began, window)
        assert not crowd.faults
        assert crowd.told == {DRAINING: held}
        # Who still waited in a queue when the node ended is told that it did.
        assert crowd.refused.keys() <= {DRAINING, STOPPED}
        assert publisher.count > 10
        flat(histogram(crowd.left, began, began + window, 10), held)


def held_by(a: Node, b: Node, size: int) -> int:
    """How many of all `size` connections node a has, once the nodes have counted them all."""
    wait_until(lambda: sessions(a) + sessions(b) == size, "all counted")
    return sessions(a)


def sessions(node: Node) -> int:
    assert node.server is not None
    total = node.server.stats()["total"]
    return int(total["connections_tcp"] + total["connections_sse"])


def report(crowd: Crowd, publisher: Publisher, began: float, window: float) -> None:
    """Print what a person wants to see of it."""
    print(crowd.summary())
    print(f"{publisher.count} messages published, {publisher.again} tries again")
    slices = 20
    print(chart("asked to leave", histogram(crowd.left, began, began + window, slices), window / slices))
    late = [at for at in crowd.came if at > began]
    end = max([began + window, *late]) + 0.001
    print(chart("came back", histogram(late, began, end, slices), (end - began) / slices))


def flat(counts: list[int], total: int) -> None:
    """Nobody was sent away all at once. How even it is shows in print: a busy machine stalls for slices at a time."""
    assert max(counts) < total / 2, counts
    assert sum(count > 0 for count in counts) > len(counts) / 2, counts


BALANCERS = pytest.mark.parametrize("kind", [Haproxy, Nginx])


@contextlib.contextmanager
def running(kind: type[Balancer], directory: Path, *options: str) -> Iterator[Balancer]:
    """A balancer before two nodes on one Valkey."""
    with Embedded() as valkey, kind(directory, valkey.url, *options) as balancer:
        yield balancer


@BALANCERS
async def test_a_node_is_drained_and_restarted(kind: type[Balancer], tmp_path: Path) -> None:
    with running(kind, tmp_path, "--workers", "1", "--drain-seconds", "4") as balancer:
        await drained_and_restarted(balancer, size=400, window=4.0, pause=0.1)


@pytest.mark.long
@pytest.mark.timeout(600)
@BALANCERS
async def test_a_node_is_drained_under_5000(kind: type[Balancer], tmp_path: Path) -> None:
    with running(kind, tmp_path, "--workers", "2", "--drain-seconds", "60") as balancer:
        await drained_and_restarted(balancer, size=5000, window=60.0, pause=0.5)


@pytest.mark.long
@pytest.mark.timeout(300)
@BALANCERS
async def test_what_an_idle_connection_costs_a_balancer(kind: type[Balancer], tmp_path: Path) -> None:
    """In its user space, with TLS, half lines and half events."""
    with running(kind, tmp_path, "--workers", "1") as balancer:
        taken = []
        for size in (500, 2500):
            async with inside(balancer, size):
                taken.append(balancer.memory_bytes())
        cost = (taken[1] - taken[0]) / 2000
        print(f"{balancer.program}: {cost:.0f} bytes a connection")
        assert 0 < cost < 100_000
