import json

import pytest

from bench.wire import (
    MESSAGE_BYTES,
    Ruler,
    connect_line,
    events_request,
    numbers,
    publish_line,
    renumbered,
    stamps,
)


def test_a_published_message_is_100_bytes_and_its_number_and_time_come_back() -> None:
    line = publish_line(7, "room:a", 42, 123_456_789)
    asked = json.loads(line)
    assert line.endswith(b"}\n")
    assert (asked["op"], asked["id"], asked["channel"]) == ("publish", 7, "room:a")
    assert len(asked["data"]) == MESSAGE_BYTES
    assert numbers(line) == b"00000042"
    assert stamps(line) == [123_456_789]


def test_the_numbers_of_a_chunk_are_joined_in_order() -> None:
    chunk = b"\n" + b"".join(publish_line(0, "room:a", number) for number in (5, 6, 9)) + b"\n"
    assert numbers(chunk) == b"000000050000000600000009"
    assert numbers(b"\n\n") == b""


def test_a_frame_can_be_sent_again_with_another_number() -> None:
    frame = publish_line(0, "room:a", 3, 77)
    assert renumbered(frame, 12_345_678) == publish_line(0, "room:a", 12_345_678, 77)


def test_a_ruler_measures_any_run() -> None:
    ruler = Ruler()
    assert ruler.run(0, 0) == b""
    assert ruler.run(3, 2) == b"0000000300000004"
    assert ruler.run(99_999, 1) == b"00099999"


@pytest.mark.parametrize(("token", "who"), [(None, {"user": "u1"}), ("abc", {"token": "abc"})])
def test_a_tcp_client_says_who_it_is_in_one_line(token: str | None, who: dict[str, str]) -> None:
    line = connect_line("u1", ["room:a"], token)
    assert line.count(b"\n") == 1
    assert json.loads(line) == {"op": "connect", **who, "channels": ["room:a"]}


def test_an_sse_client_sends_one_host_and_its_token_in_a_header() -> None:
    head = events_request("u1", ["room:a", "room:b"], None).decode()
    assert head.startswith("GET /events?channel=room:a&channel=room:b&user=u1 HTTP/1.1\r\nHost: ")
    assert head.count("Host:") == 1
    assert head.endswith("\r\n\r\n")
    with_token = events_request("u1", ["room:a"], "abc").decode()
    assert "user=" not in with_token
    assert "\r\nAuthorization: Bearer abc\r\n" in with_token
