"""Masks as run lengths, the form of COCO files: {"size": [height, width], "counts": text}.

The home of hotcoco's masks. Runs go down the columns and begin with the zeros; `counts` is COCO's
compressed text, as ASCII `str`, so a mask is plain JSON. Boxes are (x, y, width, height) in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from hotcoco import mask as coco_mask

from segtrain.structures.instances import Instances, Segments

Rle = dict[str, Any]


def encode(masks: np.ndarray) -> list[Rle]:
    """Return masks (N, H, W) bool or uint8 as N run-length masks.

    It is ten times as fast where columns lie together in memory.
    """
    if len(masks) == 0:
        return []
    pixels = masks if masks.dtype == bool else masks.astype(np.uint8, copy=False)
    encoded: Any = coco_mask.encode(pixels.transpose(1, 2, 0))
    return [_text(mask) for mask in encoded]


def decode(rles: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> np.ndarray:
    """Return N run-length masks of one `size` (height, width) as (N, H, W) bool."""
    if not rles:
        return np.zeros((0, *size), bool)
    pixels = np.asarray(coco_mask.decode([dict(rle) for rle in rles]))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)).view(bool)


def from_polygons(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> Rle:
    """Return the union of polygons [x1, y1, x2, y2, ...] in an image of `size` (height, width).

    They are filled by COCO's own rule. Each polygon needs three points or more.
    """
    parts = coco_mask.frPyObjects([list(polygon) for polygon in polygons], *size)
    return _text(coco_mask.merge(parts))


def from_counts(counts: Sequence[int], size: tuple[int, int]) -> Rle:
    """Return the mask of plain run lengths, as crowd annotations hold them."""
    return _text(coco_mask.frPyObjects({"size": list(size), "counts": list(counts)}, *size))


def areas(rles: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return (N,) int64 pixels of each mask."""
    if not rles:
        return np.zeros(0, np.int64)
    return np.array(coco_mask.area([dict(rle) for rle in rles]), np.int64)


def boxes(rles: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return (N, 4) float64, the tightest boxes; zeros for an empty mask."""
    return np.array([coco_mask.toBbox(dict(rle)) for rle in rles], np.float64).reshape(-1, 4)


def wrong_areas(truth: object) -> tuple[int, int]:
    """Return how many areas the truth of an image gives beside masks, and how many are not theirs.

    That is more than half a pixel along the edge of the box away; COCO's own, which are those of
    the polygons, are at most a quarter.
    """
    if not isinstance(truth, Segments) or truth.masks is None:
        return 0, 0
    off = np.abs(areas(truth.masks) - truth.areas)
    return len(truth), int((off > truth.boxes[:, 2:].sum(1)).sum())


def corner_boxes(prediction: object) -> tuple[int, int]:
    """Return how many boxes a prediction gives beside masks, and how many fit theirs as corners.

    That is, they share less than half with the box of the mask as (x, y, width, height), and at
    least half as (x1, y1, x2, y2).
    """
    if not isinstance(prediction, Segments) or not prediction.masks:
        return 0, 0
    real = boxes(prediction.masks)
    said = prediction.boxes
    as_corners = np.concatenate([said[:, :2], said[:, 2:] - said[:, :2]], 1)
    wrong = (_overlaps(said, real) < 0.5) & (_overlaps(as_corners, real) >= 0.5)
    return len(real), int(wrong.sum())


def _overlaps(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Return (N,) IoU of pairs of boxes (x, y, width, height); 0 where they hold nothing."""
    low = np.maximum(one[:, :2], two[:, :2])
    high = np.minimum(one[:, :2] + one[:, 2:], two[:, :2] + two[:, 2:])
    both = (high - low).clip(0).prod(1)
    union = one[:, 2:].clip(0).prod(1) + two[:, 2:].clip(0).prod(1) - both
    return np.divide(both, union, out=np.zeros_like(both), where=union > 0)


def as_segments(objects: Instances | Segments) -> Segments:
    """Return objects in the exact form, in which they may be already."""
    return segments(objects) if isinstance(objects, Instances) else objects


def segments(objects: Instances) -> Segments:
    """Return dense instances in the exact form.

    Boxes become corner and extent, masks are encoded, areas are counted in pixels of the masks.
    """
    corners = objects.boxes.detach().cpu().numpy().astype(np.float64).reshape(-1, 4)
    crowd = objects.crowd
    scores = objects.scores
    masks = encode(objects.masks.cpu().numpy())
    height, width = objects.masks.shape[-2:]
    return Segments(
        size=(height, width),
        labels=objects.labels.cpu().numpy(),
        boxes=np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1),
        masks=masks,
        areas=areas(masks).astype(np.float64),
        crowd=None if crowd is None else crowd.cpu().numpy(),
        scores=None if scores is None else scores.detach().cpu().numpy().astype(np.float64),
    )


def _text(rle: Mapping[str, Any]) -> Rle:
    counts = rle["counts"]
    return {
        "size": list(rle["size"]),
        "counts": counts if isinstance(counts, str) else counts.decode("ascii"),
    }
