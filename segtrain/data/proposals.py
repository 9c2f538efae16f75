"""Proposals: boxes read from a COCO results file, and a grid of boxes.

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
    """Return the boxes of a COCO results file by image id, best score first.

    Entries are {"image_id": 7, "bbox": [x, y, width, height], "score": 0.5}. `image_id` is a number
    or text; other keys are not read. Errors: DataError naming the entry.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a readable JSON file of proposals ({error})") from error
    form = '[{"image_id": ..., "bbox": [x, y, width, height], "score": ...}, ...]'
    if not isinstance(entries, list):
        raise DataError(f"{path}: not a COCO results file, which is a list {form}")
    rows_of: dict[str, list[tuple[float, ...]]] = {}
    for number, entry in enumerate(entries):
        try:
            x, y, width, height = map(float, entry["bbox"])
            score = float(entry["score"])
            good = all(map(math.isfinite, (x, y, width, height, score))) and min(width, height) > 0
            name = entry["image_id"]
        except (LookupError, TypeError, ValueError):
            good = False
            name = None
        if not good or type(name) not in (int, str):
            raise DataError(
                f"{path}, entry {number}: not of the form {form} "
                "with finite numbers and sides above 0"
            )
        rows_of.setdefault(str(name), []).append((score, x, y, x + width, y + height))
    tables = {name: np.array(rows, np.float64) for name, rows in rows_of.items()}
    return {
        name: table[np.argsort(-table[:, 0], kind="stable"), 1:] for name, table in tables.items()
    }


def boxes_of(proposals: Mapping[str, np.ndarray], sample_id: str, path: Any) -> np.ndarray:
    """Return the boxes of one image.

    An id that is a number may carry zeros in front, as COCO's file names do. Errors: DataError.
    """
    number = str(int(sample_id)) if sample_id.isdecimal() else sample_id
    boxes = proposals.get(sample_id, proposals.get(number))
    if boxes is None:
        known = next(iter(proposals), "none")
        raise DataError(
            f"{path}: holds no box for image `{sample_id}`; its `image_id`s are such as `{known}`"
        )
    return boxes


def grid(height: int, width: int, count: int, min_side: float = 1.0) -> np.ndarray:
    """Return at most `count` boxes (N, 4) that cover the image again and again.

    The whole image comes first, whatever its size, then large ones: squares of 1, 0.71, 0.5 and
    0.35 times the image's shorter side, and 2:1 and 1:2 rectangles of the same area, each half over
    its neighbour; none with a side below `min_side`. Of the size that does not fit in any more,
    boxes are taken evenly.
    """
    boxes = {(0, 0, width, height): None}
    for level in range(4):
        side = min(height, width) * 2 ** (-level / 2)
        of_level = {}
        for aspect in (1.0, 2.0, 0.5):
            high = min(height, round(side / math.sqrt(aspect)))
            wide = min(width, round(side * math.sqrt(aspect)))
            if min(high, wide) < max(1.0, min_side):
                continue
            tops = _starts(height, high)
            lefts = _starts(width, wide)
            of_level |= {
                (left, top, left + wide, top + high): None for top in tops for left in lefts
            }
        new = [box for box in of_level if box not in boxes]
        room = max(0, count - len(boxes))
        if len(new) > room:
            new = [new[i] for i in np.linspace(0, len(new) - 1, room).round().astype(int)]
        boxes |= dict.fromkeys(new)
    return np.array(list(boxes), np.float64)[:count]


def _starts(length: int, side: int) -> list[int]:
    """Return the first pixels of the fewest windows over `length` that overlap by half or more."""
    steps = math.ceil((length - side) / (side / 2))
    return np.linspace(0, length - side, steps + 1).round().astype(int).tolist()
