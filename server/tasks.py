"""What a worker does for as long as it lives, and what ends it.

A worker that is deaf or mute looks healthy. So an error that nobody handles, in a task or in a callback of the pool, the
carousel or a timer, does not leave it half alive: it ends with a trace, and is replaced.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class Tasks:
    """The tasks of one worker. `ended` is awaited by whoever wants to see the end, and raises what brought it about."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.ended: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._running: set[asyncio.Task[None]] = set()  # the loop itself holds its tasks weakly
        loop.set_exception_handler(self._unhandled)

    def start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run `work` beside everything else."""
        task = self._loop.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._finished)
        return task

    def end(self) -> None:
        """End now, because somebody wants it."""
        if not self.ended.done():
            self.ended.set_result(None)

    def _fail(self, error: BaseException) -> None:
        if not self.ended.done():
            self.ended.set_exception(error)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if "handle" in context:  # a callback
            self._fail(context["exception"])
        else:  # of one connection
            loop.default_exception_handler(context)
