"""Images with a file of polygons each, drawn into label maps as COCO's polygons are."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from segtrain.data.file_sets import MaskSet
from segtrain.data.images import image_size
from segtrain.data.painting import painted
from segtrain.structures import run_lengths
from segtrain.structures.labels import LabelMap
from segtrain.structures.samples import IGNORE, Files

MAX_FILE_BYTES = 64 << 20  # of one image's polygons; more is no annotation that a person made


class Shape(NamedTuple):
    """One object: its train id (or IGNORE), and a polygon [x1, y1, x2, y2, ...] in pixels."""

    label: int
    polygon: list[float]


class PolygonSet(MaskSet):
    """Hold what data sets of images with a file of polygons each have in common.

    Train id 0 is background, all that nobody outlined. Where objects overlap the smaller one is on
    top (`painting.painted`). `files` may have images without a file: they hold no object.
    """

    def __init__(self, labels: LabelMap, files: Mapping[str, Files], problems: list[str]) -> None:
        super().__init__(labels, files, problems)
        self._image_of = {pair.annotation: pair.image for pair in files.values()}

    @abstractmethod
    def shapes(self, path: Path, size: tuple[int, int]) -> list[Shape]:
        """Return the objects in the file of an image of `size` (height, width).

        Errors: DataError.
        """

    def read_mask(self, path: Path) -> np.ndarray:
        """Return the label map (H, W) uint8 of train ids that the file's objects make."""
        size = image_size(self._image_of[path])
        shapes = self.shapes(path, size)
        masks = [run_lengths.from_polygons([shape.polygon], size) for shape in shapes]
        labels = np.array([shape.label for shape in shapes], np.uint8)
        return painted(masks, labels, run_lengths.areas(masks), np.zeros(len(masks), bool), size)

    def _encoded(self, files: Files, mask: np.ndarray | None) -> np.ndarray:
        if files.annotation is None:
            return np.zeros(image_size(files.image), np.uint8)
        return super()._encoded(files, mask)


def with_background(labels: LabelMap) -> LabelMap:
    """Return a map whose class 0 is background, before those of `labels` unless it has one."""
    if labels.names[0] == "background":
        return labels.contiguous()
    classes = labels.num_classes + 1
    return LabelMap(
        labels.name,
        ("background", *labels.names),
        ((0, 0, 0), *labels.colors),
        {train: train for train in range(classes)} | {IGNORE: IGNORE},
    )
