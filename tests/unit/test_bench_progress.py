import io

import pytest

from bench import progress
from bench.board import Board
from bench.progress import Progress, progress_line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_says_how_many_how_fast_and_how_long_still() -> None:
    assert progress_line("opened", 250, 1_000, 10.0) == "opened: 250 of 1,000 (25 %), 25/s, 30 s left"
    assert progress_line("opened", 0, 1_000, 0.0) == "opened: 0 of 1,000 (0 %), 0/s"


def test_a_terminal_gets_a_bar_and_a_file_plain_lines_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "TERMINAL_SECONDS", 0.0)
    terminal, plain = Terminal(), io.StringIO()
    for stream in (terminal, plain):
        one = Progress("opened", 4, stream)
        one.show(2)
        one.end()
    assert "###" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")
    assert plain.getvalue() == ""
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    Progress("opened", 4, plain).show(2, ", well")
    assert plain.getvalue().startswith("opened: 2 of 4 (50 %)")
    assert plain.getvalue().endswith(", well\n")


def test_a_board_adds_up_what_processes_show() -> None:
    board = Board(3)
    for place in range(3):
        board.row(place)[0] = place + 1
        board.row(place)[2] = 10
    assert board.total() == (6, 0, 30)
