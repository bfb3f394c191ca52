"""What a channel's name says about it: whether it is one at all, whose it is, and the rules it lives by.

The part of a name before its first `:` is its prefix, and the namespace configured for that prefix holds for it. Every
other name, those without a `:` among them, is in the default namespace; `@user` is in the personal one; `$` names are
the server's own.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from router.journal import Retention

NAME_BYTES_MAX = 255
USER_BYTES_MAX = NAME_BYTES_MAX - 1  # "@" + user is a channel
PREFIX_BYTES_MAX = NAME_BYTES_MAX - 1  # prefix + ":" has to fit a channel's name
HISTORY_MESSAGES_MAX = 100_000
HISTORY_SECONDS_MAX = 30 * 24 * 3600


def channel_fault(name: str) -> str | None:
    """Say what is wrong with a channel's name; None when nothing is.

    A name is 1 to 255 bytes of printable UTF-8 without a space or control character.
    """
    return _fault(name, NAME_BYTES_MAX)


def user_fault(name: str) -> str | None:
    """Say what is wrong with a user's name; None when nothing is.

    The rules of a channel's name, one byte shorter, because `personal(name)` has to be a channel.
    """
    return _fault(name, USER_BYTES_MAX)


def personal(user: str) -> str:
    """Return the channel every connection of `user` is subscribed to."""
    return "@" + user


def _fault(name: str, bytes_max: int) -> str | None:
    # str.isprintable() is false for control characters, surrogates and every white space but " " itself. It goes
    # first: a lone surrogate has no length in UTF-8.
    if not name.isprintable() or " " in name:
        at = next(i for i, character in enumerate(name) if character == " " or not character.isprintable())
        return f"U+{ord(name[at]):04X} at character {at}, want printable characters without spaces"
    size = len(name) if name.isascii() else len(name.encode())
    return None if 0 < size <= bytes_max else f"{size} bytes, want 1 to {bytes_max}"


class Policy(StrEnum):
    """Who may subscribe to the channels of a namespace, or publish to them; the globs of a token narrow it further."""

    SIGNED_IN = "signed-in"  # everybody who is connected
    MEMBERS = "members"  # publish: who is subscribed to the channel; subscribe: whose token has globs, and one matches
    SERVER = "server"  # no client, only backends, through the admin port
    NOBODY = "nobody"  # neither clients nor backends
    OWNER = "owner"  # the user whose personal channel it is; nothing that can be configured


class Namespace(NamedTuple):
    """The rules of the channels with one prefix. The defaults are the contract's.

    `retention` says something of durable channels only; in a live-only namespace it is the default.
    """

    prefix: str = ""
    durable: bool = True
    retention: Retention = Retention()
    presence: bool = True
    join_leave: bool = False
    subscribe: Policy = Policy.SIGNED_IN
    publish: Policy = Policy.SIGNED_IN

    @property
    def kept(self) -> Retention | None:
        """What the journal keeps of a channel; None when it is live-only."""
        return self.retention if self.durable else None


DEFAULT = Namespace()
NAMELESS = Namespace(":")  # what a [[namespace]] is before its prefix is known, which cannot be this
PERSONAL = Namespace("@", subscribe=Policy.OWNER)
SERVERS_OWN = Namespace("$", durable=False, presence=False, subscribe=Policy.NOBODY, publish=Policy.NOBODY)


class Fault(NamedTuple):
    """One thing wrong: in which table (`[[namespace]] 2` is the second), with which key ("": with the table itself)."""

    table: str
    key: str
    found: str
    wanted: str

    @property
    def name(self) -> str:
        """What is wrong, as a reader of the file finds it."""
        return f"{self.table}, {self.key}" if self.key else self.table

    def __str__(self) -> str:
        return f"{self.name}: found {self.found}, want {self.wanted}"


class NamespacesError(ValueError):
    """The tables cannot be used; `faults` holds everything that is wrong with them."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("\n".join(map(str, faults)))
        self.faults = faults


@dataclass(frozen=True, slots=True)
class Namespaces:
    """The namespaces of a server: `of` finds the one of a channel. `named` is kept in the order of prefixes."""

    default: Namespace = DEFAULT
    personal: Namespace = PERSONAL
    named: tuple[Namespace, ...] = ()
    _by_prefix: dict[str, Namespace] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_prefix = {each.prefix: each for each in sorted(self.named)}
        assert len(by_prefix) == len(self.named), "one namespace a prefix"
        object.__setattr__(self, "named", tuple(by_prefix.values()))
        object.__setattr__(self, "_by_prefix", by_prefix)

    def of(self, channel: str) -> Namespace:
        """Return the namespace of `channel`, a name without a `channel_fault`. Runs once a publish."""
        first = channel[0]
        if first == "@":
            return self.personal
        if first == "$":
            return SERVERS_OWN
        prefix, colon, _ = channel.partition(":")
        return self._by_prefix.get(prefix, self.default) if colon else self.default

    @classmethod
    def from_tables(cls, default: object = None, personal: object = None, named: object = None) -> Namespaces:
        """Read `[namespace_default]`, `[namespace_personal]` and every `[[namespace]]`, as a TOML parser gives them.

        None stands for a table that is not there. A key that is not there has the contract's default, whatever
        `[namespace_default]` says.

        Raises: NamespacesError with every fault at once.
        """
        faults: list[Fault] = []
        read = cls(
            _read("[namespace_default]", {} if default is None else default, DEFAULT, faults),
            _read("[namespace_personal]", {} if personal is None else personal, PERSONAL, faults),
            _read_named([] if named is None else named, faults),
        )
        if faults:
            raise NamespacesError(faults)
        return read

    def tables(self) -> dict[str, dict[str, object] | list[dict[str, object]]]:
        """Return what `from_tables` reads back, by the names of the tables and with every key that has a say."""
        return {
            "namespace_default": _table(self.default),
            "namespace_personal": _table(self.personal),
            "namespace": [_table(each) for each in self.named],
        }


class Key(NamedTuple):
    """One key of a table: which values fit, how to say so, and what it does."""

    fits: Callable[[object], bool]
    wanted: str
    about: str


def _is_prefix(found: object) -> bool:
    if not isinstance(found, str) or ":" in found or found[:1] in ("@", "$"):
        return False
    return _fault(found, PREFIX_BYTES_MAX) is None


def _is_switch(found: object) -> bool:
    return isinstance(found, bool)


def _is_policy(found: object) -> bool:
    return isinstance(found, str) and found in _POLICIES


def _whole(high: int) -> tuple[Callable[[object], bool], str]:
    def fits(found: object) -> bool:
        return isinstance(found, int) and not isinstance(found, bool) and 1 <= found <= high

    return fits, f"a whole number from 1 to {high}"


_PREFIX = f"1 to {PREFIX_BYTES_MAX} bytes of a channel's name: no space, no :, and neither @ nor $ in front"
_SWITCH = "true or false"
_POLICIES = [each.value for each in Policy if each is not Policy.OWNER]
_POLICY = "one of " + ", ".join(_POLICIES)
KEYS: Mapping[str, Key] = {
    "prefix": Key(_is_prefix, _PREFIX, "its channels are those whose name begins with this and a `:`"),
    "durable": Key(_is_switch, _SWITCH, "messages have positions and are kept; otherwise the channels are live-only"),
    "history_messages_max": Key(*_whole(HISTORY_MESSAGES_MAX), "messages kept of each channel"),
    "history_seconds_max": Key(*_whole(HISTORY_SECONDS_MAX), "seconds a message is kept"),
    "presence": Key(_is_switch, _SWITCH, "it is known who is in a channel"),
    "join_leave": Key(_is_switch, _SWITCH, "subscribers are told who joins and who leaves"),
    "subscribe": Key(_is_policy, _POLICY, "who may subscribe, and ask for history and presence"),
    "publish": Key(_is_policy, _POLICY, "who may publish"),
}
_HISTORY = {"history_messages_max": "messages_max", "history_seconds_max": "seconds_max"}  # fields of Retention
_FIXED = {  # keys that a table does not have, and why
    "": {"prefix": "no prefix: it is for every channel that no [[namespace]] is for"},
    "@": {
        "prefix": "no prefix: it is for personal channels",
        "subscribe": "no such key: only alice subscribes to @alice",
        "join_leave": "no such key: only alice is in @alice, and her own coming is no news to her",
    },
}


def keys(prefix: str) -> list[str]:
    """Return the keys of the table for `prefix`: "" of `[namespace_default]`, "@" of `[namespace_personal]`."""
    return [name for name in KEYS if name not in _FIXED.get(prefix, {})]


def _table(namespace: Namespace) -> dict[str, object]:
    values: dict[str, object] = namespace._asdict()
    if namespace.durable:
        values |= zip(_HISTORY, namespace.retention, strict=True)
    return {name: values[name] for name in keys(namespace.prefix) if name in values}


def _read_named(tables: object, faults: list[Fault]) -> tuple[Namespace, ...]:
    if not isinstance(tables, list):
        found = "[namespace]" if isinstance(tables, dict) else repr(tables)
        faults.append(Fault("[[namespace]]", "", found, "[[namespace]] above the keys of each"))
        return ()
    read: dict[str, Namespace] = {}
    numbers: dict[str, int] = {}
    for number, table in enumerate(tables, 1):
        prefix = table.get("prefix") if isinstance(table, dict) else None
        where = f"[[namespace]] {number}" + (f' "{prefix}"' if _is_prefix(prefix) else "")
        namespace = _read(where, table, NAMELESS, faults)
        if namespace.prefix in read:
            faults.append(
                Fault(where, "prefix", f"that of [[namespace]] {numbers[namespace.prefix]}", "one of its own")
            )
        elif namespace.prefix != NAMELESS.prefix:
            read[namespace.prefix], numbers[namespace.prefix] = namespace, number
    return tuple(read.values())


def _read(where: str, table: object, base: Namespace, faults: list[Fault]) -> Namespace:
    """Return `base` with what could be read of `table`; what could not is added to `faults`."""
    if not isinstance(table, dict):
        faults.append(Fault(where, "", repr(table), "a table"))
        return base
    fixed, values = _FIXED.get(base.prefix, {}), dict[str, Any]()
    for name, found in table.items():
        if name not in KEYS:
            faults.append(Fault(where, name, "an unknown key", _meant(name, keys(base.prefix))))
        elif name in fixed:
            faults.append(Fault(where, name, repr(found), fixed[name]))
        elif KEYS[name].fits(found):
            values[name] = found
        else:
            faults.append(Fault(where, name, repr(found), KEYS[name].wanted))
    if base is NAMELESS and "prefix" not in table:
        faults.append(Fault(where, "prefix", "nothing", KEYS["prefix"].wanted))
    faults += _contradictions(where, values)
    values |= {name: Policy(values[name]) for name in ("subscribe", "publish") if name in values}
    history = {of: values.pop(name) for name, of in _HISTORY.items() if name in values}
    return base._replace(**values, retention=base.retention._replace(**history))


def _contradictions(where: str, values: Mapping[str, object]) -> Iterator[Fault]:
    """Yield what is wrong with values that are each fine; one that is not is absent, and so misleads nobody."""
    if values.get("durable") is False:
        for name in _HISTORY:
            if name in values:
                found = f"{values[name]} where durable is false"
                yield Fault(where, name, found, "durable = true, or no such key")
    if values.get("join_leave") and values.get("presence") is False:
        yield Fault(where, "join_leave", "true where presence is false", "presence = true, or no such key")


def _meant(word: str, names: Collection[str]) -> str:
    close = difflib.get_close_matches(word.replace("-", "_").lower(), names, 1)
    return f"{close[0]} (did you mean that?)" if close else "one of " + ", ".join(names)
