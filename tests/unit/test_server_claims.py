"""What a payload may say, and what its globs allow."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.namespaces import channel_fault, user_fault
from server.claims import GLOBS_MAX, Claims, _matches, from_payload
from server.close import Close, PeerError

NOW = 1_800_000_000.0
PAYLOAD: dict[str, object] = {"sub": "alice", "exp": NOW + 60}


def refusal(**claims: object) -> str:
    with pytest.raises(PeerError) as caught:
        from_payload(PAYLOAD | claims, NOW)
    assert (caught.value.code, caught.value.field) == (Close.UNAUTHORIZED, "token")
    return caught.value.reason


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (None, "no sub found, wanted the user's name"),
        (7, "sub 7 found, wanted the user's name"),
        (["alice"], "sub ['alice'] found, wanted the user's name"),
        *[(name, f"sub: {user_fault(name)}") for name in ("", "al ice", "al\nice", "a" * 255)],
    ],
)
def test_the_subject_is_a_user(found: object, reason: str) -> None:
    assert refusal(sub=found) == reason


@pytest.mark.parametrize("claim", ["exp", "nbf"])
@pytest.mark.parametrize("found", ["1800000060", True, float("inf"), float("nan"), [1], {}])
def test_times_are_numbers(claim: str, found: object) -> None:
    assert refusal(**{claim: found}) == f"{claim} {found} found, wanted seconds since 1970"


def test_a_token_has_to_end() -> None:
    with pytest.raises(PeerError, match="no exp found, wanted seconds since 1970"):
        from_payload({"sub": "alice"}, NOW)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ([], "channels [] found, wanted an object of subscribe and publish"),
        (None, "no channels found, wanted an object of subscribe and publish"),
        ({"subscribes": []}, "channels {'subscribes': []} found, wanted an object of subscribe and publish"),
        ({"subscribe": None}, "no channels.subscribe found, wanted a list of globs"),
        ({"publish": "room:*"}, "channels.publish room:* found, wanted a list of globs"),
        ({"publish": ["a"] * (GLOBS_MAX + 1)}, "channels.publish: 65 globs found, wanted at most 64"),
        ({"publish": ["a", 5]}, "channels.publish: 5, want a string"),
        *[({"publish": [name]}, f"channels.publish: {channel_fault(name)}") for name in ("", "a b", "a" * 256)],
    ],
)
def test_channels_are_lists_of_globs(found: object, reason: str) -> None:
    assert refusal(channels=found) == reason


def test_channels_narrow_each_on_its_own() -> None:
    claims = from_payload(PAYLOAD | {"channels": {"subscribe": ["room:*", "news"], "publish": []}}, NOW)
    assert (claims.subscribe, claims.publish) == (("room:*", "news"), ())
    assert claims.may_subscribe("room:lobby")
    assert claims.may_subscribe("news")
    assert not claims.may_subscribe("newsroom")
    assert not claims.may_publish("room:lobby")
    only = from_payload(PAYLOAD | {"channels": {"publish": ["room:?"]}}, NOW)
    assert only.may_subscribe("anything")
    assert only.may_publish("room:a")
    assert not only.may_publish("room:ab")


def test_personal_channels_are_their_users_to_hear_and_anyones_to_speak_to() -> None:
    free, narrow = Claims("alice"), Claims("alice", None, ("room:*",), ("room:*",))
    for claims in (free, narrow, Claims("alice", None, ("*",), ("*",))):
        assert claims.may_subscribe("@alice")
        assert not claims.may_subscribe("@bob")
        assert not claims.may_subscribe("@")
    assert free.may_publish("@bob")
    assert not narrow.may_publish("@bob")


def test_the_servers_own_channels_are_nobodys() -> None:
    for claims in (Claims("alice"), Claims("alice", None, ("*", "$*"), ("*", "$*"))):
        assert not claims.may_subscribe("$presence")
        assert not claims.may_publish("$presence")


def test_open_mode_has_no_end_and_no_bounds() -> None:
    assert Claims("alice") == ("alice", None, None, None)
    assert Claims("alice").may_subscribe("room:a")


@given(st.text("ab:*?[]!-", max_size=6), st.text("ab:*?[]!-", min_size=1, max_size=6))
def test_globs_match_as_the_standard_library_has_them(channel: str, glob: str) -> None:
    assert _matches(channel, glob) is fnmatchcase(channel, glob)
