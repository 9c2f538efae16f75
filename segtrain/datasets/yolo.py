"""A folder for YOLO's segmentation: a line `class x1 y1 x2 y2 ...` an object (`dataset=yolo`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from segtrain.data.file_sets import (
    MaskSet,
    Unmarked,
    marked,
    unmarked_doubts,
    unsized_doubts,
)
from segtrain.data.images import image_size, shown
from segtrain.data.layouts import split_folders
from segtrain.data.listing import find_root
from segtrain.data.pairing import pair_marked
from segtrain.data.polygons import MAX_FILE_BYTES, Shape, drawn, read_marks, with_background
from segtrain.errors import DataError, UserError
from segtrain.structures.labels import LabelMap, Table, read_list

LEAST_POINTS = 3
ROUNDING = 1e-3  # of the image, by which tools write coordinates outside of it. Chosen by hand.
YAMLS = ("data.yaml", "data.yml")
LISTS = ("classes.txt", "obj.names")  # of names, as labelling tools write them beside the labels
NO_LABELS = ("classes", "labels", "names")  # files among the labels that are of no image


class Yolo(MaskSet):
    """Label maps of YOLO's polygons, in the folders of Ultralytics or of Roboflow.

    These are `images/<split>/a.jpg` with `labels/<split>/a.txt`, and `<split>/images/a.jpg` with
    `<split>/labels/a.txt`. Coordinates are shares of the image's width and height, from 0 to 1. An
    image without a file holds no object where `unmarked` is `background`, and does not belong to
    the data set where it is `leave_out`. `labels` are the names of the classes in the order of
    their numbers; without them they are `names` of `root/data.yaml`, else the lines of
    `classes.txt` or `obj.names` in `root` or among the labels. Background comes first here.

    Errors: UserError, DataError.
    """

    def __init__(
        self,
        root: str,
        split: str,
        labels: list[dict | str] | dict | None = None,
        unmarked: Unmarked = "background",
    ) -> None:
        base = find_root(root)
        problems: list[str] = []
        photos, notes = split_folders(base, split, ("images", "labels"), fixed=True)
        table = labels if labels is not None else _names(base, notes, problems)
        own = LabelMap.from_table(table, "yolo")
        label_map = with_background(own)
        self._class_of = {
            raw: label_map.names.index(own.names[train]) for raw, train in own.raw.items()
        }
        pairs = pair_marked(photos, notes, ".txt", problems, base, NO_LABELS)
        files = marked(pairs, unmarked)
        self._image_of = {pair.annotation: pair.image for pair in files.values()}
        super().__init__(label_map, files, problems, unmarked=0)

    def read_mask(self, path: Path) -> np.ndarray:
        """Return the label map (H, W) uint8 of train ids that a file's objects make."""
        size = image_size(self._image_of[path])
        return drawn(self.shapes(path, size), size)

    def doubts(self, index: int) -> Sequence[str]:
        """Return the doubts: no file, or a turned photo, which shares fit before and after."""
        image, path = self.files(index)
        return unmarked_doubts(".txt") if path is None else unsized_doubts(image)

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
        if not all(-ROUNDING <= value <= 1 + ROUNDING for value in values):
            raise DataError(
                f"{where}: coordinates are shares of the image, from 0 to 1; these are pixels, or "
                "lie outside"
            )
        height, width = size
        inside = [min(max(value, 0.0), 1.0) for value in values]
        scaled = [value * (height if place % 2 else width) for place, value in enumerate(inside)]
        return Shape(self._class_of[number], scaled)


def _names(base: Path, notes: Path, problems: list[str]) -> Table:
    """Return the names in data.yaml, else in a list of names. Errors: UserError, DataError."""
    file = next((base / name for name in YAMLS if (base / name).is_file()), base / YAMLS[0])
    lists = [folder / name for folder in (base, base / "labels", notes) for name in LISTS]
    if not file.is_file() and (there := [path for path in lists if path.is_file()]):
        return read_list(there[0])
    try:
        content = yaml.safe_load(file.read_bytes()[:MAX_FILE_BYTES])
        names = content["names"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        yamls = [p for p in sorted(base.glob("*.y*ml")) if p != file]
        other = f"{shown(yamls[0])} is there: name it data.yaml, or " if yamls else ""
        raise UserError(
            f"{shown(file)}: names no classes; {other}set dataset.labels=[person,car,...] in the "
            "order of their numbers"
        ) from None
    if isinstance(names, list | dict) and content.get("nc", len(names)) != len(names):
        problems.append(f"{shown(file)}: nc is {content['nc']}, but there are {len(names)} names")
    if isinstance(names, list):  # numbers as names are text
        return [str(name) if type(name) in (int, float) else name for name in names]
    return names
