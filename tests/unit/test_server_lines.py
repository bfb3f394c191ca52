"""The raw TCP codec: every request, every refusal, every frame."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from router.message import Message
from server import limits, lines
from server.close import Close, PeerError

DATA_MAX = 64


def parse(**members: object) -> lines.Request:
    return lines.parse(orjson.dumps(members), DATA_MAX)


def refused(line: bytes) -> PeerError:
    with pytest.raises(PeerError) as caught:
        lines.parse(line, DATA_MAX)
    return caught.value


def refused_request(**members: object) -> PeerError:
    return refused(orjson.dumps(members))


# Lines


def test_lines_are_split_and_the_unfinished_one_is_left_over() -> None:
    assert lines.split_lines(b"a", b"b\ncd\n\nef", 100) == ([b"ab", b"cd", b""], b"ef")


def test_nothing_is_left_over_behind_a_whole_line() -> None:
    assert lines.split_lines(b"", b"a\n", 100) == ([b"a"], b"")


def test_one_carriage_return_goes_with_the_newline() -> None:
    assert lines.split_lines(b"a\r", b"\nb\r\r\n\r\nc\rd\n", 100) == ([b"a", b"b\r", b"", b"c\rd"], b"")


@pytest.mark.parametrize("data", [b"12345", b"12345\n", b"1\n12345\n2\n", b"1\n12345", b"1234\r\n"])
def test_a_line_over_the_limit_is_refused_finished_or_not(data: bytes) -> None:
    with pytest.raises(PeerError) as caught:
        lines.split_lines(b"", data, 4)
    assert (caught.value.code, caught.value.field) == (Close.TOO_LARGE, "line")


def test_lines_at_the_limit_are_fine_however_many() -> None:
    assert lines.split_lines(b"12", b"34\n1234\n123\r\n1234", 4) == ([b"1234", b"1234", b"123"], b"1234")


# Requests


def test_a_wish_to_be_told_of_gaps() -> None:
    assert parse(op="connect", user="alice", gaps=True) == lines.Connect(None, "alice", (), None, gaps=True)
    assert parse(op="subscribe", channel="a", gaps=True) == lines.Subscribe(None, "a", None, gaps=True)
    assert parse(op="subscribe", channel="a", gaps=None) == lines.Subscribe(None, "a", None)


def test_connect() -> None:
    assert parse(op="connect", token="t", channels=["room:a", "b", "room:a"], position="p-1") == lines.Connect(
        "t", None, ("room:a", "b"), "p-1"
    )
    assert parse(op="connect", user="alice") == lines.Connect(None, "alice", (), None)


def test_null_and_an_empty_position_are_as_good_as_absent() -> None:
    nothing = lines.Connect(None, None, (), None)
    assert parse(op="connect") == nothing
    assert parse(op="connect", token=None, user=None, channels=None, position=None) == nothing
    assert parse(op="connect", position="") == nothing


def test_the_other_requests() -> None:
    assert parse(op="subscribe", id=1, channel="b") == lines.Subscribe(1, "b", None)
    assert parse(op="subscribe", id=1, channel="b", position="p") == lines.Subscribe(1, "b", "p")
    assert parse(op="unsubscribe", id="x", channel="b") == lines.Unsubscribe("x", "b")
    assert parse(op="history", id=4, channel="b") == lines.History(4, "b", None, lines.HISTORY_MESSAGES)
    assert parse(op="history", id=4, channel="b", after="p", limit=1000) == lines.History(4, "b", "p", 1000)
    assert parse(op="presence", id=5, channel="b") == lines.Presence(5, "b")
    assert parse(op="ping", id=6) == lines.Ping(6)
    assert parse(op="ping") == lines.Ping(None)


@pytest.mark.parametrize("data", [None, False, 0, "", [], {}, {"a": [1, 2.5, "é\n"]}])
def test_data_is_any_json_value(data: object) -> None:
    assert parse(op="publish", id=3, channel="b", data=data) == lines.Publish(3, "b", orjson.dumps(data), None)


def test_data_becomes_compact() -> None:
    line = b'{"op":"publish","channel":"b","data": { "a" :\t[ 1 , "\\u00e9" ] } }'
    assert lines.parse(line, DATA_MAX) == lines.Publish(None, "b", '{"a":[1,"é"]}'.encode(), None)


def test_a_publish_may_name_its_attempt() -> None:
    request = parse(op="publish", channel="b", data=1, idempotency="k")
    assert request == lines.Publish(None, "b", b"1", "k")
    assert parse(op="publish", channel="b", data=1, idempotency=None) == lines.Publish(None, "b", b"1", None)


def test_unknown_keys_are_ignored() -> None:
    assert parse(op="ping", id=1, later=[1], channel=7) == lines.Ping(1)


@pytest.mark.parametrize("id", [0, -(2**63), 2**63, "", "é", None])
def test_an_id_is_an_integer_or_a_string(id: int | str | None) -> None:
    assert parse(op="ping", id=id) == lines.Ping(id)


# Refusals


@pytest.mark.parametrize(
    "line", [b"", b"{", b"hello", b'{"op":"ping"} x', b'{"op":"\xff"}', b'"\\ud800"', b"NaN", b"\0"]
)
def test_what_is_not_json_is_refused(line: bytes) -> None:
    error = refused(line)
    assert (error.code, error.field, error.id) == (Close.BAD_REQUEST, "line", None)
    assert error.reason.startswith("not JSON: ")


@pytest.mark.parametrize(
    ("line", "found"),
    [(b"[]", "an array"), (b"1", "an integer"), (b'"a"', "a string"), (b"null", "nothing"), (b"1.5", "a number")],
)
def test_what_is_not_an_object_is_refused(line: bytes, found: str) -> None:
    error = refused(line)
    assert (error.code, error.field) == (Close.BAD_REQUEST, "line")
    assert error.reason.startswith(f"found {found}")


@pytest.mark.parametrize("id", [b"true", b"1.0", b"[]", b"{}", b"18446744073709551616", b"-9223372036854775809"])
def test_bad_ids_are_refused_and_not_sent_back(id: bytes) -> None:
    error = refused(b'{"op":"ping","id":%b}' % id)
    assert (error.code, error.field, error.id) == (Close.BAD_REQUEST, "id", None)


@pytest.mark.parametrize("op", [None, 1, True, [], {}, ["ping"]])
def test_an_op_is_a_string(op: object) -> None:
    error = refused_request(op=op, id=9)
    assert (error.code, error.field, error.id) == (Close.BAD_REQUEST, "op", 9)
    assert refused_request(id=9).field == "op"


def test_an_unknown_op_has_a_code_of_its_own() -> None:
    error = refused_request(op="x" * 1000, id="i")
    assert (error.code, error.field, error.id) == (Close.UNKNOWN_OP, "op", "i")
    assert "subscribe" in error.reason
    assert len(error.reason) < 200


@pytest.mark.parametrize("op", ["subscribe", "unsubscribe", "publish", "history", "presence"])
@pytest.mark.parametrize("channel", [None, 1, True, [], "", "a b", "a\nb", "é" * 128])
def test_a_bad_channel_is_refused_with_the_requests_id(op: str, channel: object) -> None:
    error = refused_request(op=op, id=3, channel=channel, data=1)
    assert (error.code, error.field, error.id) == (Close.BAD_REQUEST, "channel", 3)


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"token": 1}, "token"),
        ({"user": 1}, "user"),
        ({"user": ""}, "user"),
        ({"user": "a b"}, "user"),
        ({"user": "a" * 255}, "user"),
        ({"channels": "room:a"}, "channels"),
        ({"channels": {"room:a": 1}}, "channels"),
        ({"channels": ["a", 1]}, "channels"),
        ({"channels": ["a", None]}, "channels"),
        ({"channels": ["a", ["b"]]}, "channels"),
        ({"channels": ["a", ""]}, "channels"),
        ({"position": 1}, "position"),
        ({"position": "a b"}, "position"),
        ({"position": "a\nb"}, "position"),
        ({"position": 'a"b'}, "position"),
        ({"position": "a\\b"}, "position"),
        ({"position": "é"}, "position"),
        ({"position": "p" * (limits.POSITION_BYTES_MAX + 1)}, "position"),
    ],
)
def test_a_bad_connect_names_the_field(members: dict[str, Any], field: str) -> None:
    error = refused_request(op="connect", **members)
    assert (error.code, error.field, error.id) == (Close.BAD_REQUEST, field, None)


def test_a_token_that_is_too_long_is_not_verified() -> None:
    error = refused_request(op="connect", token="t" * (limits.TOKEN_BYTES_MAX + 1))
    assert (error.code, error.field) == (Close.TOO_LARGE, "token")


@pytest.mark.parametrize("limit", [0, -1, limits.HISTORY_PAGE_MESSAGES_MAX + 1, True, "5", 5.0])
def test_a_bad_history_limit_is_refused(limit: object) -> None:
    error = refused_request(op="history", id=4, channel="b", limit=limit)
    assert (error.code, error.field, error.id) == (Close.BAD_REQUEST, "limit", 4)


@pytest.mark.parametrize(("op", "field"), [("history", "after"), ("subscribe", "position")])
def test_bad_positions_are_refused_everywhere(op: str, field: str) -> None:
    error = refused_request(op=op, id=4, channel="b", **{field: "\r"})
    assert (error.code, error.field, error.id) == (Close.BAD_REQUEST, field, 4)


def test_a_publish_has_data() -> None:
    error = refused_request(op="publish", id=3, channel="b")
    assert (error.code, error.field, error.id) == (Close.BAD_REQUEST, "data", 3)


def test_data_is_bounded_as_compact_json() -> None:
    fits = "x" * (DATA_MAX - 2)
    assert parse(op="publish", channel="b", data=fits) == lines.Publish(None, "b", orjson.dumps(fits), None)
    error = refused_request(op="publish", id=3, channel="b", data=fits + "x")
    assert (error.code, error.field, error.id) == (Close.TOO_LARGE, "data", 3)
    assert error.reason == "65 bytes, want at most 64"


@pytest.mark.parametrize("levels", [255, 1000])
def test_data_nested_too_deep_is_refused(levels: int) -> None:
    error = refused(b'{"op":"publish","id":3,"channel":"b","data":%b}' % (b"[" * levels + b"]" * levels))
    assert (error.code, error.field, error.id) == (Close.BAD_REQUEST, "data", 3)


def test_data_nested_deeper_than_json_is_read_is_refused() -> None:
    assert refused(b'{"op":"publish","id":3,"channel":"b","data":%b}' % (b"[" * 9000 + b"]" * 9000)).field == "line"


@pytest.mark.parametrize("key", ["", "k" * 256, "é" * 128, 1])
def test_a_bad_idempotency_key_is_refused(key: object) -> None:
    error = refused_request(op="publish", id=3, channel="b", data=1, idempotency=key)
    assert (error.code, error.field, error.id) == (Close.BAD_REQUEST, "idempotency", 3)


# The body of POST /publish


def test_a_body_is_a_publish_without_op_and_id() -> None:
    body = b'{"channel":"b","data": [1],"idempotency":"k","id":7,"op":"ping"}'
    assert lines.parse_publish(body, DATA_MAX) == lines.Publish(None, "b", b"[1]", "k")


@pytest.mark.parametrize(
    ("body", "field"),
    [(b"", "body"), (b"[]", "body"), (b'{"data":1}', "channel"), (b'{"channel":"b"}', "data")],
)
def test_a_bad_body_names_the_field(body: bytes, field: str) -> None:
    with pytest.raises(PeerError) as caught:
        lines.parse_publish(body, DATA_MAX)
    assert (caught.value.code, caught.value.field) == (Close.BAD_REQUEST, field)


# Frames


def test_a_message() -> None:
    frame = lines.message(Message(b"message", b"room:a", b"p-1", b',"from":"alice","at":1,"data":{}'))
    assert frame == b'{"op":"message","channel":"room:a","position":"p-1","from":"alice","at":1,"data":{}}\n'


@pytest.mark.parametrize("op", [b"gap", b"join", b"leave"])
def test_the_other_pushed_things(op: bytes) -> None:
    assert lines.message(Message(op, b"a", b"p", b"")) == b'{"op":"%b","channel":"a","position":"p"}\n' % op


def test_a_message_without_a_position_does_not_claim_the_empty_one() -> None:
    assert lines.message(Message(b"message", b"a", b"", b',"data":1')) == b'{"op":"message","channel":"a","data":1}\n'


@pytest.mark.parametrize("channel", ['say"hi"', "back\\slash", "комната"])
def test_a_channels_name_is_escaped(channel: str) -> None:
    frame = lines.message(Message(b"message", channel.encode(), b"p", b""))
    assert orjson.loads(frame)["channel"] == channel


def test_json_laid_out_by_a_person_stays_on_one_line() -> None:
    frame = lines.message(Message(b"message", b"a", b"p", b',\n"data":\r\n{ "b":\r1}'))
    assert frame.count(b"\n") == 1
    assert b"\r" not in frame
    assert orjson.loads(frame)["data"] == {"b": 1}


def test_answers() -> None:
    assert lines.answer({"op": "pong", "id": 6}) == b'{"op":"pong","id":6}\n'
    assert lines.connected({"user": "é\n"}) == '{"op":"connected","user":"é\\n"}\n'.encode()
    assert lines.HEARTBEAT == b"\n"


@pytest.mark.parametrize("id", [None, 0, -(2**63), 2**64 - 1, "a", 'quo"te', "é\\"])
@pytest.mark.parametrize("channel", ["room:a", '@quo"te', "raum:größe", "@back\\slash"])
def test_answers_to_publishes(id: lines.Id, channel: str) -> None:
    answer = {"op": "published", "id": id, "channel": channel}
    assert lines.published(id, channel, b"") == lines.answer(answer)
    assert lines.published(id, channel, b"0123abcd-5-9") == lines.answer({**answer, "position": "0123abcd-5-9"})


def test_errors() -> None:
    error = PeerError(Close.FORBIDDEN, "not allowed to publish", "channel", 3)
    assert orjson.loads(lines.error(error)) == {
        "op": "error", "id": 3, "code": 4003, "reason": "not allowed to publish", "field": "channel"
    }  # fmt: skip
    assert lines.error(PeerError(Close.BUS_DOWN, id="x"), 1500) == (
        b'{"op":"error","id":"x","code":3005,"reason":"the message bus is down","after_ms":1500}\n'
    )
    assert orjson.loads(lines.error(PeerError(Close.BAD_REQUEST)))["id"] is None


def test_closing_says_whether_and_when_to_come_back() -> None:
    assert lines.close(Close.DRAINING, "draining", 1234) == (
        b'{"op":"close","code":3001,"reason":"draining","reconnect":true,"after_ms":1234}\n'
    )
    assert lines.close(Close.UNAUTHORIZED, "no\nno", None) == (
        b'{"op":"close","code":4001,"reason":"no\\nno","reconnect":false}\n'
    )
    assert orjson.loads(lines.close(Close.BAD_REQUEST, "no", None, "token"))["field"] == "token"
