"""What makes a channel's or a user's name, which namespace a name is in, and what may stand in the tables."""

from __future__ import annotations

import dataclasses
import itertools
import tomllib

import pytest

from router import namespaces
from router.journal import Retention
from router.namespaces import (
    KEYS,
    Namespace,
    Namespaces,
    NamespacesError,
    Policy,
    channel_fault,
    keys,
    personal,
    user_fault,
)
from server import limits


@pytest.mark.parametrize(
    "name",
    ["a", "room:lobby", "@alice", "$probe", "комната", "部屋:1", "a" * 255, "é" * 127, '"', "\\", "😀", "a,b&c=d%e+f"],
)
def test_good_names(name: str) -> None:
    assert channel_fault(name) is None


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("", "0 bytes"),
        ("a" * 256, "256 bytes, want 1 to 255"),
        ("é" * 128, "256 bytes, want 1 to 255"),
        ("a b", "U+0020 at character 1"),
        (" ", "U+0020 at character 0"),
        ("ab\n", "U+000A at character 2"),
        ("\0", "U+0000"),
        ("a\x7f", "U+007F"),
        ("a\xa0b", "U+00A0"),
        ("a\u2028b", "U+2028"),
        ("a\u200bb", "U+200B"),
        ("\ud800", "U+D800"),
        ("\ufeff", "U+FEFF"),
    ],
)
def test_bad_names_say_what_is_wrong(name: str, fault: str) -> None:
    assert fault in (channel_fault(name) or "")
    assert user_fault(name) is not None


def test_a_user_is_one_byte_shorter_because_of_the_at_sign() -> None:
    longest = "u" * 254
    assert user_fault(longest) is None
    assert channel_fault(personal(longest)) is None
    assert user_fault("u" * 255) == "255 bytes, want 1 to 254"


def test_a_personal_channel() -> None:
    assert personal("alice") == "@alice"


def test_the_servers_limits_are_the_same() -> None:
    assert (namespaces.NAME_BYTES_MAX, namespaces.USER_BYTES_MAX) == (limits.CHANNEL_BYTES_MAX, limits.USER_BYTES_MAX)


ROOM = Namespace("room", retention=Retention(10, 60))
TYPING = Namespace("typing", durable=False, presence=False)
CYRILLIC = Namespace("комната", publish=Policy.SERVER)
SOME = Namespaces(named=(ROOM, TYPING, CYRILLIC))


@pytest.mark.parametrize(
    ("channel", "namespace"),
    [
        ("room:lobby", ROOM),
        ("room:", ROOM),
        ("room:a:b", ROOM),
        ("room::", ROOM),
        ("typing:room:lobby", TYPING),
        ("комната:1", CYRILLIC),
        ("room", SOME.default),
        ("roo:m", SOME.default),
        ("rooms:lobby", SOME.default),
        ("Room:lobby", SOME.default),
        ("lobby", SOME.default),
        (":", SOME.default),
        (":room", SOME.default),
        (":room:lobby", SOME.default),
        ("@alice", SOME.personal),
        ("@room:lobby", SOME.personal),
        ("@", SOME.personal),
        ("a@b", SOME.default),
        ("room:@alice", ROOM),
        ("room:$probe", ROOM),
    ],
)
def test_the_namespace_of_a_channel(channel: str, namespace: Namespace) -> None:
    assert SOME.of(channel) is namespace


@pytest.mark.parametrize("channel", ["$probe", "$", "$room:lobby"])
def test_the_servers_own_channels_are_nobodys(channel: str) -> None:
    found = SOME.of(channel)
    assert (found.subscribe, found.publish) == (Policy.NOBODY, Policy.NOBODY)
    assert not found.durable
    assert not found.presence


def test_nothing_configured_is_the_contract() -> None:
    assert Namespaces.from_tables() == Namespaces.from_tables({}, {}, []) == Namespaces()
    default, hers = Namespaces().of("room:lobby"), Namespaces().of("@alice")
    assert default == Namespace("", True, Retention(1000, 3600), True, False, Policy.SIGNED_IN, Policy.SIGNED_IN)
    assert hers == Namespace("@", True, Retention(1000, 3600), True, False, Policy.OWNER, Policy.SIGNED_IN)


EVERYTHING = """
[namespace_default]
subscribe = "nobody"
publish = "server"

[namespace_personal]
durable = false
publish = "nobody"

[[namespace]]
prefix = "room"
durable = true
history_messages_max = 50
history_seconds_max = 60
presence = true
join_leave = false
subscribe = "members"
publish = "members"

[[namespace]]
prefix = "news"
history_seconds_max = 2592000
history_messages_max = 100000
publish = "server"
"""


def read(text: str) -> Namespaces:
    tables = tomllib.loads(text)
    return Namespaces.from_tables(*(tables.get(f"namespace{end}") for end in ("_default", "_personal", "")))


def test_every_key_is_read() -> None:
    found = read(EVERYTHING)
    assert found.default == Namespace(subscribe=Policy.NOBODY, publish=Policy.SERVER)
    assert found.personal == Namespace("@", durable=False, subscribe=Policy.OWNER, publish=Policy.NOBODY)
    assert found.of("room:a") == Namespace("room", True, Retention(50, 60), True, False, Policy.MEMBERS, Policy.MEMBERS)
    assert found.of("news:a") == Namespace("news", retention=Retention(100_000, 2_592_000), publish=Policy.SERVER)


def test_a_key_left_out_has_the_contracts_default_whatever_the_default_namespace_says() -> None:
    found = read("[namespace_default]\ndurable = false\npresence = false\n[[namespace]]\nprefix = 'room'")
    assert found.of("room:a") == Namespace("room")


@pytest.mark.parametrize("text", ["", EVERYTHING, "[[namespace]]\nprefix = 'live'\ndurable = false"])
def test_tables_give_back_what_they_were_read_from(text: str) -> None:
    found = read(text)
    assert Namespaces.from_tables(*found.tables().values()) == found


def test_tables_hold_every_key_that_has_a_say() -> None:
    default, hers, (news, room) = read(EVERYTHING).tables().values()
    assert list(room) == list(news) == list(KEYS)
    assert list(default) == keys("") == [key for key in KEYS if key != "prefix"]
    assert list(hers) == [key for key in keys("@") if key not in {"history_messages_max", "history_seconds_max"}]
    assert "subscribe" not in hers


def faults(default: object = None, hers: object = None, named: object = None) -> list[str]:
    with pytest.raises(NamespacesError) as caught:
        Namespaces.from_tables(default, hers, named)
    return str(caught.value).splitlines()


PREFIX = "1 to 254 bytes of a channel's name: no space, no :, and neither @ nor $ in front"
POLICY = "one of signed-in, members, server, nobody"
BAD: list[tuple[str, object, str]] = [
    ("durable", "yes", "true or false"),
    ("durable", 1, "true or false"),
    ("presence", 0, "true or false"),
    ("presence", [], "true or false"),
    ("history_messages_max", 0, "a whole number from 1 to 100000"),
    ("history_messages_max", 100_001, "a whole number from 1 to 100000"),
    ("history_messages_max", True, "a whole number from 1 to 100000"),
    ("history_messages_max", "1000", "a whole number from 1 to 100000"),
    ("history_messages_max", 10.0, "a whole number from 1 to 100000"),
    ("history_seconds_max", 0, "a whole number from 1 to 2592000"),
    ("history_seconds_max", -1, "a whole number from 1 to 2592000"),
    ("history_seconds_max", 2_592_001, "a whole number from 1 to 2592000"),
    ("history_seconds_max", {}, "a whole number from 1 to 2592000"),
    ("publish", "everybody", POLICY),
    ("publish", "Signed-In", POLICY),
    ("publish", True, POLICY),
    ("publish", ["members"], POLICY),
    ("publish", "owner", POLICY),
]


@pytest.mark.parametrize(("key", "found", "wanted"), BAD)
def test_a_bad_value_is_named_in_every_table(key: str, found: object, wanted: str) -> None:
    says = f"{key}: found {found!r}, want {wanted}"
    assert faults(default={key: found}) == [f"[namespace_default], {says}"]
    assert faults(hers={key: found}) == [f"[namespace_personal], {says}"]
    assert faults(named=[{"prefix": "a"}, {"prefix": "b", key: found}]) == [f'[[namespace]] 2 "b", {says}']


def test_joins_and_leaves_are_for_channels_with_presence_and_several_users() -> None:
    wanted = "true where presence is false, want presence = true, or no such key"
    assert faults(default={"join_leave": True, "presence": False}) == [
        f"[namespace_default], join_leave: found {wanted}",
    ]
    assert faults(default={"join_leave": "true"}) == [
        "[namespace_default], join_leave: found 'true', want true or false"
    ]
    assert faults(hers={"join_leave": True}) == [
        "[namespace_personal], join_leave: found True, want no such key: only alice is in @alice, and her own coming "
        "is no news to her"
    ]
    assert Namespaces.from_tables({"join_leave": True}).of("lobby").join_leave


@pytest.mark.parametrize("found", ["owner", "all", None, 3])
def test_a_bad_subscribe_is_named(found: object) -> None:
    assert faults(default={"subscribe": found}) == [
        f"[namespace_default], subscribe: found {found!r}, want {POLICY}",
    ]


@pytest.mark.parametrize(
    "found",
    ["", " ", "a b", "a:b", "room:", ":", "@", "@alice", "$", "$sys", "a\n", "\ud800", "a" * 255, "é" * 128,
     7, True, [], {}],
)  # fmt: skip
def test_a_bad_prefix_is_named(found: object) -> None:
    assert faults(named=[{"prefix": found}]) == [f"[[namespace]] 1, prefix: found {found!r}, want {PREFIX}"]


@pytest.mark.parametrize("prefix", ["r", "a@b", "a$", "комната", "é" * 127, "a" * 254, "a.b-c_d/e", '"', "\\"])
def test_a_good_prefix_is_one_that_channels_can_have(prefix: str) -> None:
    found = Namespaces.from_tables(named=[{"prefix": prefix}])
    assert found.of(prefix + ":") is found.named[0]
    assert channel_fault(prefix + ":") is None


def test_no_prefix_is_a_fault() -> None:
    assert faults(named=[{}]) == [f"[[namespace]] 1, prefix: found nothing, want {PREFIX}"]


def test_a_prefix_twice_is_a_fault() -> None:
    tables = [{"prefix": "b"}, {"prefix": "a"}, {"prefix": "b"}, {"prefix": "b", "publish": "x"}]
    assert faults(named=tables) == [
        '[[namespace]] 3 "b", prefix: found that of [[namespace]] 1, want one of its own',
        f"[[namespace]] 4 \"b\", publish: found 'x', want {POLICY}",
        '[[namespace]] 4 "b", prefix: found that of [[namespace]] 1, want one of its own',
    ]


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("durabel", "durable"), ("join-leave", "join_leave"), ("History_Messages_Max", "history_messages_max"),
        ("history_second_max", "history_seconds_max"), ("subscribed", "subscribe"),
    ],
)  # fmt: skip
def test_an_unknown_key_is_told_what_it_was_meant_to_be(key: str, meant: str) -> None:
    assert faults(default={key: True}) == [
        f"[namespace_default], {key}: found an unknown key, want {meant} (did you mean that?)"
    ]


def test_an_unknown_key_that_is_like_none_of_ours_lists_those_of_its_table() -> None:
    assert faults(hers={"zzz": 1}, named=[{"prefix": "a", "zzz": 1}]) == [
        f"[namespace_personal], zzz: found an unknown key, want one of {', '.join(keys('@'))}",
        f'[[namespace]] 1 "a", zzz: found an unknown key, want one of {", ".join(KEYS)}',
    ]


def test_keys_that_only_other_tables_have() -> None:
    assert faults(default={"prefix": "room"}, hers={"prefix": "@", "subscribe": "signed-in"}) == [
        "[namespace_default], prefix: found 'room', "
        "want no prefix: it is for every channel that no [[namespace]] is for",
        "[namespace_personal], prefix: found '@', want no prefix: it is for personal channels",
        "[namespace_personal], subscribe: found 'signed-in', want no such key: only alice subscribes to @alice",
    ]


@pytest.mark.parametrize("found", [3, "room", [], True])
def test_what_is_no_table(found: object) -> None:
    says = f"found {found!r}, want a table"
    assert faults(default=found, hers=found, named=[found]) == [
        f"[namespace_default]: {says}",
        f"[namespace_personal]: {says}",
        f"[[namespace]] 1: {says}",
    ]


@pytest.mark.parametrize(("found", "shown"), [({"prefix": "room"}, "[namespace]"), (3, "3"), ("room", "'room'")])
def test_what_is_no_array_of_tables(found: object, shown: str) -> None:
    assert faults(named=found) == [f"[[namespace]]: found {shown}, want [[namespace]] above the keys of each"]


def test_history_of_a_live_only_namespace_is_a_fault() -> None:
    table = {"history_seconds_max": 60, "durable": False, "history_messages_max": 5}
    wanted = "where durable is false, want durable = true, or no such key"
    assert faults(default=table) == [
        f"[namespace_default], history_messages_max: found 5 {wanted}",
        f"[namespace_default], history_seconds_max: found 60 {wanted}",
    ]


@pytest.mark.parametrize(
    "table",
    [
        {"durable": 0, "history_messages_max": 5},
        {"durable": False, "history_messages_max": 0},
        {"join_leave": 1, "presence": False},
    ],
)
def test_a_contradiction_with_a_bad_value_is_left_out(table: dict[str, object]) -> None:
    assert len(faults(default=table)) == 1


def test_everything_wrong_is_reported_at_once() -> None:
    found = faults({"durable": 1, "zzz": 2}, [], [{"prefix": "@a", "publish": 3}, 4, {"presence": 5}])
    assert [line.partition(":")[0] for line in found] == [
        "[namespace_default], durable",
        "[namespace_default], zzz",
        "[namespace_personal]",
        "[[namespace]] 1, prefix",
        "[[namespace]] 1, publish",
        "[[namespace]] 2",
        "[[namespace]] 3, presence",
        "[[namespace]] 3, prefix",
    ]


def test_namespaces_are_equal_by_value_in_any_order() -> None:
    for order in itertools.permutations(SOME.named):
        again = Namespaces(named=order)
        assert again == SOME
        assert hash(again) == hash(SOME)
        assert repr(again) == repr(SOME)
    assert Namespaces(named=(ROOM,)) != SOME
    assert "_by_prefix" not in repr(SOME)


def test_namespaces_cannot_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SOME.named = ()  # type: ignore[misc]
    assert not hasattr(SOME, "__dict__")
    with pytest.raises(AssertionError):
        Namespaces(named=(ROOM, ROOM))
