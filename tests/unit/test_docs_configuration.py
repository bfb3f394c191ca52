"""docs/configuration.md lists every option and every key of a namespace, as they are in the code.

`python tests/unit/test_docs_configuration.py` writes anew what is between its markers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import DOCS, table, written_anew

from router import topology
from router.namespaces import KEYS, Namespaces, Policy
from server import claims
from server.config import OPTIONS, TABLES, Config, load
from server.options import Option, toml

PAGE = DOCS / "configuration.md"


def wanted(option: Option) -> str:
    """Return what a reader says it wants when it is given what it cannot want."""
    with pytest.raises(ValueError, match=r".") as caught:
        option.read(object())
    return str(caught.value)


def options_table() -> str:
    """Return the table of all options."""

    def default(option: Option) -> str:
        return option.unset or f"`{option.show(option.default)}`"

    each = [
        (f"`{option.name}`", f"`{option.flag}`", wanted(option), default(option), option.help)
        for option in OPTIONS.values()
    ]
    return table(("Key", "Flag", "Value", "Default", "What it is"), *each)


def namespaces_table() -> str:
    """Return the table of all keys of a namespace, with the defaults of the three kinds."""
    tables = Namespaces.from_tables(named=[{"prefix": "room"}]).tables()
    room, hers = tables["namespace"][0], tables["namespace_personal"]  # type: ignore[index]
    assert {"prefix": "room", **tables["namespace_default"]} == room, "one column for both"  # type: ignore[dict-item]

    def default(table: dict[str, object], name: str) -> str:
        return f"`{toml(table[name])}`" if name in table and name != "prefix" else "-"

    each = [
        (f"`{name}`", key.wanted, default(room, name), default(hers, name), key.about)  # type: ignore[arg-type]
        for name, key in KEYS.items()
    ]
    return table(("Key", "Value", "Default", "Default of personal channels", "What it says"), *each)


def redis_line() -> str:
    """Return the sentence that names every kind of URL of the message bus."""
    return "`redis` takes " + ", ".join(f"`{scheme}://`" for scheme in topology.SCHEMES) + "."


def parts() -> dict[str, str]:
    """Return what is generated, as the code has it now."""
    return {"options": options_table(), "redis": redis_line(), "namespaces": namespaces_table()}


def examples() -> Iterator[str]:
    """Yield every TOML file the page shows."""
    yield from re.findall(r"^```toml\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def test_what_is_generated_is_what_the_code_says() -> None:
    page = PAGE.read_text()
    assert page == written_anew(page, parts()), (
        f"run: PYTHONPATH=tests .venv/bin/python {Path(__file__).relative_to(PAGE.parents[1])}"
    )


def test_the_example_of_a_token_says_what_the_page_says() -> None:
    (payload,) = re.findall(r"^```json\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    found = claims.from_payload(json.loads(payload), 1_899_999_999.0)
    assert (found.user, found.expires_at) == ("alice", 1_900_000_000 + 5)
    assert found.may_subscribe("room:a")
    assert found.may_subscribe("@alice")
    assert not found.may_subscribe("news:a")
    assert found.may_publish("@bob")
    assert not found.may_publish("news:a")
    assert (claims.LEEWAY_SECONDS, claims.GLOBS_MAX) == (5.0, 64)


def test_every_option_policy_and_table_is_there() -> None:
    page = PAGE.read_text()
    assert all(f"| `{option.name}` | `{option.flag}` |" in page for option in OPTIONS.values())
    assert all(f"| `{name}` |" in page for name in KEYS)
    assert all(f"| `{policy}` |" in page for policy in set(Policy) - {Policy.OWNER})
    assert all(f"`[{name}]`" in page or f"`[[{name}]]`" in page for name in TABLES)


def test_the_examples_can_be_used(tmp_path: Path) -> None:
    assert list(examples())
    for example in examples():
        file = tmp_path / "moorage.toml"
        file.write_text(example)
        assert load({}, {}, str(file)) != Config()


if __name__ == "__main__":
    PAGE.write_text(written_anew(PAGE.read_text(), parts()))
