"""Every option of the server in one frozen object: defaults < TOML file < environment < flags.

`Config` is the one table. Flags, environment names, TOML keys, help texts and validation derive from its fields. The
namespaces beside them are tables, so they are in the file only.
"""

from __future__ import annotations

import argparse
import difflib
import re
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import NamedTuple

from router.namespaces import Fault, Namespaces, NamespacesError
from server import limits, rules
from server.options import (
    MASK,
    PREFIX,
    Address,
    Option,
    address,
    auth_key,
    auth_secret,
    mask_password,
    network,
    one_of,
    option,
    origin,
    per_second,
    redis_url,
    seconds,
    several,
    switch,
    text,
    toml,
    whole,
)

__all__ = ["OPTIONS", "Address", "Config", "ConfigError", "Problem", "add_arguments", "describe", "load", "resolve"]

FILE = "moorage.toml"
TABLES = ("namespace_default", "namespace_personal", "namespace")  # as Namespaces.from_tables takes them
NOT_OPTIONS = {"MOORAGE_CONFIG", "MOORAGE_TOKEN"}  # variables that are ours and set no option
# Kubernetes gives every pod these for a Service called moorage or moorage-something.
SERVICE_LINK = re.compile(r"MOORAGE_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")

_addresses = several(Address.parse, "addresses as HOST:PORT")
_origins = several(origin, "origins such as https://chat.example, or *")
_networks = several(network, "addresses or networks such as 10.0.0.0/8")
_bytes = whole(0, 2**30)
_count = whole(0, 100_000_000)
_rate = per_second(1_000_000)


@dataclass(frozen=True, slots=True, repr=False)
class Config:
    """The options of `moorage serve`. Units are in the names; `repr` masks secrets."""

    tcp: tuple[Address, ...] = option((Address("127.0.0.1", 7400),), _addresses, "HOST:PORT", "listen for raw TCP")
    http: tuple[Address, ...] = option(
        (Address("127.0.0.1", 7480),), _addresses, "HOST:PORT", "listen for HTTP: /events, /publish, health"
    )
    admin: Address = option(  # noqa: RUF009  # an Address cannot change
        Address("127.0.0.1", 7490), address, "HOST:PORT", "listen for the admin API and /metrics"
    )
    workers: int = option(0, whole(0, 1024), "N", "worker processes", unset="0, one per core")
    redis: str | None = option(None, redis_url, "URL", "the message bus", unset="embedded")
    redis_prefix: str = option("moorage:", text("text without blanks"), "TEXT", "begins every key and channel in Redis")
    auth_secret: str | None = option(
        None, auth_secret, "SECRET", "secret of HS256 tokens; a flag shows in ps", unset="open mode", secret=True
    )
    auth_key: str | None = option(
        None, auth_key, "FILE", "public key (PEM) or key set (JWKS file or URL) of tokens", unset="open mode"
    )
    auth_audience: str | None = option(
        None, text("text without blanks"), "AUD", "what `aud` must hold", unset="not checked"
    )
    auth_issuer: str | None = option(
        None, text("text without blanks"), "ISS", "what `iss` must be", unset="not checked"
    )
    no_auth: bool = option(False, switch, "", "open mode on other than loopback addresses: any user on trust")
    admin_key: str | None = option(
        None, text("text without blanks"), "KEY", "Bearer key of the admin port", unset="loopback only", secret=True
    )
    origins: tuple[str, ...] = option((), _origins, "ORIGIN", "web pages that may use it (CORS), or *", unset="none")
    proxy_protocol: str = option(
        "off", one_of("off", "v1", "v2", "auto"), "MODE", "PROXY header that trusted balancers send; auto: or none"
    )
    proxy_trusted: tuple[IPv4Network | IPv6Network, ...] = option(
        (), _networks, "CIDR", "balancers whose PROXY header, Forwarded and X-Forwarded-For are believed", unset="none"
    )
    heartbeat_seconds: float = option(
        limits.HEARTBEAT_SECONDS, seconds(0.1, 3600), "S", "between heartbeats of a connection"
    )
    handshake_seconds: float = option(
        limits.HANDSHAKE_SECONDS_MAX, seconds(0.1, 600), "S", "for a new connection to say who it is"
    )
    user_timeout_seconds: float = option(
        limits.USER_TIMEOUT_SECONDS, seconds(1, 3600), "S", "until a peer that acknowledges nothing is gone"
    )
    drain_seconds: float = option(
        60.0, seconds(0, limits.DRAIN_SECONDS_MAX), "S", "in which clients are asked to leave on SIGTERM"
    )
    presence_connections_max: int = option(
        limits.PRESENCE_CONNECTIONS_MAX, whole(1, 1_000_000), "N", "connections that an answer to presence names"
    )
    channels_per_connection_max: int = option(
        limits.CHANNELS_PER_CONNECTION_MAX, whole(1, 100_000), "N", "channels of one connection"
    )
    connections_max: int = option(0, _count, "N", "connections of all workers together", unset="0, no limit")
    connections_per_address_max: int = option(
        0, _count, "N", "of them from one IPv4 address or IPv6 /64", unset="0, no limit"
    )
    connections_per_user_max: int = option(0, _count, "N", "of them of one user", unset="0, no limit")
    connection_seconds_max: float = option(
        0.0, seconds(0, 31_536_000), "S", "until a connection has to be made anew, 10 % more or less", unset="0, never"
    )
    accepts_per_second: float = option(0.0, _rate, "N", "new connections, all workers together", unset="0, no limit")
    publishes_per_second: float = option(0.0, _rate, "N", "publishes of one connection", unset="0, no limit")
    message_bytes_max: int = option(
        limits.MESSAGE_BYTES_MAX, whole(1, limits.MESSAGE_BYTES_MAX), "N", "bytes of a message's data"
    )
    backlog_bytes_max: int = option(
        limits.BACKLOG_BYTES_MAX, whole(4096, 2**30), "N", "bytes that may wait for one slow peer"
    )
    send_buffer_bytes: int = option(0, _bytes, "N", "SO_SNDBUF of a connection", unset="0, the kernel's choice")
    receive_buffer_bytes: int = option(0, _bytes, "N", "SO_RCVBUF of a connection", unset="0, the kernel's choice")
    listen_backlog: int = option(
        limits.LISTEN_BACKLOG, whole(1, 2**20), "N", "connections that wait to be accepted, per worker and address"
    )
    log_level: str = option("info", one_of("debug", "info", "warning", "error"), "LEVEL", "what is logged")
    log_format: str = option("text", one_of("text", "json"), "FORMAT", "how a line is logged")
    namespaces: Namespaces = field(default=Namespaces())

    @property
    def is_open(self) -> bool:
        """True in open mode: `user` is taken on trust."""
        return self.auth_secret is None and self.auth_key is None

    def __repr__(self) -> str:
        shown = [f"{name}={o.show(getattr(self, name)) or None}" for name, o in OPTIONS.items()]
        return f"Config({', '.join(shown)}, namespaces={self.namespaces})"


OPTIONS: Mapping[str, Option] = {
    each.name: Option(name=each.name, default=each.default, **each.metadata)
    for each in fields(Config)
    if each.metadata  # all but the namespaces
}


class Problem(NamedTuple):
    """One thing wrong: the option's name, where its value came from, what was found and what is wanted."""

    name: str
    source: str
    found: str
    wanted: str

    def __str__(self) -> str:
        return f"{self.name} ({self.source}): found {self.found}, want {self.wanted}"


class ConfigError(Exception):
    """The configuration cannot be used; `problems` holds everything that is wrong with it."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class Given(NamedTuple):
    """A value as it was found, and where."""

    value: object
    source: str


def load(options: Mapping[str, object], environ: Mapping[str, str], path: str | None = None) -> Config:
    """Return the configuration of `resolve`."""
    return resolve(options, environ, path)[0]


def resolve(
    options: Mapping[str, object], environ: Mapping[str, str], path: str | None = None
) -> tuple[Config, dict[str, str]]:
    """Return the configuration, and for each option and each of `TABLES` where its value came from.

    `options` are the flags that were given, by option name; `path` is the TOML file, else MOORAGE_CONFIG, else
    moorage.toml in the working directory where there is one.

    Raises: ConfigError with every problem of every layer at once.
    """
    problems: list[Problem] = []
    given: dict[str, Given] = {}
    for layer in (_from_file(path, environ, problems), _from_environ(environ, problems), _from_flags(options)):
        for name, found in layer:
            given[name] = found
    values, broken = _read(given, problems)
    config = Config(**values, namespaces=_read_namespaces(given, problems))  # type: ignore[arg-type]  # as readers say
    sources = {name: given[name].source if name in given else "default" for name in (*OPTIONS, *TABLES)}
    problems += _broken_rules(config, sources, broken)
    if problems:
        raise ConfigError(problems)
    return config, sources


def _read(given: Mapping[str, Given], problems: list[Problem]) -> tuple[dict[str, object], set[str]]:
    """Return the values that could be read, and the names of those that could not."""
    values: dict[str, object] = {}
    for name, each in OPTIONS.items():
        if name not in given:
            continue
        found, source = given[name]
        try:
            values[name] = each.read(found)
        except ValueError as error:
            shown = MASK if each.secret else mask_password(repr(found))
            problems.append(Problem(name, source, shown, str(error)))
    return values, (given.keys() & OPTIONS.keys()) - values.keys()


def _read_namespaces(given: Mapping[str, Given], problems: list[Problem]) -> Namespaces:
    try:
        return Namespaces.from_tables(*(given[name].value if name in given else None for name in TABLES))
    except NamespacesError as error:
        source = next(given[name].source for name in TABLES if name in given)  # one file holds them all
        problems += [Problem(fault.name, source, fault.found, _wanted(fault)) for fault in error.faults]
        return Namespaces()


def _wanted(fault: Fault) -> str:
    if fault.key in OPTIONS:  # in TOML every key below a [table] is the table's
        return "it above the first table of the file: it is an option of the server"
    return fault.wanted


def _from_file(path: str | None, environ: Mapping[str, str], problems: list[Problem]) -> Iterator[tuple[str, Given]]:
    named = path or environ.get("MOORAGE_CONFIG")
    file = Path(named or FILE)
    if not named and not file.exists():
        return
    try:
        table = tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        problems.append(Problem("config", str(file), error.strerror or "an error", "a TOML file that can be read"))
        return
    except ValueError as error:  # bad TOML, bad UTF-8
        problems.append(Problem("config", str(file), str(error), "TOML"))
        return
    for key, value in table.items():
        if key in OPTIONS or key in TABLES:
            yield key, Given(value, f"file {file}")
        else:
            problems.append(Problem(key, f"file {file}", "an unknown key", _meant(key, (*OPTIONS, *TABLES))))


def _from_environ(environ: Mapping[str, str], problems: list[Problem]) -> Iterator[tuple[str, Given]]:
    variables = {o.variable: name for name, o in OPTIONS.items()}
    for variable, value in environ.items():
        if variable in variables:
            yield variables[variable], Given(value, f"environment {variable}")
        elif variable.startswith(PREFIX) and variable not in NOT_OPTIONS and not _is_service_link(variable, value):
            problems.append(Problem(variable, "environment", "an unknown variable", _meant(variable, OPTIONS, PREFIX)))


def _from_flags(options: Mapping[str, object]) -> Iterator[tuple[str, Given]]:
    for name, value in options.items():
        yield name, Given(value, f"flag {OPTIONS[name].flag}")


def _is_service_link(variable: str, value: str) -> bool:
    return SERVICE_LINK.fullmatch(variable) is not None or (variable.endswith("_PORT") and "://" in value)


def _meant(word: str, names: Collection[str], prefix: str = "") -> str:
    """Return the one of `names` an unknown one was meant to be, else all; `prefix` for names of variables."""

    def spelled(name: str) -> str:
        return prefix + name.upper() if prefix else name

    close = difflib.get_close_matches(word.removeprefix(prefix).replace("-", "_").lower(), names, 1)
    if close:
        return f"{spelled(close[0])} (did you mean that?)"
    return "one of " + ", ".join(map(spelled, names))


def _broken_rules(config: Config, sources: Mapping[str, str], broken: Collection[str]) -> Iterator[Problem]:
    """Yield what is wrong with options that are each fine; a rule over a broken one would only mislead."""
    for names, fault in rules.RULES:
        if not set(names).isdisjoint(broken):
            continue
        if verdict := fault(config):
            given = [name for name in names if sources[name] != "default"]
            yield Problem(", ".join(given), ", ".join(dict.fromkeys(sources[name] for name in given)), *verdict)


def add_arguments(parser: argparse.ArgumentParser, names: Iterable[str] = ()) -> None:
    """Add the flags of all options, or of `names`. Only those given appear in the namespace, unread."""
    for name in names or OPTIONS:
        each = OPTIONS[name]
        about = each.about.replace("%", "%%")
        if each.is_switch:
            parser.add_argument(each.flag, action="store_true", default=argparse.SUPPRESS, help=about)
        else:
            action = "append" if each.repeats else "store"
            parser.add_argument(each.flag, action=action, default=argparse.SUPPRESS, metavar=each.metavar, help=about)


def describe(config: Config, sources: Mapping[str, str]) -> str:
    """Return the configuration as TOML, secrets masked, each option and table with where its value came from."""
    lines = []
    for name, each in OPTIONS.items():
        value = each.show(getattr(config, name))
        lines.append(f"{name} = {value}  # {sources[name]}" if value else f"# {name}: {each.unset} ({sources[name]})")
    for name, found in config.namespaces.tables().items():
        for table in found if isinstance(found, list) else [found]:
            header = f"[[{name}]]" if isinstance(found, list) else f"[{name}]"
            lines += ["", f"{header}  # {sources[name]}", *(f"{key} = {toml(value)}" for key, value in table.items())]
    return "\n".join(lines)
