"""`moorage drain` beside an admin port that says what it is told to. A real one is in `tests/integration/test_drain.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from commands import drain
from server.admin_client import AdminError

Drain = Mapping[str, Any] | None


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain, "POLL_SECONDS", 0.0)


def told(left: int, seconds: float) -> Drain:
    return {"seconds": 60.0, "seconds_left": seconds, "sessions": 40, "sessions_left": left}


def followed(*answers: Drain | Exception) -> list[tuple[str, bool]]:
    said: list[tuple[str, bool]] = []
    left: Iterator[Drain | Exception] = iter(answers)

    def look() -> Drain:
        answer = next(left)
        if isinstance(answer, Exception):
            raise answer
        return answer

    drain.follow(look, lambda text, last=False: said.append((text, last)))
    return said


def test_progress_is_said_until_there_is_no_server() -> None:
    assert followed({}, told(30, 44.6), told(0, 0.0), None) == [
        ("[########......................] 30 of 40 sessions left, 45 s left", False),
        ("[##############################] 0 of 40 sessions left, 0 s left", False),
        ("the server has ended", True),
    ]


def test_an_answer_may_be_cut_but_not_again_and_again() -> None:
    fault = AdminError("cut")
    assert followed(fault, fault, told(30, 44.6), fault, fault, None)[-1] == ("the server has ended", True)
    with pytest.raises(AdminError):
        followed(fault, fault, fault)


@pytest.mark.parametrize(
    ("sessions", "left", "bar"), [(0, 0, "#" * 30), (10, 12, "." * 30), (3, 1, "#" * 20 + "." * 10), (1, 1, "." * 30)]
)
def test_a_bar_is_never_longer_than_itself(sessions: int, left: int, bar: str) -> None:
    line = drain.describe({"seconds_left": 1.0, "sessions": sessions, "sessions_left": left})
    assert line == f"[{bar}] {left} of {sessions} sessions left, 1 s left"


def test_a_log_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    say = drain.in_log()
    for now in (100.0, 100.5, 104.9, 105.0):
        say(f"at {now}")
    say("end", last=True)
    assert capsys.readouterr().out.splitlines() == ["at 100.0", "at 105.0", "end"]


def test_a_terminal_gets_one_line_that_changes(capsys: pytest.CaptureFixture[str]) -> None:
    drain.on_terminal("half")
    drain.on_terminal("end", last=True)
    assert capsys.readouterr().out == "\r\x1b[Khalf\r\x1b[Kend\n"


def test_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    from commands import main

    assert main(["drain", "--admin", "nowhere"]) == 2
    assert "--admin: found 'nowhere'" in capsys.readouterr().err
    for seconds in ("-1", "nan", "1e9"):
        assert main(["drain", "--seconds", seconds]) == 2
        assert "--seconds: found " in (said := capsys.readouterr().err)
        assert "want a number of seconds from 0 to 86400" in said
    assert main(["drain", "--admin", "127.0.0.1:1"]) == 1
    assert "nothing listens on http://127.0.0.1:1" in capsys.readouterr().err
