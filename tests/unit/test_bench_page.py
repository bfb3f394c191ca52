"""A page from saved reports: read, judged, written, drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import page
from bench.archive import Unreadable, load
from bench.verdicts import goals, losses

HOST = {
    "cores": 2,
    "cpu": "a processor",
    "memory_bytes": 2**33,
    "kernel": "6.1",
    "python": "3.11",
    "commit": "abc",
    "seconds": 9,
}


def row(scenario: str, name: str, unit: str, peer: str, *values: float) -> dict[str, Any]:
    low, value, high = sorted(values)
    return {
        "scenario": scenario, "name": name, "unit": unit, "peer": peer, "value": value, "min": low, "max": high, "n": 3
    }  # fmt: skip


def contest() -> dict[str, Any]:
    names = ("moorage", "moorage-live", "nchan", "floor")
    return {
        "scenario": "peers",
        "settings": {"connections": 1000},
        "host": {**HOST, "command": ["moorage", "bench", "peers"]},
        "peers": [
            {
                "name": name,
                "about": "a server",
                "versions": {name: "1.2"},
                "cannot": {},
                "is_reference": name == "floor",
            }
            for name in names
        ],
        "skipped": {"nats": "not installed: nats-server (Debian: nats-server)"},
        "faults": {"nchan: lost: closed by the server": 3},
        "results": [
            row("connect", "CPU", "us/connection", "moorage", 50, 51, 52),
            row("connect", "CPU", "us/connection", "moorage-live", 10, 10, 10),
            row("connect", "CPU", "us/connection", "nchan", 40, 41, 42),
            row("connect", "CPU", "us/connection", "floor", 9, 10, 11),
            row("connect", "CPU, of it in Redis", "us/connection", "moorage", 6, 6, 6),
            row("connect", "arrival", "connections/s", "moorage", 900, 1000, 1100),
            row("connect", "arrival", "connections/s", "nchan", 1050, 1200, 1300),
            row("idle", "user-space memory", "bytes/connection", "moorage", 300, 310, 320),
            row("idle", "user-space memory", "bytes/connection", "nchan", 10_000, 10_100, 10_200),
        ],
    }


def saved(home: Path, found: object, name: str = "peers.json") -> Path:
    (home / name).write_text(json.dumps(found))
    return home / name


def test_a_loss_is_clear_when_the_spreads_do_not_meet(tmp_path: Path) -> None:
    found = losses(load(saved(tmp_path, contest())))
    assert [(loss.name, loss.peer, loss.is_clear) for loss in found] == [
        ("CPU", "nchan", True),
        ("arrival", "nchan", False),
    ]
    assert found[0].times == pytest.approx(51 / 41)
    assert found[1].times == pytest.approx(1.2)


def test_goals_are_held_against_the_peer_they_name_or_the_best(tmp_path: Path) -> None:
    found = {goal.text: goal for goal in goals(load(saved(tmp_path, contest())))}
    assert found["CPU of a connect within 1.1 x nchan's"].found == "1.24 x nchan's"
    assert not found["CPU of a connect within 1.1 x nchan's"].met
    assert found["fewest user-space bytes of all, Redis included"].met
    assert len(found) == 2, "of what was not measured nothing is said"


def test_a_page_has_tables_ratios_losses_and_faults(tmp_path: Path) -> None:
    text = "\n".join(page.lines([load(saved(tmp_path, contest()))], ["peers.png", "peers.svg"]))
    assert "![peers](peers.svg)" in text
    assert "| **moorage** | 51.0 | 50.0 to 52.0 | 1 | 5.1 | 6 |" in text
    assert "| nchan | 41.0 | 40.0 to 42.0 | 0.804 | 4.1 |  |" in text
    assert "| floor | n/a | see faults |" in text
    assert "| connect: CPU | nchan 1.24 |" in text
    assert "| connect: arrival | (nchan 1.2) |" in text
    assert "| nats | skipped | not installed: nats-server (Debian: nats-server) |" in text
    assert "**fault**, 3 times: nchan: lost" in text
    assert "`moorage bench peers`, commit abc" in text


def test_any_other_scenario_is_a_table(tmp_path: Path) -> None:
    found = {"scenario": "idle", "host": HOST, "counts": {"connections open": 600}}
    found["results"] = [{"name": "memory", "value": 350.4, "unit": "bytes", "min": 349, "max": 352, "n": 3}]
    text = "\n".join(page.lines([load(saved(tmp_path, found))], []))
    assert "| memory | 350.4 | 349.0 to 352.0 | bytes |" in text
    assert "| connections open | 600 | | |" in text


@pytest.mark.parametrize(
    ("text", "reason"),
    [("[1", "found no JSON"), ("[]", "found no `scenario`"), ('{"scenario":"x","results":[{"name":"a"}]}', "'value'")],
)
def test_what_is_no_report_is_named(tmp_path: Path, text: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "odd.json").write_text(text)
    with pytest.raises(Unreadable, match=r"odd\.json"):
        load(tmp_path / "odd.json")
    assert page.run([str(tmp_path / "odd.json")], str(tmp_path / "out")) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_growth_is_drawn_from_its_curve(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="drawing takes the extra `bench`")
    curve = [
        {"connections": size, "workers": 1, "user space": 350 + 1e5 / size, "connecting, workers": 45.0}
        for size in (1_000, 10_000, 100_000)
    ]
    curve.append({"subscribers": 10, "us a delivery": 7.0})
    found = {"scenario": "growth", "host": HOST, "results": [], "curve": curve}
    assert (
        page.run([str(saved(tmp_path, found)), str(saved(tmp_path, contest(), "b.json"))], str(tmp_path / "out")) == 0
    )
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["README.md", "growth.png", "growth.svg", "peers.png", "peers.svg"]
    svg = (tmp_path / "out" / "growth.svg").read_text()
    assert "user space" in svg
