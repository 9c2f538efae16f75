"""`train.batch_size=auto`: the search finds the batch, and leaves no bit of itself in the training.

There is no GPU here: what it has is told by hand, and its error is raised by hand at a chosen
number of images. Members: the number of images, of micro-batches and of ranks, the margin, an error
and a peak, a training split that is smaller, nothing that fits, a CPU, a resume.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from commandline import done, refused, trained, typed
from processes import ENVIRONMENT
from test_from_python import files
from test_memory import FULL, RUN, out_of_memory

import segtrain
from segtrain.engine import batch_size
from segtrain.engine.batch_size import GIB, largest
from segtrain.engine.parts import build_parts
from segtrain.errors import UserError
from segtrain.models.unet import UNet
from segtrain.runtime.distributed import World

AUTO = tuple(word for word in RUN if not word.startswith(("train.device", "train.batch_size")))
AUTO = (*AUTO, "train.batch_size=auto")


@pytest.mark.parametrize(
    ("room", "least", "most", "found"),
    [
        (37, 1, 1000, 32),
        (32, 1, 1000, 32),
        (31, 1, 1000, 16),
        (1, 1, 1000, 1),
        (0, 1, 1000, None),
        (37, 3, 1000, 24),
        (1000, 1, 100, 64),
        (1000, 2, 2, 2),
    ],
)
def test_the_largest_is_the_last_double_that_fits(
    room: int, least: int, most: int, found: int | None
) -> None:
    asked: list[int] = []

    def fits(images: int) -> bool:
        asked.append(images)
        return images <= room

    assert largest(fits, least, most) == found
    assert asked == [least * 2**i for i in range(len(asked))]
    assert len(asked) <= 11


@dataclass
class Card:
    """The memory of a GPU that is not there: 16 GiB, of which an image takes as much as is said."""

    each: float = 0.0  # GiB an image and micro-batch
    tried: int = 0

    def available(self) -> int:
        return 16 * GIB

    def forget(self) -> None:
        self.tried = 0

    def peak(self) -> int:
        return int(self.each * self.tried * GIB)


def a_card(monkeypatch: pytest.MonkeyPatch, each: float = 0.0) -> Card:
    """Let training think that it has this card's memory; it computes on the CPU all the same."""
    card = Card(each)
    real = UNet.forward

    def forward(self: UNet, batch: Any) -> Any:
        card.tried = len(batch.ids)
        return real(self, batch)

    monkeypatch.setattr(UNet, "forward", forward)
    monkeypatch.setattr(batch_size, "memory_of", lambda device: card)
    return card


def test_the_run_is_that_of_the_number_to_the_byte_and_a_resume_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [word for word in AUTO if not word.startswith("train.batch_size")]
    given = trained(tmp_path / "given", *words, "train.batch_size=4")
    a_card(monkeypatch)
    calls = out_of_memory(monkeypatch, lambda images, _: images > 4)
    out = done("segtrain", f"hydra.run.dir={tmp_path / 'found'}", *AUTO)
    assert calls[:4] == [1, 2, 4, 8]  # and no more of the search
    assert calls[4:] == [4, 4, 4]
    assert files(tmp_path / "found") == files(given)
    assert "\n  batch_size: 4\n" in (tmp_path / "found" / "config.yaml").read_text()
    said = [line for line in out.splitlines() if "train.batch_size=auto" in line]
    assert said == [
        "batch  train.batch_size=auto: 4 images fit, 8 do not (0.0 of 16.0 GiB at most, 10% stay "
        "free); config.yaml has the number. Rate and length belong to a batch, and are as they "
        "were: optimizer.lr=0.001, train.steps=3"
    ]
    assert said[0] in (tmp_path / "found" / "train.log").read_text()
    # The same words again: the run that is there has its number.
    assert segtrain.fit(segtrain.compose(AUTO), tmp_path / "found")["step"] == 3


@pytest.mark.parametrize(
    ("each", "more", "batch"),
    [
        (1.8, [], 8),  # 14.4 of the 14.4 GiB that may be used
        (1.81, [], 4),
        (1.0, ["train.accumulate=2"], 8),  # no more than the 8 images of the split
        (4.0, ["train.accumulate=2"], 4),
        (4.0, ["train.compile=true"], 2),
    ],
)
def test_a_tenth_of_the_memory_stays_free(
    each: float, more: list[str], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_card(monkeypatch, each)
    monkeypatch.setattr(torch, "compile", None)  # what is tried is not compiled
    run = segtrain.compose([*AUTO, *more])
    world = World()
    parts = build_parts(batch_size.to_build(run, world), world)
    before = torch.get_rng_state()
    weights = {name: value.clone() for name, value in parts.network.state_dict().items()}
    found = batch_size.settled(run, None, None, parts, world)
    assert found.run == replace(run, train=replace(run.train, batch_size=batch))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(weights[k], v) for k, v in parts.network.state_dict().items())
    assert all(p.grad is None for p in parts.network.parameters())
    assert not parts.optimizer.state


def test_all_ranks_take_what_fits_on_each() -> None:
    """The other rank has room for 4 images, this one for 16."""

    class Two(SimpleNamespace):
        def any(self, here: bool) -> bool:
            return here or card.tried > 4

    card = Card(0.5)
    world: Any = Two(size=2)
    peaks: dict[int, int] = {}

    def tried(images: int) -> None:
        card.tried = images

    memory: Any = card
    assert largest(batch_size._Fits(tried, memory, world, peaks), 1, 64) == 4
    assert peaks == {1: GIB // 2, 2: GIB, 4: 2 * GIB}


def raising(error: Exception) -> Callable[[int], None]:
    def tried(images: int) -> None:
        if images > 2:
            raise error

    return tried


def test_only_a_full_gpu_means_that_a_batch_does_not_fit() -> None:
    memory: Any = Card()
    full = raising(torch.OutOfMemoryError(FULL))
    assert largest(batch_size._Fits(full, memory, World(), {}), 1, 64) == 2
    broken = raising(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        largest(batch_size._Fits(broken, memory, World(), {}), 1, 64)


def test_a_network_that_does_not_fit_at_all_ends_the_run_with_nothing_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_card(monkeypatch, 15.0)
    ended = typed("segtrain", f"hydra.run.dir={tmp_path / 'run'}", *AUTO)
    assert ended.code == 71
    assert ended.err == (
        "segtrain: train.batch_size=auto: 1 images a process do not fit in the GPU's memory: lower "
        "dataset.crop, or take a smaller network or train.precision=bf16\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train.device=cpu"], "this run computes on the CPU; give a number, such as train.batch"),
        (
            ["train.accumulate=auto"],
            "with train.accumulate=auto every batch fits; give a number to",
        ),
        (["train.batch_size=many"], "train.batch_size=many: give a whole number, or auto"),
        (["train.batch_size=1.5"], "train.batch_size"),
        (["dataset.batch_size=auto"], "dataset.batch_size"),
    ],
)
def test_what_cannot_be_found_is_refused_before_anything_is_built(
    words: list[str], said: str, tmp_path: Path
) -> None:
    refused(2, [said], "segtrain", f"hydra.run.dir={tmp_path / 'run'}", *AUTO, *words)
    assert list(tmp_path.iterdir()) == []


def test_on_a_machine_without_a_gpu_and_under_a_recipe_to_scale_it_is_refused(
    tmp_path: Path,
) -> None:
    if not torch.cuda.is_available():
        words = ["this run computes on the CPU; give a number, such as train.batch_size=16"]
        refused(2, words, "segtrain", f"hydra.run.dir={tmp_path / 'run'}", *AUTO)
    recipe = ["model=pspnet", "dataset=voc", "train.scale_recipe=true", "train.batch_size=auto"]
    with pytest.raises(UserError, match=r"train.scale_recipe=true: scales to a batch that is know"):
        segtrain.compose(recipe)
    words = ["train.batch_size=auto: only a training finds it; give a number"]
    refused(2, words, "segtrain", "find_lr", f"hydra.run.dir={tmp_path / 'run'}", *AUTO)
    assert list(tmp_path.iterdir()) == []


def test_the_line_names_the_batch_of_the_recipe() -> None:
    run = segtrain.compose(["model=pspnet", "dataset=voc"])
    said = batch_size._belongs(replace(run, train=replace(run.train, batch_size=64)))
    assert said.endswith(
        "optimizer.lr=0.01, train.steps=33050; the recipe's are for 16 images, and "
        "train.batch_size=64 train.scale_recipe=true would follow it"
    )


RANK = """
import os, sys
import torch
import segtrain
from segtrain.engine import batch_size
from segtrain.models.unet import UNet

class Card:
    def available(self): return 1 << 34
    def forget(self): pass
    def peak(self): return 0

real = UNet.forward
room = (4, 2)[int(os.environ["RANK"])]

def forward(self, batch):
    if self.training and len(batch.ids) > room:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB.")
    return real(self, batch)

UNet.forward = forward
batch_size.memory_of = lambda device: Card()
segtrain.fit(segtrain.compose(sys.argv[2:]), sys.argv[1])
"""


@pytest.mark.slow
def test_two_ranks_under_torchrun_train_what_fits_on_the_smaller_one(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    words = [word for word in AUTO if not word.startswith("train.batch_size")]
    number = [*words, "train.batch_size=4", "train.processes=2"]
    for command in (
        [*torchrun, "--nproc-per-node=2", str(script), str(tmp_path / "found"), *AUTO],
        [sys.executable, "-m", "segtrain", f"hydra.run.dir={tmp_path / 'given'}", *number],
    ):
        ended = subprocess.run(
            command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr
    found, given = files(tmp_path / "found"), files(tmp_path / "given")
    assert found["metrics.jsonl"] == given["metrics.jsonl"]
    weights = [name for name in given if name.endswith(".pt")]
    assert len(weights) == 6
    assert all(found[name] == given[name] for name in weights)
    assert b"\n  batch_size: 4\n" in found["config.yaml"]


@pytest.mark.gpu
@pytest.mark.slow
def test_on_a_gpu_a_batch_is_found_and_the_run_is_that_of_the_number(tmp_path: Path) -> None:
    words = [word for word in AUTO if not word.startswith(("train.batch_size", "dataset.train"))]
    words += ["dataset.train=64", "train.device=cuda", "train.deterministic=true"]
    done("segtrain", f"hydra.run.dir={tmp_path / 'found'}", *words, "train.batch_size=auto")
    config = (tmp_path / "found" / "config.yaml").read_text()
    assert "\n  batch_size: 64\n" in config  # of 32 x 32 pixels: the split is the end
    given = trained(tmp_path / "given", *words, "train.batch_size=64")
    assert files(tmp_path / "found") == files(given)
