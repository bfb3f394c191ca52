"""What clients of each protocol say, byte by byte where a standard has it."""

from __future__ import annotations

import base64
import json
import pickle

import pytest

from bench.peers.catalog import OURS, peers
from bench.peers.ejabberd import Xmpp
from bench.peers.mqtt import Mqtt
from bench.peers.nats import NatsWire
from bench.peers.nchan import NchanWire
from bench.peers.node import WebSocket
from bench.peers.ours import OurWire
from bench.peers.wire import MARK, Lane, Wire, heads, numbers, payload, stamps
from bench.wire import MESSAGE_BYTES

WIRES = {peer.name: peer.wire for peer in peers()}
each_wire = pytest.mark.parametrize("wire", WIRES.values(), ids=WIRES.keys())


def test_a_message_needs_no_escape_anywhere_and_says_its_number_and_time() -> None:
    message = payload(42, 123_456)
    assert len(message) == MESSAGE_BYTES
    assert message.isascii()
    assert not set(message) & set(b"\"'&<>\\\r\n\0 ")
    assert (numbers(heads(message)), stamps(heads(message))) == (b"00000042", [123_456])


@each_wire
def test_a_message_is_once_in_what_is_sent(wire: Wire) -> None:
    for sent in (wire.to_room("r", payload(1)), wire.to_user("u1", payload(1))):
        assert sent.count(MARK) == 1


@each_wire
def test_a_wire_travels_to_the_client_processes(wire: Wire) -> None:
    lane = pickle.loads(pickle.dumps(Lane(wire, "r")))
    assert lane.steps("u1") == wire.subscribe("u1", "r")
    assert all(step.until for step in lane.steps("u1")), "what waits for nothing would never be through"
    assert all(step.until for step in wire.speak("u1", ""))


def test_mqtt_packets_are_those_of_the_standard() -> None:
    connect, subscribe = Mqtt().subscribe("u1", "")
    assert connect.send == b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x00\x00\x02u1"
    assert subscribe.send == b"\x82\x0c\x00\x01\x00\x07user/u1\x00"
    assert Mqtt().to_user("u1", b"x" * 200)[:3] == b"\x30\xd1\x01"  # 209 in two bytes of seven bits


def test_nats_lengths_are_those_of_the_message() -> None:
    assert NatsWire().to_room("r", b"abc") == b"PUB room.r 3\r\nabc\r\n"
    assert b"SUB user.u1 1\r\nSUB room.r 2\r\nPING\r\n" in NatsWire().subscribe("u1", "r")[1].send


def test_http_has_a_length() -> None:
    head, _, body = NchanWire().to_room("r", b"abc").partition(b"\r\n\r\n")
    assert (head.splitlines()[0], body) == (b"POST /pub?id=r HTTP/1.1", b"abc")
    assert b"Content-Length: 3" in head


def test_xmpp_signs_in_with_name_and_password() -> None:
    auth = Xmpp().subscribe("u1", "r")[1].send
    assert base64.b64decode(auth.partition(b">")[2].partition(b"<")[0]) == b"\0u1\0-"


@pytest.mark.parametrize(("size", "head"), [(100, b"\x81\xe6"), (200, b"\x81\xfe\x00\xca")])
def test_websocket_frames_are_masked_with_nothing(size: int, head: bytes) -> None:
    assert WebSocket().to_room("r", b"x" * size) == head + b"\0\0\0\0" + b"R " + b"x" * size


def test_ours_publishes_json() -> None:
    line = json.loads(OurWire("tcp").to_user("u1", payload(7)))
    assert (line["op"], line["channel"]) == ("publish", "@u1")
    assert OURS in WIRES
