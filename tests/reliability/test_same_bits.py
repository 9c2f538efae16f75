"""The same command gives the same bits (row R27), and segeval the training's numbers (row R32).

What must change nothing: the same command again, random numbers drawn before by somebody else,
loader workers, TensorBoard, pictures, how often is logged, saved or validated, the check of the
data, another working folder, another number of cores offered. One thread and two give other last
bits, as sums go in another order, but each the same ones again.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from commandline import SMALL_RUN, done
from rows import Tally, amount
from test_kills import digest

from segtrain.checkpoints import reading

STEPS = 4
WORDS = [
    *SMALL_RUN,
    "dataset=shapes",
    "dataset.size=[32,48]",
    "dataset.train=6",
    "dataset.val=3",
    f"train.steps={STEPS}",
    f"train.eval_every={STEPS}",
    "train.precision=fp32",
    "train.threads=1",
    "train.workers=0",
    "log.every=1",
    "log.images=0",
]
# Runs whose bits are compared.
RUNS: dict[str, list[str]] = {
    "plain": [],
    "bf16, average": ["train.precision=bf16", "train.ema=0.9"],
    "strong, dropout": ["augment=strong", "model.dropout=0.5", "train.accumulate=2"],
    "statistics": ["model.norm=batch", "optimizer=sgd", "train.bn_batches=2"],
    "another schedule": ["schedule=cosine", "train.clip=0.1", "train.channels_last=false"],
}
# What must not change the bits of training; the last two change what is validated.
VARIANTS: dict[str, list[str]] = {
    "again": [],
    "4 workers": ["train.workers=4"],
    "1 worker": ["train.workers=1"],
    "after other random numbers": [],
    "tensorboard": ["writer=[tensorboard]"],
    "pictures": ["log.images=2"],
    "a checkpoint a step": ["train.save_every=1", "train.keep=9"],
    "data not checked": ["train.verify=false"],
    "seldom logged": ["log.every=3"],
    "often validated": ["train.eval_every=1"],
    "other images validated": ["dataset.val=1"],
    "another inference": ["inference.flip=true"],
}


# A small machine is told so by torch, and has the workers all the same.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def trained(folder: Path, *words: str) -> tuple[list[str], dict[int, str], dict[str, float]]:
    """Train in `folder`; return weights and states, the loss of each step, the last validation."""
    done("segtrain", *WORDS, *words, f"hydra.run.dir={folder}")
    last = reading.find(folder, "latest")
    names = [name.removesuffix(".pt") for name in sorted(last.files)]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: float(line["loss"]).hex() for line in lines if line["phase"] == "train"}
    return [f"{name} {digest(last.read(name))}" for name in names], losses, lines[-1]


def draw() -> None:
    """Draw from all the generators that a library may share with us."""
    random.random()
    np.random.seed(5)
    torch.manual_seed(5)
    torch.rand(3)


@pytest.mark.slow  # the quick cases are tests/data/test_loader.py's and tests/test_golden.py's
@pytest.mark.row("R27")
@pytest.mark.parametrize("run", amount([*RUNS][:1], [*RUNS][:1], [*RUNS]))
def test_what_is_no_part_of_training_changes_no_bit_of_it(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Tally
) -> None:
    states, losses, validated = trained(tmp_path / "first", *RUNS[run])
    assert len(set(losses.values())) == STEPS
    for number, (name, words) in enumerate(VARIANTS.items()):
        if name.startswith("after"):
            draw()
        monkeypatch.chdir(tmp_path if number % 2 else tmp_path / "first")
        again = trained(tmp_path / f"{number}", *RUNS[run], *words)
        assert again[0] == states, name
        assert again[1] == {step: losses[step] for step in again[1]}, name
        if number < len(VARIANTS) - 2:
            assert again[2] == validated, name
        tally()


@pytest.mark.slow
@pytest.mark.row("R27")
def test_two_threads_give_their_own_bits_again(tmp_path: Path) -> None:
    assert trained(tmp_path / "a", "train.threads=2") == trained(tmp_path / "b", "train.threads=2")


# ---------------------------------------------------------------------- segeval

# Runs that are validated, and how.
MEASURED: list[list[str]] = [
    [],
    ["train.ema=0.5"],
    ["train.precision=bf16", "inference.flip=true"],
    ["train.ema=0.5", "inference=slide", "inference.window=[24,24]"],
    ["inference=multi_scale", "model.norm=batch"],
]
OTHERS: list[list[str]] = [
    ["metric=boundary"],
    ["train.bn_batches=2", "model.norm=batch"],
    ["dataset.val=1"],
    ["train.ema=0.5", "inference.scales=[0.5,1.5]"],
    ["train.monitor=loss", "train.monitor_mode=min"],
    ["train.channels_last=false"],
]


@pytest.mark.slow  # the quick case is tests/test_api.py's
@pytest.mark.row("R32")
def test_segeval_gives_the_numbers_of_the_last_and_of_the_best_validation(
    tmp_path: Path, tally: Tally
) -> None:
    runs = [*MEASURED, *OTHERS]
    both = [[*a, *b] for a in MEASURED[:3] for b in OTHERS]
    for number, words in enumerate(amount(runs[:1], runs[:5], [*runs, *both])):
        run = tmp_path / f"{number}"
        trained(run, *words, f"train.eval_every={STEPS // 2}")
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for which, step in (("latest", STEPS), ("best", best_of(run))):
            out = run / f"of_{which}"
            asked = [
                f"eval.weights={which}",
                f"eval.output={out}",
                "eval.worst=0",
                "eval.loss=true",
            ]
            done("segeval", f"checkpoint={run}", *asked)
            measured = json.loads((out / "metrics.json").read_text())
            assert measured.pop("protocol")["step"] == step
            logged = next(x for x in lines if x["phase"] == "val" and x["step"] == step)
            assert {"phase": "val", "step": step, **measured} == logged, words
        tally()


def best_of(run: Path) -> int:
    """Return the step of a run's best validation."""
    return int(json.loads((run / "summary.json").read_text())["best"]["step"])
