"""`moorage publish`: one message through the admin port of a running server."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from typing import NoReturn

from server import admin_client
from server.admin_client import AdminError, answered, exchange, stranger
from server.config import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the channel, the data and where the admin port is."""
    parser.add_argument("channel", metavar="CHANNEL", help="such as room:lobby")
    parser.add_argument("data", metavar="DATA", help="JSON, else taken as a string; - reads it from standard input")
    admin_client.add_arguments(parser)


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Publish and print the position; 1 when the server did not take it."""
    try:
        base, key = admin_client.named(args, environ)
        data = read_data(_text(args.data))
        print(publish(base, key, args.channel, data))
    except (ConfigError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    except AdminError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _text(argument: str) -> str:
    """Return `argument`, or standard input where it is "-". Raises: ValueError when that is not UTF-8."""
    try:
        text = sys.stdin.read() if argument == "-" else argument
        text.encode()  # bytes that are not UTF-8 come as surrogates in arguments, and in some locales on standard input
    except UnicodeError:
        raise ValueError("DATA: found bytes that are not UTF-8, want JSON or text") from None
    return text


def read_data(text: str) -> object:
    """Return the JSON value in `text`, or `text` itself where it is none."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return text.removesuffix("\n")


def publish(base: str, key: str | None, channel: str, data: object) -> str:
    """Publish `data` and return its position, "" in a live-only channel.

    Raises: AdminError, with what went wrong and what to do about it.
    """
    body = json.dumps({"channel": channel, "data": data}).encode()
    status, answer = exchange(base, key, "POST", "/api/publish", body)
    try:
        return str(answered(base, status, answer, undone="not published")["position"] or "")
    except KeyError:
        raise stranger(base, status) from None
