"""A signal at any moment of a run (row R13): it is answered by what is true, and nothing is lost.

Members: before the first update (building, restoring, verifying), before and after each update,
within each image of a validation, at each request of a save to the file system, at times drawn by
a seed; each of the four signals, twice, mixed, and Ctrl-C a second time, which saves nothing.
Real processes: one of two of them, and torchrun; test_kills.py has the others.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import pytest
import test_kills
from commandline import SMALL_RUN
from door import warm
from processes import ENVIRONMENT
from rows import Tally, amount

from segtrain.checkpoints import reading

STEPS = 6
SAVED = 4  # by a validation; the only checkpoint that no signal asks for, but the last
ALL_FOUR = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
WORDS = [
    *SMALL_RUN,
    "dataset=shapes",
    "dataset.size=[32,32]",
    "dataset.train=8",
    "dataset.val=3",
    f"train.steps={STEPS}",
    f"train.eval_every={SAVED}",
    "train.ema=0.9",
    "train.threads=1",
    "train.workers=0",
    "log.every=1",
    "log.progress=false",
    "log.images=0",
]


@dataclass(frozen=True)
class Case:
    """Signals at a moment, the exit code they must lead to and the step that must be saved."""

    moment: str
    sent: str
    code: int
    step: int | None = None  # unknown

    def __str__(self) -> str:
        return f"{self.moment}: {self.sent}"


def cases() -> list[Case]:
    """Return a case for every moment, in an order that has all kinds at its beginning."""
    early = [Case(name, "", 130) for name in ("verify", "build", "restore")]
    # A signal in an update: that one is finished and saved.
    updates = [Case(f"update {k}", "", 75, k) for k in range(1, STEPS)]
    # A signal after an update: the next one is finished and saved, but a validation is left.
    updates += [Case(f"updated {k}", "", 75, k + (k != SAVED)) for k in range(1, STEPS)]
    images = [Case(f"validating {k}", "", 75, SAVED) for k in (1, 2, 3)]
    images += [Case("validating 4", "", 75, STEPS)]
    # A signal in a save: the next update is the one that is saved.
    saves = [Case(f"saving {k}", "", 75, SAVED + 1) for k in range(1, 11)]
    kinds = [early, updates, images, saves]
    plain = [kind[k] for k in range(max(map(len, kinds))) for kind in kinds if k < len(kind)]
    names = cycle(ALL_FOUR)
    once = [Case(case.moment, next(names), case.code, case.step) for case in plain]
    twice = [
        Case("update 3", "SIGTERM,SIGTERM", 75, 3),
        Case("update 2", "SIGINT,SIGINT", 75, 2),  # one key press, told twice
        Case("update 5", "SIGINT,pause,SIGINT", 130, SAVED),
        Case("update 1", "SIGHUP,SIGTERM,SIGUSR1,SIGINT", 75, 1),
        Case("saving 5", "SIGTERM,pause,SIGTERM,SIGHUP", 75, SAVED + 1),
        Case("validating 2", "SIGUSR1,SIGTERM", 75, SAVED),
        Case("verify", "SIGINT,SIGINT", 130),
        Case("updated 4", "SIGINT,pause,SIGTERM", 75, SAVED),
    ]
    others = [Case(c.moment, name, c.code, c.step) for c in once for name in ALL_FOUR[:2]]
    return once[:6] + twice[:3] + once[6:] + twice[3:] + [c for c in others if c not in once]


@pytest.fixture(scope="module")
def run() -> Iterator[warm.Warm]:
    with warm.Warm((*warm.TRAINING, "moments")) as run:
        yield run


def command(run: warm.Warm, folder: Path, moment: str = "", sent: str = "") -> warm.Ended:
    """Start the run in `folder`, or go on with it."""
    goes_on = (folder / "config.yaml").exists()
    words = [f"resume={folder}"] if goes_on else [*WORDS, f"hydra.run.dir={folder}"]
    told = {"SEGTRAIN_TEST_MOMENT": moment, "SEGTRAIN_TEST_SENT": sent}
    return run("segtrain", *words, cwd=folder.parent, env=told)


def result(folder: Path) -> list[object]:
    """Return all that must not differ by a bit."""
    last = reading.find(folder, "latest")
    summary = json.loads((folder / "summary.json").read_text())
    assert last.step == summary["step"] == STEPS
    hashes = [
        test_kills.digest(last.read(name)) for name in ("model", "ema", "optimizer", "precision")
    ]
    return [hashes, (folder / "metrics.jsonl").read_text(), summary["best"], summary["final"]]


@pytest.fixture(scope="module")
def unbroken(run: warm.Warm, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """Return what the run ends in that gets no signal."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    ended = command(run, folder)
    assert (ended.code, ended.err) == (0, "")
    return result(folder)


def logged(folder: Path) -> int:
    """Return the last step that metrics.jsonl tells of."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return max(json.loads(line)["step"] for line in lines)


def answered(folder: Path, ended: warm.Ended, case: Case) -> str:
    """Check what a signal led to; return where it came: before, between or inside saves."""
    checkpoints = [path.name for path in folder.glob("checkpoints/*")]
    assert "Traceback" not in ended.err, ended
    assert ended.code in (0, 75, 130), ended
    if ended.code == 0:  # it came when everything was done
        return "between"
    assert ended.err.count("\n") == 1, ended
    if not checkpoints:
        assert ended.code == 130, ended
        assert not folder.exists(), list(folder.iterdir())
        return "before"
    assert not [name for name in checkpoints if not re.fullmatch(r"step_\d{8}", name)], checkpoints
    saved = reading.find(folder, "latest").step
    if ended.code == 75:
        first = case.sent.partition(",")[0]
        assert ended.err.startswith(f"segtrain: {first} "), ended
        assert f"resume={folder}" in ended.err, ended
        assert saved == logged(folder), ended
    else:
        assert "second interrupt" in ended.err, ended
    assert case.step in (None, saved), (case, saved)
    return "inside" if case.moment.startswith("saving") else "between"


def survives(
    run: warm.Warm, unbroken: list[object], folder: Path, case: Case, tally: Tally
) -> None:
    """The signals of a case are answered, and the run that goes on ends in the same bits."""
    ended = command(run, folder, case.moment, case.sent)
    landed = answered(folder, ended, case)
    assert case.code in (ended.code, -1), (str(case), ended)
    again = command(run, folder)
    assert (again.code, again.err) == (0, ""), (str(case), again)
    assert result(folder) == unbroken, str(case)
    vars(tally)[landed] += 1
    tally()


@pytest.mark.slow  # the quick case is a real process, in test_kills.py
@pytest.mark.row("R13")
def test_a_signal_at_any_moment_loses_nothing(
    run: warm.Warm, unbroken: list[object], tmp_path: Path, tally: Tally
) -> None:
    for number, case in enumerate(cases()[: amount(9, 9, 80)]):
        survives(run, unbroken, tmp_path / f"{number}", case, tally)


@pytest.mark.slow
@pytest.mark.row("R13")
def test_a_signal_at_any_time_loses_nothing(
    run: warm.Warm, unbroken: list[object], tmp_path: Path, tally: Tally
) -> None:
    """Sent by another process, so that it comes within an instruction of torch as well."""
    dice = random.Random(0)
    for number in range(amount(3, 3, 60)):
        name = dice.choice(ALL_FOUR)
        case = Case(f"after {dice.uniform(0, 600):.0f}", name, -1)
        survives(run, unbroken, tmp_path / f"{number}", case, tally)
    tally(0, seed=0)


# ---------------------------------------------------------------------- real processes

TWO = ["train.processes=2", "train.workers=0"]
TO = [("rank 1", "SIGUSR1"), ("rank 0", "SIGTERM"), ("torchrun", "SIGTERM"), ("torchrun", "SIGINT")]


def torchrun(folder: Path, *arguments: str) -> list[str]:
    """Return the command line of two processes under torchrun that train in `folder`."""
    goes_on = (folder / "config.yaml").exists()
    words = [f"resume={folder}"] if goes_on else [*arguments, f"hydra.run.dir={folder}"]
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "segtrain"]
    return [sys.executable, "-m", *launcher, *words]


@pytest.mark.slow
@pytest.mark.row("R13")
@pytest.mark.parametrize(("to", "name"), amount(TO, TO[2:3], TO))
def test_a_signal_to_one_of_two_processes_or_to_torchrun_loses_nothing(
    tmp_path: Path, to: str, name: str
) -> None:
    words = [*test_kills.LAZY, "model=unet", "model.width=16", "optimizer=sgd", *TWO]
    run = test_kills.Run(tmp_path / "run", *words)
    unbroken = test_kills.Run(tmp_path / "unbroken", *words)
    if to == "torchrun":
        command = torchrun(run.folder, *test_kills.BASE, *words)
        with run.log.open("w") as file:
            run.process = subprocess.Popen(
                command, env=ENVIRONMENT, cwd=tmp_path, stdout=file, stderr=file
            )
    else:
        run.start()
    assert run.process is not None
    run.wait_for(lambda: run.logged() >= 4)
    pid = run.process.pid if to == "torchrun" else test_kills.ranks(run)[int(to[-1])]
    os.kill(pid, signal.Signals[name])
    code = run.end(60)
    assert (code == 75) == (to != "torchrun"), run.stderr()  # torchrun has codes of its own
    assert code != 0
    assert test_kills.gone_within(run.folder, 5), test_kills.alive(run.folder)
    assert run.stderr().count(f"resume={run.folder}") >= 1, run.stderr()
    assert 4 <= run.saved() == run.logged() < test_kills.STEPS
    run.finish()
    unbroken.finish()
    assert run.result() == unbroken.result()
