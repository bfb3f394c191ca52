"""Redis pub/sub as the bus between workers: two pipes, one that subscribes and one that publishes.

Delivery. What is published while a name is joined arrives once and in the order of Redis, as long as the bus is up.
The two pipes are up or down together: when one breaks, or probes published to ourselves do not come back, both are
closed, every publish that waits for its answer gets `Unconfirmed`, and both are made anew after a jittered pause. Then
everything is subscribed again and `restored` is called, because what was published meanwhile has been missed.

The subscribing pipe speaks RESP3, where commands may stand between subscriptions. So a `join` is a SUBSCRIBE with a
read of the journal's clock behind it: the position that returns is exactly where the subscription begins.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import Callable, Iterable, Sequence

from router import journal, position
from router.backoff import backoff
from router.link import DEADLINE_SECONDS, PING, Link, Strand, Subscriber
from router.listeners import Interest, Listeners
from router.node import Locator, has_moved
from router.outcome import BusDown, Busy, Refused, Unconfirmed
from router.pipe import Done, Pipe, Reply, pack, tell
from router.publisher import Publisher

log = logging.getLogger("moorage.bus")

PROBE_SECONDS = 1.0
PROBES_UNANSWERED_MAX = 3  # counted, not timed: a stall of our own loop must not look like one of Redis
PROBES_LATE_MAX = 30  # while other messages come, there is only more of them than this worker keeps up with
STEADY_SECONDS = 5.0  # a connection that lasted this long was good: the next back-off begins anew
LEAVE_SECONDS = 2.0  # a name without subscribers is unsubscribed after this, if it still has none
SUBSCRIBE_CHUNK = 500
PENDING_MAX = 20_000  # publishes that wait for an answer

__all__ = ["Bus", "BusDown", "Busy", "Listeners", "Refused", "Unconfirmed"]


def _fault_of(reply: Reply) -> str:
    """Return what is wrong with an answer of the script NOW; "" when it is a position."""
    if isinstance(reply, Exception):
        return str(reply)
    is_position = isinstance(reply, bytes) and position.parse(reply) is not None
    return "" if is_position else f"its $clock holds no position of ours: {reply!r:.100}"


class Bus:
    """The bus of one worker: `run()` keeps it up until cancelled."""

    def __init__(
        self, node: Locator, keys: journal.Keys, interest: Interest, listeners: Listeners, *, worker: str,
        tls: ssl.SSLContext | None = None,
    ) -> None:  # fmt: skip
        self.connected = False
        self.connects = 0
        self._node, self._keys, self._interest, self._tls = node, keys, interest, tls
        self._on = listeners
        self._loop = asyncio.get_running_loop()
        self._dialect, self._prefix_bytes = keys.dialect, len(keys.prefix)
        self._probe_name = b"$probe:" + worker.encode()
        self.reply_name = b"$reply:" + worker.encode()
        self._client_name = f"moorage:{worker}"
        self._left_as = keys.dialect.unsubscribe.lower()
        self._joining: dict[bytes, int] = {}  # subscribed, the answer is under way, nobody in the table yet
        self._leaving: dict[bytes, float] = {}  # subscribed, nobody in the table any more, since
        self._left: set[bytes] = set()  # unsubscribed, the answer is under way
        self._batch: list[tuple[Sequence[bytes], Callable[[bytes | None], None]]] = []  # joins to send
        self._fresh: list[bytes] = []  # names to subscribe for them
        self._is_joining = False  # the answer to others is under way
        self._orphans: list[bytes] = []  # names joined while the bus was down, the table may not have them yet
        self._link: Link | None = None
        self._subscriber: Subscriber | None = None
        self._publisher: Pipe | None = None
        self._lost: asyncio.Future[str] = self._loop.create_future()
        self._refusal = ""
        self._durable = Publisher(keys)
        self._probes = self._probe = 0  # sent, and the newest that came back
        self._heard = 0  # how many were sent when something came last, whatever it was

    # What the worker asks for.

    def healthy(self) -> bool:
        """True while a probe written to Redis keeps coming back in time."""
        return self.connected and not self._refusal and self._probes - self._probe < PROBES_UNANSWERED_MAX

    def fault(self) -> str:
        """Return what is wrong with the bus; "" when nothing is."""
        if not self.connected:
            return "the bus is down"
        return "" if self.healthy() else "the bus does not answer"

    def join(self, names: Sequence[bytes], done: Callable[[bytes | None], None]) -> None:
        """Subscribe `names`; `done` gets the position where that begins, None when the bus is down.

        Those of `names` that have no subscriber in the table behind `done` are unsubscribed again.
        """
        if not self.connected:
            if self._subscriber is not None:  # otherwise the table is still to be looked at
                self._orphans += names
            self._loop.call_soon(done, None)
            return
        for name in names:
            if name in self._joining:
                self._joining[name] += 1
                continue
            self._joining[name] = 1
            if self._leaving.pop(name, None) is None and name not in self._interest:
                self._fresh.append(name)
        if not self._batch:
            self._loop.call_soon(self._send_joins)
        self._batch.append((names, done))

    def leave(self, names: Iterable[bytes]) -> None:
        """Unsubscribe `names`, late, and only those that still have no subscriber by then."""
        now = self._loop.time()
        for name in names if self._subscriber is not None else ():  # otherwise nothing is subscribed
            if name not in self._interest and name not in self._joining:
                self._leaving[name] = now

    def publish(
        self, name: bytes, members: bytes, retention: journal.Retention | None, done: Done, *, once: bytes = b""
    ) -> None:
        """Publish a message; `done` gets its position once Redis has it, or an exception.

        `retention` None: live-only, and `done` gets an int. The exceptions: BusDown, Busy, Unconfirmed, Refused.
        `once`: see `journal.Keys.publish_keys`.
        """
        pipe = self._publisher
        if pipe is None or not self.connected:
            done(BusDown(f"no connection to Redis at {self._node.address}"))
        elif (waiting := len(pipe) + len(self._durable)) >= PENDING_MAX or pipe.full:
            done(Busy(f"{waiting} publishes are waiting for Redis"))
        elif retention is None:
            self._send(pipe, (self._dialect.publish, self._keys.channel(name), members), done)
        else:
            self._durable.send(pipe, name, members, retention, once, done)

    def send(self, name: bytes, payload: bytes, done: Done) -> None:
        """Publish `payload` as it is, to other workers; `done` gets how many subscribers heard it, or an exception."""
        self.ask((self._dialect.publish, self._keys.channel(name), payload), done)

    def ask(self, command: tuple[bytes, ...], done: Done) -> None:
        """Send a command that reads; `done` gets its reply, or an exception."""
        pipe = self._publisher
        if pipe is None or not self.connected:
            done(BusDown(f"no connection to Redis at {self._node.address}"))
        elif command[0] == b"EVALSHA":
            self._run(pipe, command[1], command[2:], done)
        else:
            self._send(pipe, command, done)

    def _run(self, pipe: Pipe, sha: bytes, args: tuple[bytes, ...], done: Done) -> None:
        """Run a script by its name, or whole where Redis has forgotten it."""

        def answered(reply: Reply) -> None:
            if isinstance(reply, Refused) and str(reply).startswith("NOSCRIPT"):
                self._send(pipe, (b"EVAL", journal.SCRIPTS[sha], *args), done)
            else:
                done(reply)

        self._send(pipe, (b"EVALSHA", sha, *args), answered)

    def _send(self, pipe: Pipe, command: tuple[bytes, ...], done: Done | None = None) -> None:
        """Send a command on the pipe that publishes, behind all that was published so far and before all that will be."""
        self._durable.seal()
        pipe.send(pack(command), done)

    def pause(self, paused: bool) -> None:
        """Stop receiving, or go on: when more is waiting for the subscribers than we want to hold."""
        if self._link is not None:
            self._link.pause(paused)

    @property
    def paused(self) -> bool:
        """True while we do not want to receive."""
        return self._link is not None and self._link.paused

    # Connecting, and staying connected.

    async def run(self) -> None:
        """Connect, and connect again whenever the connection is lost."""
        attempt = 0
        try:
            while True:
                try:
                    await self._connect()
                except (OSError, ValueError, Refused, Unconfirmed) as error:  # ValueError: a host that cannot be one
                    self._close(f"cannot connect: {str(error) or f'no answer in {DEADLINE_SECONDS:.0f} s'}")
                else:
                    since = self._loop.time()
                    await self._stay()
                    if self._loop.time() - since > STEADY_SECONDS:
                        attempt = 0
                if attempt < 3 or attempt % 30 == 0:
                    log.warning("bus at %s: %s; trying again", self._node.address, self._lost.result())
                await asyncio.sleep(backoff(attempt, random.random()))
                attempt += 1
        finally:
            self._close("stopped")

    async def _connect(self) -> None:
        """Make both pipes and subscribe everything. Raises: OSError, ValueError, Refused, Unconfirmed."""
        self._lost = self._loop.create_future()
        self._refusal, self._probes, self._probe, self._heard = "", 0, 0, 0
        subscriber = self._subscriber = await self._attach()
        for names in (self._joining, self._left, self._orphans):
            names.clear()
        await self._subscribe(subscriber, [self._probe_name, self.reply_name, b"$control"])
        self._leaving.clear()  # together with the look at the table: only what has been subscribed can be left
        position = await self._subscribe(subscriber, list(self._interest.names()))
        while orphans := self._orphans:  # joined while we were at it
            self._orphans = []
            position = await self._subscribe(subscriber, orphans)
            self.leave(orphans)  # some were joined for somebody who has gone since
        if self._lost.done():  # in the very turn in which the last answer came
            raise Unconfirmed(self._lost.result())
        self.connected = True
        self.connects += 1
        log.info("bus at %s: connected", self._node.address)
        self._on.restored(position)

    async def _attach(self) -> Subscriber:
        """Connect, and return what subscribes. Raises: as `_connect`."""
        link = self._link = Link(self.pushed, self._on.batch, self._on.answered, self._close)
        await link.open(await self._node.locate(), self._tls, self._client_name)
        self._publisher = link.publisher
        return Strand(link.subscriber, self._close)  # who cannot subscribe has to be told from those behind

    def _detach(self, why: str) -> None:
        """Leave the link; everything that waits for an answer there is answered."""
        link, self._link = self._link, None
        self._subscriber = self._publisher = None
        if link is not None:
            link.close(why)

    async def _subscribe(self, pipe: Subscriber, names: Sequence[bytes]) -> bytes:
        """Subscribe `names` and wait until that is done; return the position then. Raises: Refused, Unconfirmed."""
        at: Reply = b""
        for start in range(0, len(names) or 1, SUBSCRIBE_CHUNK):
            self._push(pipe, self._dialect.subscribe, names[start : start + SUBSCRIBE_CHUNK])
            if self._publisher is not None:  # which would be silent for as long as this takes
                self._publisher.send(PING)
            async with asyncio.timeout(DEADLINE_SECONDS):
                at = await pipe.ask(b"EVAL", self._dialect.now, *self._now_args())
        if not isinstance(at, bytes) or _fault_of(at):
            raise Refused(_fault_of(at))
        return at

    async def _stay(self) -> None:
        """Probe until the connection is lost."""
        while not self._lost.done():
            late = self._probes - self._probe
            if self._probes - self._heard >= PROBES_UNANSWERED_MAX or late >= PROBES_LATE_MAX:
                self._give_up(f"{late} probes, one every {PROBE_SECONDS:g} s, did not come back")
                break
            if late == PROBES_UNANSWERED_MAX:
                log.warning("bus at %s: messages come more than %g s late", self._node.address, late * PROBE_SECONDS)
            if self._refusal and await has_moved(self._node):
                self._close("another is the master")
                break
            self._send_probe()
            self._send_leaves()
            await asyncio.wait([self._lost], timeout=PROBE_SECONDS)

    def _give_up(self, why: str) -> None:
        """The connection is there, and nothing comes."""
        self._close(why)

    def _close(self, why: str) -> None:
        """Take the bus down; everything that waits is answered."""
        if not self._lost.done():
            self._lost.set_result(why)
        if self.connected:
            self.connected = False
            self._on.lost()
        self._detach(why)
        batch, self._batch = self._batch, []
        self._fresh.clear()
        for _, done in batch:
            tell(done, None)

    def _now_args(self) -> tuple[bytes, ...]:
        """The newest position that was seen or given out goes along, so that a Redis that has lost data is found out."""
        return self._keys.now_args(position.parse(position.later(self._on.head(), self._durable.newest)))

    # The pipes.

    def _push(self, pipe: Subscriber, verb: bytes, names: Sequence[bytes]) -> None:
        for start in range(0, len(names), SUBSCRIBE_CHUNK):
            pipe.push(pack((verb, *map(self._keys.channel, names[start : start + SUBSCRIBE_CHUNK]))))

    def _send_joins(self) -> None:
        """Subscribe for all who have come, unless that is under way for others: those who come meanwhile share the next."""
        pipe = self._subscriber
        if pipe is None or self._is_joining or not self._batch:
            return
        batch, self._batch = self._batch, []
        self._push(pipe, self._dialect.subscribe, self._fresh)
        self._fresh.clear()
        self._is_joining = True

        def joined(reply: Reply) -> None:
            self._is_joining = False
            fault = _fault_of(reply)
            if fault and not isinstance(reply, Unconfirmed):
                self._refuse(fault)
            began = reply if isinstance(reply, bytes) and not fault else None
            for names, done in batch:
                tell(done, began)
                for name in names:
                    left = self._joining.get(name, 1) - 1
                    if left > 0:
                        self._joining[name] = left
                    else:
                        self._joining.pop(name, None)
            # only now can a name be seen to have been joined for nobody
            self.leave(name for names, _ in batch for name in names)
            self._send_joins()

        pipe.send(pack((b"EVAL", self._dialect.now, *self._now_args())), joined)

    def _send_leaves(self) -> None:
        now = self._loop.time()
        due = [name for name, since in self._leaving.items() if now - since >= LEAVE_SECONDS]
        for name in due:
            del self._leaving[name]
        names = [name for name in due if name not in self._interest and name not in self._joining]
        self._left.update(names)
        if self._subscriber is not None:
            self._push(self._subscriber, self._dialect.unsubscribe, names)

    def _send_probe(self) -> None:
        """Publish to ourselves, by way of a write: a Redis that refuses writes does not deliver either."""
        pipe = self._publisher
        if pipe is None:
            return
        self._probes += 1
        probe = self._probes

        def written(reply: Reply) -> None:
            if pipe is self._publisher and not isinstance(reply, Unconfirmed):
                self._refuse(_fault_of(reply))
            if self.paused:  # we do not read on the pipe where it comes back
                self._probe = self._heard = max(self._probe, probe)

        self._send(pipe, (b"EVAL", self._dialect.now, *self._now_args()), written)
        self._send(pipe, (self._dialect.publish, self._keys.channel(self._probe_name), b"%d" % probe))

    def _refuse(self, refusal: str) -> None:
        if refusal and refusal != self._refusal:
            log.error("bus at %s: Redis refuses writes: %s", self._node.address, refusal)
        elif self._refusal and not refusal:
            log.info("bus at %s: Redis takes writes again", self._node.address)
        self._refusal = refusal

    def pushed(self, push: Sequence[bytes]) -> None:
        """Redis has sent something unasked."""
        self._heard = self._probes
        kind = push[0]
        if kind == self._dialect.message:
            name = push[1][self._prefix_bytes :]
            try:
                if name[:1] != b"$":
                    self._on.message(name, push[2])
                elif name == self._probe_name:
                    self._probe = max(self._probe, int(push[2]))
                elif name == self.reply_name:
                    self._on.reply(push[2])
                else:
                    self._on.control(push[2])
            except ValueError:  # others may publish there, and what they send must not break the pipe
                log.exception("bus at %s: on %r came no message of ours: %.200r", self._node.address, name, push[2])
        elif kind == self._left_as:
            self._unsubscribed(push[1][self._prefix_bytes :])

    def _unsubscribed(self, name: bytes) -> None:
        pipe = self._subscriber
        if name in self._left:
            self._left.discard(name)
        elif name[:1] == b"$":  # one of our own
            self._close(f"unsubscribed from {name!r} without being asked")
        elif pipe is not None and (name in self._interest or name in self._joining):  # nobody asked for this
            log.warning("bus at %s: unsubscribed from %r without being asked", self._node.address, name)
            self._on.lapsed(name)

            def joined(reply: Reply) -> None:
                if isinstance(reply, bytes):
                    self._on.rejoined(name, reply)
                else:
                    self._close(f"cannot subscribe {name!r} again: {reply}")

            self._push(pipe, self._dialect.subscribe, [name])
            pipe.send(pack((b"EVAL", self._dialect.now, *self._now_args())), joined)
