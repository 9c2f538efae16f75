"""Every target of the Makefile starts what it says, with programs and scripts that are there.

The programs of .venv/bin are stubs that note how they are called, so nothing is installed. What
they are called with is run elsewhere: `make test` runs these tests, bench_train is run by
test_bench_scripts.py, and the demo is the default run that many tests start.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TARGETS = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
PROGRAMS = {"uv", "python", "ruff", "ty", "segtrain", "pre-commit"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the Makefile and a .venv of stubs that append their call to `calls`."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    for folder in ("segtrain", "tests", "scripts", ".venv/bin"):
        (tmp_path / folder).mkdir(parents=True)
    for name in PROGRAMS:
        stub = tmp_path / ".venv" / "bin" / name
        stub.write_text(f'#!/bin/sh\necho "{name} $*" >>"{tmp_path / "calls"}"\n')
        stub.chmod(0o755)
    return tmp_path


def made(checkout: Path, target: str) -> str:
    """What `make TARGET` prints, also where these tests were started by a make of their own."""
    outer = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES")
    env = {name: value for name, value in os.environ.items() if name not in outer}
    done = subprocess.run(["make", target], cwd=checkout, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def calls(checkout: Path, target: str) -> list[str]:
    """The programs that `make TARGET` starts, with their arguments, without those that install."""
    made(checkout, target)
    noted = checkout / "calls"
    lines = noted.read_text().splitlines() if noted.exists() else []
    return [line for line in lines if not line.startswith("uv pip install")]


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_starts_programs_and_scripts_that_are_there(target: str, checkout: Path) -> None:
    commands = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for call in calls(checkout, target):
        program, *arguments = call.split()
        if program == "segtrain":
            assert program in commands
        for argument in arguments:
            if argument.startswith(("scripts/", "tests/")):
                assert (ROOT / argument).exists(), call


def test_the_list_of_targets_is_what_make_help_prints(checkout: Path) -> None:
    assert [line.split()[0] for line in made(checkout, "help").splitlines()] == TARGETS
    assert len(TARGETS) >= 10


def test_make_bench_starts_the_script_with_the_folder_of_camvid(checkout: Path) -> None:
    (call,) = calls(checkout, "bench")
    assert call == "python scripts/bench_train.py --root data/camvid"
