"""Who is let in: how many at all, how many a second, from one address, of one user; and how often one may publish.

Checked when a connection has asked to be a session, before anything dear is done for it: no token is verified, no channel
subscribed. Health checks and other requests of the public port are no sessions and come past.

Nothing is kept where no limit is set. Counts over all workers are in the `Census`; here is only, for every descriptor,
what it was counted as: eight bytes each for address and user.
"""

from __future__ import annotations

import logging
import math
import resource
from array import array
from collections.abc import Callable, Hashable
from ipaddress import IPv6Address

from server import limits
from server.census import ALL, Census, key_of
from server.close import Close, PeerError
from server.config import Config
from server.pace import Pace
from server.stats import Stats

log = logging.getLogger("moorage.admission")

AFTER_MS = {
    Close.ACCEPT_RATE: (2_000, 10_000),
    Close.FULL: (5_000, 30_000),
    Close.ADDRESS_FULL: (10_000, 30_000),
    Close.USER_FULL: (10_000, 30_000),
}
"""How long those wait who are refused, in milliseconds: least and most. The rest comes back sooner."""

_TOLD = (
    Close.OVERLOADED, Close.ACCEPT_RATE, Close.FULL, Close.ADDRESS_FULL, Close.USER_FULL,
    Close.PROXY_UNTRUSTED, Close.PROXY_MISSING, Close.PROXY_MALFORMED,
)  # fmt: skip


class Admission:
    """The limits on newcomers of one worker, and what it counts for them."""

    def __init__(
        self,
        config: Config,
        stats: Stats,
        census: Census | None,
        number: int,
        workers: int,
        clock: Callable[[], float],
    ) -> None:
        """Be worker `number` of `workers`; `census` is theirs, `clock` gives seconds."""
        self._stats = stats
        self._census = census
        self._clock = clock
        if census is not None:
            census.claim(number)
        self._connections_max = config.connections_max
        self._per_address_max = config.connections_per_address_max
        self._per_user_max = config.connections_per_user_max
        # The rate of the host in equal parts: SO_REUSEPORT spreads newcomers evenly.
        share = config.accepts_per_second / workers
        self._accepts = Pace(share, share * limits.ACCEPT_BURST_SECONDS) if share else None
        rate = config.publishes_per_second
        self._publishes = Pace(rate, rate * limits.PUBLISH_BURST_SECONDS) if rate else None
        self._patience = Pace(rate, rate * limits.PUBLISH_ABUSE_SECONDS) if rate else None
        self._addresses = array("Q")  # by descriptor: the key of its address, or ALL; 0: it is not counted
        self._users = array("Q")
        self._told = self._refusals()
        self._told_at = -math.inf
        self._overflows_told = stats.census_overflows
        self._examples: dict[Close, str] = {}

    def enter(self, fd: int, address: Callable[[], str]) -> None:
        """Count a newcomer of `address`. Raises: PeerError when there is no room for it."""
        if self._accepts is not None and self._accepts.take(None, self._clock()):
            raise PeerError(Close.ACCEPT_RATE)
        census = self._census
        if census is None:
            return
        if self._connections_max and census.count(ALL) >= self._connections_max:
            raise PeerError(Close.FULL)
        key = ALL
        if self._per_address_max:
            where = address()
            key = key_of("address " + site_of(where))
            if (found := census.count(key)) >= self._per_address_max:
                raise PeerError(
                    Close.ADDRESS_FULL, f"{found} connections from {where}, want at most {self._per_address_max}"
                )
            if not self._add(key):
                key = ALL
        if self._add(ALL):
            _put(self._addresses, fd, key)
        elif key != ALL:  # what is counted, and only that, is counted out when it leaves
            census.discard(key)

    def enter_user(self, fd: int, user: str) -> None:
        """Count it for its user. Raises: PeerError when she has too many."""
        if self._census is None or not self._per_user_max:
            return
        key = key_of("user " + user)
        if (found := self._census.count(key)) >= self._per_user_max:
            raise PeerError(Close.USER_FULL, f"{found} connections of {user}, want at most {self._per_user_max}")
        if self._add(key):
            _put(self._users, fd, key)

    def leave(self, fd: int) -> None:
        """Count it no more, if it has been."""
        census = self._census
        if census is None:
            return
        if fd < len(self._addresses) and (key := self._addresses[fd]):
            self._addresses[fd] = 0
            census.discard(ALL)
            if key != ALL:
                census.discard(key)
        if fd < len(self._users) and (key := self._users[fd]):
            self._users[fd] = 0
            census.discard(key)

    def _add(self, key: int) -> bool:
        """Count one more; False when the table is full: it is let in, and the limits know nothing of it."""
        assert self._census is not None
        is_counted = self._census.add(key)
        self._stats.census_overflows += not is_counted
        return is_counted

    def refused(self, error: PeerError) -> None:
        """Note why somebody was sent away."""
        if error.code in AFTER_MS:
            self._stats.sessions_refused += 1
        self._examples[error.code] = error.reason

    def publish_wait_ms(self, who: Hashable, user: str) -> int:
        """Let `who` publish and return 0, or return after how many milliseconds it may."""
        if self._publishes is None or not (wait := self._publishes.take(who, self._clock())):
            return 0
        self._stats.publishes_limited += 1
        self._examples[Close.PUBLISH_RATE] = user
        return math.ceil(wait * 1000 - 1e-6)

    def is_abuse(self, who: Hashable) -> bool:
        """Tell whether it goes on being refused faster than it may publish, for too long."""
        return self._patience is not None and bool(self._patience.take(who, self._clock()))

    def keep(self, now: float) -> None:
        """Log who was refused, a line a reason and not often, and forget what need not be known; call now and then."""
        for pace in (self._publishes, self._patience):
            if pace is not None:
                pace.sweep(now)
        if now - self._told_at < limits.REFUSALS_TOLD_SECONDS:
            return
        counts = self._refusals()
        for code, count in counts.items():
            if more := count - self._told[code]:
                self._told_at = now
                log.warning("refused %d times: %s; the last: %s", more, code.name.lower(), self._examples.get(code, ""))
        self._told = counts
        if more := self._stats.census_overflows - self._overflows_told:
            self._told_at = now
            self._overflows_told += more
            log.warning("not counted %d times: the table that limits on connections count in is full", more)

    def _refusals(self) -> dict[Close, int]:
        failures = self._stats.handshake_failures
        return {Close.PUBLISH_RATE: self._stats.publishes_limited, **{code: failures[code] for code in _TOLD}}


def census(config: Config, workers: int) -> Census | None:
    """Return where all workers count, or None where nothing has to be. To be called before the first fork."""
    kinds = bool(config.connections_per_address_max) + bool(config.connections_per_user_max)
    if not kinds and not config.connections_max:
        return None
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Census(workers, kinds * descriptors + 1)


def site_of(address: str) -> str:
    """Return what counts as one address: an IPv4 address, or the subnet of an IPv6 one, in which a host has any it wants."""
    return IPv6Address(address).packed[:8].hex() if ":" in address else address


def _put(keys: array[int], fd: int, key: int) -> None:
    if fd >= len(keys):
        keys.frombytes(bytes(8 * (fd + 1 - len(keys))))
    keys[fd] = key
