"""The URL of a cluster: what it says, and what is wrong with it, never with a password."""

from __future__ import annotations

import re

import pytest

from router.site import Site, prefix_fault
from router.slots import Address
from router.topology import Node, parse, ssl_context


def site(url: str) -> Site:
    found = parse(url)
    assert isinstance(found, Site)
    return found


def test_hosts_and_their_ports() -> None:
    found = site("redis+cluster://a,b:7001,[::1]:7002")
    assert found.seeds == (Address("a", 6379), Address("b", 7001), Address("::1", 7002))
    assert (found.shards, found.tls, found.address) == (8, False, "a:6379,b:7001,[::1]:7002")


def test_all_nodes_have_user_password_and_tls_in_common() -> None:
    found = site("redis+cluster://alice:p%40ss@a:1,b:2?shards=64&tls=true&ssl_cert_reqs=none")
    assert (found.shards, found.tls) == (64, True)
    assert found.node(Address("c", 3)) == Node(
        "c", 3, tls=True, username="alice", password="p@ss", tls_options={"cert_reqs": "none"}
    )
    assert not ssl_context(found).check_hostname
    assert "p@ss" not in repr(found)


def test_each_shard_has_its_keys() -> None:
    keys = site("redis+cluster://h?shards=2").keys("moorage:")
    assert [each.clock for each in keys] == [b"moorage:{cw}$clock", b"moorage:{bo}$clock"]
    assert keys[0].channel(b"a{b}") == b"moorage:{cw}a{b}"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis+cluster://", "found no host"),
        ("redis+cluster://h:0", "port out of range"),
        ("redis+cluster://h:x", "port out of range"),
        ("redis+cluster://h,,i", "found no host"),
        ("redis+cluster://h/0", "found a database, want none"),
        ("redis+cluster://h?db=1", "found a database, want none"),
        ("redis+cluster://h?shards=0", "shards: found '0', want 1 to 64"),
        ("redis+cluster://h?shards=65", "shards: found '65', want 1 to 64"),
        ("redis+cluster://h?shards=many", "shards: found 'many', want 1 to 64"),
        ("redis+cluster://h?tls=maybe", "tls: found 'maybe', want true or false"),
        ("redis+cluster://h?ssl_cert_reqs=none", "found the option 'ssl_cert_reqs'"),
        ("redis+cluster://h?timeout=1", "found the option 'timeout', want one of password, shards, tls, username"),
        ("redis+cluster://u:secret#1@h", "found a '#'"),
        ("redis+cluster://u:se/cret@h", "an '@' behind the hosts"),
        ("redis+cluster://" + ",".join(f"h{n}" for n in range(65)), "found 65 hosts, want 64 at the most"),
    ],
)
def test_what_is_wrong(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        parse(url)
    assert "cret" not in str(error.value)


def test_a_prefix_has_no_braces() -> None:
    assert prefix_fault("redis+cluster://h", "a{b}:") is not None
    assert prefix_fault("redis+cluster://h", "moorage:") is None
    assert prefix_fault("redis://h", "a{b}:") is None
    assert prefix_fault(None, "a{b}:") is None
