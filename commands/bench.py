"""`moorage bench`: measure a server on this machine."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from bench import compare, page, scenarios, settings
from bench.scenarios import SCENARIOS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a subcommand for each scenario, with the scenario's own settings as its flags."""
    subcommands = parser.add_subparsers(dest="scenario", metavar="SCENARIO", required=True)
    for name, scenario in SCENARIOS.items():
        one = subcommands.add_parser(name, help=scenario.about, description=scenario.about, allow_abbrev=False)
        settings.add_arguments(one, scenario.settings)
        one.add_argument("--save", metavar="FILE", help="write the JSON object to a file as well")
        one.add_argument("--json", action="store_true", help="print one JSON object instead of a table")

    several = subcommands.add_parser("report", help=page.ABOUT, description=page.ABOUT, allow_abbrev=False)
    several.add_argument("files", nargs="+", metavar="FILE.json")
    several.add_argument("--out", metavar="DIR", default=str(page.HOME), help=f"where to (default: {page.HOME})")
    two = subcommands.add_parser("compare", help=compare.ABOUT, description=compare.ABOUT, allow_abbrev=False)
    two.add_argument("before", metavar="A.json")
    two.add_argument("after", metavar="B.json")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Run the scenario; 0, 1 when something was lost, doubled or refused, 130 after Ctrl-C."""
    if args.scenario == "report":
        return page.run(args.files, args.out)
    if args.scenario == "compare":
        return compare.run(args.before, args.after)
    kind = SCENARIOS[args.scenario].settings
    return scenarios.run(args.scenario, settings.from_arguments(args, kind), as_json=args.json, save=args.save)
