"""What a verified token says: who, until when, and which channels. Checked once, then shared by cache and sessions."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, NamedTuple

from router.namespaces import channel_fault, user_fault
from server.close import Close, PeerError

LEEWAY_SECONDS = 5.0  # by which the clocks of the issuer and of this machine may differ
GLOBS_MAX = 64  # in one list of a token

_WILD = frozenset("*?[")
_CHANNELS_KEYS = frozenset({"subscribe", "publish"})


class Claims(NamedTuple):
    """What a token says, or open mode takes on trust (then it never expires and is not narrowed).

    `expires_at` is when it is refused from (seconds since 1970, leeway included); None: never.
    `subscribe` and `publish` are globs that narrow what the namespaces allow; None: not narrowed.
    """

    user: str
    expires_at: float | None = None
    subscribe: tuple[str, ...] | None = None
    publish: tuple[str, ...] | None = None

    def may_subscribe(self, channel: str) -> bool:
        """Tell whether the token allows it. A personal channel is its user's alone, and hers whatever the globs say."""
        if channel[:1] == "@":
            return channel[1:] == self.user
        return _allows(self.subscribe, channel)

    def may_publish(self, channel: str) -> bool:
        """Tell whether the token allows it; a message to somebody's personal channel is one to her."""
        return _allows(self.publish, channel)


def from_payload(payload: dict[str, Any], now: float) -> Claims:
    """Return the claims of a payload whose signature was checked.

    Raises: PeerError, EXPIRED or UNAUTHORIZED, with what was found and what is wanted.
    """
    expires = _seconds(payload, "exp")
    if now >= expires + LEEWAY_SECONDS:
        raise expired(expires, now)
    if "nbf" in payload and now < (begins := _seconds(payload, "nbf")) - LEEWAY_SECONDS:
        raise refused(f"not valid for another {begins - now:.0f} s")
    user = payload.get("sub")
    if not isinstance(user, str):
        raise unlike("sub", user, "the user's name")
    if fault := user_fault(user):
        raise refused(f"sub: {fault}")
    channels = payload.get("channels", {})
    if not isinstance(channels, dict) or not channels.keys() <= _CHANNELS_KEYS:
        # A misspelt key that is ignored would narrow nothing.
        raise unlike("channels", channels, "an object of subscribe and publish")
    subscribe, publish = _globs(channels, "subscribe"), _globs(channels, "publish")
    return Claims(user, expires + LEEWAY_SECONDS, subscribe, publish)


def _seconds(payload: dict[str, Any], claim: str) -> float:
    found = payload.get(claim)
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        raise unlike(claim, found, "seconds since 1970")
    return float(found)


def _globs(channels: dict[str, Any], name: str) -> tuple[str, ...] | None:
    if name not in channels:
        return None
    found = channels[name]
    if not isinstance(found, list):
        raise unlike(f"channels.{name}", found, "a list of globs")
    if len(found) > GLOBS_MAX:
        raise refused(f"channels.{name}: {len(found)} globs found, wanted at most {GLOBS_MAX}")
    for glob in found:
        fault = channel_fault(glob) if isinstance(glob, str) else f"{shown(glob)}, want a string"
        if fault:
            raise refused(f"channels.{name}: {fault}")
    return _shared(tuple(found))


@lru_cache(maxsize=1024)
def _shared(globs: tuple[str, ...]) -> tuple[str, ...]:
    """Return the one tuple with these globs: most tokens of a deployment have the same."""
    return globs


def _allows(globs: tuple[str, ...] | None, channel: str) -> bool:
    if channel[:1] == "$":
        return False
    return globs is None or any(_matches(channel, glob) for glob in globs)


def _matches(channel: str, glob: str) -> bool:
    """Match as fnmatchcase does; it keeps up to 32,768 compiled patterns, so common shapes do without one."""
    stem = glob.removesuffix("*")
    if _WILD.isdisjoint(stem):
        return channel == glob if stem == glob else channel.startswith(stem)
    return fnmatchcase(channel, glob)


def refused(reason: str) -> PeerError:
    """Return the refusal of a token."""
    return PeerError(Close.UNAUTHORIZED, reason, "token")


def unlike(name: str, found: object, wanted: str) -> PeerError:
    """Return the refusal of a token whose member `name` is missing (None) or wrong."""
    return refused(
        f"no {name} found, wanted {wanted}" if found is None else f"{name} {shown(found)} found, wanted {wanted}"
    )


def expired(expires: float, now: float) -> PeerError:
    """Return the refusal of a token that was good until `expires`: its owner may come back with a fresh one."""
    return PeerError(Close.EXPIRED, f"expired {now - expires:.0f} s ago", "token")


def shown(found: object) -> str:
    """Return what a peer sent, short enough to be repeated to it."""
    try:
        text = str(found)
    except RecursionError:  # orjson reads 1,024 levels, and Python prints fewer
        text = "something nested too deep"
    if not text.isprintable():
        text = ascii(text)  # also for our log
    return text if len(text) <= 64 else text[:61] + "..."
