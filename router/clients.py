"""A client of the message bus for low-rate work, as the admin process does it: redis-py's, or that of a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeAlias

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from router import topology
from router.cluster_client import ClusterClient, Next
from router.journal import Keys
from router.outcome import BusDown, Refused, Unconfirmed
from router.sentinel import Sentinels
from router.site import Site

SECONDS_MAX = 3.0
CONNECTIONS_MAX = 16

Client: TypeAlias = Redis | ClusterClient


def client(url: str, *, timeout_seconds: float = SECONDS_MAX, connections_max: int = CONNECTIONS_MAX) -> Client:
    """A client of `url`, redis-py's where it is one server, connected when first used; `await client.aclose()` when done.

    It never sends a command twice: after a cut nobody knows whether a publish arrived, so the caller must be told.
    More than `connections_max` commands at a time wait for one another.

    Raises: ValueError as `topology.parse` does.
    """
    place = topology.parse(url)
    if isinstance(place, Site):
        tls = topology.ssl_context(place) if place.tls else None
        return ClusterClient(place, tls, timeout_seconds)
    settings: dict[str, Any] = {
        "max_connections": connections_max,
        "timeout": timeout_seconds,
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        "retry": Retry(NoBackoff(), 0),
    }
    if isinstance(place, topology.Node):
        return Redis.from_pool(BlockingConnectionPool.from_url(url, **settings))
    kind, node = _TlsMasterConnection if place.tls else _MasterConnection, place.node
    settings |= {topology.SSL + name: value for name, value in place.tls_options.items()}
    settings |= {"username": node.username, "password": node.password, "db": node.database}
    settings["redis_connect_func"] = _enter_master
    return Redis.from_pool(BlockingConnectionPool(connection_class=kind, sentinels=place, **settings))


class _MasterConnection(Connection):
    """Goes where the sentinels say that the master is, each time it connects."""

    def __init__(self, *, sentinels: Sentinels, **settings: Any) -> None:  # noqa: ANN401  # redis-py's
        super().__init__(**settings)
        self._sentinels = sentinels

    async def _connect(self) -> None:
        node = await self._sentinels.locate()
        self.host, self.port = node.host, node.port
        await super()._connect()  # type: ignore[no-untyped-call]

    async def read_response(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401
        """Leave one that has been demoted, so that the next command goes to its successor."""
        try:
            return await super().read_response(*args, **options)
        except ReadOnlyError:
            await self.disconnect()
            raise


async def _enter_master(connection: _MasterConnection) -> None:
    """Sign in, and see whether it is the master."""
    await connection.on_connect()
    await connection.send_command("ROLE")
    role, *_ = await connection.read_response()
    if role not in (b"master", "master"):
        raise RedisConnectionError(f"found a replica at {connection.host}:{connection.port}, want the master")


class _TlsMasterConnection(_MasterConnection, SSLConnection):
    pass


class Ask(Protocol):
    """Sends one command and returns the reply, bytes and integers as Redis sent them."""

    async def __call__(self, *command: bytes | str | int) -> Any:  # noqa: ANN401  # what comes depends on the command
        """Raises what `reaching` turns into its own."""


@asynccontextmanager
async def reaching(redis: Client, seconds: float) -> AsyncIterator[Ask]:
    """One live connection of `redis`, for commands that take at most `seconds` together.

    Connecting is a step of its own, so that it is known whether anything was sent.

    Raises: BusDown, Refused, Unconfirmed; with several commands inside, of the one that failed.
    """
    deadline = asyncio.get_running_loop().time() + seconds
    if isinstance(redis, ClusterClient):
        try:
            async with asyncio.timeout_at(deadline):
                yield redis.ask
        except TimeoutError as error:
            raise Unconfirmed(f"no answer in {seconds:g} s") from error
        return
    try:
        async with asyncio.timeout_at(deadline):
            connection = await redis.connection_pool.get_connection()  # type: ignore[no-untyped-call]
    except (RedisError, OSError) as error:  # TimeoutError is an OSError
        raise BusDown(str(error) or f"no connection to Redis in {seconds:g} s") from error

    async def ask(*command: bytes | str | int) -> Any:  # noqa: ANN401
        await connection.send_command(*command)
        return await connection.read_response()  # on any error, a deadline too, the connection is closed

    try:
        async with asyncio.timeout_at(deadline):
            yield ask
    except (ResponseError, BusyLoadingError) as error:
        raise Refused(str(error)) from error
    except (RedisError, OSError) as error:
        raise Unconfirmed(str(error) or f"no answer in {seconds:g} s") from error
    finally:
        await redis.connection_pool.release(connection)


@asynccontextmanager
async def listening(redis: Client, channel: bytes) -> AsyncIterator[Next]:
    """Be subscribed to `channel`; what is yielded waits for the next message. Raises: as redis-py does, or `ClusterClient`."""
    if isinstance(redis, ClusterClient):
        async with redis.listening(channel) as following:
            yield following
        return
    async with redis.pubsub() as answers:
        await answers.subscribe(channel)
        await answers.get_message(timeout=None)  # subscribed

        async def heard() -> bytes:
            message: bytes = (await answers.get_message(timeout=None))["data"]
            return message

        yield heard


def keys(redis: Client, prefix: str) -> list[Keys]:
    """Return where the journal is kept below `prefix`, shard by shard."""
    return redis.site.keys(prefix) if isinstance(redis, ClusterClient) else [Keys(prefix)]
