"""What users of Hydra, of torchrun and of Slurm know works, row by row of docs/settings.md."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import yaml
from commandline import typed
from places import TINY
from warm import ROOT, Warm

COMMANDS = ("segtrain", "segeval", "segpredict", "segdata", "segreport")
MINE = {
    "dataset/mine.yaml": "defaults: [shapes, _self_]\ntrain: 3\nval: 1\nsize: [32, 32]\n",
    "model/minenet.yaml": "defaults: [unet_32, _self_]\nwidth: 4\n",
    "my_run.yaml": "defaults:\n  - train\n  - override /model: minenet\n  - _self_\n"
    "train: {seed: 9}\n",
}


class Here:
    """A user's folder with configs of his own in `mine`, and how he starts commands there."""

    def __init__(self, folder: Path, settings: Warm) -> None:
        self.folder = folder
        self._settings = settings
        for name, text in MINE.items():
            path = folder / "mine" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def quick(self, name: str, *words: str, code: int = 0) -> str:
        """What a command prints in a fork of an interpreter that has no torch."""
        ended = self._settings(name, *words, cwd=self.folder, timeout=30)
        assert ended.code == code, ended
        return ended.out + ended.err

    def start(
        self, *words: str, module: str = "segtrain", env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a process of its own: `python -m MODULE WORDS`."""
        path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
        return subprocess.Popen(
            [sys.executable, "-m", module, *words],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": path, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def done(self, *started: subprocess.Popen[str]) -> str:
        """What processes print that must end well."""
        said = [process.communicate(timeout=300)[0] for process in started]
        assert [process.returncode for process in started] == [0] * len(started), said
        return "".join(said)

    def seeds(self, folder: str) -> list[int]:
        """The seeds of the complete runs below a folder, from their configs."""
        runs = [path.parent for path in sorted((self.folder / folder).glob("**/summary.json"))]
        configs = [yaml.safe_load((run / "config.yaml").read_text()) for run in runs]
        return [config["train"]["seed"] for config in configs]


Works = Callable[[Here], None]
QUICK: dict[str, Works] = {}  # by the first column of the table
SLOW: dict[str, Works] = {}  # those that start processes


def convention(table: dict[str, Works], name: str) -> Callable[[Works], Works]:
    """Put a function into a table under the name of its row."""

    def kept(works: Works) -> Works:
        table[name] = works
        return works

    return kept


@convention(QUICK, "`--version`")
def version(here: Here) -> None:
    for name in COMMANDS:
        assert here.quick(name, "--version").startswith("segtrain 0.")
        assert here.quick(name, "dataset=voc", "--version").startswith("segtrain 0.")


@convention(QUICK, "`--help`")
def helps(here: Here) -> None:
    for words in (["--config-dir", "mine"], ["hydra.searchpath=[mine]"], ["-cd=mine"]):
        text = here.quick("segtrain", *words, "--help")
        assert re.search(r"^  model= .*\bminenet\b", text, re.M)
        assert re.search(r"^  dataset= .*\bmine\b", text, re.M)
    assert "minenet" not in here.quick("segtrain", "-h")
    for name in COMMANDS[1:]:
        assert here.quick(name, "--config-dir=mine", "--help").startswith(name)


@convention(QUICK, "`--config-dir`")
def config_dir(here: Here) -> None:
    shown = here.quick("segtrain", "--cfg", "job", "model=minenet", "--config-dir", "mine")
    assert "width: 4" in shown
    for name, words in {
        "segtrain": ["-m", "model=minenet,mynenet"],
        "segdata": ["verify", "dataset=mine", "model=mynenet"],
    }.items():
        assert "`minenet`" in here.quick(name, *words, "--config-dir=mine", code=2)
        assert "no such folder" in here.quick(name, *words, "--config-dir=yours", code=2)
    assert "have stored" in here.quick("segreport", "mine", "--config-dir", "mine", code=2)


@convention(QUICK, "`hydra.searchpath=[FOLDER]`")
def searchpath(here: Here) -> None:
    place = "hydra.searchpath=[file://mine]"
    shown = here.quick("segtrain", "--cfg", "job", "model=minenet", place)
    assert "width: 4" in shown
    told = here.quick("segdata", "verify", "dataset=mine", "model=mynenet", place, code=2)
    assert "`minenet`" in told
    assert "have stored" in here.quick("segreport", "mine", place, code=2)


@convention(QUICK, "`--config-name`")
def config_name(here: Here) -> None:
    flags = ("--config-dir", "mine", "--config-name", "my_run")
    shown = here.quick("segtrain", *flags, "--cfg", "job", "train.steps=3")
    assert re.search("width: 4.*steps: 3.*seed: 9", shown, re.S)
    told = here.quick("segtrain", "-m", "model=minenet,nothing", *flags, code=2)
    assert "no such model" in told


@convention(QUICK, "`-m` anywhere")
def multirun_anywhere(here: Here) -> None:
    words = ["model=fcn,,unet", "train.steps=3"]
    for place, flag in enumerate(("-m", "--multirun", "-m")):
        told = here.quick("segtrain", *words[:place], flag, *words[place:], code=2)
        assert told == "segtrain: model=fcn,,unet: a value between its commas is missing\n"
    for name in COMMANDS[1:]:
        assert "so segtrain takes it" in here.quick(name, "verify", "-m", code=2)


@convention(QUICK, "`--cfg`, `--info`")
def shows(here: Here) -> None:
    flags = ("--config-dir", "mine", "--config-name=my_run")
    assert "minenet" in here.quick("segtrain", *flags, "--info", "defaults")
    assert "seed: 9" in here.quick("segtrain", "-c", "job", "-p", "train", *flags)


@convention(SLOW, "measuring with `--config-dir`")
def measured(here: Here) -> None:
    asked = ["--config-dir", "mine"]
    run = [*TINY, "dataset=mine", "hydra.run.dir=run"]
    for name, words in (
        ("segtrain", [*asked, *run]),
        ("segdata", ["verify", *asked, "dataset=mine"]),
        ("segeval", ["checkpoint=run", "dataset=mine", *asked]),
        ("segeval", ["checkpoint=run", "dataset=mine", "hydra.searchpath=[mine]"]),
    ):
        ended = typed(name, *words)
        assert (ended.code, ended.err) == (0, ""), ended


@convention(SLOW, "tab completion")
def completion(here: Here) -> None:
    script = here.done(here.start("-sc", "install=bash"))
    program = f"""{script}
segtrain() {{ {sys.executable} -m segtrain "$@"; }}
COMP_LINE='segtrain --config-dir mine model=min' COMP_POINT=36
_segtrain_completion segtrain
printf '<%s>' "${{COMPREPLY[@]}}"
"""
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
    ended = subprocess.run(
        ["bash", "-c", program],
        cwd=here.folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.stdout == "<minenet >", ended


LAUNCHERS = {
    "basic": (),
    "gpus": ("hydra.launcher.jobs=2",),
    "joblib": ("hydra.launcher.n_jobs=2",),
    "submitit_local": ("hydra.launcher.timeout_min=5",),
}


def launches(name: str) -> Works:
    def works(here: Here) -> None:
        package = name.partition("_")[0]
        there = importlib.util.find_spec("hydra_plugins")
        plugin = f"hydra_plugins.hydra_{package}_launcher"
        if package in ("joblib", "submitit") and not (there and importlib.util.find_spec(plugin)):
            pytest.skip(f"needs hydra-{package}-launcher, of the extra `launchers`")
        chosen = (f"hydra/launcher={name}", *LAUNCHERS[name])
        words = [*TINY, "train.seed=1,2", *chosen, "hydra.sweep.dir=sweep", "-m"]
        here.done(here.start(*words))
        assert here.seeds("sweep") == [1, 2]

    return works


for launcher in LAUNCHERS:
    convention(SLOW, f"`hydra/launcher={launcher}`")(launches(launcher))


@convention(SLOW, "torchrun")
def torchrun(here: Here) -> None:
    words = ["--standalone", "--nproc-per-node=2", "-m", "segtrain", *TINY, "hydra.run.dir=run"]
    here.done(here.start(*words, module="torch.distributed.run"))
    assert here.seeds("run") == [0]  # one run of both


@convention(SLOW, "two Slurm tasks")
def slurm(here: Here) -> None:
    both = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}
    tasks = [
        here.start(
            *TINY,
            "hydra.run.dir=run",
            env={**both, "SLURM_PROCID": rank, "SLURM_LOCALID": rank},
        )
        for rank in ("0", "1")
    ]
    here.done(*tasks)  # two runs would quarrel over the folder
    assert here.seeds("run") == [0]


@pytest.fixture
def here(tmp_path: Path, settings: Warm, monkeypatch: pytest.MonkeyPatch) -> Here:
    monkeypatch.chdir(tmp_path)
    return Here(tmp_path, settings)


@pytest.mark.parametrize("name", QUICK)
def test_a_convention_works(here: Here, name: str) -> None:
    QUICK[name](here)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_a_convention_works_in_processes_of_its_own(here: Here, name: str) -> None:
    SLOW[name](here)


def test_every_row_of_the_page_is_a_case_here() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    section = page.partition("## What users of Hydra know\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \|", section, re.M)[1:]
    assert rows == [*QUICK, *SLOW]
