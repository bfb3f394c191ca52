"""Real servers, real sockets: what the tests share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness import Server
from hypothesis import HealthCheck, settings

from router.embedded import Embedded

# How fast examples come says something of the machine, not of the code. In CI they are the same ones every time.
settings.register_profile(
    "house", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("house")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Only a parallel run has pytest-xdist."""
    from scheduling import Grouped

    return Grouped(config, log)


@pytest.fixture
def start_server() -> Iterator[Callable[..., Server]]:
    """Start servers with `start_server("--workers", "2", ...)`; they are stopped, and must leave nothing running."""
    with contextlib.ExitStack() as stack:

        def start(*options: str, **how: Any) -> Server:
            return stack.enter_context(Server(options, **how))

        yield start


@pytest.fixture
def server(start_server: Callable[..., Server]) -> Server:
    """A server with two workers, in open mode, on its own embedded Valkey."""
    return start_server("--workers", "2")


@pytest.fixture
def valkey() -> Iterator[Embedded]:
    """A Valkey of this test's own."""
    with Embedded() as embedded:
        yield embedded
