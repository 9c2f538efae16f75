"""What training and inference both do with boxes.

Boxes are (N, 4) x1, y1, x2, y2 in pixels, x2 and y2 exclusive; they may reach beyond the image.
"""

from __future__ import annotations

import numpy as np


def enlarged(boxes: np.ndarray, factor: float, height: int, width: int) -> np.ndarray:
    """Return boxes `factor` times as wide and high about their middles, (N, 4) int64.

    They are rounded to whole pixels, at least one, and reach at most a whole image's side beyond
    the image, as DeconvNet's release pads it.
    """
    side = np.array([width, height], np.float64)
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]) * (factor / 2)
    first, last = (
        np.round(np.clip(corner, -side, 2 * side)).astype(np.int64)
        for corner in (middle - half, middle + half)
    )
    return np.concatenate([first, np.maximum(last, first + 1)], 1)


def corners(boxes: np.ndarray) -> np.ndarray:
    """Return boxes (N, 4) x, y, width, height, as COCO's files hold them, as x1, y1, x2, y2."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


def edge_size(size: tuple[int, int], shorter: int, longest: int) -> tuple[int, int]:
    """Return (height, width) with the shorter edge at `shorter`.

    Where the longer edge would be longer than `longest`, it is `longest`.
    """
    factor = min(shorter / min(size), longest / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return (N, M) intersection over union of each of `boxes` with each of `others`."""
    first = np.maximum(boxes[:, None, :2], others[None, :, :2])
    sides = np.clip(np.minimum(boxes[:, None, 2:], others[None, :, 2:]) - first, 0, None)
    shared = sides.prod(2)
    areas = [(each[:, 2:] - each[:, :2]).prod(1) for each in (boxes, others)]
    return shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-9)
