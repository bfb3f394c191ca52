"""Messages of the journal as they are on the bus: what goes in comes out, whatever it is made of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router import journal
from router.journal import Keys, Retention, decode, fresh_epoch, members, published_at
from router.message import Message

ROOT = Path(__file__).parents[2]
DATA = [
    None,
    True,
    0,
    -1.5,
    "",
    "a b  c",
    'she said "hello"',
    'back\\slash and \\"',
    "é ü 漢字 👩‍👩‍👧 \u2028",
    "\n\r\t\0",
    ',"at":7,',
    [],
    [1, [2, [3]]],
    {},
    {"at": 5, "text": "x", "": None},
    "x" * 65_000,
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def whole(message: Message) -> dict[str, object]:
    """Return what a client reads: the position with the members behind it."""
    text = b'{"position":"%b"%b}' % (message.position, message.members)
    found: dict[str, object] = orjson.loads(text)
    return found


@pytest.mark.parametrize("data", DATA, ids=lambda data: repr(data)[:20])
@pytest.mark.parametrize("sender", [None, "alice", 'a"at":1,b', "zoë\\"])
def test_what_is_published_is_what_is_read(data: object, sender: str | None) -> None:
    said = members(sender, 1_700_000_000_123, orjson.dumps(data))
    message = decode(b"room:a", b"0123abcd-1700000000123-42 1700000000100-7 " + said, b"head")
    assert (message.op, message.channel, message.position) == (b"message", b"room:a", b"0123abcd-1700000000123-42")
    assert whole(message) == {
        "position": "0123abcd-1700000000123-42",
        "from": sender,
        "at": 1_700_000_000_123,
        "data": data,
    }
    assert published_at(message) == 1_700_000_000.123


@given(st.none() | st.text(), st.integers(0, 2**53), JSON)
def test_any_json_from_anybody(sender: str | None, at_ms: int, data: object) -> None:
    said = members(sender, at_ms, orjson.dumps(data))
    durable = decode(b"room:a", b"e-1-1 0-0 " + said, b"head")
    live = decode(b"room:a", said, b"head")
    assert durable.members == live.members == said
    assert published_at(durable) == published_at(live) == at_ms / 1000
    assert whole(live)["from"] == sender


def test_a_live_only_message_carries_the_newest_position() -> None:
    said = members("alice", 1, b"{}")
    assert decode(b"room:a", said, b"e-5-9") == Message(b"message", b"room:a", b"e-5-9", said)


@pytest.mark.parametrize("payload", [b"", b"hello", b"two words", b" "])
def test_what_is_not_ours_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError, match="unpack"):
        decode(b"room:a", payload, b"head")


@pytest.mark.parametrize("said", [b"", b',"from":null', b',"from":"\\"at\\":5"'])
def test_a_message_that_does_not_say_when(said: bytes) -> None:
    assert published_at(Message(b"message", b"room:a", b"e-1-1", said)) == 0.0


def test_all_keys_have_the_prefix() -> None:
    keys = Keys("chat:")
    assert keys.channel(b"room:a") == b"chat:room:a"
    count, *args = keys.publish_args(b"room:a", b",m", Retention(10, 60))
    assert (count, args[:4]) == (b"3", [b"chat:$clock", b"chat:$stream:room:a", b"chat:$last:room:a", b"chat:room:a"])
    assert args[4:8] == [b",m", b"10", b"60", b"%d" % journal.RESUME_SECONDS_MAX]
    assert keys.now_args()[:2] == (b"1", b"chat:$clock")


def test_an_epoch_is_eight_hex_digits_and_never_the_same() -> None:
    drawn = {fresh_epoch() for _ in range(1000)}
    assert len(drawn) > 990
    assert all(len(epoch) == 8 and set(epoch) <= set(b"0123456789abcdef") for epoch in drawn)


def test_forked_workers_draw_different_epochs() -> None:
    script = """
import os
from router.journal import fresh_epoch
os.fork() and os.wait()
os.write(1, fresh_epoch() + b"\\n")
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, cwd=ROOT)
    assert len(set(done.stdout.split())) == 2
