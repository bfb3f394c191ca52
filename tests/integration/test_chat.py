"""The main job: clients on different workers and transports hear each other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from harness import Server


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_everybody_hears_everybody(start_server: Callable[..., Server], workers: int) -> None:
    server = start_server("--workers", str(workers))
    lines = [server.joined(f"line{i}", "room:lobby") for i in range(6)]
    events = [server.event_client(f"user=event{i}&channel=room:lobby") for i in range(6)]
    for event in events:
        assert event.status == 200
        event.expect("connected")
    used = {client.connected["session"].split("-")[1] for client in lines}
    assert used <= {str(number) for number in range(workers)}

    for number, speaker in enumerate(lines):
        speaker.send({"op": "publish", "id": number, "channel": "room:lobby", "data": {"n": number}})
    status, answer = server.request("POST", "/publish?user=event0", {"channel": "room:lobby", "data": {"n": 6}})
    assert status == 200
    assert answer["position"]

    for client in lines:
        heard = client.messages(7)
        assert sorted(message["data"]["n"] for message in heard) == list(range(7))
        assert {message["from"] for message in heard} == {f"line{i}" for i in range(6)} | {"event0"}
        assert [m["position"] for m in heard] == sorted((m["position"] for m in heard), key=_number)
    for event in events:
        assert sorted(event.expect("message")["data"]["n"] for _ in range(7)) == list(range(7))


def _number(position: str) -> int:
    return int(position.rsplit("-", 1)[1])
