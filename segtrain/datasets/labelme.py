"""A folder of labelme's: `a.json` with polygons beside `a.jpg` (`segtrain dataset=labelme`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from segtrain.data.division import Division, side_of
from segtrain.data.file_sets import MaskSet
from segtrain.data.images import image_size, shown
from segtrain.data.listing import check_split, find_root, subfolders
from segtrain.data.pairing import pair_marked
from segtrain.data.polygons import Shape, drawn, read_marks, with_background
from segtrain.errors import DataError, did_you_mean
from segtrain.structures.labels import LabelMap
from segtrain.structures.samples import IGNORE

VOID = "__ignore__"  # labelme's name for what neither trains nor counts
BACKGROUND = "_background_"


class Labelme(MaskSet):
    """Label maps of `root/<split>/a.json` with `root/<split>/a.jpg`, as labelme writes them.

    With `val_share` or `folds` images and files lie in `root` itself and are divided by their
    names. An image without a file holds no object. `labels` are the names of the classes; without
    them they are those that the files below `root` use, sorted. Background comes first. Polygons
    and rectangles are read, other shapes refused; `__ignore__` is ignored.

    Errors: UserError, DataError.
    """

    def __init__(
        self,
        root: str,
        split: str,
        labels: list[dict | str] | dict | None = None,
        val_share: float | None = None,
        folds: int | None = None,
        fold: int = 0,
    ) -> None:
        base = find_root(root)
        problems: list[str] = []
        table = labels if labels is not None else _names_below(base)
        label_map = with_background(LabelMap.from_table(table, "labelme"))
        division = Division(val_share, folds, fold)
        if not division:
            check_split(split, subfolders(base), shown(base))
        folder = base if division else base / split
        files = pair_marked(folder, folder, ".json", problems, base)
        self._train_id = {name: train for train, name in enumerate(label_map.names)}
        self._train_id |= {VOID: IGNORE, BACKGROUND: 0}
        files = side_of(files, split, division) if division else files
        self._image_of = {pair.annotation: pair.image for pair in files.values()}
        super().__init__(label_map, files, problems, unmarked=0)

    def read_mask(self, path: Path) -> np.ndarray:
        """Return the label map (H, W) uint8 of train ids that a file's objects make."""
        size = image_size(self._image_of[path])
        return drawn(self.shapes(path, size), size)

    def shapes(self, path: Path, size: tuple[int, int]) -> list[Shape]:
        """Return the polygons and rectangles of a file."""
        content = _read(path)
        told = (content.get("imageHeight"), content.get("imageWidth"))
        if told != (None, None) and told != size:
            raise DataError(
                f"{shown(path)}: is of an image of {told[1]} x {told[0]} pixels, but its image has "
                f"{size[1]} x {size[0]}"
            )
        return [self._shape(path, number, entry) for number, entry in enumerate(content["shapes"])]

    def _shape(self, path: Path, number: int, entry: Any) -> Shape:
        where = f"{shown(path)}, shape {number}"
        name = entry.get("label") if isinstance(entry, dict) else None
        if name not in self._train_id:
            hint = did_you_mean(str(name), self._train_id)
            raise DataError(
                f"{where}: label `{name}` is no class; there are {', '.join(self.labels.names)}"
                f"{hint and '.' + hint}"
            )
        kind = entry.get("shape_type", "polygon")
        points = entry.get("points")
        if not _are_points(points):
            raise DataError(f"{where}: `points` is no list of [x, y]")
        if kind == "rectangle" and len(points) == 2:
            (x1, y1), (x2, y2) = points
            points = [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]
        elif kind != "polygon" or len(points) < 3:
            raise DataError(
                f"{where}: is a {kind} of {len(points)} points; outline it as a polygon"
            )
        return Shape(self._train_id[name], [float(value) for point in points for value in point])


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_marks(path))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{shown(path)}: is no JSON file ({error})") from None
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise DataError(f"{shown(path)}: is no file of labelme's: it has no list `shapes`")
    return content


def _are_points(points: Any) -> bool:
    return isinstance(points, list) and all(
        isinstance(point, list)
        and len(point) == 2
        and all(type(value) in (int, float) and abs(value) < 1e7 for value in point)
        for point in points
    )


def _names_below(base: Path) -> list[str]:
    """Return the labels that the files below a folder use, sorted. Errors: DataError for none."""
    names = {
        str(entry["label"])
        for path in sorted(base.rglob("*.json"))
        if not path.name.startswith(".")
        for entry in _read(path)["shapes"]
        if isinstance(entry, dict) and "label" in entry
    }
    if not (kept := sorted(names - {VOID, BACKGROUND, "background"})):
        raise DataError(f"{shown(base)}: holds no files of labelme's with a labelled shape")
    return kept
