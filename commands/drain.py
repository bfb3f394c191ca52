"""`moorage drain`: ask a running server, through its admin port, to let everybody go and end."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from server import admin_client
from server.admin_client import AdminError, NotThere, answered, exchange
from server.config import ConfigError
from server.limits import DRAIN_SECONDS_MAX

POLL_SECONDS = 0.5
SAY_SECONDS = 5.0  # between two lines where the output is no terminal
BAR = 30
ATTEMPTS = 3  # to read the progress, until that is an error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the window, whether to wait, and where the admin port is."""
    add = parser.add_argument
    parser.epilog = (
        "Once more, with --seconds, gives those who are left another window. SIGTERM begins a drain as well."
    )
    admin_client.add_arguments(parser)
    add(
        "--seconds",
        type=float,
        metavar="S",
        help="in which sessions leave, evenly (default: the server's drain_seconds)",
    )
    add("--wait", action="store_true", help="show the progress, and return when the server has ended")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Begin a drain; 1 when the server did not take it, 2 for bad input."""
    try:
        base, key = admin_client.named(args, environ)
        if args.seconds is not None and not 0 <= args.seconds <= DRAIN_SECONDS_MAX:
            raise ValueError(
                f"--seconds: found {args.seconds:g}, want a number of seconds from 0 to {DRAIN_SECONDS_MAX:g}"
            )
        seconds = begin(base, key, args.seconds)
    except (ConfigError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    except AdminError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{base} drains for at most {seconds:g} s", flush=True)
    if not args.wait:
        return 0
    try:
        follow(lambda: fetch(base, key), on_terminal if sys.stdout.isatty() else in_log())
    except AdminError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def begin(base: str, key: str | None, seconds: float | None) -> float:
    """Tell the server to leave, and return in how many seconds. Raises: AdminError."""
    body = json.dumps({} if seconds is None else {"seconds": seconds}).encode()
    return float(answered(base, *exchange(base, key, "POST", "/api/drain", body), undone="not drained")["seconds"])


def fetch(base: str, key: str | None) -> Mapping[str, Any] | None:
    """Return how far it has come; None when it has ended. Raises: AdminError."""
    try:
        answer = exchange(base, key, "GET", "/api/stats")
    except NotThere:
        return None
    drain: Mapping[str, Any] | None = answered(base, *answer, undone="no statistics")["drain"]
    return drain or {}


def follow(look: Callable[[], Mapping[str, Any] | None], say: Callable[..., None]) -> None:
    """Say how far it has come, until there is no server any more. Raises: AdminError."""
    failures = 0
    while True:
        try:
            drain = look()
            failures = 0
        except AdminError:  # cut while it ended, or its admin process is being replaced
            failures += 1
            if failures == ATTEMPTS:
                raise
            drain = {}
        if drain is None:
            say("the server has ended", last=True)
            return
        if drain:
            say(describe(drain))
        time.sleep(POLL_SECONDS)


def describe(drain: Mapping[str, Any]) -> str:
    """One line with a bar: how many of the sessions there were have left."""
    sessions, left = drain["sessions"], drain["sessions_left"]
    share = 1.0 if not sessions else min(1.0, max(0.0, 1 - left / sessions))
    bar = "#" * round(BAR * share)
    return f"[{bar:.<{BAR}}] {left:,} of {sessions:,} sessions left, {drain['seconds_left']:.0f} s left"


def on_terminal(text: str, *, last: bool = False) -> None:
    """Say everything in one line, again and again."""
    print(f"\r\x1b[K{text}", end="\n" if last else "", flush=True)


def in_log() -> Callable[..., None]:
    """Return what says a line now and then."""
    said_at = -math.inf

    def say(text: str, *, last: bool = False) -> None:
        nonlocal said_at
        if last or time.monotonic() - said_at >= SAY_SECONDS:
            said_at = time.monotonic()
            print(text, flush=True)

    return say
