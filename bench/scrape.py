"""What a server's admin port says: the sums of its metrics over workers."""

from __future__ import annotations

import json
import re
import urllib.request

Address = tuple[str, int]

ANSWER_SECONDS_MAX = 30.0
_SAMPLE = re.compile(r"^moorage_(\w+)\{([^}]*)\} (\S+)$", re.MULTILINE)


def scrape(admin: Address) -> dict[str, tuple[int, float]]:
    """Return how many samples each metric has at `/metrics`, and their sum. Raises: OSError, ValueError."""
    with urllib.request.urlopen(f"http://{admin[0]}:{admin[1]}/metrics", timeout=ANSWER_SECONDS_MAX) as answer:
        return sums(answer.read().decode())


def connections(admin: Address) -> int:
    """Return how many sessions its workers say they hold. Raises: OSError, ValueError."""
    with urllib.request.urlopen(f"http://{admin[0]}:{admin[1]}/api/stats", timeout=ANSWER_SECONDS_MAX) as answer:
        return int(json.load(answer)["total"]["connections"])


def sums(text: str) -> dict[str, tuple[int, float]]:
    """Return how many samples each labelled metric of ours has in a Prometheus text, and their sum."""
    found: dict[str, tuple[int, float]] = {}
    for name, _, value in _SAMPLE.findall(text):
        count, total = found.get(name, (0, 0.0))
        found[name] = count + 1, total + float(value)
    return found
