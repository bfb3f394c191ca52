"""Messages of the journal as they are on the bus: what goes in comes out, whatever it is made of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.journal import (
    ONCE_SECONDS_MAX,
    RESUME_SECONDS_MAX,
    Keys,
    Retention,
    decode,
    fresh_epoch,
    members,
    number_of,
    published_at,
)
from router.message import Message
from router.position import parse

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
    message, before = decode(b"room:a", b"0123abcd-1700000000123-42 1700000000100-7 " + said, b"head")
    assert before == b"1700000000100-7"
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
    durable, _ = decode(b"room:a", b"e-1-1 0-0 " + said, b"head")
    live, _ = decode(b"room:a", said, b"head")
    assert durable.members == live.members == said
    assert published_at(durable) == published_at(live) == at_ms / 1000
    assert whole(live)["from"] == sender


def test_a_live_only_message_carries_the_newest_position() -> None:
    said = members("alice", 1, b"{}")
    assert decode(b"room:a", said, b"e-5-9") == (Message(b"message", b"room:a", b"e-5-9", said), b"")


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
    names = keys.publish_keys(b"room:a", b"alice:1")
    assert names == (b"chat:$stream:room:a", b"chat:$last:room:a", b"chat:$once:room:a alice:1")
    assert keys.publish_keys(b"room:a") == names[:2]
    count, *args = keys.publish_args(Retention(10, 60), True, names, (b"chat:room:a", b",m"))
    assert count == b"4"
    assert args[:4] == [b"chat:$clock", *names]
    assert args[4:6] == [b"10", b"60"]
    assert args[-2:] == [b"chat:room:a", b",m"]
    assert keys.now_args(None)[:2] == (b"1", b"chat:$clock")
    count, *args = keys.missed_args(b"room:a", b"0123abcd-1-2", 100, 1000)
    assert (count, args[:3]) == (b"3", [b"chat:$stream:room:a", b"chat:$last:room:a", b"chat:$clock"])
    assert args[3:] == [b"0123abcd-1-2", b"100", b"1000"]


def test_what_is_known_goes_along_with_a_look_at_the_clock() -> None:
    epochs = set()
    for known, told in ((None, (b"", b"0")), (parse("0123abcd-5-9"), (b"0123abcd", b"9"))):
        _, _, fresh, *known_args = Keys("chat:").now_args(known)
        assert tuple(known_args) == told
        epochs.add(fresh)
    assert len(epochs) == 2


def test_only_a_message_with_a_key_is_remembered() -> None:
    seconds = [Keys("chat:").publish_args(Retention(10, 60), is_once, (), ())[-2] for is_once in (False, True)]
    assert seconds == [b"0", b"%d" % ONCE_SECONDS_MAX]


def test_a_last_message_is_remembered_at_least_as_long_as_messages_are_kept() -> None:
    longer = Retention(10, RESUME_SECONDS_MAX + 1)
    kept = [Keys("").publish_args(retention, False, (), ())[-3] for retention in (Retention(), longer)]
    assert kept == [b"%d" % RESUME_SECONDS_MAX, b"%d" % (RESUME_SECONDS_MAX + 1)]


@pytest.mark.parametrize(
    ("payload", "number"), [(b"0123abcd-5-42 0-0 ,m", 42), (b"0123abcd-5-1 1-1 ,a b", 1), (b',"data":" 1-2-3 "', None)]
)
def test_the_number_of_a_payload(payload: bytes, number: int | None) -> None:
    assert number_of(payload) == number


@pytest.mark.parametrize("payload", [b"", b"hello", b"two words", b"e-1-x 0-0 ,m"])
def test_what_is_not_ours_has_no_number(payload: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        number_of(payload)


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
