"""Every layer, every kind of option, every rule over several, and everything wrong at once."""

from __future__ import annotations

import argparse
import dataclasses
import os
from ipaddress import ip_network
from pathlib import Path

import pytest

from router.namespaces import KEYS, Namespace, Namespaces, Policy
from server import limits
from server.config import OPTIONS, TABLES, Address, Config, ConfigError, add_arguments, describe, load, resolve

SECRET = "correct horse battery staple 32 b"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No moorage.toml of this checkout is read."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def problems(
    options: dict[str, object] | None = None, environ: dict[str, str] | None = None, path: str | None = None
) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(options or {}, environ or {}, path)
    return str(caught.value).splitlines()


def test_nothing_given_is_the_defaults() -> None:
    config, sources = resolve({}, {})
    assert config == Config()
    assert config.tcp == (Address("127.0.0.1", 7400),)
    assert config.backlog_bytes_max == limits.BACKLOG_BYTES_MAX
    assert set(sources.values()) == {"default"}


def test_flags_go_over_the_environment_over_the_file_over_the_defaults(elsewhere: Path) -> None:
    (elsewhere / "moorage.toml").write_text('workers = 1\nheartbeat_seconds = 5\nlog_level = "debug"\n')
    environ = {"MOORAGE_WORKERS": "2", "MOORAGE_HEARTBEAT_SECONDS": "6.5"}
    config, sources = resolve({"workers": "3"}, environ)
    assert (config.workers, config.heartbeat_seconds, config.log_level) == (3, 6.5, "debug")
    assert sources["workers"] == "flag --workers"
    assert sources["heartbeat_seconds"] == "environment MOORAGE_HEARTBEAT_SECONDS"
    assert sources["log_level"] == "file moorage.toml"
    assert sources["log_format"] == "default"


@pytest.mark.parametrize("how", ["path", "environment"])
def test_a_named_file_is_read_instead_of_the_one_in_the_directory(elsewhere: Path, how: str) -> None:
    (elsewhere / "moorage.toml").write_text("workers = 1\n")
    named = elsewhere / "other.toml"
    named.write_text("workers = 2\n")
    environ, path = ({}, str(named)) if how == "path" else ({"MOORAGE_CONFIG": str(named)}, None)
    assert load({}, environ, path).workers == 2


def test_a_named_file_that_is_not_there_is_a_problem() -> None:
    assert problems(path="nowhere.toml") == [
        "config (nowhere.toml): found No such file or directory, want a TOML file that can be read"
    ]


@pytest.mark.parametrize("content", [b"workers 3", b"\xff = 1", b"workers = 1\nworkers = 2\n"])
def test_a_file_that_is_no_toml_is_a_problem(elsewhere: Path, content: bytes) -> None:
    (elsewhere / "moorage.toml").write_bytes(content)
    (problem,) = problems()
    assert problem.startswith("config (moorage.toml): found ")


def test_everything_wrong_is_reported_at_once(elsewhere: Path) -> None:
    (elsewhere / "moorage.toml").write_text('worker = 3\nlog_format = "xml"\n')
    found = problems({"workers": "many", "admin": ":7490"}, {"MOORAGE_TPC": "x", "MOORAGE_HEARTBEAT_SECONDS": "nan"})
    assert found == [
        "worker (file moorage.toml): found an unknown key, want workers (did you mean that?)",
        "MOORAGE_TPC (environment): found an unknown variable, want MOORAGE_TCP (did you mean that?)",
        "admin (flag --admin): found ':7490', want HOST:PORT with a host (every interface is 0.0.0.0 or [::])",
        "workers (flag --workers): found 'many', want a whole number from 0 to 1024",
        "heartbeat_seconds (environment MOORAGE_HEARTBEAT_SECONDS): found 'nan', "
        "want a number of seconds from 0.1 to 3600",
        "log_format (file moorage.toml): found 'xml', want one of text, json",
    ]


def test_an_unknown_name_that_is_like_none_of_ours_lists_them() -> None:
    (problem,) = problems(environ={"MOORAGE_ZZZ": "1"})
    assert "MOORAGE_TCP, MOORAGE_HTTP" in problem


def test_variables_that_kubernetes_sets_for_a_service_of_our_name_are_none_of_ours() -> None:
    environ = {
        "MOORAGE_SERVICE_HOST": "10.0.0.1",
        "MOORAGE_SERVICE_PORT": "7400",
        "MOORAGE_SERVICE_PORT_TCP": "7400",
        "MOORAGE_PORT": "tcp://10.0.0.1:7400",
        "MOORAGE_PORT_7400_TCP": "tcp://10.0.0.1:7400",
        "MOORAGE_PORT_7400_TCP_PROTO": "tcp",
        "MOORAGE_PORT_7400_TCP_ADDR": "10.0.0.1",
        "MOORAGE_ADMIN_SERVICE_HOST": "10.0.0.2",
        "MOORAGE_ADMIN_PORT": "tcp://10.0.0.2:7490",
    }
    assert load({}, environ) == Config()
    assert problems(environ={"MOORAGE_PORT": "7400"})


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:7400", Address("127.0.0.1", 7400)),
        ("0.0.0.0:0", Address("0.0.0.0", 0)),
        ("[::1]:7400", Address("::1", 7400)),
        ("[0:0:0:0:0:0:0:1]:65535", Address("::1", 65535)),
        ("[fe80::1%eth0]:7400", Address("fe80::1%eth0", 7400)),
        ("LocalHost:7400", Address("localhost", 7400)),
        ("chat-1.example.org:7400", Address("chat-1.example.org", 7400)),
        (" 127.0.0.1:7400 ", Address("127.0.0.1", 7400)),
    ],
)
def test_addresses_are_read_and_written_back(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "", ":", ":7400", "*:7400", "7400", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:x",
        "127.0.0.1:\N{ARABIC-INDIC DIGIT SEVEN}",
        "::1:7400", "[::1]", "[::1:7400", "[127.0.0.1]:7400", "300.1.1.1:7400", "127.1:7400", "a b:7400",
        "http://127.0.0.1:7400",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        Address.parse(text)


@pytest.mark.parametrize(
    ("text", "is_loopback"),
    [
        ("127.0.0.1:1", True), ("127.9.8.7:1", True), ("[::1]:1", True), ("localhost:1", True),
        ("0.0.0.0:1", False), ("[::]:1", False), ("10.0.0.1:1", False), ("example.org:1", False),
    ],
)  # fmt: skip
def test_which_addresses_are_loopback(text: str, is_loopback: bool) -> None:
    assert Address.parse(text).is_loopback is is_loopback


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ("127.0.0.1:7400", "127.0.0.1:7400", True),
        ("127.0.0.1:7400", "localhost:7400", True),
        ("127.0.0.1:7400", "0.0.0.0:7400", True),
        ("[::]:7400", "10.0.0.1:7400", True),
        ("127.0.0.1:7400", "127.0.0.2:7400", False),
        ("127.0.0.1:7400", "127.0.0.1:7401", False),
        ("127.0.0.1:0", "127.0.0.1:0", False),
    ],
)
def test_which_addresses_would_share_connections(one: str, other: str, overlap: bool) -> None:
    assert Address.parse(one).overlaps(Address.parse(other)) is overlap
    assert Address.parse(other).overlaps(Address.parse(one)) is overlap


GOOD: list[tuple[str, object, object]] = [
    ("tcp", ["127.0.0.1:1", "[::1]:2"], (Address("127.0.0.1", 1), Address("::1", 2))),
    ("tcp", "127.0.0.1:1,127.0.0.1:2 127.0.0.1:3", tuple(Address("127.0.0.1", port) for port in (1, 2, 3))),
    ("http", ["127.0.0.1:0"], (Address("127.0.0.1", 0),)),
    ("workers", "106", 106),
    ("workers", 4, 4),
    ("redis", "redis://127.0.0.1:6379/1", "redis://127.0.0.1:6379/1"),
    ("redis_prefix", "chat:", "chat:"),
    ("no_auth", "yes", True),
    ("no_auth", "0", False),
    ("no_auth", True, True),
    ("auth_secret", SECRET, SECRET),
    ("auth_key", "https://id.example/jwks.json", "https://id.example/jwks.json"),
    ("origins", "https://a.example,https://b.example:8443", ("https://a.example", "https://b.example:8443")),
    ("origins", ["*"], ("*",)),
    ("proxy_protocol", "V2", "v2"),
    ("proxy_trusted", "10.0.0.0/8,::1", (ip_network("10.0.0.0/8"), ip_network("::1/128"))),
    ("proxy_trusted", ["::ffff:10.0.0.0/104", "192.0.2.1"], (ip_network("10.0.0.0/8"), ip_network("192.0.2.1/32"))),
    ("proxy_trusted", "::/0", (ip_network("::/0"),)),
    ("drain_seconds", "0", 0.0),
    ("drain_seconds", 90, 90.0),
    ("log_level", "WARNING", "warning"),
]
BAD: list[tuple[str, object, str]] = [
    ("tcp", [], "each once"),
    ("tcp", "", "each once"),
    ("tcp", ["127.0.0.1:1", "127.0.0.1:1"], "each once"),
    ("tcp", [7400], "HOST:PORT"),
    ("tcp", ["127.0.0.1"], "HOST:PORT"),
    ("admin", 7490, "HOST:PORT"),
    ("workers", "-1", "from 0 to 1024"),
    ("workers", 1025, "from 0 to 1024"),
    ("workers", True, "a whole number"),
    ("workers", 1.5, "a whole number"),
    ("workers", "", "a whole number"),
    ("redis", "", "a URL"),
    ("redis", 6379, "a URL"),
    ("redis", "http://127.0.0.1", "a URL"),
    ("redis_prefix", "two words", "without blanks"),
    ("no_auth", "maybe", "true or false"),
    ("no_auth", 1, "true or false"),
    ("auth_secret", "short", "at least 32 bytes"),
    ("auth_secret", "", "at least 32 bytes"),
    ("auth_key", "nowhere.pem", "a PEM or JWKS file"),
    ("auth_key", ".", "a PEM or JWKS file"),
    ("auth_audience", "", "text"),
    ("admin_key", "a\nb", "text"),
    ("origins", ["https://a.example/"], "origins such as"),
    ("origins", ["https://A.example"], "origins such as"),
    ("origins", ["a.example"], "origins such as"),
    ("origins", ["https://u@a.example"], "origins such as"),
    ("origins", ["null"], "origins such as"),
    ("proxy_protocol", "v3", "one of off, v1, v2, auto"),
    ("proxy_trusted", "10.0.0.1/8", "10.0.0.1/8 has host bits set"),
    ("proxy_trusted", "balancer.example", "addresses or networks such as"),
    ("heartbeat_seconds", "inf", "from 0.1 to 3600"),
    ("heartbeat_seconds", 10**400, "from 0.1 to 3600"),
    ("handshake_seconds", False, "a number of seconds"),
    ("channels_per_connection_max", 0, "from 1"),
    ("message_bytes_max", limits.MESSAGE_BYTES_MAX + 1, f"to {limits.MESSAGE_BYTES_MAX}"),
    ("backlog_bytes_max", 1, "from 4096"),
    ("send_buffer_bytes", -1, "from 0"),
    ("listen_backlog", "0", "from 1"),
    ("log_level", "loud", "one of debug, info, warning, error"),
    ("log_format", 1, "one of text, json"),
]


@pytest.mark.parametrize(("name", "found", "value"), GOOD)
def test_values_are_read(name: str, found: object, value: object) -> None:
    assert OPTIONS[name].read(found) == value


@pytest.mark.parametrize(("name", "found", "wanted"), BAD)
def test_a_bad_value_is_named_with_what_is_wanted(name: str, found: object, wanted: str) -> None:
    (problem,) = problems({name: found})
    assert problem.startswith(f"{name} (flag {OPTIONS[name].flag}): found ")
    assert wanted in problem.partition(", want ")[2]


def test_a_key_file_that_is_there_is_taken(elsewhere: Path) -> None:
    key = elsewhere / "key.pem"
    key.touch()
    assert load({"auth_key": str(key)}, {}).auth_key == str(key)


@pytest.mark.parametrize(
    ("options", "names", "found"),
    [
        ({"tcp": "0.0.0.0:7400"}, "tcp", "open mode on 0.0.0.0:7400"),
        ({"http": "[::]:7480"}, "http", "open mode on [::]:7480"),
        ({"auth_secret": SECRET, "auth_key": "https://a.example/k"}, "auth_secret, auth_key", "both"),
        ({"no_auth": True, "auth_secret": SECRET}, "no_auth, auth_secret", "no_auth beside a secret or key"),
        ({"auth_audience": "chat"}, "auth_audience", "a claim to check"),
        ({"admin": "0.0.0.0:7490"}, "admin", "0.0.0.0:7490 without admin_key"),
        ({"tcp": "127.0.0.1:7480"}, "tcp", "127.0.0.1:7480 and 127.0.0.1:7480"),
        ({"admin": "127.0.0.1:7400"}, "admin", "127.0.0.1:7400 and 127.0.0.1:7400"),
        ({"proxy_protocol": "v2"}, "proxy_protocol", "v2 from nobody"),
        ({"backlog_bytes_max": 65_536}, "backlog_bytes_max", "a backlog of 65536"),
    ],
)
def test_options_that_contradict_each_other(options: dict[str, object], names: str, found: str) -> None:
    (problem,) = problems(options)
    assert problem.startswith(f"{names} (")
    assert found in problem


@pytest.mark.parametrize(
    "options",
    [
        {"tcp": "0.0.0.0:7400", "no_auth": True},
        {"tcp": "0.0.0.0:7400", "auth_secret": SECRET, "auth_audience": "chat"},
        {"admin": "0.0.0.0:7490", "admin_key": "k"},
        {"proxy_protocol": "auto", "proxy_trusted": "10.0.0.1"},
        {"proxy_trusted": "10.0.0.1"},
        {"tcp": "127.0.0.1:0", "http": "127.0.0.1:0", "admin": "127.0.0.1:0"},
        {"backlog_bytes_max": 4096 + 100, "message_bytes_max": 100},
    ],
)
def test_options_that_go_together(options: dict[str, object]) -> None:
    load(options, {})


def test_a_rule_over_a_value_that_could_not_be_read_is_left_out() -> None:
    assert len(problems({"auth_secret": "short", "tcp": "0.0.0.0:7400"})) == 1


def test_secrets_never_show() -> None:
    options = {
        "auth_secret": SECRET,
        "admin_key": "sesame-sesame",
        "redis": "redis://moorage:sesame@127.0.0.1:6379/0",
    }
    config, sources = resolve(options, {})
    for shown in (repr(config), str(config), describe(config, sources)):
        assert SECRET not in shown
        assert "sesame" not in shown
        assert "***" in shown
        assert "redis://moorage:***@127.0.0.1:6379/0" in shown
    wrong = problems({"auth_secret": "sesame", "admin_key": "sesame ", "redis": "redis://u:ses/ame#sesame@h:x/"})
    assert len(wrong) == 3
    assert not any("sesame" in problem or "ses/" in problem for problem in wrong)


def test_what_is_described_is_toml_that_gives_the_same(elsewhere: Path) -> None:
    config, sources = resolve(
        {"tcp": ["127.0.0.1:1", "[::1]:2"], "origins": "https://a.example", "proxy_trusted": "::1 10.0.0.0/8"}, {}
    )
    text = describe(config, sources)
    assert 'tcp = ["127.0.0.1:1", "[::1]:2"]  # flag --tcp' in text.splitlines()
    assert "# redis: embedded (default)" in text.splitlines()
    (elsewhere / "moorage.toml").write_text(text)
    assert load({}, {}) == config


def test_the_defaults_described_are_the_defaults_again(elsewhere: Path) -> None:
    text = describe(*resolve({}, {}))
    assert "# origins: none (default)" in text.splitlines()
    (elsewhere / "moorage.toml").write_text(text)
    assert load({}, {}) == Config()


def test_every_option_has_a_flag_that_gives_no_value_of_its_own() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert vars(parser.parse_args([])) == {}
    shown = parser.format_help()
    assert all(option.flag in shown and option.variable in shown for option in OPTIONS.values())
    args = parser.parse_args(["--tcp", "127.0.0.1:1", "--tcp", "127.0.0.1:2", "--no-auth", "--workers", "2"])
    assert load(vars(args), {}) == Config(
        tcp=(Address("127.0.0.1", 1), Address("127.0.0.1", 2)), no_auth=True, workers=2
    )


def test_flags_of_some_options_only() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser, ["auth_secret"])
    assert vars(parser.parse_args(["--auth-secret", "x"])) == {"auth_secret": "x"}


def test_a_configuration_cannot_change_and_has_no_dict() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().workers = 2  # type: ignore[misc]
    assert not hasattr(Config(), "__dict__")


NAMESPACES = """
workers = 3

[namespace_default]
publish = "server"

[[namespace]]
prefix = "room"
presence = false

[[namespace]]
prefix = 'a"\\b'
durable = false
"""


def test_namespaces_are_read_from_the_file(elsewhere: Path) -> None:
    (elsewhere / "moorage.toml").write_text(NAMESPACES)
    config, sources = resolve({"workers": "4"}, {})
    assert config.workers == 4
    assert config.namespaces == Namespaces(
        Namespace(publish=Policy.SERVER),
        named=(Namespace("room", presence=False), Namespace('a"\\b', durable=False)),
    )
    assert [sources[name] for name in TABLES] == ["file moorage.toml", "default", "file moorage.toml"]
    assert config != load({"workers": "4"}, {}, os.devnull)


def test_namespaces_described_are_the_same_again(elsewhere: Path) -> None:
    file = elsewhere / "moorage.toml"
    file.write_text(NAMESPACES)
    config, sources = resolve({}, {})
    text = describe(config, sources)
    assert text.count("[[namespace]]  # file moorage.toml") == 2
    assert "[namespace_default]  # file moorage.toml" in text.splitlines()
    assert "[namespace_personal]  # default" in text.splitlines()
    file.write_text(text)
    assert load({}, {}) == config


def test_what_is_wrong_with_namespaces_is_reported_beside_everything_else(elsewhere: Path) -> None:
    (elsewhere / "moorage.toml").write_text(
        """
        log_level = "loud"
        namespaces = []
        [namespace_default]
        presence = "no"
        [[namespace]]
        prefix = "room"
        publish = "everybody"
        workers = 3
        [[namespace]]
        prefix = "room"
        """
    )
    assert problems({"workers": "many"}) == [
        "namespaces (file moorage.toml): found an unknown key, want namespace (did you mean that?)",
        "workers (flag --workers): found 'many', want a whole number from 0 to 1024",
        "log_level (file moorage.toml): found 'loud', want one of debug, info, warning, error",
        "[namespace_default], presence (file moorage.toml): found 'no', want true or false",
        "[[namespace]] 1 \"room\", publish (file moorage.toml): found 'everybody', "
        "want one of signed-in, members, server, nobody",
        '[[namespace]] 1 "room", workers (file moorage.toml): found an unknown key, '
        "want it above the first table of the file: it is an option of the server",
        '[[namespace]] 2 "room", prefix (file moorage.toml): found that of [[namespace]] 1, want one of its own',
    ]


def test_a_broken_namespace_hides_no_broken_rule(elsewhere: Path) -> None:
    (elsewhere / "moorage.toml").write_text("namespace = 3\n")
    assert [line.split()[0] for line in problems({"admin": "0.0.0.0:7490"})] == ["[[namespace]]", "admin"]


def test_namespaces_are_no_option_of_flags_and_environment() -> None:
    assert "namespaces" not in OPTIONS
    assert OPTIONS.keys().isdisjoint({*TABLES, *KEYS})
    assert problems(environ={"MOORAGE_NAMESPACE": "room"})


def test_namespaces_show_in_the_repr() -> None:
    assert "namespaces=Namespaces(default=Namespace(prefix=''" in repr(Config())
    assert hash(Config()) == hash(Config(namespaces=Namespaces()))
