"""`moorage capacity`: how many more connections a running server holds, and how large a fleet a load needs."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from server import admin_client
from server.admin_client import AdminError, answered, exchange
from server.config import ConfigError
from tuning.fleet import Costs, Fleet, Load, Node, size_fleet
from tuning.report import Paper

GIB = 1024**3
MEMORY_GIB_MAX = 1_000_000
LOAD = ("users", "messages_per_user_per_minute", "fanout")
BYTES = ("user_bytes", "kernel_bytes")
PRICES = ("connect_us", "publish_us", "receive_us", "delivery_us")
REDIS = "redis_messages_per_second"
PRICED = {
    "held_us": "a connection held, each second",
    "empty_us": "each second, whoever is connected",
    "write_us": "a write, which carries what has come together",
}
TOLD = {"first": 0, "second": 1, "third": 2}


class Unmeasured(Exception):
    """A fleet cannot be sized yet; the text says what is missing."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add where the admin port is, the load of a fleet, and what replaces a measurement."""
    admin_client.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    load = parser.add_argument_group("a fleet for a load")
    load.add_argument("--users", type=int, metavar="N", help="connected at one time")
    load.add_argument("--messages-per-user-per-minute", type=float, metavar="N", help="that one user publishes")
    load.add_argument("--fanout", type=float, metavar="N", help="subscribers that get one message, on average")
    load.add_argument("--message-bytes", type=int, default=200, metavar="N", help="as sent to a subscriber (200)")
    load.add_argument("--storm-seconds", type=int, default=60, metavar="N", help="everybody is back within (60)")
    node = parser.add_argument_group("a machine of the fleet (default: the server's own)")
    node.add_argument("--cpus", type=int, metavar="N")
    node.add_argument("--memory-gib", type=float, metavar="N")
    node.add_argument("--nic-mbit", type=int, metavar="N")
    node.add_argument("--ports", type=int, default=1, metavar="N", help="addresses and ports for balancers (1)")
    node.add_argument("--spare", type=int, default=1, metavar="N", help="machines that may be down (1)")
    node.add_argument("--busy-share", type=float, default=0.6, metavar="N", help="of it that is planned for (0.6)")
    costs = parser.add_argument_group("instead of what the server measured")
    for name in (*BYTES, *PRICES, REDIS):
        costs.add_argument(f"--{name.replace('_', '-')}", type=int if name == REDIS else float, metavar="N")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Print the ceilings, and the fleet when a load is given; 1 when the server cannot say, 2 for bad input."""
    try:
        base, key = admin_client.named(args, environ)
        load = _load(args)
        answer = fetch(base, key)
        fleet = size_fleet(load, _costs(args, load, answer), _node(args, load, answer)) if load else None
    except (ConfigError, ValueError) as fault:
        print(fault, file=sys.stderr)
        return 2
    except (AdminError, Unmeasured) as fault:
        print(fault, file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(answer | ({"fleet": asdict(fleet)} if fleet else {}), indent=2))
        return 0
    paper = Paper(shutil.get_terminal_size().columns, "NO_COLOR" not in environ) if sys.stdout.isatty() else Paper()
    for line in (*report(answer, paper), *(fleet_report(fleet, paper) if fleet else ())):
        print(line)
    return 0


def fetch(base: str, key: str | None) -> dict[str, Any]:
    """Ask the admin port at `base`. Raises: AdminError."""
    return answered(base, *exchange(base, key, "GET", "/api/capacity"), undone="no capacity told")


# The load, the costs and the machine.


def _load(args: argparse.Namespace) -> Load | None:
    given = {name: getattr(args, name) for name in LOAD}
    if all(value is None for value in given.values()):
        return None
    if missing := [name for name, value in given.items() if value is None]:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise ValueError(f"a fleet is sized for --users, --messages-per-user-per-minute and --fanout: missing {flags}")
    return Load(**given, message_bytes=args.message_bytes, storm_seconds=args.storm_seconds)


def _costs(args: argparse.Namespace, load: Load, answer: Mapping[str, Any]) -> Costs:
    """Flags go over what was measured. Raises: Unmeasured, naming everything that is missing at once."""
    told = answer["costs"]
    each = answer["bytes_per_connection"]
    kernel = each["kernel"] + each.get("buffers", 0.0) if "kernel" in each else None
    values = {"user_bytes": each.get("user"), "kernel_bytes": kernel}
    prices = {name: told["us"].get(name, 0.0 if name in told["within"] else None) for name in PRICES}
    # What comes together goes in one write; a larger fleet may not be so lucky, so a write each is planned for.
    values |= prices | {"delivery_us": told["us"].get("write_us", prices["delivery_us"])}
    values[REDIS] = None
    values |= {name: value for name in values if (value := getattr(args, name)) is not None}
    if not load.published:
        values |= {name: 0.0 for name in PRICES[1:] if values[name] is None} | {REDIS: values[REDIS] or 1}
    why = dict(told["unknown"]) | {name: answer["unknown"].get("memory", "not measured") for name in BYTES}
    why[REDIS] = "a server cannot measure it: publishes, and copies to workers, that one Redis takes"
    if missing := [name for name, value in values.items() if value is None]:
        lines = [f"  --{name.replace('_', '-')}: {why.get(name, 'not measured')}" for name in missing]
        raise Unmeasured(
            "the fleet cannot be sized yet; let the server work, or say (docs/capacity.md has figures to start from)\n"
            + "\n".join(lines)
        )
    return Costs(**values)


def _node(args: argparse.Namespace, load: Load, answer: Mapping[str, Any]) -> Node:
    host = answer["host"]
    if args.memory_gib is not None and not 0 < args.memory_gib <= MEMORY_GIB_MAX:
        raise ValueError(f"memory_gib: found {args.memory_gib:g}, wanted more than 0 and at most {MEMORY_GIB_MAX:,}")
    memory = host["memory_bytes"] if args.memory_gib is None else round(args.memory_gib * GIB)
    values = {
        "cpus": args.cpus if args.cpus is not None else int(host["cpus"] or 0) or None,
        "memory_gib": memory,
        "nic_mbit": args.nic_mbit if args.nic_mbit is not None else host["nic_mbit"],
    }
    if not load.delivered:
        values["nic_mbit"] = values["nic_mbit"] or 1
    if missing := [name for name, value in values.items() if value is None]:
        lines = [f"  --{name.replace('_', '-')}: the server's host does not say" for name in missing]
        raise Unmeasured("the machine is not known; say\n" + "\n".join(lines))
    limits = [worker["fd_limit"] for worker in answer["workers"] if "fd_limit" in worker]
    return Node(
        cpus=values["cpus"],
        memory_bytes=values["memory_gib"],
        nic_mbit=values["nic_mbit"],
        descriptors=min(limits, default=1),
        ports=args.ports,
        busy_share=args.busy_share,
        spare=args.spare,
    )


# What is printed.


def report(answer: Mapping[str, Any], paper: Paper) -> Iterator[str]:
    """The ceilings, the first to bind first; what moves them; what a connection costs; what is not known."""
    workers = sum("fd_limit" in worker for worker in answer["workers"])
    yield f"{answer['connections']:,} connections on {workers} workers"
    found = answer["ceilings"]
    if found:
        yield paper.paint(f"{'limit':<26}{'holds':>12}{'more':>14}", "1")
    for one in found:
        yield f"{one['limit']:<26}{one['connections']:>12,}{one['more']:>14,}"
    for word, place in TOLD.items():
        if place < len(found):
            one = found[place]
            yield ""
            yield paper.paint(f"{word}: {one['limit']}, {one['more']:,} more", "1")
            yield from paper.field("because", one["because"], 8)
            yield from paper.field("moved by", one["moves"], 8)
    yield ""
    yield from _measured(answer)


def _measured(answer: Mapping[str, Any]) -> Iterator[str]:
    for part, size in answer["bytes_per_connection"].items():
        yield f"{part + ' memory':<16} {size:,.0f} B a connection"
    for name, microseconds in answer["costs"]["us"].items():
        yield f"{'processor':<16} {microseconds:,.1f} us {PRICED.get(name) or 'a ' + name.removesuffix('_us')}"
    for name, reason in {**answer["unknown"], **answer["costs"]["unknown"]}.items():
        yield f"{name:<16} {reason}"


def fleet_report(fleet: Fleet, paper: Paper) -> Iterator[str]:
    """The fleet, and the arithmetic of every part."""
    yield ""
    yield paper.paint(
        f"fleet: {fleet.nodes:,} machines of {fleet.workers_per_node} workers, {fleet.redis_shards:,} Redis shards, "
        f"{fleet.balancer_addresses:,} balancer addresses, {fleet.network_mbit_per_node:,.0f} Mbit/s each machine",
        "1",
    )
    for reason in fleet.reasons:
        part, _, arithmetic = reason.partition(": ")
        yield from paper.field(part, arithmetic, 11)
