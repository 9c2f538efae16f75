"""Draw polygons into label maps, as COCO's are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from segtrain.data.images import shown
from segtrain.data.painting import painted
from segtrain.errors import DataError
from segtrain.structures import run_lengths
from segtrain.structures.labels import LabelMap
from segtrain.structures.samples import IGNORE

BACKGROUND = "background"
MAX_FILE_BYTES = 64 << 20  # of one image's polygons; more is no annotation that a person made


class Shape(NamedTuple):
    """One object: its train id (or IGNORE), and a polygon [x1, y1, x2, y2, ...] in pixels."""

    label: int
    polygon: list[float]


def read_marks(path: Path) -> str:
    """Return the text of one image's file of marks.

    Errors: DataError for one that is too large; OSError, UnicodeDecodeError.
    """
    if path.stat().st_size > MAX_FILE_BYTES:
        raise DataError(f"{shown(path)}: is larger than {MAX_FILE_BYTES >> 20} MiB")
    return path.read_text(encoding="utf-8-sig")


def drawn(shapes: Sequence[Shape], size: tuple[int, int]) -> np.ndarray:
    """Return the label map (H, W) uint8 of train ids that objects in an image of `size` make.

    Train id 0 is background, all that nobody outlined. Where objects overlap the smaller one is on
    top (`painting.painted`).
    """
    masks = [run_lengths.from_polygons([shape.polygon], size) for shape in shapes]
    labels = np.array([shape.label for shape in shapes], np.uint8)
    return painted(masks, labels, np.zeros(len(masks), bool), size)


def with_background(labels: LabelMap) -> LabelMap:
    """Return a map whose class 0 is background, before those of `labels`.

    Where one of those is called so, in any case, it is the one, under its own name.
    """
    own = [name for name in labels.names if name.casefold() == BACKGROUND]
    if own:
        others = [name for name in labels.names if name not in own]
        return labels.in_order([*own, *others]).contiguous()
    classes = labels.num_classes + 1
    return LabelMap(
        labels.name,
        (BACKGROUND, *labels.names),
        ((0, 0, 0), *labels.colors),
        {train: train for train in range(classes)} | {IGNORE: IGNORE},
    )
