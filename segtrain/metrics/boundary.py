"""Measure boundary IoU (Cheng et al., CVPR 2021, arXiv:2103.16562).

Only the pixels of a mask that lie within d of its contour are compared, so that a large object
cannot hide a careless edge. d is 2 % of the image's diagonal, rounded, at least 1 pixel; the image
border is contour too. These are the choices of the authors' code (bowenc0221/boundary-iou-api,
boundary_iou/utils/boundary_utils.py), which erodes d times by a 3 x 3 square.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segtrain.contracts import Prediction, Truth
from segtrain.errors import UserError
from segtrain.metrics.confusion import SemanticEvaluator, percent
from segtrain.structures.samples import IGNORE, Scene

BOUNDARY_RATIO = 0.02  # width of the boundary as a share of the image's diagonal, as in the paper


def boundary(mask: np.ndarray, ratio: float = BOUNDARY_RATIO) -> np.ndarray:
    """Return the pixels of a mask (H, W) bool within d = ratio * diagonal of its contour."""
    return mask & near_contour(mask.astype(np.uint8), ratio)


def boundary_iou(a: np.ndarray, b: np.ndarray, ratio: float = BOUNDARY_RATIO) -> float:
    """Return the IoU of the boundaries of two masks (H, W) bool; nan if both are empty."""
    a = boundary(a, ratio)
    b = boundary(b, ratio)
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else math.nan


def near_contour(labels: np.ndarray, ratio: float) -> np.ndarray:
    """Return the pixels (H, W) bool with another label, or the image's outside, within d.

    `labels` is a map (H, W) uint8. Within d means inside the square of 2 d + 1 pixels around it,
    which is what d erosions by 3 x 3 reach; so one pass finds the boundaries of all classes.
    """
    height, width = labels.shape
    distance = max(1, round(ratio * math.sqrt(height**2 + width**2)))
    smallest = over_square(labels, distance, np.minimum)
    largest = over_square(labels, distance, np.maximum)
    near = smallest != largest
    near[:distance] = near[-distance:] = True
    near[:, :distance] = near[:, -distance:] = True
    return near


def over_square(labels: np.ndarray, distance: int, pick: Callable[..., np.ndarray]) -> np.ndarray:
    """Return `np.minimum` or `np.maximum` over the square of 2 * distance + 1 around each pixel.

    The square is cut at the border of the map (H, W). A window of 2 n pixels is made of two of n:
    that takes some 7 passes over bytes, where a filter walks through every window.
    """
    window = 2 * distance + 1
    for _ in range(2):  # down the columns, then along the rows
        reached = np.pad(labels, ((distance, distance), (0, 0)), "edge")
        reach = 1
        while reach < window:
            step = min(reach, window - reach)
            reached = pick(reached[:-step], reached[step:])
            reach += step
        labels = reached.T
    return labels


def boundary_counts(
    prediction: np.ndarray, target: np.ndarray, num_classes: int, ratio: float
) -> Tensor:
    """Count intersection and union (2, K) int64 of each class's boundaries in two label maps.

    The maps are (H, W) uint8. Void pixels of the target are void in both, so the contour along
    them is the same and a perfect prediction has IoU 1.
    """
    prediction = np.where(target == IGNORE, np.uint8(IGNORE), prediction)
    predicted_boundary = near_contour(prediction, ratio)
    true_boundary = near_contour(target, ratio)
    both = predicted_boundary & true_boundary & (prediction == target)
    intersection = _pixels(target, both, num_classes)
    predicted = _pixels(prediction, predicted_boundary, num_classes)
    true = _pixels(target, true_boundary, num_classes)
    return torch.stack([intersection, predicted + true - intersection])


def _pixels(labels: np.ndarray, chosen: np.ndarray, num_classes: int) -> Tensor:
    """Count the chosen pixels (K,) int64 of each class."""
    return torch.from_numpy(np.bincount(labels[chosen], minlength=256)[:num_classes])


class BoundaryEvaluator(SemanticEvaluator):
    """Add boundary IoU to the numbers of the base.

    Intersections and unions of each class are added up over the set. `ratio` is the width of the
    boundary as a share of the image's diagonal. Errors: UserError for one that is no share.
    """

    def __init__(
        self,
        class_names: list[str],
        leave_out: list[str] | None = None,
        ratio: float = BOUNDARY_RATIO,
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
        # Rows: intersection and union in pixels.
        self.regions = torch.zeros((2, len(self.class_names)), dtype=torch.int64)

    def update(self, sample_id: str, prediction: Prediction, target: Truth) -> None:
        """Add one image: label maps (H, W), of a `Scene` its mask. Errors name the image."""
        super().update(sample_id, prediction, target)  # refuses all that is no label map
        mask = target.mask if isinstance(target, Scene) else target
        self.regions += boundary_counts(
            _label_map(prediction), _label_map(mask), len(self.class_names), self.ratio
        )

    def state(self) -> dict[str, Any]:
        """Return the state of the base and {"regions": (2, K) int64}."""
        return super().state() | {"regions": self.regions.clone()}

    def merge(self, states: Sequence[dict[str, Any]]) -> None:
        """Replace the counts by the union of `states`.

        Errors: InternalError if two states share an image.
        """
        super().merge(states)
        self.regions = sum(
            (state["regions"] for state in states), start=torch.zeros_like(self.regions)
        )

    def names(self) -> list[str]:
        """Return every key that `compute` can give."""
        classes = [f"boundary_IoU/{name}" for name in self.class_names]
        return [*super().names(), "boundary_IoU", *classes]

    def compute(self) -> dict[str, float]:
        """Return the numbers of the base, and `boundary_IoU`: the mean over the classes of mIoU."""
        intersections, unions = self.regions.tolist()
        values = {
            name: intersection / union
            for name, intersection, union in zip(
                self.class_names, intersections, unions, strict=True
            )
            if union
        }
        kept = [value for name, value in values.items() if name not in self.leave_out]
        result = super().compute() | {"boundary_IoU": sum(kept) / len(kept)}
        return result | {f"boundary_IoU/{name}": value for name, value in values.items()}

    def table(self) -> str:
        """Return the table of the base, and the mean of the boundary IoU."""
        return f"{super().table()}\nboundary IoU {percent(self.compute()['boundary_IoU'])} %"


def _label_map(labels: Any) -> np.ndarray:
    """Return a map (H, W) as uint8 in numpy."""
    return torch.as_tensor(labels).cpu().numpy().astype(np.uint8, copy=False)
