"""A run of the engine's smallest parts in which one image makes numbers that are not finite.

`python tests/poison.py FOLDER CASE...` runs cases one after the other on the rank that the
environment describes; each leaves FOLDER/CASE/ended, how it ended on rank 0.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import OmegaConf
from run_folders import make_run
from stubs import SemanticData
from torch import Tensor, nn

from segtrain.config import parts
from segtrain.config.files import load_run, masked_container, to_yaml
from segtrain.config.schema import RunConf
from segtrain.contracts import LossTerm
from segtrain.data.sampler import batches
from segtrain.engine.train import fit
from segtrain.errors import SegtrainError
from segtrain.layers.preprocess import Preprocess
from segtrain.losses.pixel import PixelCrossEntropy
from segtrain.models.base import SegmentationModel
from segtrain.runtime.distributed import World
from segtrain.structures.samples import Batch

IMAGES = 32
BATCH = 4  # so each image comes once in the first eight steps
STEPS = 6
KINDS = ("loss nan", "loss inf", "gradient nan", "gradient inf", "gradient huge", "input inf")


@dataclass(frozen=True)
class Case:
    """What goes wrong in which update (from 1 on), and on which rank's images."""

    kind: str
    precision: str = "fp32"
    mode: str = "raise"
    step: int = 3
    rank: int = 0
    accumulate: int = 2
    ema: bool = True
    optimizer: str = "sgd"
    last: int = 0  # the update up to which it goes wrong; 0: only `step`

    @property
    def name(self) -> str:
        """A name for its folder."""
        return "_".join(str(value).replace(" ", "_") for value in vars(self).values())

    @classmethod
    def of(cls, name: str) -> Case:
        """The case of a folder's name."""
        first, second, *rest = name.split("_")
        kinds = {field: type(value) for field, value in vars(cls("")).items()}
        values = [f"{first} {second}", *rest]
        return cls(
            **{
                field: value == "True" if kind is bool else kind(value)
                for (field, kind), value in zip(kinds.items(), values, strict=True)
            }
        )


def images_of(step: int, rank: int, world: int, accumulate: int) -> list[list[str]]:
    """The names of the images of each micro-batch of an update."""
    order = batches(IMAGES, BATCH, 0, step - 1, step, rank, world, accumulate)
    return [[f"train{index}" for _, index in batch] for batch in order]


class Net(SegmentationModel):
    """Two convolutions with batch norm, in which a poisoned image is infinite."""

    def __init__(self, classes: int, poisoned: set[str]) -> None:
        super().__init__()
        self.preprocess = Preprocess([0.0] * 3, [1.0] * 3)
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Conv2d(4, classes, 1)
        self.poisoned = poisoned

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        x = batch.images.float() / 255
        if self.training:
            bad = torch.tensor([name in self.poisoned for name in batch.ids])
            x = torch.where(bad[:, None, None, None], torch.inf, x)
        return {"logits": self.head(self.backbone(x))}


class PoisonedLoss(PixelCrossEntropy):
    """Cross-entropy that goes wrong on poisoned images."""

    def __init__(self, kind: str, poisoned: set[str], factor: float = 1.0) -> None:
        super().__init__()
        self.kind = kind
        self.poisoned = poisoned
        self.times = factor

    def forward(self, output: dict[str, Tensor], batch: Batch) -> dict[str, LossTerm]:
        terms = super().forward(output, batch)
        if not self.poisoned & set(batch.ids):
            return terms
        total = terms["seg"].sum
        beside = output["logits"].float().mean()
        beside = beside - beside.detach()  # 0, with a gradient
        wrong = {
            "loss nan": total * torch.nan,
            "loss inf": total * torch.inf,
            "gradient nan": total + (beside * 0).sqrt(),
            "gradient inf": total + beside.sqrt(),
            "gradient huge": total + beside * 1e30,
            "spike": total * self.times,
        }.get(self.kind, total)
        return {"seg": LossTerm(wrong)}


@cache
def base() -> RunConf:
    """The run that all cases share."""
    with tempfile.TemporaryDirectory() as place:
        folder = make_run(
            Path(place) / "run",
            f"train.batch_size={BATCH}",
            f"train.steps={STEPS}",
            "log.images=0",
            "train.verify=false",
            "train.keep=100",
        )
        return load_run(folder / "config.yaml")


def settings(case: Case, **others: Any) -> RunConf:
    """The settings of a case."""
    run = base()
    train = replace(
        run.train,
        precision=case.precision,
        non_finite=case.mode,
        accumulate=case.accumulate,
        ema=0.5 if case.ema else None,
        eval_every=others.get("steps", STEPS),
        **others,
    )
    optimizer = dict(run.optimizer)
    if case.optimizer == "adamw":
        optimizer = {"_target_": "segtrain.optim.optimizers.adamw", "lr": 0.01}
    return replace(run, train=train, optimizer=optimizer)


@contextmanager
def installed(case: Case, world: int = 1, factor: float = 1.0) -> Generator[list[str]]:
    """Put the poisoned parts in place; gives the names of the images of the micro-batch to blame.

    It is the last one of its rank and step.
    """
    blamed = images_of(case.step, case.rank, world, case.accumulate)[-1]
    poisoned = {
        images_of(step, case.rank, world, case.accumulate)[-1][-1]
        for step in range(case.step, max(case.step, case.last) + 1)
    }
    kept = {name: vars(parts)[name] for name in ("dataset", "model", "augment", "loss")}
    changed = cast(Any, parts)
    changed.dataset = lambda node, split: SemanticData(split, IMAGES if split == "train" else 2)
    changed.model = lambda node, num_classes, device=None, layout=None: Net(
        num_classes, poisoned if case.kind == "input inf" else set()
    )
    changed.augment = lambda node: lambda sample, seed: sample
    changed.loss = lambda node, device, class_names: PoisonedLoss(case.kind, poisoned, factor)
    try:
        yield blamed
    finally:
        for name, value in kept.items():
            setattr(changed, name, value)


def ended(case: Case, folder: Path, world: World, **others: Any) -> str:
    """Train a case in `folder`; return what ended it, or "complete"."""
    run = settings(case, **others)
    if world.main:
        folder.mkdir(parents=True, exist_ok=True)
        plain = masked_container(OmegaConf.structured(run))
        (folder / "config.yaml").write_text(to_yaml(plain))
    world.barrier()
    try:
        fit(run, folder, world)
    except SegtrainError as error:
        return f"{error.exit_code} {error}"
    return "complete"


def main(place: Path, names: list[str]) -> None:
    """Run cases one after the other on this rank."""
    from segtrain.runtime import distributed

    with distributed.join("cpu") as world:
        for name in names:
            case = Case.of(name)
            with installed(case, world.size):
                told = ended(case, place / name, world)
            told = world.gather(told)
            if world.main:
                (place / name / "ended").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
    sys.stdout.flush()
    os._exit(0)  # as the commands do: process groups that are torn down may wait for each other
