"""Close codes: the number is the retry policy."""

from __future__ import annotations

import pytest

from server.close import Close, PeerError, said


@pytest.mark.parametrize("code", Close)
def test_the_number_says_whether_to_come_back(code: Close) -> None:
    assert 3000 <= code < 5000
    assert code.reconnect is (code < 4000)
    assert code.reason
    assert code.reason == code.reason.strip()


def test_numbers_and_names_are_unique() -> None:
    assert len({int(code) for code in Close}) == len(Close.__members__)


def test_an_error_has_a_reason_and_may_name_a_field_and_a_request() -> None:
    error = PeerError(Close.FORBIDDEN)
    assert (error.reason, error.field, error.id, str(error)) == ("not allowed", None, None, "not allowed")
    error = PeerError(Close.TOO_LARGE, "70000 bytes, want at most 65536", "data", 7)
    assert (error.reason, error.field, error.id) == ("70000 bytes, want at most 65536", "data", 7)


def test_a_person_reads_which_field_is_at_fault() -> None:
    assert (
        said({"code": 4000, "reason": "0 bytes, want 1 to 255", "field": "channel"})
        == "4000 channel: 0 bytes, want 1 to 255"
    )
    assert said({"code": 3001, "reason": "draining"}) == "3001 draining"
