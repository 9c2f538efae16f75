"""Images with their annotations, alone and as batches."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from segtrain.structures.instances import Instances, Segments

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
            targets.to(device, non_blocking=True)
            if isinstance(targets, Tensor)
            else [t.to(device) for t in targets]
        )
        images, sizes = (
            self.images.to(device, non_blocking=True),
            self.sizes.to(device, non_blocking=True),
        )
        return replace(self, images=images, sizes=sizes, targets=moved)

    def pin_memory(self) -> Batch:
        """Called by the DataLoader when it pins: page-locked images and masks."""
        targets = self.targets
        targets = (
            targets.pin_memory()
            if isinstance(targets, Tensor)
            else [target.pin_memory() for target in targets]
        )
        return replace(
            self, images=self.images.pin_memory(), sizes=self.sizes.pin_memory(), targets=targets
        )
