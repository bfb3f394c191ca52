"""How a line is logged: text for a person or JSON for a machine, and never the same complaint in a flood."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

import orjson

BURST = 5  # lines of one kind
WINDOW_SECONDS = 10.0
KINDS_MAX = 1000  # known at a time: asyncio's lines name objects, and so each is a kind of its own


class Flood(logging.Filter):
    """Lets BURST lines of one kind (logger and template) through in WINDOW_SECONDS, and says how many it held back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._seen: dict[tuple[str, object], list[float]] = {}  # since when, how many

    def filter(self, record: logging.LogRecord) -> bool:
        """Count the record; False while there are too many of its kind. Who asks for debug gets all of it."""
        if record.levelno < logging.INFO:
            return True
        now = self._clock()
        began_count = self._seen.setdefault((record.name, record.msg), [now, 0])
        if len(self._seen) > KINDS_MAX:
            del self._seen[next(iter(self._seen))]
        if now - began_count[0] >= WINDOW_SECONDS:
            held = int(began_count[1]) - BURST
            began_count[:] = [now, 0]
            if held > 0:
                record.msg = f"{record.msg} (and {held} more like it before)"
        began_count[1] += 1
        return began_count[1] <= BURST


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": round(record.created * 1000),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "text": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()


def set_up(level: str, form: str) -> None:
    """Send all logging of this process and its children to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s[%(process)d] %(message)s")
    handler.setFormatter(_Json() if form == "json" else text)
    handler.addFilter(Flood())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("aiohttp").setLevel(logging.WARNING)
