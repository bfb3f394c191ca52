"""What ships is whole: the wheel is built, installed into a clean environment, and run from an empty directory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.xdist_group("wheel"), pytest.mark.timeout(300)]


def run(*command: str | Path, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command with an environment that leads it nowhere near the checkout."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    return subprocess.run(command, cwd=cwd, env=kept | environ, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the checkout."""
    out = tmp_path_factory.mktemp("dist")
    built = run(
        sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT, cwd=out
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    (found,) = out.glob("moorage-*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin directory of a new environment that holds the wheel; its dependencies are those of this one.

    They are on the path by name, not by site: no .pth of this environment (an editable install) is read.
    """
    home = tmp_path_factory.mktemp("clean")
    venv.create(home, with_pip=False, symlinks=True)
    paths = {"base": str(home), "platbase": str(home)}
    site_packages = Path(sysconfig.get_path("purelib", "venv", paths))
    dependencies = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    (site_packages / "dependencies.pth").write_text("".join(f"{path}\n" for path in dependencies))
    target = home / "bin" / "python"
    pip = run(
        sys.executable, "-m", "pip", "--python", target, "install", "--quiet", "--disable-pip-version-check",
        "--no-index", "--no-deps", "--ignore-installed", wheel, cwd=home,
    )  # fmt: skip
    assert pip.returncode == 0, pip.stdout + pip.stderr
    return home / "bin"


def test_the_wheel_holds_what_runs_and_nothing_else(wheel: Path) -> None:
    include = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    tops = set(include["only-include"])
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == tops
    shipped = {
        path.relative_to(ROOT).as_posix()
        for top in tops
        for path in ([ROOT / top] if top.endswith(".py") else (ROOT / top).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
        if not any(path.is_relative_to(ROOT / left_out) for left_out in include["exclude"])
    }
    assert {name for name in names if ".dist-info/" not in name} == shipped


def test_version(installed: Path, tmp_path: Path) -> None:
    ran = run(installed / "moorage", "--version", cwd=tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert re.fullmatch(r"moorage \d+\.\d+\.\d+\S*\n", ran.stdout)


def test_the_code_that_runs_is_the_wheel(installed: Path, tmp_path: Path) -> None:
    ran = run(installed / "python", "-c", "import server; print(server.__file__)", cwd=tmp_path)
    assert Path(ran.stdout.strip()).is_relative_to(installed.parent), ran.stdout + ran.stderr


def test_check_config(installed: Path, tmp_path: Path) -> None:
    ran = run(installed / "moorage", "serve", "--check-config", cwd=tmp_path, MOORAGE_WORKERS="3")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "workers = 3  # environment MOORAGE_WORKERS" in ran.stdout.splitlines()


def test_it_runs_as_a_module_too(installed: Path, tmp_path: Path) -> None:
    ran = run(installed / "python", "-m", "commands", "--version", cwd=tmp_path)
    assert ran.stdout.startswith("moorage "), ran.stderr
