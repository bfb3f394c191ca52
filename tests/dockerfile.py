"""The image as its file describes it."""

from __future__ import annotations

import json
import re
import shlex

from harness import ROOT


def instructions() -> list[tuple[str, str]]:
    """Every instruction of the Dockerfile with what follows it, in order."""
    text = re.sub(r"\\\n", " ", (ROOT / "deploy" / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in lines]


def copied() -> list[tuple[list[str], str]]:
    """What comes from the checkout: names there, and where to."""
    words = [shlex.split(rest) for name, rest in instructions() if name == "COPY"]
    return [(each[:-1], each[-1]) for each in words if not each[0].startswith("--from")]


def health_command() -> list[str]:
    """What an engine runs to learn whether the server works."""
    found: list[str] = json.loads(dict(instructions())["HEALTHCHECK"].partition(" CMD ")[2])
    return found
