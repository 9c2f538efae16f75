"""Compare what an annotation says twice of one object: its box and its area with its mask.

Boxes of another convention pass every other check, and perfect detections then score an AP of 0.

The bounds are measured on samples of COCO 2017 (3,083 objects), which must pass: its boxes are
those of the polygons, and a mask has no pixel where a polygon is thinner than one. 1.2 % of those
boxes are more than 2 pixels from the mask's own, the furthest 8.6; none of these overlaps its mask
by less than half. Areas are those of the polygons, a quarter of a pixel along the edge from the
pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from segtrain.structures import run_lengths
from segtrain.structures.samples import Sample

CLOSE = 2.0  # pixels between the sides of a box and those of its mask
MIN_OVERLAP = 0.5  # IoU of a box with the box of its mask; where it is less, AP@50 counts a miss
# Shares of all objects. A convention is wrong in nearly all of them; single slips are only named.
MAX_ELSEWHERE = 0.01
MAX_LOOSE = 0.05
MAX_WRONG_AREAS = 0.05
EXAMPLES = 3  # shown in a message


@dataclass(frozen=True)
class Agreement:
    """How many boxes and areas were compared, and how many of them do not fit their masks."""

    boxes: int = 0
    loose: int = 0  # more than CLOSE pixels off
    elsewhere: int = 0  # of those, with less than MIN_OVERLAP
    corners: int = 0  # of those, right if they are read as (x1, y1, x2, y2)
    areas: int = 0
    wrong_areas: int = 0
    examples: tuple[str, ...] = ()

    def __add__(self, other: Agreement) -> Agreement:
        names = [each.name for each in fields(self)]
        return Agreement(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def fault(self) -> str:
        """Say that the boxes of a split are of another convention; "" where they are not."""
        if self.elsewhere <= MAX_ELSEWHERE * self.boxes:
            return ""
        way = "save the boxes of these masks, or the masks of these boxes"
        if 2 * self.corners > self.elsewhere:
            way = "they are corners (x1, y1, x2, y2), but `bbox` is [x, y, width, height]"
        return f"{self._told()}; {way}"

    def notes(self) -> list[str]:
        """Return a line for each disagreement that a run may live with."""
        lines = []
        if 0 < self.elsewhere <= MAX_ELSEWHERE * self.boxes:
            lines.append(self._told())
        loose = self.loose - self.elsewhere
        if loose > MAX_LOOSE * self.boxes:
            lines.append(
                f"{loose:,} of {self.boxes:,} boxes are more than {CLOSE:g} pixels from those of "
                "their masks; both are learned as they are"
            )
        if self.wrong_areas > MAX_WRONG_AREAS * self.areas:
            lines.append(
                f"{self.wrong_areas:,} of {self.areas:,} areas are not those of their masks; by "
                "`area` objects count as small, medium or large"
            )
        return lines

    def _told(self) -> str:
        first = "; ".join(self.examples[:EXAMPLES])
        return (
            f"{self.elsewhere:,} of {self.boxes:,} boxes lie elsewhere than their masks ({first})"
        )


def compare(sample: Sample) -> Agreement:
    """Return how the boxes of a sample agree with its masks; its areas where it has its truth.

    Of a label map they are those of the objects that it is drawn from.
    """
    instances = sample.instances
    if instances is not None:
        areas = run_lengths.wrong_areas(sample.truth)
        return _compared(sample.id, instances.boxes, extents(instances.masks), areas)
    objects = sample.objects
    if objects is None or objects.masks is None:
        return Agreement()
    # Without a pixel there is nothing to compare; without width or height nothing is right.
    corners = [_corners(boxes) for boxes in (objects.boxes, run_lengths.boxes(objects.masks))]
    kept = torch.stack([(each[:, 2:] > each[:, :2]).all(1) for each in corners]).all(0)
    boxes, real = (each[kept] for each in corners)
    return _compared(sample.id, boxes, real, run_lengths.wrong_areas(objects))


def _compared(
    sample_id: str, boxes: Tensor, real: Tensor, counted_areas: tuple[int, int]
) -> Agreement:
    """Compare boxes (N, 4) with those of their masks, both (x1, y1, x2, y2)."""
    areas, wrong_areas = counted_areas
    if not len(boxes):
        return Agreement(areas=areas, wrong_areas=wrong_areas)
    loose = _far(boxes, real)
    elsewhere = loose & (_overlap(boxes, real) < MIN_OVERLAP)
    # `boxes` are (x, y, x + w, y + h), where w and h stand for what the file has at their place.
    as_corners = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
    corners = elsewhere & ~_far(as_corners, real)
    return Agreement(
        boxes=len(boxes),
        loose=int(loose.sum()),
        elsewhere=int(elsewhere.sum()),
        corners=int(corners.sum()),
        areas=areas,
        wrong_areas=wrong_areas,
        examples=_examples(sample_id, boxes, real, elsewhere),
    )


def _corners(boxes: np.ndarray) -> Tensor:
    """Return boxes (N, 4) of (x, y, width, height) as float32 (x1, y1, x2, y2)."""
    x, y, w, h = boxes.T
    return torch.from_numpy(np.stack([x, y, x + w, y + h], 1).astype(np.float32))


def extents(masks: Tensor) -> Tensor:
    """Return the tightest boxes (N, 4) float32, (x1, y1, x2, y2), of masks (N, H, W) bool.

    Every mask has a pixel.
    """
    if not len(masks):
        return torch.zeros(0, 4)
    sides = []
    for along in (masks.any(1), masks.any(2)):
        first = along.int().argmax(1)
        last = along.shape[1] - along.flip(1).int().argmax(1)
        sides.append((first, last))
    (x1, x2), (y1, y2) = sides
    return torch.stack([x1, y1, x2, y2], 1).float()


def _far(boxes: Tensor, real: Tensor) -> Tensor:
    return (boxes - real).abs().amax(1) > CLOSE


def _overlap(boxes: Tensor, real: Tensor) -> Tensor:
    low = torch.maximum(boxes[:, :2], real[:, :2])
    high = torch.minimum(boxes[:, 2:], real[:, 2:])
    both = (high - low).clamp(min=0).prod(1)
    each = [(box[:, 2:] - box[:, :2]).prod(1) for box in (boxes, real)]
    return both / (each[0] + each[1] - both)


def _examples(sample_id: str, boxes: Tensor, real: Tensor, elsewhere: Tensor) -> tuple[str, ...]:
    lines = []
    for k in torch.nonzero(elsewhere).flatten().tolist()[:EXAMPLES]:
        x1, y1, x2, y2 = boxes[k].tolist()
        left, top, right, bottom = real[k].tolist()
        lines.append(
            f"image {sample_id}: box {_numbers(x1, y1, x2 - x1, y2 - y1)}, mask "
            f"{_numbers(left, top, right - left, bottom - top)}"
        )
    return tuple(lines)


def _numbers(*values: float) -> str:
    return "[" + ", ".join(f"{round(value, 2):g}" for value in values) + "]"
