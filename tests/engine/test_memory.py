"""`train.accumulate=auto`: a GPU that runs out of memory costs no step and no bit.

There is no GPU here: its error is raised by hand, at a chosen forward pass. Members: at the first
micro-batch and at a later one, once and twice, in the first update and in a later one, over a
resume, in all of two processes and in one of them, where a micro-batch cannot be smaller.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import refused, trained, typed
from processes import ENVIRONMENT, segtrain
from run_folders import assert_same_bits

from segtrain.checkpoints import reading
from segtrain.data.loader import collate
from segtrain.logs.metrics_file import read_metrics
from segtrain.models.unet import UNet
from segtrain.structures.samples import Batch, Sample

RUN = (
    "dataset.train=8",
    "dataset.val=2",
    "dataset.size=[32,32]",
    "dataset.crop=[32,32]",
    "model=unet",
    "model.width=4",
    "train.batch_size=8",
    "train.device=cpu",
    "train.threads=1",
    "train.steps=3",
    "train.save_every=1",
    "train.verify=false",
    "writer=[]",
    "log.every=1",
    "log.images=0",
)
FULL = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 10.00 GiB"


def out_of_memory(monkeypatch: pytest.MonkeyPatch, when: Callable[[int, int], bool]) -> list[int]:
    """Let training run out of memory `when(images, calls)`; return the images of each call."""
    real = UNet.forward
    calls: list[int] = []

    def forward(self: UNet, batch: Batch) -> Any:
        if self.training:
            calls.append(len(batch.ids))
            if when(len(batch.ids), len(calls)):
                raise torch.OutOfMemoryError(FULL)
        return real(self, batch)

    monkeypatch.setattr(UNet, "forward", forward)
    return calls


def result(folder: Path) -> tuple:
    """What must not differ by a bit."""
    last = reading.find(folder, "latest")
    saved = {name: last.read(name) for name in ("model", "optimizer")}
    return last.step, (folder / "metrics.jsonl").read_text(), saved


@pytest.fixture(scope="module")
def by_four(tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """What a run of four micro-batches gives."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    return result(trained(folder, *RUN, "train.accumulate=4"))


@pytest.mark.row("R26")
def test_micro_batches_that_do_not_fit_are_halved_until_they_do_to_the_same_bits(
    by_four: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = out_of_memory(monkeypatch, lambda images, _: images > 2)
    ended = typed("segtrain", f"hydra.run.dir={tmp_path / 'run'}", *RUN, "train.accumulate=auto")
    assert (ended.code, ended.err) == (0, "")
    assert calls == [8, 4, *[2] * 12]
    assert_same_bits(result(tmp_path / "run"), by_four)
    said = [line for line in ended.out.splitlines() if line.startswith("memory")]
    assert said == [
        "memory step 1: a GPU ran out of it; from here on 4 micro-batches of 2 images: the same "
        "gradient, but batch statistics are of 2 images"
    ]
    assert reading.find(tmp_path / "run", "latest").meta["pieces"] == 4


@pytest.mark.slow
@pytest.mark.row("R26")
def test_what_was_found_is_kept_over_a_resume_and_a_later_micro_batch_may_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first update fits, the second fails in the second of two micro-batches."""
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        fails = {2, 4}
        calls = out_of_memory(patch, lambda _, call: call in fails or call > 8)
        ended = typed("segtrain", f"hydra.run.dir={folder}", *RUN, "train.accumulate=auto")
        # One of 8; 8 fails; 4 fits and the other 4 fails; four of 2; then there is no more.
        assert calls[:8] == [8, 8, 4, 4, 2, 2, 2, 2]
        assert calls[8:] == [2, 1]
        assert ended.code == 71
        assert ended.err.count("\n") == 1
        assert "with 1 images in a micro-batch, and fewer cannot be" in ended.err
    found = reading.find(folder, "latest")
    assert (found.step, found.meta["pieces"]) == (2, 4)
    calls = out_of_memory(monkeypatch, lambda *_: False)
    ended = typed("segtrain", f"resume={folder}")
    assert (ended.code, ended.err) == (0, "")
    assert calls == [2, 2, 2, 2]
    assert "8 images = 1 processes x 4 micro-batches x 2 images" in ended.out
    assert reading.find(folder, "latest").step == 3


@pytest.mark.slow
@pytest.mark.row("R26")
@pytest.mark.parametrize("rank", [0, 1])
def test_where_one_of_two_processes_is_full_both_take_smaller_micro_batches(
    tmp_path: Path, rank: int
) -> None:
    """It happens in the second of three updates; before it, no bit is changed."""
    sabotage = Path(__file__).resolve().parents[1] / "sabotage"
    without = ("model.norm=none", "model.dropout=0")  # both depend on what is computed together
    words = [*RUN, "train.processes=2", "train.precision=fp32", *without]
    env = {
        **ENVIRONMENT,
        "PYTHONPATH": f"{sabotage}{os.pathsep}{ENVIRONMENT['PYTHONPATH']}",
        "SEGTRAIN_TEST_FAULT": f"full {rank} 1",
        "SEGTRAIN_TEST_STRUCK": str(tmp_path / "struck"),
    }
    command = segtrain("segtrain", *words, f"hydra.run.dir={tmp_path / 'auto'}")
    done = subprocess.run(
        [*command, "train.accumulate=auto"], env=env, capture_output=True, text=True, timeout=240
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "struck").exists()
    assert "memory step 2: a GPU ran out of it; from here on 2 micro-batches of 2" in done.stdout
    assert done.stdout.count("memory step") == 1
    assert reading.find(tmp_path / "auto", "latest").meta["pieces"] == 2
    whole = trained(tmp_path / "whole", *words)
    for mine, theirs in zip(losses(tmp_path / "auto"), losses(whole), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-6)


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder) if line["phase"] == "train"]


def test_another_error_is_no_lack_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: UNet, batch: Batch) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr(UNet, "forward", broken)
    words = ["this machine ran out of memory"]
    folder = f"hydra.run.dir={tmp_path / 'run'}"
    refused(71, words, "segtrain", folder, *RUN, "train.accumulate=auto")


@pytest.mark.parametrize("given", ["many", "1.5", "Auto"])
def test_accumulate_is_a_number_or_auto(tmp_path: Path, given: str) -> None:
    words = ["train.accumulate"]
    refused(2, words, "segtrain", f"hydra.run.dir={tmp_path}", f"train.accumulate={given}")


def test_a_batch_is_cut_as_the_loader_makes_micro_batches() -> None:
    rng = torch.Generator().manual_seed(0)
    samples = []
    for index, (height, width) in enumerate([(4, 6), (3, 3), (2, 9), (5, 1), (4, 4), (1, 2)]):
        image = torch.randint(0, 256, (height, width, 3), generator=rng, dtype=torch.uint8)
        mask = torch.randint(0, 3, (height, width), generator=rng, dtype=torch.uint8)
        samples.append(Sample(f"{index}", image.numpy(), mask=mask.numpy()))
    whole = collate(samples)
    for parts in (1, 2, 3, 6):
        size = 6 // parts
        for at, piece in enumerate(whole.split(parts)):
            loaded = collate(samples[at * size : (at + 1) * size])
            assert piece.ids == loaded.ids
            for mine, theirs in (
                (piece.images, loaded.images),
                (piece.sizes, loaded.sizes),
                (piece.masks, loaded.masks),
            ):
                assert mine is not None
                assert theirs is not None
                assert torch.equal(mine, theirs)
