"""Who may subscribe and publish: the namespace allows, the token narrows."""

from __future__ import annotations

import pytest

from router.namespaces import Namespace, Namespaces, Policy
from server.access import backend_may_publish, may_publish, may_subscribe
from server.auth import Claims

ANYBODY = Claims("alice")
IN_ROOMS = Claims("alice", subscribe=("in:*",), publish=("in:*",))


def of(policy: Policy) -> Namespaces:
    return Namespaces(named=(Namespace("in", subscribe=policy, publish=policy),))


@pytest.mark.parametrize(
    ("policy", "claims", "allowed"),
    [
        (Policy.SIGNED_IN, ANYBODY, True),
        (Policy.SIGNED_IN, IN_ROOMS, True),
        (Policy.SIGNED_IN, Claims("alice", subscribe=("out:*",)), False),
        (Policy.MEMBERS, ANYBODY, False),
        (Policy.MEMBERS, IN_ROOMS, True),
        (Policy.MEMBERS, Claims("alice", subscribe=("out:*",)), False),
        (Policy.SERVER, IN_ROOMS, False),
        (Policy.NOBODY, IN_ROOMS, False),
    ],
)
def test_subscribing(policy: Policy, claims: Claims, allowed: bool) -> None:
    assert may_subscribe(of(policy), claims, "in:a") is allowed


@pytest.mark.parametrize(
    ("policy", "claims", "is_member", "allowed"),
    [
        (Policy.SIGNED_IN, ANYBODY, False, True),
        (Policy.SIGNED_IN, Claims("alice", publish=("out:*",)), True, False),
        (Policy.MEMBERS, ANYBODY, True, True),
        (Policy.MEMBERS, ANYBODY, False, False),
        (Policy.MEMBERS, Claims("alice", publish=()), True, False),
        (Policy.SERVER, IN_ROOMS, True, False),
        (Policy.NOBODY, IN_ROOMS, True, False),
    ],
)
def test_publishing(policy: Policy, claims: Claims, is_member: bool, allowed: bool) -> None:
    assert may_publish(of(policy), claims, "in:a", is_member=lambda: is_member) is allowed


def test_personal_channels_are_read_by_one_and_written_by_all() -> None:
    namespaces = Namespaces()
    assert may_subscribe(namespaces, ANYBODY, "@alice")
    assert may_subscribe(namespaces, IN_ROOMS, "@alice"), "no glob takes away one's own"
    assert not may_subscribe(namespaces, ANYBODY, "@bob")
    assert not may_subscribe(namespaces, Claims("alice", subscribe=("*",)), "@bob")
    assert may_publish(namespaces, ANYBODY, "@bob", is_member=lambda: False)


def test_what_is_the_servers_own_is_nobodys() -> None:
    everything = Claims("alice", subscribe=("*",), publish=("*",))
    for name in ("$control", "$reply:x", "$probe:x"):
        assert not may_subscribe(Namespaces(), everything, name)
        assert not may_publish(Namespaces(), everything, name, is_member=lambda: True)
        assert not backend_may_publish(Namespaces(), name)


@pytest.mark.parametrize("policy", [each for each in Policy if each is not Policy.OWNER])
def test_backends(policy: Policy) -> None:
    assert backend_may_publish(of(policy), "in:a") is (policy is not Policy.NOBODY)
