"""The smallest parts that satisfy the contracts, for tests of the engine.

There is one semantic and one instance system. `python tests/stubs.py TASK RUN` trains the run
folder RUN with the parts of TASK in place of those its config names, in as many processes as the
environment (RANK, WORLD_SIZE, ...) says.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from segtrain.config import parts
from segtrain.config.schema import DATASET_RUN_KEYS, ONLY_TYPED
from segtrain.contracts import LossTerm
from segtrain.data.base import BaseDataset
from segtrain.inference.base import BasePredictor
from segtrain.layers.preprocess import Preprocess
from segtrain.losses.pixel import PixelCrossEntropy
from segtrain.metrics.base import BaseEvaluator
from segtrain.models.base import SegmentationModel
from segtrain.rng import generator_for
from segtrain.structures.instances import Instances
from segtrain.structures.labels import LabelMap
from segtrain.structures.samples import Batch, Sample

SIZE = 32
LABELS = LabelMap("stub", ("dark", "bright"), ((0, 0, 0), (255, 255, 255)), {0: 0, 1: 1})


def scene(split: str, index: int) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """An image (32, 32, 3) with one bright box, and the box (x1, y1, x2, y2)."""
    rng = generator_for(7 if split == "train" else 8, "stub", index)
    x1, y1 = (int(v) for v in rng.integers(0, SIZE // 2, 2))
    x2 = x1 + int(rng.integers(6, SIZE // 2))
    y2 = y1 + int(rng.integers(6, SIZE // 2))
    image = rng.integers(0, 100, (SIZE, SIZE, 3)).astype(np.uint8)
    image[y1:y2, x1:x2] += 150
    return image, (x1, y1, x2, y2)


class SemanticData(BaseDataset):
    """Masks whose number of ignored pixels differs from image to image."""

    def __init__(self, split: str, count: int = 7) -> None:
        super().__init__(LABELS, [f"{split}{i}" for i in range(count)])
        self.split = split

    def __getitem__(self, index: int) -> Sample:
        image, (x1, y1, x2, y2) = scene(self.split, index)
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[y1:y2, x1:x2] = 1
        mask[: 4 * (index % 5)] = 255
        return Sample(self.ids[index], image, mask)


class InstanceData(SemanticData):
    """One object per image; every third image is empty."""

    labelled_with = "instances"

    def __getitem__(self, index: int) -> Sample:
        image, box = scene(self.split, index)
        masks = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
        masks[0, box[1] : box[3], box[0] : box[2]] = True
        keep = 0 if index % 3 == 2 else 1
        instances = Instances(
            torch.tensor([box], dtype=torch.float32)[:keep],
            torch.ones(keep, dtype=torch.int64),
            masks[:keep],
            crowd=torch.zeros(keep, dtype=torch.bool),
        )
        return Sample(self.ids[index], image, instances=instances)


class TinyNet(SegmentationModel):
    """Two convolutions with GroupNorm: no batch statistics, no dropout."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.preprocess = Preprocess([0.0] * 3, [1.0] * 3)
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU())
        self.head = nn.Conv2d(8, channels, 1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return {"logits": self.head(self.backbone(batch.images.float() / 255))}


class TinyDetector(TinyNet):
    """The same, for objects of one class."""

    learns_from = "instances"


class InstanceLoss(nn.Module):
    """Two terms, which stay attached to the graph where there is nothing to learn from.

    `inside` is the cross-entropy of box pixels, whose count is known from the labels; `hard` that
    of pixels the network gets wrong, whose count only the output tells.
    """

    weights: ClassVar[dict[str, float]] = {"inside": 1.0, "hard": 0.5}
    needs = frozenset({"logits"})

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.instances is not None
        return {"inside": torch.tensor(float(sum(int(t.masks.sum()) for t in batch.instances)))}

    def forward(self, output: dict[str, Tensor], batch: Batch) -> dict[str, LossTerm]:
        assert batch.instances is not None
        logits = output["logits"][:, 0].float()
        truth = torch.stack([t.masks.any(0) for t in batch.instances]).float()
        each = nn.functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        wrong = ((logits > 0) != (truth > 0)).float()
        return {
            "inside": LossTerm((each * truth).sum()),
            "hard": LossTerm((each * wrong).sum(), wrong.sum()),
        }


class BoxPredictor(BasePredictor):
    """All bright pixels as one instance."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, image: Tensor, sample_id: str = "") -> Instances:
        sizes = torch.tensor([image.shape[1:]])
        mask = self.model(Batch(image[None], sizes, [""]))["logits"][0, 0] > 0
        keep = int(mask.any())
        ys, xs = torch.nonzero(mask, as_tuple=True)
        box = (
            [float(v) for v in (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)]
            if keep
            else [0.0] * 4
        )
        return Instances(
            torch.tensor([box])[:keep],
            torch.ones(keep).long(),
            mask[None][:keep],
            scores=torch.ones(keep),
        )


class CountEvaluator(BaseEvaluator):
    """Share of images whose number of objects is right."""

    def __init__(self, class_names: list[str]) -> None:
        self.class_names = class_names
        self.seen: dict[str, bool] = {}

    def update(self, sample_id: str, prediction: Any, target: Any) -> None:
        assert sample_id not in self.seen
        self.seen[sample_id] = len(prediction.boxes) == len(target.boxes)

    def state(self) -> dict:
        return {"seen": dict(self.seen)}

    def merge(self, states: list[dict]) -> None:
        self.seen = {}
        for state in states:
            assert not self.seen.keys() & state["seen"].keys()
            self.seen |= state["seen"]

    def names(self) -> list[str]:
        return ["mIoU", "images"]

    def compute(self) -> dict[str, float]:
        return {"mIoU": sum(self.seen.values()) / len(self.seen), "images": float(len(self.seen))}

    def worst(self, count: int) -> list[tuple[str, float]]:
        return [
            (name, float(right))
            for name, right in sorted(self.seen.items(), key=lambda p: (p[1], p[0]))
        ][:count]

    def table(self) -> str:
        return str(self.compute())


def install(task: str) -> None:
    """Put the stub parts of `task` where the engine asks for parts; the loop is untouched."""
    instance = task == "instance"
    data = InstanceData if instance else SemanticData
    parts.dataset = lambda node, split: data(split)  # ty: ignore
    parts.model = lambda node, num_classes, device, layout: (  # ty: ignore
        TinyDetector(1) if instance else TinyNet(num_classes)
    ).to(device, memory_format=layout)
    parts.augment = lambda node: lambda sample, seed: sample  # ty: ignore
    if instance:
        parts.loss = lambda node, device, class_names: InstanceLoss().to(device)  # ty: ignore
        parts.predictor = lambda run, network: BoxPredictor(network)  # ty: ignore
        parts.evaluator = lambda node, names: CountEvaluator(names)  # ty: ignore
    else:
        parts.loss = lambda node, device, class_names: PixelCrossEntropy().to(device)  # ty: ignore


def main(task: str, folder: Path) -> None:
    """Train or resume `folder` on the rank the environment describes."""
    from segtrain.commands.exit_codes import run_command
    from segtrain.config.files import load_run
    from segtrain.engine.train import fit
    from segtrain.runtime import distributed

    def command(arguments: list[str]) -> None:
        run = load_run(folder / "config.yaml")
        assert set(DATASET_RUN_KEYS) - set(ONLY_TYPED) <= set(run.dataset)
        with distributed.join(run.train.device) as world:
            fit(run, folder, world)

    install(task)
    run_command("stub", command, [])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
