"""Turn masks of boxes into masks of the image, one at a time, so that memory does not grow.

Coordinates are continuous: the centre of pixel x lies at x + 0.5, a box ends where x2 says, and
cell j of an M x M mask has its centre (j + 0.5) / M along the box's side (Mask R-CNN,
arXiv:1703.06870, with the half pixels that detectron2 keeps).

Detectron and torchvision paste otherwise ("expanded"), and their published numbers were measured
so. A mask with a border of zeros, one cell wide, is stretched over its box, which grows by two
cells as well; but the box's ends are cut to whole pixels before, and both of these pixels belong to
it, so that a mask is moved and grows by up to a pixel.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from segtrain.structures import run_lengths
from segtrain.structures.instances import Segments

# Columns of a window that are interpolated at a time: so many stay in the processor's cache.
COLUMNS_PER_STEP = 128
OUTSIDE = -9.0  # pixels; a box from here to here touches no image, expanded or not


def segments(
    size: tuple[int, int],
    boxes: Tensor,
    probabilities: Tensor,
    labels: Tensor,
    scores: Tensor,
    threshold: float = 0.5,
    regions: Tensor | None = None,
    expanded: bool = False,
) -> Segments:
    """Return the objects of an image of `size` (height, width) with their masks pasted.

    `boxes` (N, 4) are xyxy and may reach beyond the image, `probabilities` (N, M, M) in [0, 1]
    are their masks, `labels` and `scores` are (N,); all may be on any device. The masks lie in
    `regions` (N, 4), by default the boxes.

    A pixel is on where the mask, interpolated bilinearly between the centres of its cells and zero
    around them, is at least `threshold` > 0 (`expanded`: more). Boxes of the result are clipped to
    the image. A region that is not finite has an empty mask, and so has one without an area, but
    for `expanded` masks, which have a pixel at least.
    """
    height, width = size
    clipped = _finite(boxes).clip(0, (width, height, width, height))
    sides = (clipped[:, 2:] - clipped[:, :2]).clip(min=0)
    corners = _finite(boxes if regions is None else regions)
    masks = [
        mask
        for whole in _pasted(size, corners, probabilities, threshold, expanded)
        for mask in run_lengths.encode(whole)
    ]
    return Segments(
        size=(height, width),
        labels=labels.detach().cpu().numpy().astype(np.int64),
        boxes=np.concatenate([clipped[:, :2], sides], 1),
        masks=masks,
        areas=run_lengths.areas(masks).astype(np.float64),
        scores=scores.detach().double().cpu().numpy(),
    )


def _finite(boxes: Tensor) -> np.ndarray:
    """Return boxes (N, 4) float64 in numpy, those that are not finite outside of every image."""
    corners = boxes.detach().double().cpu().numpy().reshape(-1, 4)
    return np.where(np.isfinite(corners).all(1, keepdims=True), corners, OUTSIDE)


def _pasted(
    size: tuple[int, int],
    corners: np.ndarray,
    probabilities: Tensor,
    threshold: float,
    expanded: bool,
) -> Iterator[np.ndarray]:
    """Yield one mask after the other as (1, H, W) bool.

    All are views of one buffer, so use each before asking for the next. The buffer is column-major,
    the order in which run lengths count. Threads would cost more than they save on pieces this
    small.
    """
    height, width = size
    canvas = np.zeros((width, height), bool)
    cells = probabilities.detach().float().cpu().numpy()
    between = _cells_of_expanded if expanded else _cells_between
    reaches = np.greater if expanded else np.greater_equal
    for (x1, y1, x2, y2), mask in zip(corners.tolist(), cells, strict=True):
        left, columns, column_shares = between(x1, x2, width, mask.shape[1])
        top, rows, row_shares = between(y1, y2, height, mask.shape[0])
        padded = np.pad(mask, 1)
        # (M + 2, rows of the window): stretched along one side, then along the other.
        stretched = np.ascontiguousarray(_blend(padded, rows, row_shares).T)
        window = canvas[left : left + len(columns), top : top + len(rows)]
        for first in range(0, len(columns), COLUMNS_PER_STEP):
            step = slice(first, first + COLUMNS_PER_STEP)
            pixels = _blend(stretched, columns[step], column_shares[step])
            reaches(pixels, threshold, out=window[step])
        yield canvas.T[None]
        window[:] = False


def _cells_between(
    start: float, stop: float, pixels: int, cells: int
) -> tuple[int, np.ndarray, np.ndarray]:
    """Return (first, before, share): the box can touch pixels first, first + 1, ....

    Pixel first + i lies between cells before[i] and before[i] + 1 of the padded mask; share[i] in
    [0, 1] is the weight of the second. `before` and `share` are (n,). The box reaches from `start`
    to `stop` on a side of `pixels`, and its mask has `cells` there, without the padding.
    """
    length = stop - start
    if stop <= start:
        return 0, np.zeros(0, np.int64), np.zeros(0, np.float32)
    reach = length / cells / 2  # beyond the box a mask fades to zero within half a cell
    ends = np.clip((np.floor(start - reach), np.ceil(stop + reach)), 0, pixels)
    first, last = ends.astype(int).tolist()
    # Position 0 is the middle of the cell of zeros.
    position = (np.arange(first, last) + 0.5 - start) / length * cells + 0.5
    position = position.clip(0, cells + 1)
    before = np.minimum(position.astype(np.int64), cells)
    return first, before, (position - before).astype(np.float32)


def _cells_of_expanded(
    start: float, stop: float, pixels: int, cells: int
) -> tuple[int, np.ndarray, np.ndarray]:
    """Return what `_cells_between` does, by the rule of Detectron and torchvision.

    The box with its border reaches from pixel `start` to pixel `stop`, both included, after they
    are cut to whole numbers. Beyond the middles of its first and last cells a mask does not change.
    """
    middle = (start + stop) / 2
    half = (stop - start) / 2 * (cells + 2) / cells
    box = np.trunc((middle - half, middle + half))
    length = max(box[1] - box[0] + 1, 1)
    first, last = np.clip((box[0], box[0] + length), 0, pixels).astype(int).tolist()
    position = (np.arange(first, last) - box[0] + 0.5) / length * (cells + 2) - 0.5
    position = position.clip(0, cells + 1)
    before = np.minimum(position.astype(np.int64), cells)
    return first, before, (position - before).astype(np.float32)


def _blend(values: np.ndarray, before: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Return rows (n, C) between those of `values`, linearly.

    In place, as a new array for each of the three operations would leave the cache.
    """
    lower = values[before]
    mixed = values[before + 1]
    mixed -= lower
    mixed *= share[:, None]
    mixed += lower
    return mixed
