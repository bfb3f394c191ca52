"""`moorage top`: what every worker of a running server does, live, as top(1) shows processes."""

from __future__ import annotations

import argparse
import contextlib
import json
import select
import shutil
import sys
import termios
import time
import tty
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from commands.drain import describe
from server import admin_client, config
from server.admin_client import AdminError, admin_url, answered, exchange
from tuning.report import Paper

INTERVAL_SECONDS = 1.0
SILENT_SECONDS = 3.0  # as the dashboard has it
_FRESH, _ENTER, _LEAVE = "\x1b[H", "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"  # xterm: alternate screen, cursor
_REST_OF_LINE, _REST_OF_SCREEN = "\x1b[K", "\x1b[J"
_UNKNOWN = "-"

Json = Mapping[str, Any]


class Sample(NamedTuple):
    """What one server said: `/api/stats` and `/api/capacity`; or why it said nothing."""

    url: str
    stats: Json
    capacity: Json
    fault: str = ""


class Row(NamedTuple):
    """What one worker, or all of a server, did between two samples. What is not known is None."""

    name: str
    state: str
    connections: int | None = None
    tcp: int | None = None
    sse: int | None = None
    accepts_per_second: float | None = None
    deliveries_per_second: float | None = None
    writes_per_second: float | None = None
    cpu_percent: float | None = None
    resident_bytes: int | None = None
    loop_lag_seconds: float | None = None
    bus_lag_seconds: float | None = None
    backlogged: int | None = None


COLUMNS = {
    "connections": "CONNS",
    "tcp": "TCP",
    "sse": "SSE",
    "accepts_per_second": "ACCEPT/s",
    "deliveries_per_second": "DELIVER/s",
    "writes_per_second": "WRITE/s",
    "cpu_percent": "CPU%",
    "resident_bytes": "RSS",
    "loop_lag_seconds": "LOOP LAG",
    "bus_lag_seconds": "BUS LAG",
    "backlogged": "SLOW",
}
COUNTERS = {"accepts_per_second": "accepted", "deliveries_per_second": "deliveries", "writes_per_second": "writes"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the servers, and how often and how it is shown."""
    add = parser.add_argument
    parser.epilog = "With several servers there is a row a server instead of a row a worker. q ends it."
    where = "admin ports, HOST:PORT or URL (default: 127.0.0.1:7490; MOORAGE_ADMIN)"
    add("servers", nargs="*", metavar="URL", help=where)
    add("--admin", action="append", default=[], metavar="URL", help="the same, as other commands have it")
    admin_client.add_key_arguments(parser)
    add("--interval", type=float, default=INTERVAL_SECONDS, metavar="S", help="between two looks (1)")
    add("--sort", choices=COLUMNS, metavar="COLUMN", help=f"highest first: {', '.join(COLUMNS)}")
    add("--once", action="store_true", help="print one table and exit, as without a terminal")
    add("--json", action="store_true", help="print one sample as JSON and exit")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Show it until told to stop; 1 when no server answers, 2 for bad input."""
    try:
        options = config.load({}, environ, args.config)
        urls = [admin_url(text) for text in [*args.servers, *args.admin] or [str(options.admin)]]
        if not 0.1 <= args.interval <= 3600:
            raise ValueError(f"--interval: found {args.interval:g}, want a number of seconds from 0.1 to 3600")
    except (config.ConfigError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    key = args.admin_key or options.admin_key
    before = look(urls, key)
    if all(sample.fault for sample in before):
        print(*(sample.fault for sample in before), sep="\n", file=sys.stderr)
        return 1
    if args.once or args.json or not (sys.stdout.isatty() and sys.stdin.isatty()):
        time.sleep(args.interval)
        now = look(urls, key)
        print(json.dumps(as_json(before, now), indent=2) if args.json else "\n".join(table(before, now, args.sort)))
        return 0
    with screen():
        _show(before, urls, key, args, color="NO_COLOR" not in environ)
    return 0


def _show(
    before: Sequence[Sample], urls: Sequence[str], key: str | None, args: argparse.Namespace, *, color: bool
) -> None:
    """Draw again and again, until q or Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):
        while not _is_told_to_quit(args.interval):
            now = look(urls, key)
            size = shutil.get_terminal_size()
            lines = clip(table(before, now, args.sort), size.columns, size.lines)
            lines = [Paper(size.columns, color).paint(line, "7") if line.startswith(HEADS) else line for line in lines]
            sys.stdout.write(_FRESH + f"{_REST_OF_LINE}\n".join(lines) + _REST_OF_LINE + _REST_OF_SCREEN)
            sys.stdout.flush()
            before = now


@contextlib.contextmanager
def screen() -> Iterator[None]:
    """Have the terminal for ourselves: its own page, no cursor, keys at once. Put back whatever happens."""
    settings = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    sys.stdout.write(_ENTER)
    try:
        yield
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, settings)


def _is_told_to_quit(seconds: float) -> bool:
    """Wait for so long; True as soon as q is pressed."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if select.select([sys.stdin], [], [], left)[0] and sys.stdin.read(1) in {"q", "Q", ""}:
            return True
    return False


# What the servers say.


def look(urls: Sequence[str], key: str | None) -> list[Sample]:
    """Ask every server, one after the other."""
    return [_sample(url, key) for url in urls]


def _sample(url: str, key: str | None) -> Sample:
    try:
        stats = answered(url, *exchange(url, key, "GET", "/api/stats"), undone="no statistics")
        capacity = answered(url, *exchange(url, key, "GET", "/api/capacity"), undone="no capacity told")
    except AdminError as fault:
        return Sample(url, {}, {}, str(fault))
    return Sample(url, stats, capacity)


# What follows from two samples. Nothing below does I/O.


def rows(before: Sample, now: Sample) -> list[Row]:
    """One for every worker of a server."""
    known = {worker["worker"]: worker for worker in before.stats.get("workers", ())}
    apart = _apart(before, now)
    return [_worker(known.get(worker["worker"]), worker, apart) for worker in now.stats["workers"]]


def total(before: Sample, now: Sample) -> Row:
    """All workers of a server together. Resident memory has no sum: workers share pages."""
    if now.fault:
        return Row(now.url, "no answer")
    workers = rows(before, now)
    states = ", ".join(sorted({row.state for row in workers}))
    found = _row("all", states, before.stats.get("total"), now.stats["total"])
    summed = {name: _sum(getattr(row, name) for row in workers) for name in (*COUNTERS, "cpu_percent")}
    return found._replace(**summed)  # type: ignore[arg-type]  # names of numbers


def _apart(before: Sample, now: Sample) -> float:
    """The seconds between two samples; 0.0 when there was none before."""
    return max(0.0, (now.stats["at"] - before.stats["at"]) / 1000) if before.stats else 0.0


def _worker(before: Json | None, now: Json, apart: float) -> Row:
    found = _row(str(now["worker"]), state(now), before, now)
    if before is None or not before["pid"] or not now["pid"] or not apart:
        return found
    # A worker shows its counters about twice a second: what it counted goes by when it did. The kernel counts at any time.
    written = apart + before["silent_seconds"] - now["silent_seconds"]
    if written > 0:
        rates = {name: max(0, now[counter] - before[counter]) / written for name, counter in COUNTERS.items()}
        found = found._replace(**rates)
    if before["pid"] == now["pid"] and "cpu_seconds" in now and "cpu_seconds" in before:
        found = found._replace(cpu_percent=100 * (now["cpu_seconds"] - before["cpu_seconds"]) / apart)
    return found


def _row(name: str, state: str, before: Json | None, now: Json) -> Row:
    """Everything but rates."""

    def mean(histogram: str) -> float | None:
        count = now[histogram]["count"] - before[histogram]["count"] if before else 0
        return float(now[histogram]["sum"] - before[histogram]["sum"]) / count if before and count > 0 else None

    return Row(
        name,
        state,
        now["connections"],
        now["connections_tcp"],
        now["connections_sse"],
        resident_bytes=now.get("resident_bytes"),
        loop_lag_seconds=mean("loop_lag_seconds"),
        bus_lag_seconds=mean("bus_lag_seconds"),
        backlogged=now["backlogged_connections"],
    )


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def state(worker: Json) -> str:
    """In one word or two."""
    if not worker["pid"]:
        return "starting"
    if worker["silent_seconds"] > SILENT_SECONDS:
        return "silent"
    if not worker["bus_connected"]:
        return "bus down"
    if worker["draining"]:
        return "left" if worker["drained"] else "draining"
    return "ready" if worker["ready"] else "not ready"


def as_json(before: Sequence[Sample], now: Sequence[Sample]) -> list[dict[str, Any]]:
    """Everything the table is made from, a server each."""
    found = []
    for then, sample in zip(before, now, strict=True):
        server: dict[str, Any] = {"url": sample.url}
        if sample.fault:
            server["fault"] = sample.fault
        else:
            server["workers"] = [row._asdict() for row in rows(then, sample)]
            server["total"] = total(then, sample)._asdict()
            server["drain"] = sample.stats["drain"]
            server["ceilings"] = sample.capacity["ceilings"]
            server["redis"] = redis(then, sample)
        found.append(server)
    return found


def redis(before: Sample, now: Sample) -> dict[str, Any]:
    """How the bus is, as the workers see it."""
    workers = now.stats["workers"]
    return {
        "down_for": [worker["worker"] for worker in workers if worker["pid"] and not worker["bus_connected"]],
        "lag_seconds": total(before, now).bus_lag_seconds,
        "channels": now.stats["total"]["subscriptions"],
        "reconnects": now.stats["total"]["bus_reconnects"],
    }


# As text.


def table(before: Sequence[Sample], now: Sequence[Sample], sort: str | None = None) -> list[str]:
    """The lines: of one server its state and its workers, of several a row each."""
    if len(now) == 1 and not now[0].fault:
        lines = list(headline(before[0], now[0]))
        shown, last = rows(before[0], now[0]), [total(before[0], now[0])._replace(state="")]
        head = HEADS[0]
    else:
        lines = [sample.fault for sample in now if sample.fault]
        pairs = zip(before, now, strict=True)
        shown, last = [total(then, sample)._replace(name=sample.url) for then, sample in pairs], []
        head = HEADS[1]
    if sort is not None:
        shown.sort(key=lambda row: getattr(row, sort) or 0, reverse=True)
    return [*lines, "", *_columns(head, [*shown, *last])]


def headline(before: Sample, now: Sample) -> Iterator[str]:
    """What is of the whole server."""
    stats, capacity = now.stats, now.capacity
    all_ = stats["total"]
    at = time.strftime("%H:%M:%S", time.localtime(stats["at"] / 1000))
    yield f"moorage top - {at}, {now.url}, {len(stats['workers'])} workers, {all_['restarts']} restarts"
    yield (
        f"connections: {all_['connections']:,} ({all_['connections_tcp']:,} tcp, {all_['connections_sse']:,} sse), "
        f"{all_['handshaking']:,} in handshake, {all_['backlogged_connections']:,} slow with {size(all_['backlog_bytes'])} waiting"
    )
    ceilings = capacity["ceilings"]
    room = f"{ceilings[0]['more']:,} more, then {ceilings[0]['limit']}" if ceilings else "not measured yet"
    yield f"room: {room}"
    bus = redis(before, now)
    how = f"down for workers {', '.join(map(str, bus['down_for']))}" if bus["down_for"] else "connected"
    yield f"redis: {how}, lag {duration(bus['lag_seconds'])}, {bus['channels']:,} channels, {bus['reconnects']:,} reconnects"
    if stats["drain"]:
        yield f"draining: {describe(stats['drain'])}"


HEADS = "WORKER", "SERVER"  # of the first column


def _columns(first: str, found: Sequence[Row]) -> Iterator[str]:
    head = [first, "STATE", *COLUMNS.values()]
    cells = [[row.name, row.state, *(_cell(name, getattr(row, name)) for name in COLUMNS)] for row in found]
    widths = [max(len(line[column]) for line in (head, *cells)) for column in range(len(head))]
    for line in (head, *cells):
        left = [text.ljust(width) for text, width in zip(line[:2], widths[:2], strict=True)]
        right = [text.rjust(width) for text, width in zip(line[2:], widths[2:], strict=True)]
        yield "  ".join(left + right).rstrip()


def _cell(column: str, value: float | None) -> str:
    if column.endswith("_seconds"):
        return duration(value)
    if value is None:
        return _UNKNOWN
    if column.endswith("_bytes"):
        return size(value)
    return (
        f"{value:,.1f}" if column == "cpu_percent" or (0 < value < 10 and isinstance(value, float)) else f"{value:,.0f}"
    )


def size(count: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "kB", "MB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GB"


def duration(seconds: float | None) -> str:
    """A short time as a person reads it."""
    if seconds is None:
        return _UNKNOWN
    return (
        f"{seconds * 1e6:.0f} us"
        if seconds < 1e-3
        else f"{seconds * 1e3:.1f} ms"
        if seconds < 1
        else f"{seconds:.1f} s"
    )


def clip(lines: Iterable[str], columns: int, height: int) -> list[str]:
    """As much as fits a terminal. The last line stays: it is the sum, or says how many rows there is no room for."""
    whole = [line[:columns] for line in lines]
    if len(whole) <= height:
        return whole
    hidden = len(whole) - height + 1
    return [*whole[: height - 2], f"({hidden} more rows)"[:columns], whole[-1]] if height > 2 else whole[:height]
