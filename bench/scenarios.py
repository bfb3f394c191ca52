"""The scenarios of `moorage bench`, and how one is run from start to report."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from bench import admission, connect, direct, fanout, idle, presence
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
}


def run(name: str, settings: Settings, as_json: bool = False) -> int:
    """Run a scenario, print its report to stdout, and return the exit code; Ctrl-C ends it with what there is."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
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
        return 1
    print(report.as_json() if as_json else report.as_table())
    return report.exit_code
