"""Objects of one image: dense on a device, or run-length encoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Segments:
    """Objects of one image as a file holds them, exact: nothing is rounded.

    Masks are run-length encoded, see `segtrain.structures.run_lengths`.
    """

    size: tuple[int, int]  # height, width
    labels: np.ndarray  # (N,) int64 train ids
    boxes: np.ndarray  # (N, 4) float64 x, y, width, height
    masks: list[dict] | None  # {"size": [H, W], "counts": str}; None where only boxes are known
    areas: np.ndarray  # (N,) float64 pixels, as annotated
    crowd: np.ndarray | None = None  # (N,) bool, of a truth
    scores: np.ndarray | None = None  # (N,) float64, of a prediction

    def renumbered(self, train_ids: np.ndarray) -> Segments:
        """Return the objects with other train ids: `train_ids` (256,) uint8 old -> new."""
        return replace(self, labels=train_ids[self.labels].astype(np.int64))

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Instances:
    """Objects of one image: labels to learn from (`crowd` set), or a prediction (`scores` set)."""

    boxes: Tensor  # (N, 4) float32
    labels: Tensor  # (N,) int64 train ids
    masks: Tensor  # (N, H, W) bool
    crowd: Tensor | None = None  # (N,) bool
    scores: Tensor | None = None  # (N,) float32
    # Objects left out of the labels: without a pixel or a box, as annotated or in a view.
    dropped: int = 0

    def to(self, device: torch.device) -> Self:
        """Return the same instances on `device`."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def renumbered(self, train_ids: np.ndarray) -> Self:
        """Return the instances with other train ids: `train_ids` (256,) uint8 old -> new."""
        table = torch.from_numpy(train_ids).to(self.labels.device)
        return replace(self, labels=table[self.labels].long())

    def pin_memory(self) -> Self:
        """Return the same instances in page-locked memory."""
        return self._with(Tensor.pin_memory)

    def _with(self, change: Callable[[Tensor], Tensor]) -> Self:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items()})
