"""`moorage serve`: read the configuration and hand it to the supervisor."""

from __future__ import annotations

import argparse
import gc
import signal
import sys
from collections.abc import Mapping
from types import FrameType
from typing import NoReturn

from server import config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every option of the server."""
    parser.epilog = "Flags go over MOORAGE_* variables, these over the file, the file over the defaults."
    parser.add_argument("--config", metavar="FILE", help=f"TOML file (default: {config.FILE}; MOORAGE_CONFIG)")
    parser.add_argument("--check-config", action="store_true", help="print the options in effect and exit")
    config.add_arguments(parser)


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Serve until told to stop; 2 when the configuration cannot be used."""
    flags = {name: value for name, value in vars(args).items() if name in config.OPTIONS}
    try:
        options, sources = config.resolve(flags, environ, args.config)
    except config.ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    if args.check_config:
        print(config.describe(options, sources))
        return 0
    return _serve(options)


def _serve(options: config.Config) -> int:
    # Until the supervisor is there, TERM ends us with what has been started: by default it would leave the Valkey's directory
    # behind, and do nothing at all to process 1 of a container. There is nothing yet that HUP could have read again.
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    gc.disable()  # what is imported stays: to look for garbage in it is a seventh of the time that takes
    import workers  # everything a server needs: not for --help or --check-config
    from router.embedded import Embedded, EmbeddedError

    gc.enable()
    if options.redis is not None:
        return workers.serve(options, options.redis)
    try:
        with Embedded() as embedded:
            return workers.serve(options, embedded.url, embedded)
    except EmbeddedError as error:
        print(f"moorage: {error}", file=sys.stderr)
        return workers.CANNOT_BOOT


def _end(_signum: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(0)
