"""The scenarios of `moorage bench`, and how one is run from start to report."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from bench import admission, connect, direct, fanout, growth, idle, million, presence, publish, rooms, storm
from bench.load import Failed
from bench.peers import contest
from bench.peers.findings import Findings
from bench.publisher import Refused
from bench.report import Report
from bench.settings import Impossible, Settings
from bench.target import TargetError


class Scenario(NamedTuple):
    """What is measured, with what settings."""

    about: str
    settings: type[Settings]
    run: Callable[[Any, Any], None]
    report: type[Report] = Report


SCENARIOS = {
    "idle": Scenario("memory of connections that do nothing", idle.IdleSettings, idle.run),
    "connect": Scenario("CPU of a connection set up, by kind of sign-in", connect.ConnectSettings, connect.run),
    "fanout": Scenario("CPU of a delivery, beside a bare loop of writes", fanout.FanoutSettings, fanout.run),
    "direct": Scenario("CPU and latency of 1:1 messages between workers", direct.DirectSettings, direct.run),
    "admission": Scenario(
        "twice the allowed newcomers: CPU of a refusal, and what others feel",
        admission.AdmissionSettings,
        admission.run,
    ),
    "presence": Scenario("cost of asking who is there, by room and by user", presence.PresenceSettings, presence.run),
    "peers": Scenario("other servers beside ours", contest.PeersSettings, contest.run, Findings),
    "million": Scenario("very many: open, hold, broadcast, resume, close", million.MillionSettings, million.run),
    "storm": Scenario("all come back at once by position, with messages missed", storm.StormSettings, storm.run),
    "rooms": Scenario("deliveries and latency in many rooms of ten", rooms.RoomsSettings, rooms.run),
    "publish": Scenario("CPU of a publish, durable and live-only", publish.PublishSettings, publish.run),
    "growth": Scenario(
        "bytes and CPU each as connections, channels, subscribers grow", growth.GrowthSettings, growth.run
    ),
}


def run(name: str, settings: Settings, as_json: bool = False, save: str | None = None) -> int:
    """Run a scenario, print its report to stdout, and return the exit code; Ctrl-C ends it with what there is.

    With `save`, the report is written to that file as well, as JSON.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if save is not None and not (target := Path(save).absolute().parent).is_dir():
        print(f"bench {name}: --save: {target} is no directory", file=sys.stderr)
        return 2
    report = SCENARIOS[name].report(name, settings)
    try:
        SCENARIOS[name].run(settings, report)
    except KeyboardInterrupt:
        report.interrupted = True
    except Impossible as error:
        print(f"bench {name}: {error}", file=sys.stderr)
        return 2
    except (TargetError, Failed, Refused, OSError) as error:
        print(f"bench {name}: {error}", file=sys.stderr)
        if not report.figures:
            return 1
        report.fault(str(error))  # what was measured until then is not to be lost
    if save is not None:
        Path(save).write_text(report.as_json() + "\n")
    print(report.as_json() if as_json else report.as_table())
    return report.exit_code
