"""Redis behind Sentinel: who is the master is asked anew at each connect.

As in https://redis.io/docs/latest/develop/reference/sentinel-clients/: the sentinels are asked one after the other, the first
that knows the master is believed, and whoever connects there looks whether it says so itself (`node.check_role`). If it does not,
or cannot be reached, the next try begins with another sentinel: one that was cut off may be the one that knows no better.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from router.outcome import Refused

if TYPE_CHECKING:
    from router.topology import Node

PORT = 26379
ASK_SECONDS_MAX = 0.5  # for one sentinel, connecting included
SENTINELS_MAX = 9


class NoMaster(Refused):
    """No sentinel could say where the master is; the text holds what each said."""


class Sentinels:
    """The sentinels that watch the master called `master`. `node` is it, but for its address.

    `sign_in` are redis-py's `username` and `password` for the sentinels, where they want any.
    """

    def __init__(self, hosts: Sequence[tuple[str, int]], master: str, node: Node, sign_in: Mapping[str, Any]) -> None:
        self.hosts = hosts
        self.master = master
        self.node = node
        self._sign_in = sign_in
        self._next = random.randrange(len(hosts))  # of many workers, not all ask the same one first
        self._found: Node | None = None

    @property
    def address(self) -> str:
        """What a person reads in a log: the master's name, and where it was found last."""
        return f"{self.master} ({self._found.address if self._found else 'not found yet'})"

    @property
    def tls(self) -> bool:
        """Whether the master and the sentinels speak TLS."""
        return self.node.tls

    @property
    def tls_options(self) -> Mapping[str, Any]:
        """As those of a `Node`."""
        return self.node.tls_options

    def __repr__(self) -> str:
        hosts = ", ".join(f"{host}:{port}" for host, port in self.hosts)
        return f"Sentinels({self.master!r} by {hosts}, {self.node!r})"

    async def locate(self) -> Node:
        """Ask for the master.

        Raises: NoMaster.
        """
        said = []
        first, self._next = self._next, (self._next + 1) % len(self.hosts)
        for host, port in (*self.hosts[first:], *self.hosts[:first]):
            try:
                found = await self._ask(host, port)
            except (RedisError, OSError) as error:  # TimeoutError is an OSError
                said.append(str(error) or f"{host}:{port}: no answer in {ASK_SECONDS_MAX:g} s")
            else:
                if found is not None:
                    self._found = self.node._replace(host=found[0], port=found[1])
                    return self._found
                said.append(f"{host}:{port} knows no master {self.master!r}")
        raise NoMaster("; ".join(said))

    async def _ask(self, host: str, port: int) -> tuple[str, int] | None:
        settings: dict[str, Any] = {f"ssl_{name}": value for name, value in self.tls_options.items()}
        settings |= {"ssl": self.tls, "decode_responses": True, "retry": Retry(NoBackoff(), 0), **self._sign_in}
        sentinel = Redis(host=host, port=port, **settings)
        async with asyncio.timeout(ASK_SECONDS_MAX), sentinel:
            found: tuple[str, int] | None = await sentinel.execute_command(  # type: ignore[no-untyped-call]
                "SENTINEL GET-MASTER-ADDR-BY-NAME", self.master
            )
            return found
