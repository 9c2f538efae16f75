"""The hooks of .pre-commit-config.yaml call what `make setup` installs, and find their faults."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
(REPOSITORY,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
HOOKS = {hook["id"]: hook for hook in REPOSITORY["hooks"]}
PLANTED = {
    "ruff-check": "def f() -> None:\n    return undefined\n",
    "ruff-format": "x = [1,\n  2]\n",
    "ty": "def f() -> int:\n    return ''\n",
}


def entry(name: str) -> list[str]:
    """The hook's command with the tools that belong to this Python."""
    program, *words = shlex.split(HOOKS[name]["entry"])
    assert program.startswith(".venv/bin/")
    return [str(Path(sys.executable).parent / Path(program).name), *words]


def test_the_hooks_fetch_nothing() -> None:
    assert REPOSITORY["repo"] == "local"
    assert {hook["language"] for hook in HOOKS.values()} == {"system"}
    assert set(HOOKS) == {*PLANTED, "architecture"}


@pytest.mark.parametrize("name", PLANTED)
def test_a_hook_finds_a_planted_fault(name: str, tmp_path: Path) -> None:
    file = tmp_path / "planted.py"
    file.write_text(PLANTED[name])
    words = [word for word in entry(name) if word not in ("segtrain", "--fix")]
    check = ["--check"] if name == "ruff-format" else []
    ended = subprocess.run(
        [*words, *check, str(file)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1, ended.stderr


def test_the_architecture_hook_names_a_test_file_that_is_there() -> None:
    assert (ROOT / entry("architecture")[-1]).is_file()
