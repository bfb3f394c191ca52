"""CPU of one publish, durable and live-only by turns: what the worker and Redis use to take a message and answer it.

Nobody is subscribed, so that nothing is delivered. One connection keeps a window of messages unanswered, as a backend
or a bridge does. Both kinds go to the same worker, one after the other, round by round.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.cpus import aside
from bench.publisher import WINDOW, Publisher
from bench.report import Report
from bench.settings import Settings, at_least, option
from bench.target import Target

DURABLE_GOAL = 25.0
LIVE_ONLY = '[[namespace]]\nprefix = "live"\ndurable = false\n'
CHANNELS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishSettings(Settings):
    """Settings of `bench publish`."""

    connections: int = option(1, "publishing connections, by turns", at_least(1))
    messages: int = option(20_000, "messages of each kind, each round", at_least(1))


def run(settings: PublishSettings, report: Report) -> None:
    """Measure. Raises: TargetError, Failed, Refused, Impossible, OSError."""
    with Target(settings.workers, settings.redis, config=LIVE_ONLY) as target, aside(target.cpus()):
        publishers = [Publisher(target.listens("tcp"), f"publisher{n}") for n in range(settings.connections)]
        report.notes.append(f"windows of {WINDOW} messages to {CHANNELS} channels nobody is subscribed to")
        for kind in ("room", "live"):
            _publish(publishers, kind, WINDOW)
        for place in range(settings.rounds):
            report.say(f"round {place + 1} of {settings.rounds}")
            for kind, name, goal in (("room", "durable", DURABLE_GOAL), ("live", "live-only", None)):
                target.quiet()
                workers, redis = target.cpu_ns(), target.cpu_ns("redis")
                _publish(publishers, kind, settings.messages)
                target.quiet()
                workers, redis = target.cpu_ns() - workers, target.cpu_ns("redis") - redis
                report.add(name, workers / 1000 / settings.messages, "CPU us/message", goal)
                if target.processes.redis:
                    report.add(f"{name}, Redis", redis / 1000 / settings.messages, "CPU us/message")
                report.count(f"answered, {name}", settings.messages)
        for publisher in publishers:
            publisher.close()


def _publish(publishers: list[Publisher], prefix: str, messages: int) -> None:
    """Publish so many, and wait until each has its answer. Raises: Refused, OSError."""
    channels = [f"{prefix}:{number % CHANNELS}" for number in range(WINDOW)]
    for window, start in enumerate(range(0, messages, WINDOW)):
        publishers[window % len(publishers)].flood(channels[: messages - start], window)
