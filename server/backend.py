"""What the admin port does on the bus for backends: publish, read history, ask who is there, disconnect a user.

Through a client of its own (redis-py's, where Redis is one server), because it is low-rate work in a process of its own. A
namespace whose policy is `nobody` is closed to backends too; the globs of tokens do not concern them.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count

import orjson

from router import clients, journal, position, vector
from router.bus import BusDown
from router.namespaces import Namespaces, Policy, personal
from router.note import UNANSWERED
from router.outcome import Refused, Unconfirmed
from router.presence import Found, Tally, question
from router.replay import newest_args, newest_entries
from router.vector import Vector, shard_of
from server import limits
from server.access import backend_may_publish
from server.close import Close, PeerError
from server.lookups import behind, history_members
from server.requests import bus_fault

BUS_SECONDS_MAX = 3.0  # for what one request asks of the bus
TELL_SECONDS_MAX = 0.3  # for what is of no use to whoever waits
# Each holds a connection to hear the answers and asks on another: fewer than half of the client's connections, so that
# two questions never wait for each other's.
QUESTIONS_MAX = clients.CONNECTIONS_MAX // 4


class Backend:
    """The bus, as backends may use it. `redis` is the caller's to close; `prefix` begins every key and channel there.

    Every method raises PeerError: for the channel FORBIDDEN or BAD_REQUEST, for the bus a code that says "try again".
    """

    def __init__(
        self,
        redis: clients.Client,
        prefix: str,
        namespaces: Namespaces,
        *,
        presence_max: int = limits.PRESENCE_CONNECTIONS_MAX,
    ) -> None:
        self._redis = redis
        self._keys = clients.keys(redis, prefix)
        self._namespaces = namespaces
        self._reply_name = b"$reply:admin-%016x" % random.SystemRandom().getrandbits(64)  # no other process has it
        self._numbers = count(1)
        self._questions = asyncio.Semaphore(QUESTIONS_MAX)
        self._presence_max = presence_max
        self._newest: dict[journal.Keys, bytes] = {}  # of the positions that were answered here

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
            async with clients.reaching(self._redis, BUS_SECONDS_MAX) as ask:
                await self._look(ask, channels)
                for name in channels:
                    positions[name] = await self._publish(ask, name, members, once)
        except (BusDown, Refused, Unconfirmed) as error:
            refusal = bus_fault(error)
            if positions:  # the code speaks of the rest
                refusal.reason += f"; published to {len(positions)} of {len(channels)}, up to {list(positions)[-1]}"
            raise refusal from error
        return positions

    async def _publish(self, ask: clients.Ask, name: str, members: bytes, once: bytes) -> str | None:
        kept, keys = self._namespaces.of(name).kept, self._keys_of(name.encode())
        if kept is None:
            await ask(keys.dialect.publish, keys.channel(name.encode()), members)
            return None
        message = (keys.channel(name.encode()), members)
        args = keys.publish_args(kept, once != b"", keys.publish_keys(name.encode(), once), message)
        (found,) = await ask("EVAL", keys.dialect.publishing, *args)
        if isinstance(found, Exception):  # of one message: a list of answers is none itself
            raise Refused(str(found))
        at = position.parse(found)
        # What has a key may have been published long ago.
        self._newest[keys] = position.later(self._newest.get(keys, b""), found) if once else found
        return str(vector.nowhere(len(self._keys)).at(name.encode(), at)) if at else None

    async def _look(self, ask: clients.Ask, channels: tuple[str, ...]) -> None:
        """Look where the stream is, before anything is numbered: another master has to begin a span (now.lua)."""
        for keys in {self._keys_of(name.encode()) for name in channels if self._namespaces.of(name).durable}:
            await self._now(ask, keys)

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
            head = await self._head(ask, name)
            since = behind(after, vector.parse(after, len(self._keys)), head, name)
            reply = await ask("EVAL", journal.NEWEST, *newest_args(self._keys_of(name), name, since, limit))
        return history_members(newest_entries(name, head.part(name).epoch, since, reply), after, head)

    async def _now(self, ask: clients.Ask, keys: journal.Keys) -> bytes:
        """Return where one clock stands, told what is known of it."""
        known = position.parse(self._newest.get(keys))
        found: bytes = await ask("EVAL", keys.dialect.now, *keys.now_args(known))
        return found

    async def _head(self, ask: clients.Ask, name: bytes) -> Vector:
        """Return where the stream is now; of the shards where `name` is not, those that answer."""
        asked = [self._now(ask, keys) for keys in self._keys]
        found = await asyncio.gather(*asked, return_exceptions=len(asked) > 1)
        own = found[shard_of(name, len(found))]
        if isinstance(own, BaseException):
            raise own
        unknown = vector.nowhere(1).parts[0]
        return Vector(tuple((position.parse(at) if isinstance(at, bytes) else None) or unknown for at in found))

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
        except PeerError as error:
            if error.code is Close.UNCONFIRMED:
                await self._tell_unanswered(channel.encode())
            raise
        finally:
            self._questions.release()

    async def _ask_workers(self, ask: clients.Ask, name: bytes) -> Found:
        """Ask how many there are, then, unless those are too many, who."""
        found = await self._ask_all(ask, name, 0)
        is_few = isinstance(found, int) and found <= self._presence_max
        return await self._ask_all(ask, name, self._presence_max) if is_few else found

    async def _ask_all(self, ask: clients.Ask, name: bytes, most: int) -> Found:
        """Ask as a worker does (`router.presence`): Redis says how many were asked, and each answers for itself."""
        number = b"%d" % next(self._numbers)
        tally, keys = Tally(most), self._keys_of(name)
        payload = question(self._reply_name, number, most)
        async with clients.listening(self._redis, keys.channel(self._reply_name)) as answers:
            awaited = await ask(keys.dialect.publish, keys.channel(name), payload)
            while tally.heard < awaited:
                asked, _, part = (await answers()).partition(b" ")
                if asked == number:  # all questions under way are answered on one channel
                    tally.add(part)
        return tally.found()

    async def _tell_unanswered(self, name: bytes) -> None:
        """Have the workers find out whether one of them is gone: `router.reaper`."""
        keys = self._keys_of(name)
        with contextlib.suppress(BusDown, Refused, Unconfirmed):
            async with clients.reaching(self._redis, TELL_SECONDS_MAX) as ask:
                await ask(keys.dialect.publish, keys.channel(b"$control"), UNANSWERED)

    async def disconnect(self, user: str, *, reconnect: bool) -> int:
        """End all connections of `user`; return how many workers were told."""
        order = orjson.dumps({"do": "disconnect", "user": user, "reconnect": reconnect})
        keys = self._keys_of(personal(user).encode())  # whoever holds her is there
        try:
            async with clients.reaching(self._redis, BUS_SECONDS_MAX) as ask:
                heard: int = await ask(keys.dialect.publish, keys.channel(b"$control"), order)
        except (BusDown, Refused, Unconfirmed) as error:
            raise bus_fault(error) from error
        if not heard:
            raise PeerError(Close.BUS_DOWN, "no worker is listening on the bus: nobody was disconnected")
        return heard

    def _keys_of(self, name: bytes) -> journal.Keys:
        return self._keys[shard_of(name, len(self._keys))]

    def _check_readable(self, channel: str) -> None:
        if self._namespaces.of(channel).subscribe is Policy.NOBODY:
            raise PeerError(Close.FORBIDDEN, f"nobody may read {channel}", "channel")

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[clients.Ask]:
        try:
            async with clients.reaching(self._redis, BUS_SECONDS_MAX) as ask:
                yield ask
        except Unconfirmed as error:  # nothing was to be done, so nothing can be in doubt
            raise PeerError(Close.UNCONFIRMED, f"not everybody has answered: {error}") from error
        except (BusDown, Refused) as error:
            raise bus_fault(error) from error
