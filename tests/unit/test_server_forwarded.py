"""Who asked a chain of HTTP proxies: the rightmost address that is not a trusted proxy's."""

from __future__ import annotations

import pytest

from server.close import Close, PeerError
from server.forwarded import client, in_head, plain

PROXIES = {"10.0.0.1", "10.0.0.2", "2001:db8::1"}


def asked(*, forwarded: str | list[str] = (), xff: str | list[str] = (), peer: str = "10.0.0.1") -> str:  # type: ignore[assignment]
    values = [[one] if isinstance(one, str) else one for one in (forwarded, xff)]
    return client(peer, *values, PROXIES.__contains__)


@pytest.mark.parametrize(
    ("chain", "wanted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("192.0.2.7, 10.0.0.2", "192.0.2.7"),
        ("198.51.100.1, 192.0.2.7", "192.0.2.7"),  # what stands before it, the client has said
        ("192.0.2.7:4711", "192.0.2.7"),
        ("[2001:db8::7]:4711", "2001:db8::7"),
        ("[2001:db8::7]", "2001:db8::7"),
        ("2001:0DB8::7", "2001:db8::7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("192.0.2.7,::ffff:10.0.0.2", "192.0.2.7"),
        ("10.0.0.2", "10.0.0.2"),  # nobody but proxies: the first of them
        ("unknown, 10.0.0.2", "10.0.0.2"),  # the last that is known
        ("192.0.2.7, unknown", "10.0.0.1"),
        ("192.0.2.7, ", "10.0.0.1"),
        ("192.0.2.7, [::1", "10.0.0.1"),
        ("nonsense, 192.0.2.7", "192.0.2.7"),
        ("", "10.0.0.1"),
    ],
)
def test_a_chain_is_walked_from_its_end(chain: str, wanted: str) -> None:
    assert asked(xff=chain) == wanted
    assert asked(xff=chain.split(",")) == wanted, "several headers are one"


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("for=192.0.2.7", "192.0.2.7"),
        ("For=192.0.2.7;proto=https;by=10.0.0.1", "192.0.2.7"),
        ('proto=https ; for="192.0.2.7:4711"', "192.0.2.7"),
        ('for="[2001:db8::7]:4711"', "2001:db8::7"),
        ("for=198.51.100.1, for=192.0.2.7, for=10.0.0.2", "192.0.2.7"),
        (r'for="19\2.0.2.7"', "192.0.2.7"),
        ('for=192.0.2.7;ext="a, for=198.51.100.1; b"', "192.0.2.7"),
        ("for=_hidden", "10.0.0.1"),
        ("for=unknown", "10.0.0.1"),
        ("for=192.0.2.7, proto=http", "10.0.0.1"),  # an element that does not say it
        ("", "10.0.0.1"),
    ],
)
def test_forwarded_is_read_as_its_rfc_has_it(value: str, wanted: str) -> None:
    assert asked(forwarded=value) == wanted


@pytest.mark.parametrize(
    "value",
    ['for="192.0.2.7', "for=192.0.2.7 for=192.0.2.8", "for=[2001:db8::7]", 'for="1", for="[2001:db8::7]"x', "=", 'a"'],
)
def test_what_is_no_forwarded_is_refused(value: str) -> None:
    with pytest.raises(PeerError) as caught:
        asked(forwarded=value)
    assert (caught.value.code, caught.value.field) == (Close.BAD_REQUEST, "Forwarded")


def test_a_quote_of_the_clients_does_not_hide_what_the_proxy_appends() -> None:
    with pytest.raises(PeerError):
        asked(forwarded='for="198.51.100.1, for="[2001:db8::7]";by="x"')


def test_who_is_not_trusted_is_not_listened_to() -> None:
    assert asked(xff="198.51.100.1", forwarded="for=198.51.100.1", peer="192.0.2.7") == "192.0.2.7"
    assert asked(forwarded='"', peer="192.0.2.7") == "192.0.2.7", "nor does it have to be right"


def test_both_headers_have_to_agree() -> None:
    """A proxy passes on the one that it does not know: it is the client's."""
    assert asked(xff="192.0.2.7", forwarded="for=192.0.2.7") == "192.0.2.7"
    with pytest.raises(PeerError, match=r"198\.51\.100\.1 there and 192\.0\.2\.7 in X-Forwarded-For"):
        asked(xff="192.0.2.7", forwarded="for=198.51.100.1")


def test_the_headers_are_found_in_a_head() -> None:
    head = (
        b"GET /events?a=X-Forwarded-For:1 HTTP/1.1\r\nHost: h\r\nx-forwarded-for: 1.1.1.1 \r\nX-Not-X-Forwarded-For: 5\r\n"
        b"Forwarded:for=3.3.3.3\r\nX-Forwarded-For: 2.2.2.2\r\n\r\nX-Forwarded-For: 4.4.4.4\r\n\r\n"
    )
    assert in_head(head) == (["for=3.3.3.3"], [" 1.1.1.1 ", " 2.2.2.2"])
    assert client("10.0.0.1", [], in_head(head)[1], PROXIES.__contains__) == "2.2.2.2"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("::FFFF:7f00:1", "127.0.0.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("192.0.2.07", None),
        ("localhost", None),
        ("", None),
    ],
)
def test_an_address_has_one_form(text: str, wanted: str | None) -> None:
    assert plain(text) == wanted
