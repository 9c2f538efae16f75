"""Runs that are killed again and again at random moments end in the bits of an unbroken one.

Row R1. A kill comes 0 to 30 ms after a step's line in metrics.jsonl, or 0 to 10 ms after a
checkpoint began to be written, or in one of ten cases 0 to 1 s after the start, and hits the
command, or with two processes one of its ranks as well. Kills before the first checkpoint prove
little, so at most a fifth may land there. The runs are forks of a warm interpreter, see
tests/forks.py; test_kills.py does the same with a few whole processes.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator, Set
from pathlib import Path

import pytest
from forks import Forked, Forks
from rows import Tally, amount
from run_folders import digest

from segtrain.checkpoints import reading

STEPS = 24
SAVE_EVERY = 2
BASE = [
    "dataset=shapes",
    "dataset.size=[32,32]",
    "dataset.crop=[32,32]",
    "dataset.train=16",
    "dataset.val=2",
    "optimizer=adamw",
    "optimizer.lr=1e-4",
    "train.device=cpu",
    "train.batch_size=4",
    f"train.steps={STEPS}",
    f"train.save_every={SAVE_EVERY}",
    "train.eval_every=8",
    "train.ema=0.9",
    "train.keep=2",
    "train.threads=1",
    "log.every=1",
    "log.progress=false",
    "log.images=0",
    "writer=[]",
]
# Small ones that have between them batch norm, dropout, transposed convolutions, group norm.
MODELS = {
    "unet": ["model=unet_32", "model.width=8"],
    "semantic_fpn": [
        "model=semantic_fpn",
        "model.backbone=mobilenet_v2",
        "model.weights=null",
        "model.width=16",
        "model.channels=16",
    ],
    "fcn": ["model=fcn_alexnet", "model.weights=null", "model.width=4"],
}
ALL = [*itertools.product(MODELS, (1, 2), (0, 2), ("fp32", "bf16"))]
FEW = [("unet", 1, 0, "fp32"), ("fcn", 2, 2, "bf16")]
CASES = amount(FEW[:1], FEW, ALL)
KILLS = amount(3, 5, 21)  # of a case
A_RUN = 7  # kills at most, so that each has steps to fall into
PATIENCE = 300  # seconds; a start takes one or two on a machine that is not busy


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as warm:
        yield warm


class Run:
    """A run folder, and the command that is started on it again and again."""

    def __init__(self, forks: Forks, folder: Path, overrides: list[str]) -> None:
        self.forks = forks
        self.folder = folder
        self.overrides = overrides

    def start(self) -> Forked:
        """Start it, or go on with it."""
        begun = (self.folder / "config.yaml").exists()
        new = [*BASE, *self.overrides, f"hydra.run.dir={self.folder}"]
        return self.forks.start([f"resume={self.folder}"] if begun else new, self.folder.parent)

    def finish(self) -> None:
        """Train to the end."""
        forked = self.start()
        assert forked.end(PATIENCE) == 0, forked.stderr()

    def entries(self) -> set[tuple[str, int]]:
        """Name and inode of what lies in the folder of the checkpoints: whole ones, and others."""
        folder = self.folder / "checkpoints"
        with contextlib.suppress(FileNotFoundError):
            return {(entry.name, entry.inode()) for entry in os.scandir(folder)}
        return set()

    def saved(self) -> int:
        """The step of the newest checkpoint, or 0."""
        return max(
            (int(name[5:13]) for name, _ in self.entries() if name[:5] == "step_"), default=0
        )

    def begun(self, left: Set[tuple[str, int]] = frozenset()) -> int:
        """The step of the newest checkpoint, or of the one that is being written, beyond `left`."""
        steps = [int(name.partition("step_")[2][:8]) for name, _ in self.entries() - left]
        return max(steps, default=0)

    def logged(self) -> int:
        """The last step with a whole line in metrics.jsonl, or 0."""
        path = self.folder / "metrics.jsonl"
        last = path.read_bytes().rpartition(b"\n")[0].rpartition(b"\n")[2] if path.exists() else b""
        return json.loads(last)["step"] if last else 0

    def result(self) -> tuple:
        """What must not differ by a bit."""
        last = reading.find(self.folder, "latest")
        summary = json.loads((self.folder / "summary.json").read_text())
        assert last.step == summary["step"] == STEPS
        return (
            {name: digest(last.read(name.removesuffix(".pt"))) for name in last.files},
            dict(last.meta),
            (self.folder / "metrics.jsonl").read_text(),
            summary["best"],
            summary["final"],
        )


def kill(run: Run, step: int, ranks: int, dice: random.Random, tally: Tally) -> bool:
    """Start, kill around `step`, and count where it landed; False where the run was faster."""
    left = run.entries()  # what kills before have left says nothing of this start
    logged = max(step, run.logged() + 1)
    moment = dice.choices(["step", "save", "start"], [5, 4, 1])[0]
    reached = {
        "step": lambda: run.logged() >= logged,
        "save": lambda: run.begun(left) >= step,
        "start": lambda: True,
    }[moment]
    forked = run.start()
    deadline = time.monotonic() + PATIENCE
    while not reached() and not forked.ended():
        assert time.monotonic() < deadline, forked.stderr()
        time.sleep(0.002)
    time.sleep(dice.uniform(0, {"step": 0.03, "save": 0.01, "start": 1.0}[moment]))
    # The command, or one of its ranks; what a single process starts are loader workers.
    victim = dice.choice(forked.processes() if ranks > 1 else [forked.pid])
    try:
        os.kill(victim, signal.SIGKILL)
    except ProcessLookupError:
        victim = 0
    code = forked.end(PATIENCE)
    if not victim or code == 0:
        assert (run.folder / "summary.json").exists(), forked.stderr()
        return False
    # The command itself was killed, or names the rank that was.
    assert code == (-signal.SIGKILL if victim == forked.pid else 70), (code, forked.stderr())
    tally()
    if not run.saved():
        tally.before += 1
    elif any(not name.startswith("step_") for name, _ in run.entries() - left):
        tally.inside += 1
    else:
        tally.between += 1
    return True


@pytest.mark.slow
@pytest.mark.row("R1")
@pytest.mark.parametrize(("model", "processes", "workers", "precision"), CASES)
def test_a_run_killed_at_random_moments_ends_in_the_bits_of_an_unbroken_one(
    model: str,
    processes: int,
    workers: int,
    precision: str,
    forks: Forks,
    tmp_path: Path,
    tally: Tally,
) -> None:
    overrides = [
        *MODELS[model],
        f"train.processes={processes}",
        f"train.workers={workers}",
        f"train.precision={precision}",
    ]
    unbroken = Run(forks, tmp_path / "unbroken", overrides)
    unbroken.finish()
    wanted = unbroken.result()
    shutil.rmtree(unbroken.folder)
    seed = ALL.index((model, processes, workers, precision))
    dice = random.Random(seed)
    number = 0
    while tally.cases < KILLS:
        number += 1
        run = Run(forks, tmp_path / str(number), overrides)
        count = min(A_RUN, KILLS - tally.cases)
        # Before the first checkpoint once in three runs; else evenly over the steps.
        steps = sorted(dice.sample(range(SAVE_EVERY + 1, STEPS), count))
        steps[0] = 1 if number % 3 == 0 else steps[0]
        for step in steps:
            if not kill(run, step, processes, dice, tally):
                break
        run.finish()
        assert run.result() == wanted, f"seed {seed}, run {number}, kills at {steps}"
        shutil.rmtree(run.folder)
    tally(0, seed=seed)
    assert tally.before * 5 <= tally.cases, "too many kills before the first checkpoint"
