"""`moorage tuning`: the kernel limits of this host, checked, planned, applied, or written for other tools."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tuning import advice, apply, emit, facts, footprint, host, plan, report
from tuning.emit import Service
from tuning.facts import Facts
from tuning.finding import Finding
from tuning.target import Target

if TYPE_CHECKING:
    import argparse

OK, SHORT, BAD_INPUT = 0, 1, 2


class BadInput(Exception):
    """What was said cannot be meant; the text says which and what is wanted."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions and their flags."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="check|plan|apply|emit|facts")
    check = actions.add_parser("check", help="one row per limit, judged against the target; exit 1 when one is too low")
    check.add_argument(
        "--long", action="store_true", help="reason, setting and source of every limit, not only of the bad"
    )
    show = actions.add_parser("plan", help="the settings to make, with the reason and the source of every value")
    make = actions.add_parser("apply", help="make the settings of the plan, or undo that")
    make.add_argument("--yes", action="store_true", help="do not ask")
    make.add_argument("--persist", action="store_true", help="also write files that last over a restart")
    make.add_argument("--undo", action="store_true", help="put back what the latest apply changed")
    make.add_argument("--root", type=Path, default=Path("/"), metavar="DIR", help="write files and backup below DIR")
    files = actions.add_parser("emit", help="print the settings as a file for another tool")
    files.add_argument("--format", required=True, choices=list(emit.FORMATS), help="what reads the file")
    only_facts = actions.add_parser("facts", help="print what was read of this host, for --facts elsewhere")
    only_facts.add_argument("--pid", type=int, help="a running process whose limits count")
    for one in (check, show, make, files):
        _add_target(one)
    for one in (check, show, files):
        one.add_argument("--facts", type=Path, metavar="FILE", help="judge a recorded host instead of this one")
    for one in (check, show):
        one.add_argument("--json", action="store_true", help="print JSON")
    for one in (show, make, files):
        one.add_argument("--frugal", action="store_true", help="also lower what is wasteful")
    for one in (show, make):
        one.add_argument(
            "--only", action="append", metavar="NAME", help="only this setting, e.g. net.core.somaxconn; repeats"
        )
    for one in (make, files):
        one.add_argument("--service", default="moorage", help="name of the systemd unit, container or host group")
        one.add_argument("--user", default="moorage", help="the user the service runs as, for limits.d")


def _add_target(parser: argparse.ArgumentParser) -> None:
    """The flags that make a `Target`."""
    add = parser.add_argument
    add("--connections", type=int, default=100_000, metavar="N", help="connections this host should hold (100000)")
    add("--workers", type=int, metavar="N", help="worker processes (one per core)")
    add(
        "--balancers",
        type=int,
        default=0,
        metavar="N",
        help="addresses of balancers before it (0: clients come directly)",
    )
    add("--destinations", type=int, default=1, metavar="N", help="address:port pairs balancers connect to (1)")
    add("--held", type=int, default=0, metavar="N", help="connections open already, part of --connections (0)")
    add(
        "--user-bytes", type=int, default=350, metavar="N", help="a connection in the server (350); a running one knows"
    )
    add("--kernel-bytes", type=int, metavar="N", help="a connection in the kernel (measured here)")
    add("--storm-seconds", type=int, default=60, metavar="N", help="after an outage everybody is back within (60)")
    add("--busy-percent", type=int, default=10, metavar="N", help="connections with bytes in the kernel at a time (10)")
    add("--pid", type=int, metavar="PID", help="a running worker whose limits count (else those of this shell)")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Do the action. 0: done, or all is well; 1: something is too low or was not made; 2: bad input."""
    try:
        return _ACTIONS[args.action](args, environ)
    except BadInput as fault:
        print(f"moorage tuning {args.action}: {fault}", file=sys.stderr)
        return BAD_INPUT


def _check(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    known, target = _look(args)
    found = advice.findings(known, target)
    if args.json:
        document = {
            "target": asdict(target),
            "findings": [one.to_json() for one in found],
            "facts": facts.to_json(known),
        }
        print(json.dumps(document, indent=2))
    else:
        _print(report.check(found, _paper(environ), inside=_inside(known), long=args.long))
    return SHORT if advice.too_low(found) else OK


def _plan(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    steps = _steps(args, advice.findings(*_look(args)))
    if args.json:
        print(json.dumps([asdict(step) for step in steps], indent=2))
    else:
        _print(report.plan(steps, _paper(environ)))
    return OK


def _steps(args: argparse.Namespace, found: Sequence[Finding]) -> list[plan.Step]:
    """The plan, or what --only leaves of it."""
    steps = plan.plan(found, frugal=args.frugal)
    if args.only is None:
        return steps
    known = {step.setting.key for step in plan.plan(found, frugal=True, whole=True)} | set(host.SYSCTLS)
    if strange := [name for name in args.only if name not in known]:
        raise BadInput(f"--only: found {strange[0]}, wanted one of {', '.join(sorted(known))}")
    return [step for step in steps if step.setting.key in args.only]


def _emit(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    steps = plan.portable(advice.findings(*_look(args)), frugal=args.frugal)
    print(emit.emit(args.format, steps, Service(args.service, args.user)), end="")
    return OK


def _facts(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    print(json.dumps(facts.to_json(_read(args.pid)), indent=2))
    return OK


def _apply(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    roots = apply.Roots(files=args.root)
    if args.undo:
        return _undo(args, roots)
    known, target = _look(args)
    found = advice.findings(known, target)
    steps = _steps(args, found)
    _print(report.plan(steps, _paper(environ)))
    if not steps and not args.persist:
        return OK
    files = " and write them to files that last" if args.persist else ""
    if not _agreed(f"Make these {len(steps)} settings{files}?", args.yes):
        print("nothing was changed")
        return SHORT
    whole = plan.plan(found, frugal=args.frugal, whole=True) if args.persist else ()
    service = Service(args.service, args.user)
    try:
        results = apply.apply(steps, known, roots, persist=whole, pid=args.pid, service=service)
    except (OSError, ValueError) as fault:
        print(f"backup: {fault}; nothing was changed", file=sys.stderr)
        return SHORT
    return _told(results)


def _undo(args: argparse.Namespace, roots: apply.Roots) -> int:
    backup = apply.latest_backup(roots.backups)
    if backup is not None and not _agreed(f"Put back what is in {backup}?", args.yes):
        print("nothing was changed")
        return SHORT
    try:
        return _told(apply.undo(_read(args.pid), roots))
    except (apply.NoBackup, ValueError) as fault:
        print(fault, file=sys.stderr)
        return SHORT


_ACTIONS = {"check": _check, "plan": _plan, "apply": _apply, "emit": _emit, "facts": _facts}


def _look(args: argparse.Namespace) -> tuple[Facts, Target]:
    """The facts and the target that `args` speak of."""
    recorded = getattr(args, "facts", None)
    known = _recorded(recorded) if recorded else _read(args.pid)
    workers = (
        args.workers if args.workers is not None else known.cpus.usable or known.cpus.online or os.cpu_count() or 1
    )
    kernel_bytes = args.kernel_bytes
    if kernel_bytes is None and not recorded:
        kernel_bytes = _measured()
    try:
        target = Target(
            connections=args.connections,
            held=args.held,
            workers=workers,
            balancers=args.balancers,
            destinations=args.destinations,
            user_bytes=args.user_bytes,
            kernel_bytes=kernel_bytes,
            storm_seconds=args.storm_seconds,
            busy_percent=args.busy_percent,
        )
    except ValueError as fault:
        raise BadInput(str(fault)) from None
    return known, target


def _inside(known: Facts) -> str:
    """What kind of container `known` was read in; "" for a host."""
    return known.container or ("a network namespace" if known.namespaces.network_is_host is False else "")


def _read(pid: int | None) -> Facts:
    try:
        return host.read(pid)
    except (ProcessLookupError, psutil.NoSuchProcess) as fault:
        raise BadInput(f"--pid: {fault}") from None


def _recorded(path: Path) -> Facts:
    """Facts from `moorage tuning facts`, or from the output of `check --json`, which holds them too."""
    try:
        document = json.loads(path.read_text())
        inner = document.get("facts", document) if isinstance(document, dict) else document
        return facts.from_json(inner)
    except json.JSONDecodeError as fault:
        raise BadInput(f"--facts {path}: found no JSON ({fault}), wanted what `moorage tuning facts` prints") from None
    except (OSError, ValueError) as fault:
        raise BadInput(f"--facts {path}: {fault}") from None


def _measured() -> int | None:
    """What a connection costs in this kernel; None, and a word on stderr, where that cannot be measured."""
    try:
        return footprint.measure().accepted
    except (footprint.CannotMeasure, OSError) as fault:
        print(f"kernel memory of a connection not measured: {fault}", file=sys.stderr)
        return None


def _agreed(question: str, yes: bool) -> bool:
    if yes:
        return True
    if not sys.stdin.isatty():
        raise BadInput("standard input is no terminal to ask on: say --yes")
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:  # Control-D
        print()
        return False


def _told(results: Sequence[apply.Result]) -> int:
    _print(apply.summary(results))
    return SHORT if any(result.is_fault for result in results) else OK


def _paper(environ: Mapping[str, str]) -> report.Paper:
    if not sys.stdout.isatty():
        return report.Paper()
    return report.Paper(shutil.get_terminal_size().columns, colour="NO_COLOR" not in environ)


def _print(lines: Iterator[str]) -> None:
    for line in lines:
        print(line)
