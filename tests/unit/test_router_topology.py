from __future__ import annotations

import asyncio
import re
import ssl
import time
from pathlib import Path

import pytest
from redis.exceptions import RedisError

from router.clients import client
from router.sentinel import Sentinels
from router.topology import Node, parse, ssl_context


@pytest.mark.parametrize(
    ("url", "node"),
    [
        ("redis://", Node("localhost", 6379)),
        ("redis://bus.example", Node("bus.example", 6379)),
        ("redis://bus.example:7000/", Node("bus.example", 7000)),
        ("redis://127.0.0.1:6380/3", Node("127.0.0.1", 6380, database=3)),
        ("redis://127.0.0.1?db=4", Node("127.0.0.1", 6379, database=4)),
        ("redis://[::1]:6380", Node("::1", 6380)),
        ("redis://alice:p%40ss%2F@h", Node("h", 6379, username="alice", password="p@ss/")),
        ("redis://:secret@h", Node("h", 6379, password="secret")),
        ("redis://:sec@ret@h", Node("h", 6379, password="sec@ret")),
        ("unix:///run/a%20bus.sock?db=2", Node("localhost", 6379, "/run/a bus.sock", database=2)),
        ("unix://alice:pw@/run/bus.sock", Node("localhost", 6379, "/run/bus.sock", username="alice", password="pw")),
        ("unix:///run/bus.sock?password=pw", Node("localhost", 6379, "/run/bus.sock", password="pw")),
        ("rediss://h:6390", Node("h", 6390, tls=True)),
        (
            "rediss://h?ssl_cert_reqs=none&ssl_check_hostname=false",
            Node("h", 6379, tls=True, tls_options={"cert_reqs": "none", "check_hostname": False}),
        ),
    ],
)
def test_parse(url: str, node: Node) -> None:
    assert tuple(parse(url)) == tuple(node)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("localhost:6379", "found the scheme 'localhost', want one of redis://, rediss://, unix://"),
        ("redis://h:0", "port out of range or not a number, want 1 to 65535"),
        ("redis://h:65536", "port out of range"),
        ("redis://h:x", "port out of range"),
        ("redis://h/main", "found the database 'main', want a number"),
        ("redis://h?db=x", "'db'"),
        ("redis://h?db=", "db: found nothing"),
        ("redis://h?db=-1", "db: found -1, want 0 or more"),
        ("redis://h?socket_timeout=5", "found the option 'socket_timeout', want one of db, password, username"),
        ("redis://h?ssl_ca_certs=ca.pem", "found the option 'ssl_ca_certs'"),
        ("rediss://h?ssl_cert_reqs=maybe", "ssl_cert_reqs: found 'maybe', want one of required, optional, none"),
        ("unix://run/bus.sock", "found no absolute path"),
        ("unix://", "found no absolute path"),
        ("redis://h#1", "found a '#'"),
        ("redis+sentinel://h:26379", "found no name of a master, want it as in redis+sentinel://host:26379/NAME"),
        ("redis+sentinel:///main", "found no host, or a port"),
        ("redis+sentinel://h:1,/main", "found no host, or a port"),
        ("redis+sentinel://h:1,h:x/main", "a port out of range or not a number, want host:port[,host:port...]"),
        ("redis+sentinel://h:1,h:1/main", "found a sentinel twice"),
        (
            "redis+sentinel://" + ",".join(f"h{n}" for n in range(10)) + "/main",
            "found 10 sentinels, want 9 at the most",
        ),
        ("redis+sentinel://h/main/one", "found the database 'one', want a number"),
        ("redis+sentinel://h/main?tls=yes", "tls: found 'yes', want true or false"),
        (
            "redis+sentinel://h/main?ssl_ca_certs=a.pem",
            "found the option 'ssl_ca_certs', want one of db, password, sentin",
        ),
        ("redis+sentinel://h/main?tls=true&ssl_cert_reqs=maybe", "ssl_cert_reqs: found 'maybe'"),
        ("redis+sentinel://h/main?sentinel_username=bob", "found sentinel_username and no sentinel_password"),
        ("redis+sentinel://h/main?sentinel_password=", "sentinel_password: found nothing, want a value"),
    ],
)
def test_parse_says_what_is_wrong(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        parse(url)


@pytest.mark.parametrize("password", ["hush/hush", "hush?hush", "hush#hush", "hush/hush?hush", "1?hush"])
@pytest.mark.parametrize(
    "url", ["redis://:{}@h:1/0", "rediss://bob:{}@h", "unix://:{}@/run/bus.sock", "redis+sentinel://:{}@h:1,g:2/main"]
)
def test_a_password_that_breaks_the_url_is_not_shown(url: str, password: str) -> None:
    with pytest.raises(ValueError, match="want") as caught:
        parse(url.format(password))
    assert "hush" not in str(caught.value)


def test_a_node_hides_its_password() -> None:
    node = parse("redis://bob:hush@[::1]:7000/1")
    assert repr(node) == "Node('[::1]:7000', tls=False, database=1, username='bob', password='***')"
    assert node.address == "[::1]:7000"
    assert parse("unix:///run/bus.sock").address == "/run/bus.sock"


@pytest.mark.parametrize(
    ("url", "hosts", "master", "node"),
    [
        ("redis+sentinel://h/main", [("h", 26379)], "main", Node("master", 6379)),
        (
            "redis+sentinel://h:1,[::1]:2/my%20main/3",
            [("h", 1), ("::1", 2)],
            "my main",
            Node("master", 6379, database=3),
        ),
        (
            "redis+sentinel://bob:p%40ss%2F@h:1,g:2/main?sentinel_password=hush",
            [("h", 1), ("g", 2)],
            "main",
            Node("master", 6379, username="bob", password="p@ss/"),
        ),
        (
            "redis+sentinel://h/main?tls=true&ssl_ca_certs=/etc/ca%20b.pem",
            [("h", 26379)],
            "main",
            Node("master", 6379, tls=True, tls_options={"ca_certs": "/etc/ca b.pem"}),
        ),
    ],
)
def test_parse_sentinels(url: str, hosts: list[tuple[str, int]], master: str, node: Node) -> None:
    found = parse(url)
    assert isinstance(found, Sentinels)
    assert (list(found.hosts), found.master, found.node) == (hosts, master, node)
    assert (found.tls, found.tls_options) == (node.tls, node.tls_options)
    assert "hush" not in repr(found)
    assert "p@ss" not in repr(found)


async def test_one_redis_is_where_it_is() -> None:
    node = parse("redis://h:7000")
    assert await node.locate() is node


def test_ssl_context_verifies_unless_told_not_to() -> None:
    strict = ssl_context(parse("rediss://h?ssl_min_version=772"))
    assert (strict.verify_mode, strict.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert strict.minimum_version == ssl.TLSVersion.TLSv1_3
    loose = ssl_context(parse("rediss://h?ssl_cert_reqs=none"))
    assert (loose.verify_mode, loose.check_hostname) == (ssl.CERT_NONE, False)


def test_ssl_context_says_which_file_is_missing_or_bad(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ssl_ca_certs: found no file"):
        ssl_context(parse(f"rediss://h?ssl_ca_certs={tmp_path}/none.pem"))
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate")
    with pytest.raises(ValueError, match="ssl_ca_certs"):
        ssl_context(parse(f"rediss://h?ssl_ca_certs={bad}"))


async def test_a_client_gives_up_in_time_on_a_server_that_says_nothing() -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    redis = client(f"redis://127.0.0.1:{port}", timeout_seconds=0.1)
    started = time.monotonic()
    try:
        with pytest.raises(RedisError):
            await redis.publish("channel", b"data")
        assert time.monotonic() - started < 1.0
    finally:
        await redis.aclose()
        server.close()
        await server.wait_closed()


def test_a_client_of_a_bad_url_is_refused() -> None:
    with pytest.raises(ValueError, match="want one of"):
        client("http://h")
