"""What a worker has missed of its channels: behind which ids, and up to which."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from router.position import START, Id


class Holes:
    """The holes of one feed: one a channel, or one on every channel, which begins at the feed's head."""

    def __init__(self) -> None:
        self.upto = START  # where the last of them ends
        self.everywhere = False
        self._begins: dict[bytes, Id] = {}  # of the channels that have one of their own
        self._lapsed: set[bytes] = set()  # the names that Redis has unsubscribed: their holes have no end yet

    def __bool__(self) -> bool:
        """Tell whether a channel has one of its own."""
        return bool(self._begins)

    def begin(self, name: bytes, after: Id) -> None:
        """A channel has one, behind `after` or where one has begun before."""
        self._begins.setdefault(name, after)

    def lapse(self, name: bytes, after: Id) -> None:
        """A channel has one as above, and its end is not known until it has `returned`."""
        self.begin(name, after)
        self._lapsed.add(name)

    def returned(self, name: bytes) -> bool:
        """Tell whether a channel had lapsed; it has not any more."""
        had_lapsed = name in self._lapsed
        self._lapsed.discard(name)
        return had_lapsed

    def drop(self, name: bytes) -> None:
        """A channel has none."""
        self._begins.pop(name, None)

    def reach(self, upto: Id) -> None:
        """They go on up to `upto`, if not further."""
        self.upto = max(self.upto, upto)

    @property
    def have_ends(self) -> bool:
        """Tell whether all can be filled: no channel has lapsed."""
        return not self._lapsed

    def begun(self, name: bytes, head: Id) -> Id:
        """Return where the hole of a channel begins."""
        return self._begins.get(name, head)

    def behind(self, names: Iterable[bytes], head: Id) -> Iterator[tuple[bytes, Id]]:
        """Yield where each begins; `names` are all channels there are. More may begin meanwhile: they are left out."""
        yield from list(self._begins.items())
        for name in names if self.everywhere else ():
            if name not in self._begins:
                yield name, head

    def any_before(self, head: Id) -> bool:
        """Tell whether a channel lacks something that others have gone on from."""
        return any(id < head for id in self._begins.values())

    def before(self, head: Id) -> Holes:
        """Return those that begin before `head`; of the others the head says enough."""
        holes = Holes()
        holes._begins = {name: id for name, id in self._begins.items() if id < head}
        return holes
