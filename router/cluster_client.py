"""Low-rate work on a cluster: one command at a time, sent to the node that has its key. For workers, see `router.cluster`."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from router import slots
from router.cluster import is_elsewhere
from router.node import open_pipe
from router.outcome import BusDown, Refused, Unconfirmed
from router.pipe import Pipe, pack
from router.site import Site
from router.slots import Address

CONNECT_SECONDS_MAX = 1.0
MAP_SECONDS_MAX = 1.0  # for one node to say who has what; then another is asked
AGAIN_SECONDS = 0.05  # between two tries while a slot is on the move
NAME = "moorage:admin"

Next = Callable[[], Awaitable[bytes]]


class ClusterClient:
    """Pipes to the nodes of a cluster, opened when first used; `await client.aclose()` when done."""

    def __init__(self, site: Site, tls: ssl.SSLContext | None, seconds: float) -> None:
        self.site = site
        self._tls, self._seconds = tls, seconds
        self._pipes: dict[Address, Pipe] = {}
        self._map: tuple[object, Address] | None = None
        self._known: Sequence[Address] = site.seeds  # who is asked for it

    async def aclose(self) -> None:
        """Close every pipe."""
        for pipe in list(self._pipes.values()):
            pipe.close("closed")

    async def ask(self, *command: bytes | str | int) -> Any:  # noqa: ANN401  # what comes depends on the command
        """Send a command to the node that has its key, again while that slot is on the move, and return the reply.

        Raises: BusDown, Refused, Unconfirmed, TimeoutError.
        """
        slot = slots.slot_of_key(_key(command))
        deadline = asyncio.get_running_loop().time() + self._seconds
        while True:
            pipe = await self._reach(slot)
            try:
                return await pipe.ask(*command)
            except Refused as error:
                if not is_elsewhere(error):
                    raise
                self._map = None
                if asyncio.get_running_loop().time() > deadline:
                    raise BusDown(f"the slot is on the move: {error}") from error
                await asyncio.sleep(AGAIN_SECONDS)
            except asyncio.CancelledError:  # perhaps a deadline: who knows what is still to come on it
                pipe.close("no answer in time")
                raise

    @asynccontextmanager
    async def listening(self, channel: bytes) -> AsyncIterator[Next]:
        """Be subscribed to a sharded channel; what is yielded waits for the next message. Raises: as `ask`."""
        messages: asyncio.Queue[bytes | Exception] = asyncio.Queue()
        subscribed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def pushed(push: Sequence[bytes]) -> None:
            if push[0] == b"smessage":
                messages.put_nowait(push[2])
            elif push[0] == b"ssubscribe" and not subscribed.done():
                subscribed.set_result(None)

        def lost(why: str) -> None:
            messages.put_nowait(Unconfirmed(why))
            if not subscribed.done():
                subscribed.set_exception(BusDown(why))

        async def following() -> bytes:
            found = await messages.get()
            if isinstance(found, Exception):
                raise found
            return found

        pipe = Pipe(pushed, lambda: None, lost)
        try:
            try:
                at = await self._owner(slots.slot_of_key(channel))
                await _open(pipe, self.site, at, self._tls)
                pipe.push(pack((b"SSUBSCRIBE", channel)))
                await subscribed
            except BusDown:  # perhaps the slot is elsewhere by now
                self._map = None
                raise
            yield following
        finally:
            pipe.close("heard enough")
            subscribed.cancel()

    async def _reach(self, slot: int) -> Pipe:
        """Return an open pipe to the node that has `slot`. Raises: BusDown, TimeoutError."""
        at = await self._owner(slot)
        pipe = self._pipes.get(at)
        if pipe is None:
            pipe = Pipe(lambda _push: None, lambda: None, lambda _why: self._forget(at, pipe))
            try:
                await _open(pipe, self.site, at, self._tls)
            except BaseException:
                self._map = None
                raise
            if (other := self._pipes.get(at)) is not None:  # somebody else was faster
                pipe.close("not needed")
                return other
            self._pipes[at] = pipe
        return pipe

    def _forget(self, at: Address, pipe: Pipe | None) -> None:
        if self._pipes.get(at) is pipe:
            del self._pipes[at]
            self._map = None

    async def _owner(self, slot: int) -> Address:
        if self._map is None:
            self._map = await self._ask_map()
        (at,) = slots.owners(self._map[0], [slot], self._map[1])
        if at is None:
            self._map = None
            raise BusDown(f"no node of the cluster serves slot {slot}")
        return at

    async def _ask_map(self) -> tuple[object, Address]:
        """Ask one node after the other. Raises: BusDown."""
        linked = list(self._pipes)
        others = [at for at in self._known if at not in self._pipes]
        why = ""
        for at in [*random.sample(linked, len(linked)), *random.sample(others, len(others))]:
            pipe = self._pipes.get(at)
            passing = pipe is None
            if pipe is None:
                pipe = Pipe(lambda _push: None, lambda: None, lambda _why: None)
            try:
                async with asyncio.timeout(MAP_SECONDS_MAX):
                    if passing:
                        await _open(pipe, self.site, at, self._tls, replica_too=True)
                    found = await pipe.ask("CLUSTER", "SLOTS")
                owners = slots.owners(found, list(map(slots.slot_of, slots.tags(self.site.shards))), at)
                self._known = list({*self.site.seeds, *filter(None, owners)})
                return found, at
            except (OSError, ValueError, Refused, Unconfirmed, BusDown) as error:
                why = f"{at}: {error}"
                passing = True  # of no more use
            finally:
                if passing:
                    pipe.close("answered")
        raise BusDown(f"no node of the cluster answers: {why}")


async def _open(pipe: Pipe, site: Site, at: Address, tls: ssl.SSLContext | None, *, replica_too: bool = False) -> None:
    try:
        async with asyncio.timeout(CONNECT_SECONDS_MAX):
            await open_pipe(pipe, site.node(at), tls, NAME, replica_too=replica_too)
    except asyncio.CancelledError:
        pipe.close("not in time")
        raise
    except (OSError, ValueError, Refused, Unconfirmed) as error:
        pipe.close(str(error))
        raise BusDown(f"{at}: {error}") from error


def _key(command: Sequence[bytes | str | int]) -> bytes:
    """Return the first key of a command, of those that are used here."""
    key = command[3] if command[0] == "EVAL" else command[1]
    assert isinstance(key, bytes)
    return key
