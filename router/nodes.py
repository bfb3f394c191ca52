"""The nodes of a cluster, as one worker sees them: which has which shard, and one link to each that has any."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from router import slots
from router.link import Link
from router.node import Node, open_pipe
from router.outcome import Refused, Unconfirmed
from router.pipe import Pipe
from router.slots import Address

log = logging.getLogger("moorage.bus")

ASK_SECONDS_MAX = 1.0  # for one node to say who has what; then another is asked
IDLE_SECONDS = 10.0  # a link that nobody uses is closed after this

_T = TypeVar("_T")


class Site(Protocol):
    """A cluster, as `topology.parse` returns it."""

    @property
    def seeds(self) -> Sequence[Address]:
        """The nodes that are asked first."""

    @property
    def shards(self) -> int:
        """How many shards the channels are dealt out to."""

    def node(self, at: Address) -> Node:
        """Return how to reach a node."""


class User(Protocol):
    """The bus of a shard, as its link sees it."""

    def pushed(self, push: Sequence[bytes]) -> None:
        """Something for this shard has come."""

    def cut(self, why: str) -> None:
        """The link is gone."""


class SharedLink(Link):
    """A link to one node that the shards there share; pushes go by the tag of their channel."""

    def __init__(
        self, prefix_bytes: int, on_batch: Callable[[], None], on_answered: Callable[[], None],
        on_lost: Callable[[SharedLink], None],
    ) -> None:  # fmt: skip
        super().__init__(self._pushed, on_batch, on_answered, self._cut)
        self._prefix_bytes = prefix_bytes
        self._on_gone = on_lost
        self._users: dict[bytes, User] = {}

    def __len__(self) -> int:
        """How many shards use it."""
        return len(self._users)

    def attach(self, prefix: bytes, user: User) -> None:
        """Let `user` have what comes for channels that begin with `prefix`."""
        self._users[prefix] = user
        self.pause(False)  # it has to hear the answers

    def detach(self, prefix: bytes) -> None:
        """What comes for `prefix` concerns nobody any more."""
        self._users.pop(prefix, None)

    def _pushed(self, push: Sequence[bytes]) -> None:
        user = self._users.get(push[1][: self._prefix_bytes])
        if user is not None:
            user.pushed(push)

    def _cut(self, why: str) -> None:
        self._on_gone(self)
        for user in list(self._users.values()):
            user.cut(why)


class Nodes:
    """The slot map, asked for whenever a shard has to find its node, and the links."""

    def __init__(
        self,
        site: Site,
        prefix: str,
        tls: ssl.SSLContext | None,
        name: str,
        on_batch: Callable[[], None],
        on_answered: Callable[[], None],
    ) -> None:
        self._site, self._tls, self._name = site, tls, name
        self._on_batch, self._on_answered = on_batch, on_answered
        tags = slots.tags(site.shards)
        self._count_key = f"{prefix}$shards".encode()
        self._slots = [*map(slots.slot_of, tags), slots.slot_of_key(self._count_key)]
        self._prefix_bytes = len(prefix.encode()) + slots.TAG_CHARS + 2
        self._owners: list[Address | None] = []
        self._links: dict[Address, SharedLink] = {}
        self._under_way: dict[object, asyncio.Task[Any]] = {}
        self._is_agreed = False

    def address(self, shard: int) -> str:
        """Where a shard was last found, for a person."""
        at = self._owners[shard] if self._owners else None
        return f"{at or 'an unknown node'} (shard {shard})"

    @property
    def links(self) -> Iterable[SharedLink]:
        """Those that are open."""
        return list(self._links.values())

    async def link(self, shard: int) -> SharedLink:
        """Return an open link to the node that has `shard` now.

        Raises: OSError; ValueError when the cluster has another number of shards; Refused, Unconfirmed.
        """
        await self._once("map", self._find_owners)
        if not self._is_agreed:
            await self._once("count", self._agree)
        return await self._open(shard)

    def release(self, link: SharedLink) -> None:
        """Close a link that nobody uses, after a while."""
        if not len(link):
            asyncio.get_running_loop().call_later(IDLE_SECONDS, self._close_idle, link)

    def close(self) -> None:
        """Close everything."""
        for task in list(self._under_way.values()):
            task.cancel()
        for link in self.links:
            link.close("stopped")

    def _close_idle(self, link: SharedLink) -> None:
        if not len(link):
            link.close("unused")

    async def _once(self, what: object, make: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Await what `make` makes; those who want the same meanwhile share it."""
        task = self._under_way.get(what)
        if task is None:
            task = self._under_way[what] = asyncio.get_running_loop().create_task(make())
            task.add_done_callback(lambda done: self._over(what, done))
        found: _T = await asyncio.shield(task)
        return found

    def _over(self, what: object, task: asyncio.Task[Any]) -> None:
        self._under_way.pop(what, None)
        if not task.cancelled():
            task.exception()  # whoever waited has been told; perhaps nobody does any more

    async def _open(self, slot: int) -> SharedLink:
        at = self._owners[slot]
        if at is None:
            raise OSError(f"no node of the cluster serves slot {self._slots[slot]}")
        link = self._links.get(at)
        return link if link is not None else await self._once(at, lambda: self._connect(at))

    async def _connect(self, at: Address) -> SharedLink:
        link = SharedLink(self._prefix_bytes, self._on_batch, self._on_answered, lambda gone: self._forget(at, gone))
        try:
            await link.open(self._site.node(at), self._tls, self._name)
        except BaseException as error:
            link.close(str(error) or "no answer")
            raise
        self._links[at] = link
        return link

    def _forget(self, at: Address, link: SharedLink) -> None:
        if self._links.get(at) is link:
            del self._links[at]

    async def _find_owners(self) -> None:
        """Ask one node after the other who has what: first those who have answered of late."""
        linked = random.sample(list(self._links), len(self._links))
        others = list({*self._site.seeds, *(at for at in self._owners if at)} - {*linked})
        fault: Exception = OSError("no node of the cluster is known")
        for at in [*linked, *random.sample(others, len(others))]:
            try:
                async with asyncio.timeout(ASK_SECONDS_MAX):
                    reply = await self._ask_owners(at)
                self._owners = slots.owners(reply, self._slots, at)
                return
            except (OSError, ValueError, Refused, Unconfirmed) as error:
                fault = OSError(f"{at}: {str(error) or 'no answer'}")
        raise fault

    async def _ask_owners(self, at: Address) -> object:
        link = self._links.get(at)
        if link is not None:
            return await link.publisher.ask("CLUSTER", "SLOTS")
        pipe = Pipe(lambda _push: None, lambda: None, lambda _why: None)
        try:
            await open_pipe(pipe, self._site.node(at), self._tls, self._name, replica_too=True)
            return await pipe.ask("CLUSTER", "SLOTS")
        finally:
            pipe.close("answered")

    async def _agree(self) -> None:
        """See that all servers on the cluster deal out the channels alike. Raises: as `link`."""
        link = await self._open(len(self._slots) - 1)
        async with asyncio.timeout(ASK_SECONDS_MAX):
            found = await link.publisher.ask("SET", self._count_key, self._site.shards, "NX", "GET")
        self.release(link)
        if isinstance(found, bytes) and found != b"%d" % self._site.shards:
            raise ValueError(
                f"found {self._count_key.decode()} = {found.decode(errors='replace')} in the cluster, and shards="
                f"{self._site.shards} here: all servers on one cluster want the same number of shards"
            )
        self._is_agreed = True
