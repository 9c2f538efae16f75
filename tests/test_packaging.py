"""What a user installs: the wheel alone carries configs and class tables.

--help needs no torch and no checkout.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def run(*command: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    full = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | env
    return subprocess.run(
        [str(c) for c in command], cwd=cwd, env=full, capture_output=True, text=True, timeout=100
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built offline by the backend of the developers' environment."""
    folder = tmp_path_factory.mktemp("wheel")
    done = run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("segtrain-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed wheel and nothing else."""
    target = tmp_path_factory.mktemp("target")
    pip = (
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-index",
        "--no-deps",
    )
    done = run(*pip, "--no-compile", "--target", target, wheel, cwd=target)
    assert done.returncode == 0, done.stderr
    return target


def relative(folder: Path, pattern: str) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.glob(pattern)}


def test_the_wheel_carries_every_module_config_and_class_table(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "segtrain/conf/train.yaml" in names
    assert "segtrain/structures/classes/voc.json" in names
    assert {f"segtrain/{name}" for name in relative(ROOT, "conf/**/*.yaml")} <= names
    assert "segtrain/py.typed" in names  # type checkers of other projects read our annotations
    assert (
        relative(ROOT, "segtrain/**/*.py") | relative(ROOT, "segtrain/structures/classes/*.json")
        <= names
    )
    assert not [
        name
        for name in names
        if name.split("/")[0] not in ("segtrain", f"segtrain-{PROJECT['version']}.dist-info")
    ]


@pytest.mark.parametrize("command", sorted(PROJECT["scripts"]))
def test_help_works_from_an_empty_folder_without_importing_torch(
    command: str, installed: Path, tmp_path: Path
) -> None:
    code = (
        "import sys, segtrain as package\n"
        f"from segtrain.commands.main import {command}\n"
        f"sys.argv = [{command!r}, '--help']\n"
        f"try:\n    code = {command}()\nexcept SystemExit as end:\n    code = end.code\n"
        "print('FROM', package.__file__, 'CODE', code or 0, 'TORCH', 'torch' in sys.modules)"
    )
    done = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.splitlines()[-1]
        == f"FROM {installed / 'segtrain' / '__init__.py'} CODE 0 TORCH False"
    )
    assert command in done.stdout.splitlines()[0]
    assert list(tmp_path.iterdir()) == []


def test_the_installed_wheel_composes_the_embedded_default(installed: Path, tmp_path: Path) -> None:
    script = installed / "bin" / "segtrain"
    done = run(sys.executable, script, "--cfg", "job", cwd=tmp_path, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr
    assert "_target_: segtrain.models." in done.stdout


def test_every_direct_dependency_and_tool_is_pinned_to_one_version() -> None:
    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[a-z0-9.-]+==[A-Za-z0-9.]+", line) for line in lines)
    pinned = [line.split("==")[0] for line in lines]
    assert pinned == sorted(set(pinned))
    wanted = PROJECT["dependencies"] + [
        d for extra in PROJECT["optional-dependencies"].values() for d in extra
    ]
    names = {re.split(r"[<>=!\[ ]", line)[0].lower().replace("_", "-") for line in wanted}
    assert names <= set(pinned)


def slurm(folder: Path, code: int, *args: str, signal: bool = False) -> tuple[int, list[str]]:
    """(exit code, calls) of scripts/slurm.sh with a stub srun that ends with `code` and a stub
    scontrol.
    """
    stubs = folder / "stubs"
    stubs.mkdir(exist_ok=True)
    wait = (
        "trap 'echo usr1 >>$LOG; done=1' USR1; kill -USR1 $PPID; "
        'until [ "${done:-}" ]; do sleep 0.05; done\n'
    )
    for name, body in {
        "srun": (wait if signal else "") + f"exit {code}",
        "scontrol": "exit 0",
    }.items():
        (stubs / name).write_text(f'#!/usr/bin/env bash\necho "{name} $*" >>"$LOG"\n{body}\n')
        (stubs / name).chmod(0o755)
    log = folder / "log"
    log.unlink(missing_ok=True)
    path = f"{stubs}{os.pathsep}{os.environ['PATH']}"
    done = run(
        ROOT / "scripts" / "slurm.sh", *args, cwd=folder, PATH=path, LOG=str(log), SLURM_JOB_ID="7"
    )
    return done.returncode, log.read_text().splitlines()


SRUN = "srun --kill-on-bad-exit=0 segtrain"


@pytest.mark.row("R15")
@pytest.mark.parametrize("code", [75, 130])
def test_an_interrupted_slurm_job_is_requeued_once_and_then_resumes(
    tmp_path: Path, code: int
) -> None:
    start = f"{SRUN} hydra.run.dir=outputs/slurm/7 model=fcn"
    assert slurm(tmp_path, code, "model=fcn", signal=True) == (
        0,
        [start, "usr1", "scontrol requeue 7"],
    )
    (tmp_path / "outputs" / "slurm" / "7" / "checkpoints" / "100").mkdir(parents=True)
    assert slurm(tmp_path, 0, "model=fcn") == (0, [f"{SRUN} resume=outputs/slurm/7"])


@pytest.mark.row("R15")
def test_every_start_of_a_slurm_job_gets_what_stands_behind_the_dashes(tmp_path: Path) -> None:
    arguments = ("model=fcn", "--", "train.workers=3", "dataset.root=a b")
    start = f"{SRUN} hydra.run.dir=outputs/slurm/7 model=fcn train.workers=3 dataset.root=a b"
    assert slurm(tmp_path, 0, *arguments) == (0, [start])
    (tmp_path / "outputs" / "slurm" / "7" / "checkpoints" / "100").mkdir(parents=True)
    resume = f"{SRUN} resume=outputs/slurm/7 train.workers=3 dataset.root=a b"
    assert slurm(tmp_path, 0, *arguments) == (0, [resume])


@pytest.mark.row("R15")
def test_a_failed_slurm_job_keeps_its_exit_code_and_is_not_requeued(tmp_path: Path) -> None:
    assert slurm(tmp_path, 65) == (65, [f"{SRUN} hydra.run.dir=outputs/slurm/7"])
