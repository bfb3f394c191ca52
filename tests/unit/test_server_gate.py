from __future__ import annotations

import base64

import pytest

from server.close import Close, PeerError
from server.gate import Gate

OPEN = Gate("127.0.0.1", None)
KEYED = Gate("0.0.0.0", "s3cret:\N{LATIN SMALL LETTER E WITH ACUTE}")


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


def refused(gate: Gate, method: str, headers: dict[str, str]) -> tuple[Close, str | None]:
    with pytest.raises(PeerError) as caught:
        gate.check(method, headers)
    return caught.value.code, caught.value.field


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:7490", "localhost:7490", "LOCALHOST", "[::1]:7490", "127.9.9.9:1"]
)
def test_without_a_key_this_machine_may_enter(host: str) -> None:
    OPEN.check("GET", {"Host": host})
    OPEN.check("POST", {"Host": host})


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "evil.example:7490", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1:7490",
     "[::1", "a@evil.example", "0.0.0.0:7490", "localhost@evil.example"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_without_a_key_a_name_of_somebody_else_is_rebinding(method: str, host: str) -> None:
    assert refused(OPEN, method, {"Host": host}) == (Close.FORBIDDEN, "Host")


def test_the_configured_name_is_ours() -> None:
    Gate("admin.internal", None).check("GET", {"Host": "admin.internal:7490"})


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:7480"},
        {"Origin": "http://127.0.0.1:7490", "Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_page_of_another_origin_may_read_nothing_and_change_nothing(headers: dict[str, str]) -> None:
    headers["Host"] = "127.0.0.1:7490"
    assert refused(OPEN, "POST", headers) == (Close.FORBIDDEN, "Origin")
    OPEN.check("GET", headers)  # the browser itself withholds the answer


@pytest.mark.parametrize("headers", [{}, {"Origin": "http://127.0.0.1:7490", "Sec-Fetch-Site": "same-origin"}])
def test_our_own_page_and_no_page_at_all_may_post(headers: dict[str, str]) -> None:
    OPEN.check("POST", {"Host": "127.0.0.1:7490", **headers})


@pytest.mark.parametrize(
    "authorization",
    ["Bearer s3cret:é", "bearer  s3cret:é ", basic("admin:s3cret:é"), basic(":s3cret:é")],
)
def test_the_key_opens_from_anywhere(authorization: str) -> None:
    KEYED.check("GET", {"Host": "moorage.example", "Authorization": authorization})
    KEYED.check("POST", {"Host": "moorage.example", "Authorization": authorization})


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer ", "Bearer s3cret", "Bearer s3cret:éé", "s3cret:é", "Digest s3cret:é", "Basic s3cret:é",
     "Basic !", basic("s3cret"), basic("s3cret:é"), basic("admin:"), "Bearer \udcff"],
)  # fmt: skip
def test_anything_else_does_not(authorization: str) -> None:
    found = refused(KEYED, "GET", {"Host": "127.0.0.1", "Authorization": authorization})
    assert found == (Close.UNAUTHORIZED, "Authorization")


def test_the_key_is_asked_for_first_and_does_not_excuse_another_origin() -> None:
    headers = {"Host": "moorage.example", "Origin": "http://evil.example"}
    assert refused(KEYED, "POST", headers) == (Close.UNAUTHORIZED, "Authorization")
    headers["Authorization"] = "Bearer s3cret:é"
    assert refused(KEYED, "POST", headers) == (Close.FORBIDDEN, "Origin")
