"""What the parts hand to each other. The trainer knows these types and no others, so it never asks which task it trains.

Shapes: B images, H x W pixels, N instances, K classes. Boxes are (x1, y1, x2, y2) in pixels, x2 and y2 exclusive.
Train ids run from 0 to K - 1; IGNORE marks pixels that neither train nor count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, Protocol, Self

import numpy as np
import torch
from torch import Tensor

IGNORE = 255


@dataclass(frozen=True)
class Sample:
    """One image and its annotation, on the host. `image` (H, W, 3) uint8 RGB; `target` a mask (H, W) uint8 or `Instances`.

    `truth` is what the metric compares with, where that is more than `target`; it is not read in training.
    """

    id: str
    image: np.ndarray
    target: np.ndarray | Instances
    truth: Scene | Segments | None = None


@dataclass(frozen=True)
class Scene:
    """A semantic truth that also tells instances apart: `mask` (H, W) uint8 train ids, `instances` (H, W), 0 for none."""

    mask: np.ndarray
    instances: np.ndarray


@dataclass(frozen=True)
class Segments:
    """Objects of one image as a file holds them, exact: masks run-length encoded (`segtrain.rle`), nothing rounded."""

    size: tuple[int, int]  # height, width
    labels: np.ndarray  # (N,) int64 train ids
    boxes: np.ndarray  # (N, 4) float64 x, y, width, height
    masks: list[dict] | None  # {"size": [H, W], "counts": str}; None where only boxes are known
    areas: np.ndarray  # (N,) float64 pixels, as annotated
    crowd: np.ndarray | None = None  # (N,) bool, of a truth
    scores: np.ndarray | None = None  # (N,) float64, of a prediction

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Instances:
    """Objects of one image, as target (crowd set) or as prediction (scores set)."""

    boxes: Tensor  # (N, 4) float32
    labels: Tensor  # (N,) int64 train ids
    masks: Tensor  # (N, H, W) bool
    crowd: Tensor | None = None  # (N,) bool
    scores: Tensor | None = None  # (N,) float32
    dropped: int = 0  # objects left out of a target: without a pixel or a box, as annotated or in an augmented view

    def to(self, device: torch.device) -> Self:
        """The same instances on `device`."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """The same instances in page-locked memory."""
        return self._with(Tensor.pin_memory)

    def _with(self, change: Callable[[Tensor], Tensor]) -> Self:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: change(value) for name, value in values.items() if isinstance(value, Tensor)})


@dataclass(frozen=True)
class Batch:
    """Images (B, 3, H, W) uint8 RGB padded at the right and bottom, real `sizes` (B, 2) as (height, width), targets and ids.

    `targets` is a mask (B, H, W) uint8 of train ids and IGNORE, or a list of B `Instances`. `truths` are those of the samples.
    """

    images: Tensor
    sizes: Tensor
    targets: Tensor | list[Instances]
    ids: list[str]
    truths: list[Scene | Segments | None] | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`; asynchronous where the memory is pinned."""
        targets = self.targets
        moved = (
            targets.to(device, non_blocking=True) if isinstance(targets, Tensor) else [t.to(device) for t in targets]
        )
        images, sizes = self.images.to(device, non_blocking=True), self.sizes.to(device, non_blocking=True)
        return replace(self, images=images, sizes=sizes, targets=moved)

    def pin_memory(self) -> Batch:
        """Called by the DataLoader when it pins: page-locked images and masks."""
        targets = self.targets
        targets = targets.pin_memory() if isinstance(targets, Tensor) else [target.pin_memory() for target in targets]
        return replace(self, images=self.images.pin_memory(), sizes=self.sizes.pin_memory(), targets=targets)


class Term(NamedTuple):
    """One summand of the loss: `sum` over its elements, and their `count`.

    `count` is None where it follows from the targets; then `Criterion.counts` tells it before the forward pass, and the
    trainer sums it over all ranks and micro-batches. A count that depends on the output is given here instead. In
    training a term without either is a plain sum over all ranks and micro-batches: nothing divides it.
    """

    sum: Tensor  # scalar, fp32, attached to the graph
    count: Tensor | None = None  # scalar


class Criterion(Protocol):
    """A loss. The objective is sum_i weights[i] * sum_i / count_i."""

    weights: Mapping[str, float]

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Scalar count of each term whose count follows from the targets."""
        ...

    def __call__(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Term]:
        """The terms of one micro-batch."""
        ...


class Predictor(Protocol):
    """An inference protocol around a model."""

    def __call__(self, image: Tensor, sample_id: str = "") -> Tensor | Instances | Segments:
        """(3, H, W) uint8 RGB -> label map (H, W) uint8 or objects with scores, at the image's own size.

        Our own predictors give objects as `Segments`: memory does not grow with their number.
        `sample_id` tells a predictor with a file of proposals which image this is; "" where nobody knows.
        """
        ...


class Evaluator(Protocol):
    """Counts; nothing is averaged before `compute`."""

    protocol: str  # whose numbers these are, in words, for metrics.json

    def update(
        self,
        sample_id: str,
        prediction: Tensor | Instances | Segments,
        target: Tensor | Instances | Scene | Segments,
    ) -> None:
        """Add one image. `target` is the sample's `truth` where it has one."""
        ...

    def state(self) -> dict:
        """Everything counted so far, as tensors and plain types."""
        ...

    def merge(self, states: list[dict]) -> None:
        """Replace the counts by the union of `states` (one per rank, uneven shards allowed); no image may appear twice."""
        ...

    def names(self) -> list[str]:
        """Every number that `compute` can give, before anything is counted."""
        ...

    def compute(self) -> dict[str, float]:
        """The benchmark's numbers by their benchmark names, fractions in [0, 1]."""
        ...

    def worst(self, count: int) -> list[tuple[str, float]]:
        """(id, score) of the images with the lowest score, worst first; the same under any sharding."""
        ...

    def table(self) -> str:
        """The numbers for the terminal."""
        ...

    def pictures(self) -> dict[str, np.ndarray]:
        """Pictures (H, W, 3) of the counts, by file name."""
        ...
