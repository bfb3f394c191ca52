"""`moorage bench peers`: every peer does the same work for the same clients, one after the other, in turns.

A turn of a peer begins with a server that was just started and ends with its stop. Its connections open in two parts:
the first warms the server up, the second is measured, for memory (the slope) and for CPU. Then a room of all of them
has messages one by one and in bursts, pairs talk 1:1, and at last all leave and come back at once. The next turn is
another peer's. Every other round goes backwards, so that a machine that warms up or slows down is nobody's fault.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.load import Crowd, Failed, processes_needed
from bench.peers import node
from bench.peers.bout import Bout, Lost
from bench.peers.catalog import peers
from bench.peers.clients import subscribers
from bench.peers.findings import Findings
from bench.peers.peer import SCENARIOS, Peer
from bench.peers.speaker import Speaker
from bench.peers.wire import ROOM
from bench.publisher import Refused
from bench.settings import Impossible, Settings, amount, at_least, flag, option
from bench.target import TargetError, room_for

ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeersSettings(Settings):
    """Settings of `bench peers`; `transport` and `redis` are for Moorage."""

    workers: int = option(os.cpu_count() or 1, "processes or threads of a server that can have several", at_least(1))
    rounds: int = option(3, "turns of each peer", at_least(1))
    peers: str = option(ALL, "which, with commas between them", str, metavar="NAMES")
    scenarios: str = option(ALL, f"which of {','.join(SCENARIOS)}", str, metavar="NAMES")
    base: int = option(1_000, "connections that are open, and warmed up, before anything is measured", at_least(1))
    singles: int = option(6, "messages published one by one, each turn", at_least(1))
    burst: int = option(20, "messages of a burst", at_least(2))
    pairs: int = option(200, "pairs that talk 1:1", at_least(1))
    seconds: float = option(3.0, "time to talk at a fixed rate, each turn", amount)
    message_rate: int = option(1_000, "messages a second at the fixed rate", at_least(1))
    messages: int = option(10_000, "messages of the pipelined 1:1 stream, each turn", at_least(1))
    window: int = option(16, "messages of a pair under way in the pipelined stream", at_least(1))
    calm: float = option(0.1, "seconds a server has to be without work, twice, before it is looked at", amount)
    seconds_max: float = option(1_200.0, "time for everything: no turn begins that would end later", amount)
    install: bool = flag("first install what is from npm, into a cache directory")


def run(settings: PeersSettings, report: Findings) -> None:
    """Measure. Raises: Impossible, OSError."""
    wanted = chosen(settings.peers, "--peers", [peer.name for peer in peers(settings.transport)])
    scenarios = chosen(settings.scenarios, "--scenarios", list(SCENARIOS))
    room_for(settings.connections + 2 * settings.pairs, settings.workers)
    processes_needed(settings.connections, settings.client_processes)
    if settings.install:
        node.install()
    entered = [peer for peer in peers(settings.transport, settings.redis) if peer.name in wanted]
    for peer in entered:
        report.enter(peer)
    able = [peer for peer in entered if peer.name not in report.skipped]
    began = time.monotonic()
    longest: dict[str, float] = {}
    for place in range(settings.rounds):
        for peer in able if place % 2 == 0 else reversed(able):
            left = settings.seconds_max - (time.monotonic() - began)
            if longest.get(peer.name, 0.0) > left:
                report.notes.append(f"{peer.name}: no time for round {place + 1} within --seconds-max")
                continue
            report.say(f"round {place + 1} of {settings.rounds}: {peer.name}")
            at = time.monotonic()
            with report.turn(place, peer):
                take_turn(peer, settings, scenarios, report)
            longest[peer.name] = max(longest.get(peer.name, 0.0), time.monotonic() - at)


def chosen(text: str, option_name: str, known: list[str]) -> list[str]:
    """Return the names in `text`. Raises: Impossible, with what there is."""
    names = known if text == ALL else [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise Impossible(f"{option_name}: found {', '.join(unknown) or 'nothing'}, want some of {', '.join(known)}")
    return names


def take_turn(peer: Peer, settings: PeersSettings, scenarios: list[str], report: Findings) -> None:
    """Start a peer, measure it once, stop it; what goes wrong with it is a fault of the report, and ends the turn."""
    processes = processes_needed(settings.connections, settings.client_processes)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="moorage-bench-", ignore_cleanup_errors=True) as home,
            peer.start(settings.workers, Path(home)) as running,
            Crowd(processes, kind=subscribers(peer.wire)) as crowd,
            Speaker(peer.wire, running.speakers, ROOM) as speaker,
        ):
            bout = Bout(peer, running, crowd, speaker, report, settings.rate, settings.calm)
            measure(bout, settings, [name for name in scenarios if name not in peer.cannot])
    except (TargetError, Refused, Failed, Lost, OSError) as error:
        report.fault(f"{peer.name}: {error}")


def measure(bout: Bout, settings: PeersSettings, scenarios: list[str]) -> None:
    """Do the scenarios in their order. Raises: PeerError, Lost, Failed, Refused, OSError."""
    base = min(settings.base, settings.connections // 2)
    steps: dict[str, Callable[[], None]] = {
        "fanout": lambda: bout.fan_out(settings.singles, settings.burst),
        "direct": lambda: bout.talk(
            settings.pairs,
            steady=(int(settings.seconds * settings.message_rate), settings.message_rate),
            stream=(settings.messages, settings.window),
        ),
        "storm": bout.storm,
    }
    bout.warm_up(base, settings.burst)
    bout.grow(settings.connections, scenarios)
    for name, step in steps.items():
        if name in scenarios:
            step()
    bout.finish()
