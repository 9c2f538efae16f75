"""Masks of boxes as masks of the image, one at a time, so that memory does not grow with their number.

Coordinates are continuous: the centre of pixel x lies at x + 0.5, a box ends where x2 says, and cell j of an M x M mask has
its centre (j + 0.5) / M along the box's side (Mask R-CNN, arXiv:1703.06870, with the half pixels that detectron2 keeps).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from segtrain.structures import run_lengths
from segtrain.structures.instances import Segments

COLUMNS = 128  # of a window at a time: they stay in the processor's cache


def segments(
    size: tuple[int, int],
    boxes: Tensor,
    probabilities: Tensor,
    labels: Tensor,
    scores: Tensor,
    threshold: float = 0.5,
) -> Segments:
    """Objects in an image of `size` (height, width): `boxes` (N, 4) xyxy, which may reach beyond the image, their masks
    `probabilities` (N, M, M) in [0, 1], `labels` (N,), `scores` (N,), on any device.

    A pixel is on where the mask, interpolated bilinearly between the centres of its cells and zero around them, is at least
    `threshold` > 0. Boxes of the result are clipped to the image. A box that is not finite or has no area has an empty mask.
    """
    height, width = size
    corners = boxes.detach().double().cpu().numpy().reshape(-1, 4)
    corners = np.where(np.isfinite(corners).all(1, keepdims=True), corners, 0.0)
    clipped = corners.clip(0, (width, height, width, height))
    masks = [
        mask
        for whole in _pasted(size, corners, probabilities, threshold)
        for mask in run_lengths.encode(whole)
    ]
    return Segments(
        size=(height, width),
        labels=labels.detach().cpu().numpy().astype(np.int64),
        boxes=np.concatenate([clipped[:, :2], (clipped[:, 2:] - clipped[:, :2]).clip(min=0)], 1),
        masks=masks,
        areas=run_lengths.areas(masks).astype(np.float64),
        scores=scores.detach().double().cpu().numpy(),
    )


def _pasted(
    size: tuple[int, int], corners: np.ndarray, probabilities: Tensor, threshold: float
) -> Iterator[np.ndarray]:
    """Every mask in turn as (1, H, W) bool, in the same memory, columns together as run lengths want them.

    Plain numpy, on one thread: shared out over threads, work of this size takes longer.
    """
    height, width = size
    canvas = np.zeros((width, height), bool)
    cells = probabilities.detach().float().cpu().numpy()
    for (x1, y1, x2, y2), mask in zip(corners.tolist(), cells, strict=True):
        left, columns, shift = _between(x1, x2, width, mask.shape[1])
        top, rows, drop = _between(y1, y2, height, mask.shape[0])
        padded = np.pad(mask, 1)
        stretched = np.ascontiguousarray(
            _blend(padded, rows, drop).T
        )  # (M + 2, rows of the window)
        window = canvas[left : left + len(columns), top : top + len(rows)]
        for first in range(0, len(columns), COLUMNS):
            some = slice(first, first + COLUMNS)
            np.greater_equal(
                _blend(stretched, columns[some], shift[some]), threshold, out=window[some]
            )
        yield canvas.T[None]
        window[:] = False


def _between(
    start: float, stop: float, pixels: int, cells: int
) -> tuple[int, np.ndarray, np.ndarray]:
    """The first of `pixels` that a box from `start` to `stop` can reach; for it and those that follow, the cell before (n,)
    in a mask that has a cell of zeros around, and the share (n,) of the cell after.
    """
    if stop <= start:
        return 0, np.zeros(0, np.int64), np.zeros(0, np.float32)
    reach = (stop - start) / cells / 2  # beyond the box a mask fades to zero within half a cell
    first, last = (
        np.clip((np.floor(start - reach), np.ceil(stop + reach)), 0, pixels).astype(int).tolist()
    )
    place = (np.arange(first, last) + 0.5 - start) / (
        stop - start
    ) * cells + 0.5  # 0 is the middle of the cell of zeros
    place = place.clip(0, cells + 1)
    before = np.minimum(place.astype(np.int64), cells)
    return first, before, (place - before).astype(np.float32)


def _blend(values: np.ndarray, before: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Rows (n, C) between those of `values`, linearly."""
    lower = values[before]
    mixed = values[before + 1]
    mixed -= lower
    mixed *= share[:, None]
    mixed += lower
    return mixed
