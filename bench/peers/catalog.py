"""All peers there are, in the order of a table: ours, what people run, what we wrote to compare with."""

from __future__ import annotations

from bench.peers import hubs, node
from bench.peers.ejabberd import Ejabberd
from bench.peers.mosquitto import Mosquitto
from bench.peers.nats import Nats
from bench.peers.nchan import Nchan
from bench.peers.ours import LIVE_ONLY, Moorage
from bench.peers.peer import Peer

OURS = "moorage"
FLOOR = "floor"


def peers(transport: str = "tcp", redis: str | None = None) -> list[Peer]:
    """Return the peers; ours is on `transport`, on SSE besides, and with channels that are live-only."""
    ours = [Moorage(OURS, transport, redis)]
    if transport != "sse":
        ours.append(Moorage(f"{OURS}-sse", "sse", redis))
    ours.append(Moorage(f"{OURS}-live", transport, redis, config=LIVE_ONLY))
    others = [Mosquitto(), Nchan(), Nats(), Ejabberd(), node.websockets(), node.aedes()]
    return [*ours, *others, hubs.aiohttp_hub(), hubs.uvloop_hub(), hubs.floor()]
