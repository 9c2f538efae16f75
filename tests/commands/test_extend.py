"""`segtrain extend=RUN`: a run goes on in a folder of its own, by a schedule that begins there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commandline import done, refused, trained

import segtrain
from segtrain.checkpoints import reading
from segtrain.engine import parts as engine_parts
from segtrain.optim.schedules import Poly

SMALL = [
    "dataset.train=8",
    "dataset.val=2",
    "dataset.size=[32,32]",
    "dataset.crop=[32,32]",
    "model=unet",
    "model.width=4",
    "train.batch_size=2",
    "train.eval_every=2",
    "train.precision=fp32",
    "train.device=cpu",
    "train.threads=1",
    "train.ema=0.9",
    "optimizer=sgd",
    "optimizer.lr=0.05",
    "schedule.warmup=1",
    "log.every=1",
    "log.images=0",
    "writer=[]",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("extend") / "run", *SMALL, "train.steps=4")


def rates(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["lr"] for line in lines if line["phase"] == "train"]


def test_it_equals_a_run_whose_schedule_was_that_from_there(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference is one run of ten steps whose rates are put together by hand: those of four
    steps, then those of six.
    """
    out = done("segtrain", f"extend={run}", "train.steps=10")
    folder = Path(f"{run}_to_10")
    assert f"{folder}: goes on from step 4 of {run} to 10, by a new schedule" in out
    first = Poly(4, warmup=1)
    second = Poly(6, warmup=1)
    assert rates(folder) == pytest.approx([0.05 * second(step) for step in range(6)])
    whole = [*(first(step) for step in range(4)), *(second(step) for step in range(6))]
    monkeypatch.setattr(
        engine_parts.config_parts, "schedule", lambda node, steps: whole.__getitem__
    )
    reference = trained(tmp_path / "reference", *SMALL, "train.steps=10")
    ours = reading.find(folder, "latest")
    theirs = reading.find(reference, "latest")
    assert ours.step == theirs.step == 10
    for name in ("model", "ema"):
        a = ours.read(name)
        b = theirs.read(name)
        assert all(torch.equal(a[key], b[key]) for key in b), name
    log = (folder / "train.log").read_text()
    assert "extend the schedule began anew at step 4" in log
    assert segtrain.load(run, prefer="latest").source.step == 4  # the other folder is as it was


def test_it_is_a_run_like_any_other_afterwards(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "longer"
    words = ["schedule=cosine", "train.steps=6", f"hydra.run.dir={folder}"]
    done("segtrain", f"extend={run}", *words)
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["step"]) == ("complete", 6)
    refused(2, ["holds a run already"], "segtrain", f"extend={run}", *words)
    assert "complete already" in done("segtrain", f"resume={folder}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train.steps=4"], ["stands at step 4", "train.steps=8"]),
        ([], ["stands at step 4"]),
        (["train.steps=8", "optimizer.lr=1"], ["optimizer.lr=1", "keeps its settings"]),
        (["train.steps=8", "model=unet_32"], ["keeps its settings", "train.init="]),
    ],
)
def test_what_is_no_extension_is_refused(run: Path, words: list[str], said: list[str]) -> None:
    refused(2, said, "segtrain", f"extend={run}", *words)
    assert not Path(f"{run}_to_8").exists()
    assert not Path(f"{run}_to_4").exists()


def test_nobody_types_where_a_schedule_begins(tmp_path: Path) -> None:
    refused(2, ["train.begin=2", "extend=RUN"], "segtrain", "train.begin=2")
    refused(2, ["not a run folder"], "segtrain", f"extend={tmp_path}", "train.steps=8")
