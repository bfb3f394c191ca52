"""How one option of the configuration is read, bounded and shown; `config.Config` says which options there are."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import urlsplit

Item = TypeVar("Item")
Value = TypeVar("Value")
Reader = Callable[[object], Value]

MASK = "***"
PREFIX = "MOORAGE_"  # of environment variables
NAME = re.compile(r"(?=.*[A-Za-z_])[A-Za-z0-9_.-]+")  # digits and dots alone are a mistyped IPv4 address
TRUE, FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}
AUTH_SECRET_BYTES_MIN = 32  # RFC 7518, 3.2: a key of the size of the hash or larger


class Address(NamedTuple):
    """Where to listen: an IPv4 or IPv6 address or a host name, and a port (0: the kernel picks one)."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read `HOST:PORT` or `[IPV6]:PORT`.

        Raises: ValueError, with what is wanted. An empty host is refused: nobody should listen on every
        interface by leaving something out.
        """
        host, colon, port = text.strip().rpartition(":")
        if not colon or not port.isascii() or not port.isdecimal() or int(port) > 65535:
            raise ValueError("HOST:PORT with a port from 0 to 65535")
        bracketed = host.startswith("[") and host.endswith("]")
        if bracketed != (":" in host):
            raise ValueError("HOST:PORT, an IPv6 address in brackets: [::1]:7400")
        try:
            return cls(str(ipaddress.ip_address(host[1:-1] if bracketed else host)), int(port))
        except ValueError:
            if not NAME.fullmatch(host):
                raise ValueError("HOST:PORT with a host (every interface is 0.0.0.0 or [::])") from None
        return cls(host.lower(), int(port))

    @property
    def is_loopback(self) -> bool:
        """True when only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def overlaps(self, other: Address) -> bool:
        """True when both would get the same connections; SO_REUSEPORT would share them out without a word."""
        hosts = {host.replace("localhost", "127.0.0.1") for host in (self.host, other.host)}
        return self.port == other.port != 0 and (len(hosts) == 1 or not hosts.isdisjoint({"0.0.0.0", "::"}))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Option:
    """One option: its flag, environment variable and TOML key follow from its name."""

    name: str
    default: object
    read: Reader[object]
    metavar: str
    help: str
    unset: str  # what the default means, where the value does not say it
    secret: bool

    @property
    def flag(self) -> str:
        """As typed on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """As named in the environment."""
        return PREFIX + self.name.upper()

    @property
    def repeats(self) -> bool:
        """True when several values may be given."""
        return isinstance(self.default, tuple) and not isinstance(self.default, Address)

    @property
    def is_switch(self) -> bool:
        """True when the flag takes no value."""
        return isinstance(self.default, bool)

    @property
    def about(self) -> str:
        """What it does, its default and its variable: the help text."""
        default = self.unset if self.default in (None, ()) else self.unset or self.show(self.default).strip('[]"')
        notes = ["may repeat"] * self.repeats + [f"default: {default}", self.variable]
        return f"{self.help} ({'; '.join(notes)})"

    def show(self, value: object) -> str:
        """Return `value` as TOML, or "" when there is none; secrets masked."""
        if value is None or value == ():
            return ""
        if isinstance(value, tuple) and not isinstance(value, Address):
            return "[" + ", ".join(self.show(item) for item in value) + "]"
        if isinstance(value, bool | int | float):
            return toml(value)
        return toml(MASK if self.secret else mask_password(str(value)))


def option(
    default: Value, read: Reader[Value], metavar: str, about: str, *, unset: str = "", secret: bool = False
) -> Value:
    """Return a dataclass field that carries what `Option` needs besides its name."""
    metadata = {"read": read, "metavar": metavar, "help": about, "unset": unset, "secret": secret}
    return field(default=default, metadata=metadata)


def toml(value: object) -> str:
    """Return `value`, a number, true or false, or text without control characters, as TOML has it."""
    if isinstance(value, bool | int | float):
        return str(value).lower()
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def mask_password(text: str) -> str:
    """Return `text` with the passwords of a URL masked; rather too much of it than too little."""
    masked = re.sub(r"(://[^/@:]*):.*@", rf"\1:{MASK}@", text, flags=re.DOTALL)
    return re.sub(r"(password=)[^&'\"]*", rf"\1{MASK}", masked)


# Readers: from a string (flag, environment) or a TOML value to the option's value. Each raises ValueError
# that says what is wanted; the caller knows the name, the source and what was found.


def whole(low: int, high: int) -> Reader[int]:
    """Read a whole number from `low` to `high`."""
    wanted = f"a whole number from {low} to {high}"

    def read(found: object) -> int:
        if isinstance(found, bool) or not isinstance(found, int | str):
            raise ValueError(wanted)
        try:
            number = int(found)
        except ValueError:
            raise ValueError(wanted) from None
        if not low <= number <= high:
            raise ValueError(wanted)
        return number

    return read


def seconds(low: float, high: float) -> Reader[float]:
    """Read a number of seconds from `low` to `high`."""
    return _number(low, high, f"a number of seconds from {low:g} to {high:g}")


def per_second(high: float) -> Reader[float]:
    """Read a rate from 0 to `high`."""
    return _number(0, high, f"a number from 0 to {high:,.0f}")


def _number(low: float, high: float, wanted: str) -> Reader[float]:
    def read(found: object) -> float:
        if isinstance(found, bool) or not isinstance(found, int | float | str):
            raise ValueError(wanted)
        try:
            number = float(found)
        except (ValueError, OverflowError):
            raise ValueError(wanted) from None
        if not low <= number <= high:  # also refuses nan
            raise ValueError(wanted)
        return number

    return read


def one_of(*names: str) -> Reader[str]:
    """Read one of `names`, in any case."""

    def read(found: object) -> str:
        if not isinstance(found, str) or found.lower() not in names:
            raise ValueError("one of " + ", ".join(names))
        return found.lower()

    return read


def several(read_item: Callable[[str], Item], wanted: str) -> Reader[tuple[Item, ...]]:
    """Read a list, or one string with commas or blanks between the items; None of them may come twice."""

    def read(found: object) -> tuple[Item, ...]:
        parts: Iterable[object] = found if isinstance(found, list | tuple) else [found]
        texts: list[str] = []
        for part in parts:
            if not isinstance(part, str):
                raise ValueError(wanted)
            texts += part.replace(",", " ").split()
        items = tuple(read_item(text) for text in texts)
        if not items or len(set(items)) != len(items):
            raise ValueError(f"{wanted}, each once")
        return items

    return read


def text(wanted: str) -> Reader[str]:
    """Read a string that is not empty and has no blanks or control characters."""

    def read(found: object) -> str:
        if not isinstance(found, str) or not found or " " in found or not found.isprintable():
            raise ValueError(wanted)
        return found

    return read


def switch(found: object) -> bool:
    """Read true or false."""
    if isinstance(found, bool):
        return found
    if not isinstance(found, str) or found.lower() not in TRUE | FALSE:
        raise ValueError("true or false")
    return found.lower() in TRUE


def address(found: object) -> Address:
    """Read one address to listen on."""
    if not isinstance(found, str):
        raise ValueError("HOST:PORT")
    return Address.parse(found)


def auth_secret(found: object) -> str:
    """Read the shared secret of HS256 tokens."""
    wanted = f"at least {AUTH_SECRET_BYTES_MIN} bytes of text"
    if not isinstance(found, str):
        raise ValueError(wanted)
    if (size := len(found.encode(errors="surrogateescape"))) < AUTH_SECRET_BYTES_MIN:
        raise ValueError(f"{wanted}, not {size} (openssl rand -hex 32)")
    return found


def auth_key(found: object) -> str:
    """Read where the public keys are: a file, or a URL that `auth` fetches."""
    if isinstance(found, str) and re.match(r"https?://[^/]", found):
        return found
    if not isinstance(found, str) or not Path(found).is_file():
        raise ValueError("a PEM or JWKS file that is there, or an https:// URL of a JWKS")
    return found


def network(found: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """Read an address or a network of them; a v4-mapped IPv6 one is the IPv4 one it means."""
    try:
        net = ipaddress.ip_network(found)
    except ValueError as fault:
        raise ValueError(f"addresses or networks such as 10.0.0.0/8 ({fault})") from None
    if isinstance(net, ipaddress.IPv6Network) and net.prefixlen >= 96 and (v4 := net.network_address.ipv4_mapped):
        return ipaddress.IPv4Network((v4, net.prefixlen - 96))
    return net


def origin(found: str) -> str:
    """Read an origin as browsers send it (RFC 6454, 6.2), or `*`."""
    parts = urlsplit(found)
    if found != "*" and (not parts.hostname or found != f"{parts.scheme}://{parts.netloc}".lower() or "@" in found):
        raise ValueError("origins such as https://chat.example:8443 (lower case, no path), or *")
    return found


def redis_url(found: object) -> str:
    """Read where the message bus is."""
    if not isinstance(found, str):
        raise ValueError("a URL")
    from router import topology  # 0.2 s, for those who name a Redis

    try:
        topology.parse(found)
    except ValueError as fault:
        raise ValueError(f"a URL of the message bus ({fault})") from None
    return found
