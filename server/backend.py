"""What the admin port does on the bus for backends: publish, read history, ask who is there, disconnect a user.

Through redis-py, because it is low-rate work in a process of its own. A namespace whose policy is `nobody` is closed to
backends too; the globs of tokens do not concern them.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count

import orjson

from router import journal, position, topology
from router.bus import BusDown
from router.namespaces import Namespaces, Policy
from router.pipe import Refused, Unconfirmed
from router.presence import Found, Tally, question
from router.replay import newest_command, newest_entries
from server import limits
from server.access import backend_may_publish
from server.close import Close, PeerError
from server.lookups import behind, history_members
from server.requests import bus_fault

BUS_SECONDS_MAX = 3.0  # for what one request asks of the bus
# Each holds a connection to hear the answers and asks on another: fewer than half of the client's connections, so that
# two questions never wait for each other's.
QUESTIONS_MAX = topology.CLIENT_CONNECTIONS_MAX // 4


class Backend:
    """The bus, as backends may use it. `redis` is the caller's to close; `prefix` begins every key and channel there.

    Every method raises PeerError: for the channel FORBIDDEN or BAD_REQUEST, for the bus a code that says "try again".
    """

    def __init__(
        self,
        redis: topology.Client,
        prefix: str,
        namespaces: Namespaces,
        *,
        presence_max: int = limits.PRESENCE_CONNECTIONS_MAX,
    ) -> None:
        self._redis = redis
        self._keys = journal.Keys(prefix)
        self._namespaces = namespaces
        self._reply_name = b"$reply:admin-%016x" % random.SystemRandom().getrandbits(64)  # no other process has it
        self._numbers = count(1)
        self._questions = asyncio.Semaphore(QUESTIONS_MAX)
        self._presence_max = presence_max

    async def publish(
        self, channels: tuple[str, ...], data: bytes, idempotency: str | None, field: str
    ) -> dict[str, str | None]:
        """Publish to one channel after the other; return the position in each, None in those that are live-only.

        The PeerError of a bus that fails half-way says how far it came; `field` names where `channels` come from.
        """
        for name in channels:
            if not backend_may_publish(self._namespaces, name):
                raise PeerError(Close.FORBIDDEN, f"nobody may publish to {name}", field)
        members = journal.members(None, time.time_ns() // 1_000_000, data)
        once = b" " + idempotency.encode() if idempotency else b""  # no user's name begins with a space
        positions: dict[str, str | None] = {}
        try:
            async with topology.reaching(self._redis, BUS_SECONDS_MAX) as ask:
                for name in channels:
                    positions[name] = await self._publish(ask, name, members, once)
        except (BusDown, Refused, Unconfirmed) as error:
            refusal = bus_fault(error)
            if positions:  # the code speaks of the rest
                refusal.reason += f"; published to {len(positions)} of {len(channels)}, up to {list(positions)[-1]}"
            raise refusal from error
        return positions

    async def _publish(self, ask: topology.Ask, name: str, members: bytes, once: bytes) -> str | None:
        kept = self._namespaces.of(name).kept
        if kept is None:
            await ask("PUBLISH", self._keys.channel(name.encode()), members)
            return None
        args = self._keys.publish_args(name.encode(), members, kept, once=once)
        found: bytes = await ask("EVAL", journal.PUBLISH, *args)
        return found.decode()

    async def history(self, channel: str, after: str | None, limit: int) -> bytes:
        """Return at most `limit` messages, those behind the position `after` or the newest, and where they end.

        As JSON members, the same as in an answer over TCP. Raises also: NOT_FOUND for a position that is not known.
        """
        self._check_readable(channel)
        if not self._namespaces.of(channel).durable:
            raise PeerError(Close.BAD_REQUEST, f"{channel} is live-only", "channel")
        name = channel.encode()
        async with self._reading() as ask:
            # First: where nothing is found, nothing that comes later may be before the position that is answered.
            head = position.parse(await ask("EVAL", journal.NOW, *self._keys.now_args(None)))
            since = behind(after, head)
            id = since.of(name) if since else None
            reply = await ask(*newest_command(self._keys, name, id, limit))
        return history_members(newest_entries(name, head.epoch if head else "", id, reply), after, head)

    async def presence(self, channel: str) -> Found:
        """Return the users in a channel, and with how many connections each. Every worker with subscribers is asked.

        Where those are too many connections to be named, return how many they are.
        """
        self._check_readable(channel)
        if not self._namespaces.of(channel).presence:
            raise PeerError(Close.BAD_REQUEST, f"{channel} has no presence", "channel")
        try:
            async with asyncio.timeout(BUS_SECONDS_MAX):
                await self._questions.acquire()
        except TimeoutError:
            raise PeerError(Close.OVERLOADED, "too many questions wait for their answers") from None
        try:
            async with self._reading() as ask:
                return await self._ask_workers(ask, channel.encode())
        finally:
            self._questions.release()

    async def _ask_workers(self, ask: topology.Ask, name: bytes) -> Found:
        """Ask as a worker does (`router.presence`): Redis says how many were asked, and each answers for itself."""
        number = b"%d" % next(self._numbers)
        tally = Tally(self._presence_max)
        payload = question(self._reply_name, number, self._presence_max)
        async with self._redis.pubsub() as answers:
            await answers.subscribe(self._keys.channel(self._reply_name))
            await answers.get_message(timeout=None)  # subscribed
            awaited = await ask("PUBLISH", self._keys.channel(name), payload)
            while tally.heard < awaited:
                answer = await answers.get_message(timeout=None)
                asked, _, part = answer["data"].partition(b" ")
                if asked == number:  # all questions under way are answered on one channel
                    tally.add(part)
        return tally.found()

    async def disconnect(self, user: str, *, reconnect: bool) -> int:
        """End all connections of `user`; return how many workers were told."""
        order = orjson.dumps({"do": "disconnect", "user": user, "reconnect": reconnect})
        try:
            async with topology.reaching(self._redis, BUS_SECONDS_MAX) as ask:
                heard: int = await ask("PUBLISH", self._keys.channel(b"$control"), order)
        except (BusDown, Refused, Unconfirmed) as error:
            raise bus_fault(error) from error
        if not heard:
            raise PeerError(Close.BUS_DOWN, "no worker is listening on the bus: nobody was disconnected")
        return heard

    def _check_readable(self, channel: str) -> None:
        if self._namespaces.of(channel).subscribe is Policy.NOBODY:
            raise PeerError(Close.FORBIDDEN, f"nobody may read {channel}", "channel")

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[topology.Ask]:
        try:
            async with topology.reaching(self._redis, BUS_SECONDS_MAX) as ask:
                yield ask
        except Unconfirmed as error:  # nothing was to be done, so nothing can be in doubt
            raise PeerError(Close.UNCONFIRMED, f"not everybody has answered: {error}") from error
        except (BusDown, Refused) as error:
            raise bus_fault(error) from error
