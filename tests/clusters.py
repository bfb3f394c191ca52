"""A cluster of Valkeys on loopback, in processes of its own: masters with all slots among them, and replicas."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from itertools import count
from types import TracebackType
from typing import Any, TypeAlias

import redis
from harness import wait_until
from ports import free_port

from router.embedded import Embedded
from router.vector import shard_of

NODE_TIMEOUT_MS = 1500  # a master that is silent for so long has failed
FAILOVER_SECONDS_MAX = 5.0  # after which a replica gives up to take over from a master that lives
SLOTS = 16384

Client: TypeAlias = Any  # a redis.Redis, whose types say of most answers that they may be of any kind


class Member(Embedded):
    """One node."""

    def __init__(self) -> None:
        super().__init__(clients_max=1000)
        self.port, self._bus_port = free_port(), free_port()
        self.client: Client = redis.Redis(port=self.port, protocol=3, socket_timeout=5)

    def stop(self) -> None:
        """End it."""
        self.client.close()
        super().stop()

    @property
    def id(self) -> str:
        """How the others know it."""
        found: str = self.client.execute_command("CLUSTER MYID").decode()
        return found

    @property
    def role(self) -> str:
        """`master` or `slave`."""
        found: str = self.client.execute_command("ROLE")[0].decode()
        return found

    def kill(self) -> None:
        """SIGKILL."""
        assert self.pid is not None
        os.kill(self.pid, signal.SIGKILL)
        wait_until(lambda: not self.alive(), "it is dead")

    def info(self) -> dict[str, str]:
        """What it says of the cluster."""
        found: bytes | str | dict[str, str] = self.client.execute_command("CLUSTER INFO")
        if isinstance(found, dict):
            return found
        text = found.decode() if isinstance(found, bytes) else found
        return dict(line.split(":", 1) for line in text.split())

    def _arguments(self) -> list[str]:
        settings = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "cluster-enabled": "yes",
            "cluster-port": str(self._bus_port),
            "cluster-node-timeout": str(NODE_TIMEOUT_MS),
            "cluster-config-file": "nodes.conf",
            "cluster-replica-validity-factor": "0",
            "cluster-allow-replica-migration": "no",
            "repl-diskless-sync-delay": "0",
        }
        return [*super()._arguments(), *(word for name, value in settings.items() for word in (f"--{name}", value))]


class Cluster:
    """Masters that share the slots evenly, and replicas of the first of them."""

    def __init__(self, masters: int = 3, replicas: int = 1, kind: Callable[[], Member] = Member) -> None:
        self.masters = [kind() for _ in range(masters)]
        self.replicas = [kind() for _ in range(replicas)]

    @property
    def members(self) -> list[Member]:
        return [*self.masters, *self.replicas]

    @property
    def url(self) -> str:
        """What `--redis` takes."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{member.port}" for member in self.members)

    def __enter__(self) -> Cluster:
        try:
            for member in self.members:
                member.start()
            self._form()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for member in self.members:
            with contextlib.suppress(ProcessLookupError):
                if member.pid is not None:
                    os.kill(member.pid, signal.SIGCONT)
            member.stop()

    def _form(self) -> None:
        share = SLOTS / len(self.masters)
        for number, member in enumerate(self.members):
            member.client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
        for number, master in enumerate(self.masters):
            first, last = round(number * share), round((number + 1) * share) - 1
            master.client.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
        for member in self.members[1:]:
            member.client.execute_command("CLUSTER MEET", "127.0.0.1", self.masters[0].port, self.masters[0]._bus_port)
        known = str(len(self.members))
        wait_until(lambda: all(m.info()["cluster_known_nodes"] == known for m in self.members), "they know each other")
        for replica in self.replicas:
            wait_until(lambda r=replica: self._replicate(r), "the replica has a master")  # type: ignore[misc]
        self.wait_up()
        for replica in self.replicas:
            wait_until(lambda r=replica: r.client.info("replication")["master_link_status"] == "up", "it follows")  # type: ignore[misc]

    def _replicate(self, replica: Member) -> bool:
        try:
            replica.client.execute_command("CLUSTER REPLICATE", self.masters[0].id)
        except redis.ResponseError:  # the handshake is not over
            return False
        return True

    def wait_up(self) -> None:
        """Wait until every node says that all slots are served."""
        wait_until(lambda: all(m.info()["cluster_state"] == "ok" for m in self.members), "the cluster is up")

    # What an operator does.

    def owner(self, slot: int) -> Member:
        """Who has a slot, as most of those who are alive say."""
        port = self.port_of(slot)
        return next(member for member in self.members if member.port == port)

    def port_of(self, slot: int) -> int:
        """The port of the node that has a slot, as the first who is alive says."""
        for member in self.members:
            with contextlib.suppress(redis.RedisError):
                for first, last, master, *_ in member.client.execute_command("CLUSTER SLOTS"):
                    if first <= slot <= last:
                        return int(master[1])
        raise LookupError(slot)

    def migrate(self, slot: int, target: Member, pause_seconds: float = 0.0) -> None:
        """Move a slot key by key, as redis-cli does; `pause_seconds` behind each batch of keys."""
        self.wait_up()
        source = self.owner(slot)
        target.client.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", source.id)
        source.client.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", target.id)
        self.finish_migration(slot, source, target, pause_seconds)

    def finish_migration(self, slot: int, source: Member, target: Member, pause_seconds: float = 0.0) -> None:
        """Move the keys of a slot that is on the move, and then the slot."""
        while keys := source.client.execute_command("CLUSTER GETKEYSINSLOT", slot, 10):
            with contextlib.suppress(redis.ResponseError):  # it is down for a moment, and then it is not
                source.client.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
            time.sleep(pause_seconds)
        for member in (target, source, *self.masters):
            with contextlib.suppress(redis.RedisError):
                member.client.execute_command("CLUSTER SETSLOT", slot, "NODE", target.id)

    def fail_over(self) -> Member:
        """Kill a master that has a replica, wait until that is promoted, and return the dead one."""
        (replica,) = [member for member in self.members if member.role == "slave"]
        port = replica.client.execute_command("ROLE")[2]
        if isinstance(port, bytes):
            port = int(port)
        (master,) = [member for member in self.members if member.port == port]
        master.kill()
        wait_until(lambda: replica.role == "master", "the replica is promoted")
        return master

    def hand_over(self) -> None:
        """Let a replica take over from its master, which lives and follows it from then on."""
        (replica,) = [member for member in self.members if member.role == "slave"]
        wait_until(lambda: _takes_over(replica), "it has taken over")
        wait_until(lambda: any(member.role == "slave" for member in self.members), "its master follows it")
        self.wait_up()

    def comes_back(self, dead: Member) -> None:
        """Wait until a node that was started again follows the one that took its place."""
        wait_until(lambda: dead.role == "slave", "it follows the new master")
        self.wait_up()

    def migrate_at_once(self, slot: int, target: Member) -> None:
        """Move a slot as Valkey 9 does: all keys at one instant."""
        self.wait_up()
        source = self.owner(slot)
        source.client.execute_command("CLUSTER MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", target.id)
        wait_until(lambda: self.port_of(slot) == target.port, "the slot has moved")


def one_per_shard(prefix: str, shards: int) -> list[str]:
    """Return the name of a channel in every shard, in their order."""
    found: dict[int, str] = {}
    for number in count():
        name = f"{prefix}{number}"
        found.setdefault(shard_of(name.encode(), shards), name)
        if len(found) == shards:
            break
    return [found[shard] for shard in range(shards)]


def _takes_over(replica: Member) -> bool:
    """Ask a replica to take over, which it may give up, or refuse while its master is busy; tell whether it has."""
    until = time.monotonic() + FAILOVER_SECONDS_MAX
    with contextlib.suppress(redis.ResponseError):
        replica.client.execute_command("CLUSTER FAILOVER")
        while replica.role != "master" and time.monotonic() < until:
            time.sleep(0.02)
    return replica.role == "master"
