"""What options have to be together: each is fine, and with another it would not be."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

from router import site

if TYPE_CHECKING:
    from server.config import Config

ENVELOPE_BYTES_MAX = 4096  # what a frame adds to its data: channel, user, position, names


class Rule(NamedTuple):
    """A rule over several options: `fault` returns what was found and what is wanted, or None."""

    names: tuple[str, ...]
    fault: Callable[[Config], tuple[str, str] | None]


def _open_mode_is_local(config: Config) -> tuple[str, str] | None:
    exposed = [str(each) for each in (*config.tcp, *config.http) if not each.is_loopback]
    if not config.is_open or config.no_auth or not exposed:
        return None
    return f"open mode on {', '.join(exposed)}", "an auth_secret or auth_key, loopback addresses, or no_auth"


def _one_auth(config: Config) -> tuple[str, str] | None:
    both = config.auth_secret is not None and config.auth_key is not None
    return ("both", "one of them") if both else None


def _no_auth_means_open(config: Config) -> tuple[str, str] | None:
    contradiction = config.no_auth and not config.is_open
    return ("no_auth beside a secret or key", "one or the other") if contradiction else None


def _claims_are_checked(config: Config) -> tuple[str, str] | None:
    unchecked = config.is_open and (config.auth_audience is not None or config.auth_issuer is not None)
    return ("a claim to check but no way to verify a token", "an auth_secret or auth_key") if unchecked else None


def _admin_is_guarded(config: Config) -> tuple[str, str] | None:
    if config.admin.is_loopback or config.admin_key is not None:
        return None
    return f"{config.admin} without admin_key", "an admin_key, or a loopback address"


def _addresses_are_distinct(config: Config) -> tuple[str, str] | None:
    pairs = combinations((*config.tcp, *config.http, config.admin), 2)
    clashes = [f"{one} and {other}" for one, other in pairs if one.overlaps(other)]
    return (", ".join(clashes), "an address of its own for each") if clashes else None


def _proxies_are_named(config: Config) -> tuple[str, str] | None:
    if config.proxy_protocol == "off" or config.proxy_trusted:
        return None
    return f"{config.proxy_protocol} from nobody", "proxy_trusted: the addresses of the balancers, and of nobody else"


def _message_fits_backlog(config: Config) -> tuple[str, str] | None:
    needed = config.message_bytes_max + ENVELOPE_BYTES_MAX
    if config.backlog_bytes_max >= needed:
        return None
    return f"a backlog of {config.backlog_bytes_max}", f"at least {needed}: one message with its envelope"


RULES = (
    Rule(("tcp", "http", "auth_secret", "auth_key", "no_auth"), _open_mode_is_local),
    Rule(("auth_secret", "auth_key"), _one_auth),
    Rule(("no_auth", "auth_secret", "auth_key"), _no_auth_means_open),
    Rule(("auth_audience", "auth_issuer", "auth_secret", "auth_key"), _claims_are_checked),
    Rule(("admin", "admin_key"), _admin_is_guarded),
    Rule(("tcp", "http", "admin"), _addresses_are_distinct),
    Rule(("proxy_protocol", "proxy_trusted"), _proxies_are_named),
    Rule(("message_bytes_max", "backlog_bytes_max"), _message_fits_backlog),
    Rule(("redis", "redis_prefix"), lambda config: site.prefix_fault(config.redis, config.redis_prefix)),
)
