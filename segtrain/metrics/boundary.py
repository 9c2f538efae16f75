"""Boundary IoU (Cheng, Girshick, Dollar, Berg and Kirillov, CVPR 2021, arXiv:2103.16562).

Only the pixels of a mask that lie within d of its contour are compared, so that a large object cannot hide a careless edge.
d is 2 % of the image's diagonal, rounded, at least 1 pixel; the image border is contour too: the choices of the authors' code
(bowenc0221/boundary-iou-api, boundary_iou/utils/boundary_utils.py), which erodes d times by a 3 x 3 square.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from segtrain.errors import UserError
from segtrain.metrics.confusion import SemanticEvaluator, percent
from segtrain.structures.instances import Instances, Segments
from segtrain.structures.samples import IGNORE, Scene

RATIO = 0.02


def boundary(mask: np.ndarray, ratio: float = RATIO) -> np.ndarray:
    """(H, W) bool -> (H, W) bool: the pixels of the mask within d = ratio * diagonal of its contour."""
    return mask & near_contour(mask.astype(np.uint8), ratio)


def boundary_iou(a: np.ndarray, b: np.ndarray, ratio: float = RATIO) -> float:
    """Intersection over union of the boundaries of two masks (H, W) bool; nan if both are empty."""
    a, b = boundary(a, ratio), boundary(b, ratio)
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else math.nan


def near_contour(labels: np.ndarray, ratio: float) -> np.ndarray:
    """Label map (H, W) uint8 -> (H, W) bool: pixels with another label, or the image's outside, within d.

    Within d means inside the square of 2 d + 1 pixels around it, which is what d erosions by 3 x 3 reach: the boundaries of
    all classes at once.
    """
    height, width = labels.shape
    distance = max(1, round(ratio * math.sqrt(height**2 + width**2)))
    near = over_square(labels, distance, np.minimum) != over_square(labels, distance, np.maximum)
    near[:distance] = near[-distance:] = True
    near[:, :distance] = near[:, -distance:] = True
    return near


def over_square(labels: np.ndarray, distance: int, pick: Callable[..., np.ndarray]) -> np.ndarray:
    """(H, W): `np.minimum` or `np.maximum` over the square of 2 * distance + 1 pixels around each pixel, cut at the border.

    A window of 2 n pixels is made of two of n: some 7 passes over bytes, where a filter walks through every window.
    """
    window = 2 * distance + 1
    for _ in range(2):  # down the columns, then along the rows
        wide = np.pad(labels, ((distance, distance), (0, 0)), "edge")
        reach = 1
        while reach < window:
            step = min(reach, window - reach)
            wide = pick(wide[:-step], wide[step:])
            reach += step
        labels = wide.T
    return labels


def boundary_counts(
    prediction: np.ndarray, target: np.ndarray, num_classes: int, ratio: float
) -> Tensor:
    """(2, K) int64, pixels of intersection and of union of each class's boundaries in two label maps (H, W) uint8.

    Void pixels of the target are void in both maps, so the contour along them is the same and a perfect prediction has
    IoU 1.
    """
    prediction = np.where(target == IGNORE, np.uint8(IGNORE), prediction)
    ours, true = near_contour(prediction, ratio), near_contour(target, ratio)
    both = ours & true & (prediction == target)
    hit = _pixels(target, both, num_classes)
    union = _pixels(prediction, ours, num_classes) + _pixels(target, true, num_classes) - hit
    return torch.stack([hit, union])


def _pixels(labels: np.ndarray, chosen: np.ndarray, num_classes: int) -> Tensor:
    """(K,) int64 chosen pixels of each class."""
    return torch.from_numpy(np.bincount(labels[chosen], minlength=256)[:num_classes])


class BoundaryEvaluator(SemanticEvaluator):
    """Adds boundary IoU to the numbers of the base: intersections and unions of each class added up over the set.

    `ratio` is the width of the boundary as a share of the image's diagonal.
    """

    def __init__(
        self, class_names: list[str], leave_out: list[str] | None = None, ratio: float = RATIO
    ) -> None:
        super().__init__(class_names, leave_out)
        if not 0 < ratio <= 1:
            raise UserError(
                f"metric.ratio={ratio}: a share of the image's diagonal lies above 0, at most 1"
            )
        self.ratio = ratio
        self.protocol += (
            f"; boundary IoU within {100 * ratio:g} % of the image diagonal, void in both maps"
        )
        self.regions = torch.zeros(
            (2, len(self.class_names)), dtype=torch.int64
        )  # intersection, union in pixels

    def update(
        self,
        sample_id: str,
        prediction: Tensor | Instances | Segments,
        target: Tensor | np.ndarray | Instances | Scene | Segments,
    ) -> None:
        """Add one image: label maps (H, W), of a `Scene` its mask. Errors name the image."""
        super().update(sample_id, prediction, target)  # refuses everything else
        maps = (prediction, target.mask if isinstance(target, Scene) else target)
        ours, true = (
            torch.as_tensor(labels).cpu().numpy().astype(np.uint8, copy=False) for labels in maps
        )
        self.regions += boundary_counts(ours, true, len(self.class_names), self.ratio)

    def state(self) -> dict:
        """The state of the base and {"regions": (2, K) int64}."""
        return super().state() | {"regions": self.regions.clone()}

    def merge(self, states: list[dict]) -> None:
        """Replace the counts by the union of `states`. Raises `InternalError` if two states share an image."""
        super().merge(states)
        self.regions = sum((state["regions"] for state in states), torch.zeros_like(self.regions))

    def names(self) -> list[str]:
        """Every key of `compute`."""
        return [
            *super().names(),
            "boundary_IoU",
            *(f"boundary_IoU/{name}" for name in self.class_names),
        ]

    def compute(self) -> dict[str, float]:
        """See `numbers`, and `boundary_IoU`: the mean over the same classes as mIoU."""
        hits, unions = self.regions.tolist()
        values = {
            name: hit / union
            for name, hit, union in zip(self.class_names, hits, unions, strict=True)
            if union
        }
        kept = [value for name, value in values.items() if name not in self.leave_out]
        result = super().compute() | {"boundary_IoU": sum(kept) / len(kept)}
        return result | {f"boundary_IoU/{name}": value for name, value in values.items()}

    def table(self) -> str:
        """The table of the base, and the mean of the boundary IoU."""
        return f"{super().table()}\nboundary IoU {percent(self.compute()['boundary_IoU'])} %"
