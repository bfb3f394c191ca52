"""The contract of raw TCP, to the letter, against a server of two workers."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from harness import Json, LineClient, Server

pytestmark = pytest.mark.xdist_group("protocol_tcp")  # one server for all of them

POSITION = r"[0-9a-f]{8}-[0-9]+-[0-9]+"
SESSION = r"[0-9a-f]{6}-[01]-[0-9a-f]+"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(["--workers", "2", "--heartbeat-seconds", "0.25"]) as made:
        yield made


def number_of(position: str) -> int:
    return int(position.rsplit("-", 1)[1])


# Connecting.


def test_connected_has_the_shape_of_the_contract(server: Server) -> None:
    with server.line_client(user="shape", channels=["room:a", "room:b"]) as client:
        answer = client.receive()
    assert answer is not None
    assert list(answer) == ["op", "user", "session", "heartbeat_s", "position", "recovered", "channels"]
    assert re.fullmatch(SESSION, answer.pop("session"))
    assert re.fullmatch(POSITION, answer.pop("position"))
    assert answer == {
        "op": "connected",
        "user": "shape",
        "heartbeat_s": 0.25,
        "recovered": True,
        "channels": ["@shape", "room:a", "room:b"],
    }


@pytest.mark.parametrize(
    ("members", "channels"),
    [
        ({}, ["@solo"]),
        ({"channels": []}, ["@solo"]),
        ({"channels": None, "token": None, "position": None}, ["@solo"]),
        ({"channels": ["@solo", "room:a", "room:a"]}, ["@solo", "room:a"]),
        ({"channels": ["плот:ß"], "unknown": 1}, ["@solo", "плот:ß"]),
    ],
)
def test_channels_of_a_connect(server: Server, members: Json, channels: list[str]) -> None:
    with server.line_client(user="solo", **members) as client:
        assert client.expect("connected")["channels"] == channels


def test_a_position_that_is_still_now_is_recovered_and_one_of_another_epoch_is_not(server: Server) -> None:
    with server.joined("resumer", "room:resumed") as client:
        client.send({"op": "publish", "id": 1, "channel": "room:resumed", "data": 1})
        now = client.expect("message")["position"]
    with server.line_client(user="resumer", channels=["room:resumed"], position=now) as client:
        answer = client.expect("connected")
        assert (answer["position"], answer["recovered"]) == (now, True)
    for lost in ("nonsense", "ffffffff-1-1"):
        with server.line_client(user="resumer", channels=["room:resumed"], position=lost) as client:
            answer = client.expect("connected")
            assert (number_of(answer["position"]), answer["recovered"]) == (number_of(now), False)


FIRST_LINES = [
    (b"hello\n", 4000, "line"),
    (b"\x16\x03\x01\x02\x00\x01\n", 4000, "line"),
    (b'{"op":"connect","user":"\xff"}\n', 4000, "line"),
    (b"[]\n", 4000, "line"),
    (b"{}\n", 4000, "op"),
    (b'{"op":1}\n', 4000, "op"),
    (b'{"op":"dance"}\n', 4007, "op"),
    (b'{"op":"ping","id":1}\n', 4010, "op"),
    (b'{"op":"connect"}\n', 4001, "user"),
    (b'{"op":"connect","user":7}\n', 4000, "user"),
    (b'{"op":"connect","user":""}\n', 4000, "user"),
    (b'{"op":"connect","user":"a b"}\n', 4000, "user"),
    (b'{"op":"connect","user":"' + b"a" * 255 + b'"}\n', 4000, "user"),
    (b'{"op":"connect","user":"a","channels":"room:a"}\n', 4000, "channels"),
    (b'{"op":"connect","user":"a","channels":[1]}\n', 4000, "channels"),
    (b'{"op":"connect","user":"a","channels":["a\\u0000"]}\n', 4000, "channels"),
    (b'{"op":"connect","user":"a","channels":["@b"]}\n', 4003, "channels"),
    (b'{"op":"connect","user":"a","channels":["$control"]}\n', 4003, "channels"),
    (b'{"op":"connect","user":"a","position":"\\""}\n', 4000, "position"),
    (b"x" * 70_000, 4005, "line"),
]


@pytest.mark.parametrize(("line", "code", "field"), FIRST_LINES, ids=lambda value: str(value)[:40])
def test_a_first_line_that_is_no_connect(server: Server, line: bytes, code: int, field: str) -> None:
    with server.line_client() as client:
        client.send(line)
        close = client.expect("close", code=code, field=field, reconnect=False)
        assert list(close) == ["op", "code", "reason", "reconnect", "field"]
        assert close["reason"]
        assert client.receive() is None


def test_empty_lines_and_carriage_returns_are_fine(server: Server) -> None:
    with server.line_client() as client:
        client.send(b'\n\r\n{"op":"connect","user":"telnet"}\r\n\r\n{"op":"ping","id":1}\r\n')
        client.expect("connected", user="telnet")
        client.expect("pong", id=1)


def test_a_byte_at_a_time(server: Server) -> None:
    connect = b'{"op":"connect","user":"drip","channels":["room:drip"]}\n'
    publish = b'{"op":"publish","channel":"room:drip","data":"\xc3\xb6"}\n'
    with server.line_client() as client:
        for byte in connect + publish:
            client.send(bytes([byte]))
        client.expect("connected", user="drip")
        assert client.expect("message")["data"] == "ö"


# Requests and their answers.


def test_every_request_is_answered_to_the_letter(server: Server) -> None:
    with server.joined("exact") as client:
        client.send({"op": "subscribe", "id": 1, "channel": "room:exact"})
        answer = client.expect("subscribed")
        assert list(answer) == ["op", "id", "channel", "position", "recovered"]
        assert re.fullmatch(POSITION, answer.pop("position"))
        assert answer == {"op": "subscribed", "id": 1, "channel": "room:exact", "recovered": True}

        client.send({"op": "publish", "id": "two", "channel": "room:exact", "data": {"text": "hi"}})
        before = time.time() * 1000
        pushed = [client.receive(), client.receive()]
        message, published = sorted((m for m in pushed if m is not None), key=lambda m: m["op"])
        assert list(message) == ["op", "channel", "position", "from", "at", "data"]
        assert abs(message.pop("at") - before) < 5000
        assert message == {
            "op": "message",
            "channel": "room:exact",
            "position": published["position"],
            "from": "exact",
            "data": {"text": "hi"},
        }
        assert re.fullmatch(POSITION, published.pop("position"))
        assert published == {"op": "published", "id": "two", "channel": "room:exact"}

        client.send({"op": "unsubscribe", "id": 3, "channel": "room:exact"})
        assert client.receive() == {"op": "unsubscribed", "id": 3, "channel": "room:exact"}

        client.send({"op": "ping", "id": 2**63 - 1}, {"op": "ping"})
        assert client.receive() == {"op": "pong", "id": 2**63 - 1}
        assert client.receive() == {"op": "pong", "id": None}


@pytest.mark.parametrize(
    "data",
    [None, True, 0, -1.5, 2**53, "", '\n\r\u2028\u0000"\\', "😀", [], {}, [[{"a": [None]}]], {"from": "x", "at": 1}],
    ids=repr,
)
def test_data_is_any_json_value(server: Server, data: object) -> None:
    with server.joined("any", "room:any") as client:
        client.send({"op": "publish", "id": 1, "channel": "room:any", "data": data})
        assert client.expect("message")["data"] == data


def test_from_is_what_the_server_knows(server: Server) -> None:
    with server.joined("honest", "room:claims") as client:
        client.send({"op": "publish", "channel": "room:claims", "data": 1, "from": "mallory", "at": 0, "position": "0"})
        message = client.expect("message")
        assert message["from"] == "honest"
        assert message["at"] > 0
        assert re.fullmatch(POSITION, message["position"])


def test_requests_in_one_packet_are_handled_in_order(server: Server) -> None:
    with server.line_client() as client:
        client.send(
            {"op": "connect", "user": "hasty"},
            {"op": "subscribe", "id": 1, "channel": "room:hasty"},
            {"op": "publish", "id": 2, "channel": "room:hasty", "data": "mine"},
            {"op": "ping", "id": 3},
        )
        got = [client.receive() for _ in range(5)]
    ops = [m["op"] for m in got if m is not None]
    assert ops[:2] == ["connected", "subscribed"]
    assert sorted(ops[2:]) == ["message", "pong", "published"]


def test_a_subscription_ends_and_begins_again(server: Server) -> None:
    with server.joined("fickle", "room:fickle") as client:
        for round in range(3):
            client.send(
                {"op": "subscribe", "id": 1, "channel": "room:fickle"},
                {"op": "subscribe", "id": 1, "channel": "room:fickle"},  # twice is once
                {"op": "publish", "id": round, "channel": "room:fickle", "data": round},
                {"op": "publish", "id": "fence", "channel": "@fickle", "data": "fence"},
            )
            assert [m["data"] for m in client.messages(2)] == [round, "fence"]
            client.send(
                {"op": "unsubscribe", "id": 2, "channel": "room:fickle"},
                {"op": "publish", "id": round, "channel": "room:fickle", "data": "unheard"},
                {"op": "publish", "id": "fence", "channel": "@fickle", "data": "fence"},
            )
            assert client.messages(1)[0]["data"] == "fence"


def test_a_personal_channel_reaches_every_connection_of_its_user_and_nobody_else(server: Server) -> None:
    with (
        server.joined("anna") as one, server.joined("anna") as two,
        server.joined("bert") as bert, server.joined("carl", "room:carl") as carl,
    ):  # fmt: skip
        assert one.connected["session"] != two.connected["session"]
        bert.send({"op": "publish", "id": 1, "channel": "@anna", "data": "psst"})
        bert.expect("published", channel="@anna")
        for client in (one, two):
            client.expect("message", channel="@anna", data="psst", **{"from": "bert"})
        carl.send({"op": "subscribe", "id": 2, "channel": "@anna"})
        carl.expect("error", id=2, code=4003, field="channel")
        carl.send({"op": "publish", "id": 3, "channel": "room:carl", "data": "fence"})
        assert carl.messages(1)[0]["data"] == "fence"


def test_messages_of_several_channels_come_in_the_order_of_their_positions(server: Server) -> None:
    with server.joined("orderly", "room:o1", "room:o2", "room:o3") as client, server.joined("pusher") as pusher:
        pusher.send(*[{"op": "publish", "id": n, "channel": f"room:o{n % 3 + 1}", "data": n} for n in range(300)])
        heard = client.messages(300)
        assert [m["data"] for m in heard] == list(range(300))
        positions = [number_of(m["position"]) for m in heard]
        assert positions == sorted(positions)


# Faults of a request: told, and the connection goes on.

LINES = [
    (b"{\n", 4000, "line", None),
    (b'{"op":"ping","id":1} {}\n', 4000, "line", None),
    (b'"ping"\n', 4000, "line", None),
    (b'{"op":"ping","id":"\xc3\x28"}\n', 4000, "line", None),
    (b"\x00\x01\x02\n", 4000, "line", None),
    (b"GET / HTTP/1.1\n", 4000, "line", None),
    (b'{"id":1}\n', 4000, "op", 1),
    (b'{"op":null,"id":1}\n', 4000, "op", 1),
    (b'{"op":"dance","id":"x"}\n', 4007, "op", "x"),
    (b'{"op":"ping","id":true}\n', 4000, "id", None),
    (b'{"op":"ping","id":1.5}\n', 4000, "id", None),
    (b'{"op":"ping","id":99999999999999999999}\n', 4000, "id", None),
    (b'{"op":"ping","id":{}}\n', 4000, "id", None),
    (b'{"op":"connect","user":"b"}\n', 4008, "op", None),
    (b'{"op":"subscribe","id":3}\n', 4000, "channel", 3),
    (b'{"op":"subscribe","id":3,"channel":4}\n', 4000, "channel", 3),
    (b'{"op":"subscribe","id":3,"channel":""}\n', 4000, "channel", 3),
    (b'{"op":"subscribe","id":3,"channel":"a b"}\n', 4000, "channel", 3),
    (b'{"op":"subscribe","id":3,"channel":"' + b"a" * 256 + b'"}\n', 4000, "channel", 3),
    (b'{"op":"subscribe","id":3,"channel":"a","position":1}\n', 4000, "position", 3),
    (b'{"op":"subscribe","id":3,"channel":"$x"}\n', 4003, "channel", 3),
    (b'{"op":"unsubscribe","id":4,"channel":"room:never"}\n', 4004, "channel", 4),
    (b'{"op":"unsubscribe","id":4,"channel":"@faulty"}\n', 4003, "channel", 4),
    (b'{"op":"publish","id":5,"channel":"room:a"}\n', 4000, "data", 5),
    (b'{"op":"publish","id":5,"data":1}\n', 4000, "channel", 5),
    (b'{"op":"publish","id":5,"channel":"$x","data":1}\n', 4003, "channel", 5),
    (b'{"op":"publish","id":5,"channel":"a","data":' + b"[" * 400 + b"]" * 400 + b"}\n", 4000, "data", 5),
    (b'{"op":"publish","id":5,"channel":"a","data":' + b"[" * 2000 + b"]" * 2000 + b"}\n", 4000, "line", None),
    (b'{"op":"publish","id":5,"channel":"a","data":NaN}\n', 4000, "line", None),
]


@pytest.mark.parametrize(("line", "code", "field", "id"), LINES, ids=lambda value: str(value)[:48])
def test_a_fault_in_a_request_has_its_code_and_field(
    server: Server, line: bytes, code: int, field: str, id: int | str | None
) -> None:
    with server.joined("faulty") as client:
        client.send(line, {"op": "ping", "id": "after"})
        error = client.receive()
        assert error is not None
        assert list(error) == ["op", "id", "code", "reason", "field"]
        assert error.pop("reason")
        assert error == {"op": "error", "id": id, "code": code, "field": field}
        assert client.receive() == {"op": "pong", "id": "after"}


# Limits.


def test_a_message_of_64_kib_and_not_a_byte_more(server: Server) -> None:
    with server.joined("big", "room:big") as client, server.event_client("user=big2&channel=room:big") as events:
        events.expect("connected")
        whole = "ä" * 32_767  # two bytes each, and two quotes: 65,536
        client.send(
            json.dumps({"op": "publish", "id": 1, "channel": "room:big", "data": whole}, ensure_ascii=False).encode()
            + b"\n"
        )
        client.expect("published", id=1)
        assert events.expect("message")["data"] == whole
        assert client.messages(1)[0]["data"] == whole
        client.send({"op": "publish", "id": 2, "channel": "room:big", "data": "x" * 65_535})
        client.expect("error", id=2, code=4005, field="data")
        client.send({"op": "ping", "id": 3})
        client.expect("pong", id=3)


@pytest.mark.parametrize("end", [b"", b"\n"], ids=["unfinished", "finished"])
def test_a_line_over_the_limit_ends_the_connection(server: Server, end: bytes) -> None:
    with server.joined("long") as client:
        client.send({"op": "ping", "id": 1}, b'{"op":"ping","id":"' + b"x" * 80_000 + b'"}' + end)
        client.expect("pong", id=1)
        close = client.expect("close", code=4005, reconnect=False)
        assert "line" in close["reason"]
        assert client.receive() is None


def test_a_connection_has_at_most_128_channels(server: Server) -> None:
    rooms = [f"room:{n}" for n in range(127)]
    with server.line_client(user="wide", channels=[*rooms, "room:127"]) as client:
        client.expect("close", code=4006, field="channels", reconnect=False)
    with server.joined("wide", *rooms) as client:
        assert len(client.connected["channels"]) == 128
        client.send({"op": "subscribe", "id": 1, "channel": "room:127"})
        client.expect("error", id=1, code=4006, field="channel")
        client.send(
            {"op": "subscribe", "id": 2, "channel": "room:126"}, {"op": "subscribe", "id": 3, "channel": "@wide"}
        )
        client.expect("subscribed", id=2)  # is one of them already
        client.expect("subscribed", id=3)
        client.send(
            {"op": "unsubscribe", "id": 4, "channel": "room:0"}, {"op": "subscribe", "id": 5, "channel": "room:127"}
        )
        client.expect("unsubscribed", id=4)
        client.expect("subscribed", id=5)


def test_heartbeats_both_ways(server: Server) -> None:
    with server.joined("alive") as client:
        client.send(b"\n\n\n")
        began = time.monotonic()
        for number in range(1000):
            client.send({"op": "ping", "id": number})
            client.expect("pong", id=number)
            if client.heartbeats >= 3:
                break
            wait_for_bytes(client)
        assert client.heartbeats >= 3
        assert 0.4 < time.monotonic() - began < 10


def wait_for_bytes(client: LineClient) -> None:
    """Wait until the server has sent something."""
    client.sock.recv(1, 2)  # MSG_PEEK


def test_answers_to_many_requests_in_flight_come_in_order(server: Server) -> None:
    with server.joined("busy") as client:
        client.send(*[{"op": "publish", "id": n, "channel": "room:busy", "data": n} for n in range(2000)])
        answers: list[Any] = [client.receive() for _ in range(2000)]
        assert [(a["op"], a["id"]) for a in answers] == [("published", n) for n in range(2000)]
        positions = [number_of(a["position"]) for a in answers]
        assert positions == sorted(positions)
