"""MQTT 3.1.1 as clients speak it: QoS 0, clean session, no keep-alive (OASIS standard, 2014)."""

from __future__ import annotations

from dataclasses import dataclass

from bench.peers.wire import Step, Wire

CONNECTED = b"\x20\x02\x00\x00"  # CONNACK, no session present, accepted
SUBSCRIBED = b"\x90\x04\x00\x01\x00\x00"  # SUBACK to packet 1, two topics at QoS 0
SUBSCRIBED_ONE = b"\x90\x03\x00\x01\x00"


@dataclass(frozen=True, slots=True)
class Mqtt(Wire):
    """A user is a topic of her own, a room is a topic."""

    refusals = tuple(b"\x20\x02\x00%c" % code for code in range(1, 6))

    def subscribe(self, user: str, room: str) -> tuple[Step, ...]:
        """Connect, then subscribe to one or two topics."""
        topics = [f"user/{user}", *([f"room/{room}"] if room else [])]
        packet = b"\x00\x01" + b"".join([_text(topic) + b"\x00" for topic in topics])
        return (*self.speak(user, room), Step(_packet(0x82, packet), SUBSCRIBED if room else SUBSCRIBED_ONE))

    def speak(self, user: str, room: str) -> tuple[Step, ...]:
        """Connect."""
        return (Step(_packet(0x10, _text("MQTT") + b"\x04\x02\x00\x00" + _text(user)), CONNECTED),)

    def to_room(self, room: str, message: bytes) -> bytes:
        """Publish at QoS 0, which is not answered."""
        return _packet(0x30, _text(f"room/{room}") + message)

    def to_user(self, user: str, message: bytes) -> bytes:
        """Publish to the user's topic."""
        return _packet(0x30, _text(f"user/{user}") + message)


def _packet(kind: int, body: bytes) -> bytes:
    length, size = bytearray(), len(body)
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    length.append(size)
    return bytes([kind]) + length + body


def _text(text: str) -> bytes:
    return len(text).to_bytes(2, "big") + text.encode()
