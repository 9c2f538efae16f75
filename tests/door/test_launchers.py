"""Hydra's own launchers and search paths work: what was recorded before there was one door.

The launchers are plugins, the extra `launchers`, which `make test-all` installs. Without them their
tests skip.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from places import TINY

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
LAUNCHERS = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "hydra.launcher.n_jobs=2"),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", "hydra.launcher.timeout_min=5"),
}

MINE = {
    "model/mine.yaml": "defaults: [unet_32, _self_]\nwidth: 16\n",
    "experiment/short.yaml": "# @package _global_\ntrain: {seed: 7}\n",
    "experiment/other.yaml": "# @package _global_\n"
    "defaults:\n  - override /model: mine\ntrain: {seed: 8}\n",
    "ablation/seeds.yaml": "# @package _global_\n"
    "hydra: {sweeper: {params: {train.seed: '0,1', model.norm: 'batch,group'}}}\n",
}


def segtrain(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
    return subprocess.run(
        [sys.executable, "-m", "segtrain", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def done(ended: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert ended.returncode == 0, ended
    return ended


def runs(folder: Path) -> dict[str, dict]:
    """The complete runs of a sweep: name of the folder -> stored config."""
    return {
        path.parent.name: yaml.safe_load((path.parent / "config.yaml").read_text())
        for path in sorted(folder.glob("*/summary.json"))
    }


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A user's own folder of configs."""
    for name, content in MINE.items():
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path / "mine"


@pytest.fixture(params=LAUNCHERS)
def launcher(request: pytest.FixtureRequest) -> list[str]:
    """The words that choose a launcher, and one of its own arguments."""
    plugin, argument = LAUNCHERS[request.param]
    try:
        there = importlib.util.find_spec(plugin) is not None
    except ModuleNotFoundError:
        there = False
    if not there:
        pytest.skip(f"needs {plugin.partition('.')[2].replace('_', '-')}, a plugin of Hydra's")
    return [f"hydra/launcher={request.param}", argument]


def test_a_launcher_trains_every_run_of_a_sweep(launcher: list[str], tmp_path: Path) -> None:
    ended = segtrain(tmp_path, "-m", *TINY, "train.seed=0,1", *launcher, "hydra.sweep.dir=sweep")
    done(ended)
    trained = runs(tmp_path / "sweep")
    assert [config["train"]["seed"] for config in trained.values()] == [0, 1]
    assert all(name.startswith("train.seed=") for name in trained)
    losses = {
        json.loads((tmp_path / "sweep" / name / "summary.json").read_text())["final"]["loss"]
        for name in trained
    }
    assert len(losses) == 2


def test_a_launcher_stores_what_a_sweep_without_it_stores(
    launcher: list[str], tmp_path: Path
) -> None:
    asked = ("-m", *TINY, "train.seed=0,1", "train.init=null")
    done(segtrain(tmp_path, *asked, "hydra.sweep.dir=plain"))
    done(segtrain(tmp_path, *asked, *launcher, "hydra.sweep.dir=launched"))
    assert runs(tmp_path / "launched") == runs(tmp_path / "plain")


def test_a_job_that_fails_under_a_launcher_leaves_the_others_complete(
    launcher: list[str], tmp_path: Path
) -> None:
    ended = segtrain(
        tmp_path, "-m", *TINY, "optimizer.lr=-1,0.01", *launcher, "hydra.sweep.dir=sweep"
    )
    assert ended.returncode == 2, ended
    assert ended.stderr.splitlines()[-1].startswith("segtrain: "), ended
    assert "optimizer.lr=-1" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert [config["optimizer"]["lr"] for config in runs(tmp_path / "sweep").values()] == [0.01]


def test_the_same_sweep_again_under_a_launcher_runs_what_is_missing(
    launcher: list[str], tmp_path: Path
) -> None:
    asked = ("-m", *TINY, "train.seed=0,1", *launcher, "hydra.sweep.dir=sweep")
    done(segtrain(tmp_path, *asked))
    names = list(runs(tmp_path / "sweep"))
    first = {
        name: (tmp_path / "sweep" / name / "summary.json").stat().st_mtime_ns for name in names
    }
    done(segtrain(tmp_path, *asked))
    assert first == {
        name: (tmp_path / "sweep" / name / "summary.json").stat().st_mtime_ns for name in names
    }


def test_a_launcher_and_a_folder_of_configs_work_together(
    launcher: list[str], mine: Path, tmp_path: Path
) -> None:
    asked = ["-m", "--config-dir", str(mine), *TINY, "experiment=other", "train.seed=0,1"]
    asked = [word for word in asked if not word.startswith("model")]
    done(segtrain(tmp_path, *asked, *launcher, "hydra.sweep.dir=sweep"))
    trained = runs(tmp_path / "sweep")
    assert [config["model"]["width"] for config in trained.values()] == [16, 16]


LONG = ["train.steps=2000", "train.eval_every=2000", "train.seed=0,1", "hydra.sweep.dir=sweep"]


def descendants(pid: int) -> dict[int, str]:
    """The processes below one -> their command lines."""
    found = {}
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, file.read_text().split()):
                found[child] = Path(f"/proc/{child}/cmdline").read_bytes().decode()
                found |= descendants(child)
    return found


def signalled(launcher: list[str], name: str, whom: str, folder: Path) -> tuple[int, str]:
    """A sweep whose processes get a signal once both runs have made an update: code, and stderr.

    `whom` is a word in the command lines of those that get it; "" the command itself.
    """
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
    process = subprocess.Popen(
        [sys.executable, "-m", "segtrain", "-m", *TINY, *LONG, *launcher],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 200
        while len([f for f in folder.glob("sweep/*/metrics.jsonl") if f.stat().st_size]) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        below = descendants(process.pid) if whom else {}
        told = [pid for pid, line in below.items() if whom in line] or [process.pid]
        assert len(told) == (2 if whom else 1)
        for pid in told:
            os.kill(pid, signal.Signals[name])
        _, said = process.communicate(timeout=100)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, said


def saved(folder: Path) -> int:
    """How many runs of a sweep have a checkpoint."""
    return len({path.parent for path in folder.glob("sweep/*/checkpoints/step_*")})


def test_usr2_to_the_jobs_of_a_launcher_saves_them(launcher: list[str], tmp_path: Path) -> None:
    """Submitit sends it, as Slurm does on its behalf, before the time is over."""
    whom = "LokyProcess" if "joblib" in launcher[0] else "submitit.core._submit"
    code, said = signalled(launcher, "SIGUSR2", whom, tmp_path)
    assert (code, saved(tmp_path)) == (75, 2), said
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("segtrain: 2 of 2 runs failed: SIGUSR2 at step "), said


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR2"])
def test_a_signal_to_a_sweep_of_joblibs_saves_all_of_its_jobs(name: str, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the extra launchers")
    words = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    code, said = signalled(words, name, "", tmp_path)
    assert (code, saved(tmp_path)) == (75, 2), said
    assert said.splitlines()[-1] == (
        f"segtrain: {name}: saved 2 of the runs that were under way; the same command runs what is "
        "missing"
    )


def test_a_sweep_through_slurm_is_one_line_where_there_is_none(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra launchers")
    if shutil.which("srun"):
        pytest.skip("this machine has Slurm")
    ended = segtrain(tmp_path, "-m", *TINY, "train.seed=0,1", "hydra/launcher=submitit_slurm")
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "there is no Slurm here (srun is not found)" in ended.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["--config-dir X", "--config-dir=X", "-cd X", "searchpath"])
@pytest.mark.parametrize("where", ["absolute", "relative"])
def test_a_folder_of_configs_offers_groups_and_experiments(
    mine: Path, tmp_path: Path, kind: str, where: str
) -> None:
    place = str(mine) if where == "absolute" else "mine"
    words = {
        "--config-dir X": ["--config-dir", place],
        "--config-dir=X": [f"--config-dir={place}"],
        "-cd X": ["-cd", place],
        "searchpath": [f"hydra.searchpath=[file://{place}]"],
    }[kind]
    shown = done(segtrain(tmp_path, *words, "--cfg", "job", "experiment=other"))
    config = yaml.safe_load(shown.stdout)
    assert config["model"]["width"] == 16
    assert config["train"]["seed"] == 8
    assert config["experiment"] is None if "experiment" in config else True
    again = done(segtrain(tmp_path, "--cfg", "job", "model=mine", "experiment=short", *words))
    config = yaml.safe_load(again.stdout)
    assert (config["model"]["width"], config["train"]["seed"]) == (16, 7)


def test_a_quoted_search_path_of_several_folders_is_read(mine: Path, tmp_path: Path) -> None:
    (tmp_path / "more" / "model").mkdir(parents=True)
    (tmp_path / "more" / "model" / "last.yaml").write_text("defaults: [mine]\nnorm: group\n")
    path = f"hydra.searchpath=['file://{mine}',\"file://{tmp_path / 'more'}\"]"
    config = yaml.safe_load(done(segtrain(tmp_path, "--cfg", "job", path, "model=last")).stdout)
    assert (config["model"]["width"], config["model"]["norm"]) == (16, "group")


def test_an_ablation_of_a_folder_of_configs_is_a_sweep_and_what_is_typed_wins(
    mine: Path, tmp_path: Path
) -> None:
    asked = ("-m", "--config-dir", str(mine), *TINY, "ablation=seeds", "model.norm=none")
    done(segtrain(tmp_path, *asked, "hydra.sweep.dir=sweep"))
    trained = runs(tmp_path / "sweep")
    assert [c["train"]["seed"] for c in trained.values()] == [0, 1]
    assert {c["model"]["norm"] for c in trained.values()} == {"none"}


ABLATIONS = sorted(path.stem for path in (ROOT / "conf" / "ablation").glob("*.yaml"))


@pytest.mark.parametrize("name", ABLATIONS)
def test_each_of_our_ablations_expands_to_its_table(name: str) -> None:
    """Hydra's own parser is the judge of how many values each row of a table has."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from segtrain.config import jobs

    node = yaml.safe_load((ROOT / "conf" / "ablation" / f"{name}.yaml").read_text())
    params = node["hydra"]["sweeper"]["params"]
    read = OverridesParser.create().parse_overrides([f"{k}={v}" for k, v in params.items()])
    counts = [len(list(o.sweep_iterator())) if o.is_sweep_override() else 1 for o in read]
    expanded = jobs.expand([f"ablation={name}"])
    assert len(expanded.jobs) == math.prod(counts)
    names = [job.folder.name for job in expanded.jobs]
    assert len(set(names)) == len(names)
    assert all(any(f"{key}=" in name for key in params) for name in names)


EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))


def test_our_experiments_compose_to_what_they_say() -> None:
    """As `tests/config/test_experiments.py`; here through a sweep over all of them."""
    from segtrain.config import jobs

    expanded = jobs.expand([f"experiment={','.join(EXPERIMENTS)}"])
    assert len(expanded.jobs) == len(EXPERIMENTS)
    assert len({job.folder for job in expanded.jobs}) == len(EXPERIMENTS)
