"""Proposals: boxes read from a COCO results file, a grid of boxes, and what training and inference both do with boxes.

Boxes are (N, 4) x1, y1, x2, y2 in pixels, x2 and y2 exclusive; they may reach beyond the image.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from segtrain.errors import DataError


def read_proposals(path: Path) -> dict[str, np.ndarray]:
    """Boxes by image id, best score first, of a COCO results file: [{"image_id": 7, "bbox": [x, y, w, h], "score": 0.5}].

    `image_id` is a number or text; other keys are not read. Errors: DataError naming the entry.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a readable JSON file of proposals ({error})") from error
    form = '[{"image_id": ..., "bbox": [x, y, width, height], "score": ...}, ...]'
    if not isinstance(entries, list):
        raise DataError(f"{path}: not a COCO results file, which is a list {form}")
    found: dict[str, list[tuple[float, ...]]] = {}
    for number, entry in enumerate(entries):
        try:
            (x, y, width, height), score = map(float, entry["bbox"]), float(entry["score"])
            good = all(map(math.isfinite, (x, y, width, height, score))) and min(width, height) > 0
            name = entry["image_id"]
        except (LookupError, TypeError, ValueError):
            good, name = False, None
        if not good or type(name) not in (int, str):
            raise DataError(f"{path}, entry {number}: not of the form {form} with finite numbers and sides above 0")
        found.setdefault(str(name), []).append((score, x, y, x + width, y + height))
    tables = {name: np.array(rows, np.float64) for name, rows in found.items()}
    return {name: table[np.argsort(-table[:, 0], kind="stable"), 1:] for name, table in tables.items()}


def boxes_of(proposals: Mapping[str, np.ndarray], sample_id: str, path: Any) -> np.ndarray:
    """The boxes of one image. An id that is a number may carry zeros in front (COCO's file names). Errors: DataError."""
    number = str(int(sample_id)) if sample_id.isdecimal() else sample_id
    boxes = proposals.get(sample_id, proposals.get(number))
    if boxes is None:
        known = next(iter(proposals), "none")
        raise DataError(f"{path}: holds no box for image `{sample_id}`; its `image_id`s are such as `{known}`")
    return boxes


def enlarged(boxes: np.ndarray, factor: float, height: int, width: int) -> np.ndarray:
    """Boxes `factor` times as wide and high about their middles, (N, 4) int64: rounded to whole pixels, at least one.

    They reach at most a whole image's side beyond the image, as DeconvNet's release pads it.
    """
    side = np.array([width, height], np.float64)
    middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) * (factor / 2)
    first, last = (
        np.round(np.clip(corner, -side, 2 * side)).astype(np.int64) for corner in (middle - half, middle + half)
    )
    return np.concatenate([first, np.maximum(last, first + 1)], 1)


def corners(boxes: np.ndarray) -> np.ndarray:
    """Boxes (N, 4) x, y, width, height, as COCO's files hold them, as x1, y1, x2, y2."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


def edge_size(size: tuple[int, int], shorter: int, longest: int) -> tuple[int, int]:
    """(height, width) with the shorter edge at `shorter`, or the longer one at `longest` where it would be longer."""
    factor = min(shorter / min(size), longest / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N, M) intersection over union."""
    first = np.maximum(boxes[:, None, :2], others[None, :, :2])
    sides = np.clip(np.minimum(boxes[:, None, 2:], others[None, :, 2:]) - first, 0, None)
    shared = sides.prod(2)
    areas = [(b[:, 2:] - b[:, :2]).prod(1) for b in (boxes, others)]
    return shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-9)


def grid(height: int, width: int, count: int, min_side: float = 1.0) -> np.ndarray:
    """At most `count` boxes (N, 4) that cover the image again and again, large ones first, the whole image before all.

    Squares of 1, 0.71, 0.5 and 0.35 times the image's shorter side, and 2:1 and 1:2 rectangles of the same area, each
    half over its neighbour; none with a side below `min_side` but the whole image. Of a size that does not fit in any
    more the boxes are taken evenly.
    """
    boxes = {(0, 0, width, height): None}
    for level in range(4):
        side, found = min(height, width) * 2 ** (-level / 2), {}
        for aspect in (1.0, 2.0, 0.5):
            high = min(height, round(side / math.sqrt(aspect)))
            wide = min(width, round(side * math.sqrt(aspect)))
            if min(high, wide) < max(1.0, min_side):
                continue
            tops, lefts = _starts(height, high), _starts(width, wide)
            found |= {(left, top, left + wide, top + high): None for top in tops for left in lefts}
        new = [box for box in found if box not in boxes]
        room = max(0, count - len(boxes))
        if len(new) > room:
            new = [new[i] for i in np.linspace(0, len(new) - 1, room).round().astype(int)]
        boxes |= dict.fromkeys(new)
    return np.array(list(boxes), np.float64)[:count]


def _starts(length: int, side: int) -> list[int]:
    """First pixels of the fewest windows over `length` that overlap by half at least, evenly."""
    steps = math.ceil((length - side) / (side / 2))
    return np.linspace(0, length - side, steps + 1).round().astype(int).tolist()
