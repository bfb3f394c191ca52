"""`moorage chat`: talk in a channel from a terminal or a pipe, over raw TCP.

What is typed goes to the first channel. A lost connection comes back with its position, so that nothing is lost or
shown twice; where the server no longer holds what was missed, it says so, and so does this client.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import math
import os
import random
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from server import limits
from server.close import Close, said
from server.options import Address

LINE_BYTES_MAX = 2**20  # typed, or heard
LOST_SECONDS = 60.0  # of silence, until the server has said how often it sends a heartbeat
ANSWER_SECONDS = 10.0  # for the answers to what was sent, once there is no more to send
BACKOFF_SECONDS = (0.5, 30.0)
HELP = "/join CHANNEL, /leave CHANNEL, /who [CHANNEL], /quit; anything else is said in the first channel"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add who one is, where the server is and the channels."""
    parser.epilog = f"While it runs: {HELP}. The end of the input is /quit."
    who = parser.add_mutually_exclusive_group()
    who.add_argument("--user", metavar="NAME", help="who you are, in open mode (default: the login name; USER)")
    who.add_argument("--token", metavar="JWT", help="who you are, elsewhere (MOORAGE_TOKEN)")
    parser.add_argument(
        "--server", metavar="HOST:PORT", default="127.0.0.1:7400", help="its TCP address (default: %(default)s)"
    )
    parser.add_argument("channels", metavar="CHANNEL", nargs="*", help="to join (default: room:lobby)")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Chat until the input ends; 1 when the server cannot be reached or does not want us."""
    token, user = args.token or environ.get("MOORAGE_TOKEN"), environ.get("USER")
    who = {"user": args.user} if args.user else {"token": token} if token else {"user": user} if user else None
    if not who:
        print("say who you are: --user NAME in open mode, --token JWT elsewhere", file=sys.stderr)
        return 2
    try:
        server = Address.parse(args.server)
    except ValueError as wanted:
        print(f"--server: found {args.server!r}, want {wanted}", file=sys.stderr)
        return 2
    return asyncio.run(Talk(server, who, args.channels or ["room:lobby"], say).run(sys.stdin.fileno()))


def say(line: str) -> None:
    """Print a line at once; when nobody reads it any more, leave."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        raise Left(1) from None


class Left(Exception):
    """It is over; `code` is what the process exits with."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Talk:
    """One user's conversation, over as many connections as it takes."""

    def __init__(
        self, server: Address, who: Mapping[str, str], channels: list[str], say: Callable[[str], None]
    ) -> None:
        self.server = server
        self.who = who
        self.channels = list(dict.fromkeys(channels))
        self.say = say
        self.position: str | None = None
        self.heartbeat_seconds: float | None = None
        self.unanswered: dict[int, str] = {}  # request id -> what it was, for the one who typed it
        self.last_id = 0
        self.writer: asyncio.StreamWriter | None = None
        self.was_refused = False  # something that was asked for
        self.signed_in = asyncio.Event()
        self.all_answered = asyncio.Event()
        self.all_answered.set()

    async def run(self, typed_fd: int) -> int:
        """Talk until told to leave; return the exit code."""
        typed, to_close = await read_descriptor(typed_fd)
        code = 1
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._stay_connected())
                tasks.create_task(self._obey(typed))
        except* Left as left:
            codes = [each.code for each in left.exceptions if isinstance(each, Left)]
            code = max(codes, default=1)
        finally:
            to_close.close()
        return code

    async def _stay_connected(self) -> None:
        attempt = 0
        while True:
            try:
                reader, self.writer = await asyncio.open_connection(*self.server, limit=LINE_BYTES_MAX)
            except OSError as error:
                if not self.heartbeat_seconds:
                    self.say(
                        f"! {self.server}: {error.strerror or error}; start the server (moorage serve), or say --server"
                    )
                    raise Left(1) from None
                after = None
            else:
                after = await self._converse(reader, self.writer)
                attempt = 0 if self.signed_in.is_set() else attempt
                self._disconnected()
            delay = after if after is not None else backoff_seconds(attempt, random.random())
            attempt += 1
            self.say(f"* reconnecting in {delay:.1f} s")
            await asyncio.sleep(delay)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float | None:
        """Follow one connection to its end; return in how many seconds to reconnect, where the server said so."""
        hello = {"op": "connect", **self.who, "channels": self.channels}
        if self.position is not None:
            hello["position"] = self.position
        writer.write(_frame(hello))
        try:
            while True:
                async with asyncio.timeout(self._silence_seconds_max()):
                    line = await reader.readline()
                if not line.endswith(b"\n"):
                    self.say("! the connection was lost")
                    return None
                if not line.strip():
                    writer.write(b"\n")
                    continue
                event = json.loads(line)
                if event["op"] == "close":
                    return self._closed(event)
                self._heard(event)
        except TimeoutError:
            self.say("! nothing heard from the server for too long")
        except OSError as error:
            self.say(f"! the connection was lost: {error.strerror or error}")
        except (ValueError, KeyError, TypeError):
            self.say(f"! {self.server} does not speak as a moorage server does")
            raise Left(1) from None
        finally:
            writer.close()
        return None

    def _silence_seconds_max(self) -> float:
        """Return for how long a living server may say nothing: two heartbeats, and time to travel."""
        return 2.5 * self.heartbeat_seconds if self.heartbeat_seconds and self.signed_in.is_set() else LOST_SECONDS

    def _closed(self, event: Mapping[str, Any]) -> float | None:
        self.say(f"! closed by the server: {printable(said(event))}")
        if not event["reconnect"]:
            raise Left(1)
        if event["code"] == Close.EXPIRED and "token" in self.who:
            self.say("! sign in with a new one")  # this one would be refused again and again
            raise Left(1)
        after_ms = event.get("after_ms")
        # The server spreads its clients; a little more keeps those apart that it told the same.
        return None if after_ms is None else after_ms / 1000 * random.uniform(1.0, 1.1)

    def _disconnected(self) -> None:
        self.writer = None
        self.signed_in.clear()
        for what in self.unanswered.values():
            self.say(f"! no answer came, it may or may not have been done: {what}")
        self.unanswered.clear()
        self.all_answered.set()

    def _heard(self, event: Mapping[str, Any]) -> None:
        """Act on one event of the server."""
        op = event["op"]
        if op in {"message", "gap", "connected"}:
            self.position = event["position"]
        if "id" in event and self.unanswered.pop(event["id"], None) is not None and not self.unanswered:
            self.all_answered.set()
        if op == "connected":
            self._connected(event)
        elif op == "error":
            self.was_refused = True
        elif op == "subscribed" and event["channel"] not in self.channels:
            self.channels.append(event["channel"])
        elif op == "unsubscribed" and event["channel"] in self.channels:
            self.channels.remove(event["channel"])
        if text := shown(event):
            self.say(text)

    def _connected(self, event: Mapping[str, Any]) -> None:
        resumed = self.heartbeat_seconds is not None
        self.heartbeat_seconds = float(event["heartbeat_s"])
        self.signed_in.set()
        if resumed and not event["recovered"]:
            self.say("! what was said meanwhile is no longer held: messages are missing here")

    async def _obey(self, typed: asyncio.StreamReader) -> None:
        """Do what is typed; when the input ends, leave after the answers to what was sent."""
        while (line := await self._typed_line(typed)) not in {None, "/quit"}:
            if line:
                await self.signed_in.wait()  # what is typed while disconnected waits here, it is not lost
                self._do(line)
        if line is None and self.heartbeat_seconds is None:
            await self.signed_in.wait()  # a pipe may end before the first connection is made, or refused
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self.all_answered.wait()
        except TimeoutError:
            self.say(f"! no answer came to: {', '.join(self.unanswered.values())}")
            raise Left(1) from None
        raise Left(1 if line is None and self.was_refused else 0)  # a script wants to know; who types has read it

    async def _typed_line(self, typed: asyncio.StreamReader) -> str | None:
        """Return the next line without its blanks, None at the end of the input."""
        try:
            raw = await typed.readline()
        except ValueError:  # the reader's limit
            self.was_refused = True
            self.say(f"! not sent: a line of more than {LINE_BYTES_MAX} bytes")
            return ""
        return raw.decode(errors="replace").strip() if raw else None

    def _do(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        channel = rest.strip() or (self.channels[0] if self.channels else "")
        if word == "/join" and rest.strip():
            self._ask({"op": "subscribe", "channel": channel}, line)
        elif word == "/leave" and rest.strip():
            self._ask({"op": "unsubscribe", "channel": channel}, line)
        elif word == "/who" and channel:
            self._ask({"op": "presence", "channel": channel}, line)
        elif line.startswith("/"):
            self.say(HELP)
        elif not self.channels:
            self.say("! you are in no channel: /join CHANNEL")
        else:
            self._ask({"op": "publish", "channel": self.channels[0], "data": {"text": line}}, line)

    def _ask(self, request: dict[str, object], typed: str) -> None:
        frame = _frame(request | {"id": self.last_id + 1})
        if len(frame) > limits.LINE_BYTES_MAX:
            self.was_refused = True
            self.say(f"! not sent: {len(frame)} bytes, a server reads lines of at most {limits.LINE_BYTES_MAX}")
            return
        self.last_id += 1
        self.unanswered[self.last_id] = typed
        self.all_answered.clear()
        if self.writer:
            self.writer.write(frame)


def _frame(request: Mapping[str, object]) -> bytes:
    return json.dumps(request, ensure_ascii=False).encode(errors="replace") + b"\n"


def shown(event: Mapping[str, Any]) -> str:
    """Return what a person reads of an event, "" for what needs no line."""
    op, channel = event["op"], printable(event.get("channel", ""))
    if op == "message":
        data = event["data"]
        text = (
            data["text"]
            if isinstance(data, dict) and isinstance(data.get("text"), str)
            else json.dumps(data, ensure_ascii=False)
        )
        return f"{channel} {printable(event['from'] or '(backend)')}: {printable(text)}"
    if op in {"join", "leave"}:
        who = printable(event["user"]) if "user" in event else f"{event.get('count', 0):,} users"
        return f"* {who} {'joined' if op == 'join' else 'left'} {channel}"
    if op == "gap":
        return f"! {channel}: what was missed here is no longer held: messages are missing"
    if op == "presence":
        if "users" not in event:
            return f"* in {channel}: {event['connections']:,} connections"
        return f"* in {channel}: {', '.join(map(printable, event['users'])) or 'nobody'}"
    if op == "error":
        return f"! {printable(said(event))}"
    if op == "connected":
        return f"* connected as {printable(event['user'])} to {', '.join(map(printable, event['channels']))}"
    if op in {"subscribed", "unsubscribed"}:
        return f"* {'joined' if op == 'subscribed' else 'left'} {channel}"
    return ""


def printable(text: str) -> str:
    """Return `text` with control characters escaped: another user must not drive this terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def backoff_seconds(attempt: int, fraction: float) -> float:
    """Return how long to wait before attempt number `attempt` (from 0); `fraction` in [0, 1) spreads clients."""
    first, longest = BACKOFF_SECONDS
    return min(longest, math.ldexp(first, min(attempt, 16))) * (0.5 + fraction / 2)


async def read_descriptor(fd: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return a reader of `fd`, whatever it is: terminal, pipe or file; and a writer, only to close both.

    A thread reads it into a socket pair: asyncio refuses files, and would make a terminal non-blocking, which
    standard output shares. It is a daemon, because nothing ends a read from a terminal.
    """
    ours, theirs = socket.socketpair()
    typed = io.FileIO(os.dup(fd))  # its own: whoever has `fd` may close it and reuse the number

    def pump() -> None:
        with typed, theirs, suppress(OSError):  # the reader is gone, or the terminal
            while data := typed.read(65_536):
                theirs.sendall(data)

    threading.Thread(target=pump, name="typed", daemon=True).start()
    return await asyncio.open_connection(sock=ours, limit=LINE_BYTES_MAX)
