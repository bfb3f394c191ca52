"""What a person types: `moorage COMMAND`. Each command is a module, loaded only when it is used."""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

COMMANDS = {
    "serve": "run the server",
    "token": "make a token that signs a user in",
    "publish": "publish a message through the admin port",
    "chat": "talk in a channel, line by line",
    "top": "what every worker of a running server does, live",
    "drain": "empty a running server politely, then end it",
    "tuning": "check and set the kernel limits that stop a server short of its connections",
    "capacity": "how many more connections a running server holds, and which limit ends it",
    "bench": "measure a server on this machine",
}
BAD_INPUT = 2  # as argparse exits
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Command(Protocol):
    """What a module of this package offers."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's flags and arguments."""

    def run(self, args: argparse.Namespace, environ: Mapping[str, str]) -> int:
        """Do it and return the exit code: 0, 1 it failed, 2 the input was bad."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` (without the program's name) asks for and return its exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    _open_streams()
    try:
        code = _run(argv[0], argv[1:]) if argv and argv[0] in COMMANDS else _without_command(argv)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT, as shells report it
    except BrokenPipeError:
        _discard_output()  # whoever read it left
        return 1
    except OSError as error:
        if error.errno not in FULL:
            raise
        _discard_output()
        print(f"moorage {argv[0]}: the output could not be written: {error.strerror}", file=sys.stderr)
        return 1


def _open_streams() -> None:
    """Open what the caller has closed (`>&-`) to nowhere, and let anything be printed.

    So no socket gets the number of a stream, and whoever prints need not ask.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)  # the lowest that is free: the one that was closed
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, "r" if name == "stdin" else "w", closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that lacks a letter of a name shows its number


def _discard_output() -> None:
    """Python flushes standard output once more at exit: give that somewhere to go."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(name: str, rest: Sequence[str]) -> int:
    import argparse

    command = cast("Command", importlib.import_module(f"commands.{name}"))
    parser = argparse.ArgumentParser(f"moorage {name}", description=COMMANDS[name], allow_abbrev=False)
    command.add_arguments(parser)
    return command.run(parser.parse_args(rest), os.environ)


def _without_command(argv: Sequence[str]) -> int:
    """Answer --help and --version, and refuse the rest."""
    if argv == ["--version"]:
        from importlib.metadata import version  # longer than all else together: for those who ask

        print("moorage", version("moorage"))
        return 0
    import argparse

    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        "moorage",
        usage="moorage [--help | --version] COMMAND ...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="A connection server: chat over raw TCP and SSE, fanned out through Redis.",
        epilog="commands:\n"
        + "\n".join(f"  {name:{width}}  {about}" for name, about in COMMANDS.items())
        + "\n\nmoorage COMMAND --help says more.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    _, rest = parser.parse_known_args(argv)
    if rest:
        parser.error(f"unknown command {rest[0]!r}; one of {', '.join(COMMANDS)}")
    parser.print_help(sys.stderr)
    return BAD_INPUT
