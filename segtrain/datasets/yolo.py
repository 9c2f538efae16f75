"""A folder for YOLO's segmentation: a line `class x1 y1 x2 y2 ...` an object (`dataset=yolo`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml

from segtrain.data.file_sets import MaskSet
from segtrain.data.images import image_size, shown
from segtrain.data.listing import check_split, find_root, subfolders
from segtrain.data.pairing import pair_marked
from segtrain.data.polygons import MAX_FILE_BYTES, Shape, drawn, read_marks, with_background
from segtrain.errors import DataError, UserError
from segtrain.structures.labels import LabelMap, Table

LEAST_POINTS = 3


class Yolo(MaskSet):
    """Label maps of `images/<split>/a.jpg` with `labels/<split>/a.txt`, or `<split>/images` with
    `<split>/labels`, as Ultralytics and Roboflow lay them out.

    Coordinates are shares of the image's width and height, from 0 to 1. An image without a file
    holds no object. `labels` are the names of the classes in the order of their numbers; without
    them they are `names` of `root/data.yaml`. Background comes first here.

    Errors: UserError, DataError.
    """

    def __init__(
        self, root: str, split: str, labels: list[dict | str] | dict | None = None
    ) -> None:
        base = find_root(root)
        problems: list[str] = []
        table = labels if labels is not None else _names(base)
        own = LabelMap.from_table(table, "yolo")
        label_map = with_background(own)
        self._class_of = {
            raw: label_map.names.index(own.names[train]) for raw, train in own.raw.items()
        }
        photos, notes = _folders(base, split)
        files = pair_marked(photos, notes, ".txt", problems, base)
        self._image_of = {pair.annotation: pair.image for pair in files.values()}
        super().__init__(label_map, files, problems, unmarked=0)

    def read_mask(self, path: Path) -> np.ndarray:
        """Return the label map (H, W) uint8 of train ids that a file's objects make."""
        size = image_size(self._image_of[path])
        return drawn(self.shapes(path, size), size)

    def shapes(self, path: Path, size: tuple[int, int]) -> list[Shape]:
        """Return the polygons of a file."""
        try:
            lines = read_marks(path).splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{shown(path)}: cannot be read ({type(error).__name__})") from None
        words = [(number, line.split()) for number, line in enumerate(lines, 1)]
        return [
            self._shape(f"{shown(path)}, line {number}", line, size)
            for number, line in words
            if line
        ]

    def _shape(self, where: str, words: list[str], size: tuple[int, int]) -> Shape:
        try:
            number = int(words[0])
            values = [float(word) for word in words[1:]]
        except ValueError:
            raise DataError(f"{where}: is not `class x1 y1 x2 y2 ...`") from None
        if number not in self._class_of:
            there = ", ".join(self.labels.names[1:])
            raise DataError(f"{where}: class {number} has no name; there are {there}")
        if len(values) == 4:
            raise DataError(f"{where}: is a box; segmentation needs the outline of the object")
        if len(values) < 2 * LEAST_POINTS or len(values) % 2:
            raise DataError(f"{where}: {len(values)} numbers make no polygon of x y pairs")
        if not all(0 <= value <= 1 for value in values):
            raise DataError(
                f"{where}: coordinates are shares of the image, from 0 to 1; these are pixels, or "
                "lie outside"
            )
        height, width = size
        scaled = [value * (height if place % 2 else width) for place, value in enumerate(values)]
        return Shape(self._class_of[number], scaled)


def _folders(base: Path, split: str) -> tuple[Path, Path]:
    """Return the folders of images and of their files. Errors: UserError."""
    outer = [name for name, folder in subfolders(base).items() if (folder / "images").is_dir()]
    inner = subfolders(base / "images")
    check_split(split, {*outer, *inner}, f"{base / 'images'} and {base}/*/images")
    if split in inner:
        return base / "images" / split, base / "labels" / split
    return base / split / "images", base / split / "labels"


def _names(base: Path) -> Table:
    """Return the names in data.yaml. Errors: UserError."""
    file = base / "data.yaml"
    try:
        text = file.read_bytes()[:MAX_FILE_BYTES].decode()
        names = yaml.safe_load(text)["names"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        raise UserError(
            f"{shown(file)}: names no classes; set dataset.labels=[person,car,...] in the order of "
            "their numbers"
        ) from None
    return names
