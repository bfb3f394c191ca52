"""What a log line looks like, and that one complaint never floods."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator

import pytest

from server import logs
from server.logs import BURST, KINDS_MAX, WINDOW_SECONDS, Flood


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def record(template: str, *args: object, name: str = "moorage.x") -> logging.LogRecord:
    return logging.LogRecord(name, logging.WARNING, __file__, 1, template, args, None)


def test_one_kind_of_line_is_let_through_a_few_times() -> None:
    now = 0.0
    flood = Flood(lambda: now)
    passed = [flood.filter(record("peer %d is odd", number)) for number in range(100)]
    assert passed == [True] * BURST + [False] * (100 - BURST)
    assert flood.filter(record("peer %d is even", 1)) is True
    assert flood.filter(record("peer %d is odd", 1, name="moorage.y")) is True
    now += WINDOW_SECONDS
    again = record("peer %d is odd", 101)
    assert flood.filter(again) is True
    assert again.getMessage() == f"peer 101 is odd (and {100 - BURST} more like it before)"


def test_kinds_that_never_come_again_are_forgotten() -> None:
    flood = Flood(lambda: 0.0)
    for _ in range(BURST):
        flood.filter(record("once"))
    assert flood.filter(record("once")) is False
    for number in range(KINDS_MAX):
        assert flood.filter(record(f"a line about object {number}"))
    assert flood.filter(record("once")) is True


def test_who_asks_for_debug_gets_all_of_it() -> None:
    flood = Flood(lambda: 0.0)
    debug = logging.LogRecord("moorage.x", logging.DEBUG, __file__, 1, "%s comes from %s", ("a", "b"), None)
    assert all(flood.filter(debug) for _ in range(100))


def test_few_lines_say_nothing_of_others() -> None:
    now = 0.0
    flood = Flood(lambda: now)
    flood.filter(record("once"))
    now += WINDOW_SECONDS
    again = record("once")
    assert flood.filter(again) is True
    assert again.getMessage() == "once"


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("info", "text")
    logging.getLogger("moorage.x").info("hello %s", "you")
    logging.getLogger("moorage.x").debug("not this")
    line = capsys.readouterr().err
    assert line.endswith(f" INFO moorage.x[{os.getpid()}] hello you\n")


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("debug", "json")
    try:
        raise ValueError("reason\nof two lines")
    except ValueError:
        logging.getLogger("moorage.x").exception("it broke: %r", "ä\n")
    (line,) = capsys.readouterr().err.splitlines()
    found = json.loads(line)
    assert found.pop("at") > 1e12
    assert found.pop("exception").startswith("Traceback")
    assert found == {"level": "error", "logger": "moorage.x", "pid": os.getpid(), "text": "it broke: 'ä\\n'"}


def test_set_up_twice_logs_once(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("info", "text")
    logs.set_up("info", "text")
    logging.getLogger("moorage.x").info("once")
    assert capsys.readouterr().err.count("once") == 1
