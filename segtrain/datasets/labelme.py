"""A folder of labelme's: `a.json` with polygons beside `a.jpg` (`segtrain dataset=labelme`)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from segtrain.data.division import Division, side_of
from segtrain.data.file_sets import (
    MaskSet,
    Unmarked,
    marked,
    unmarked_doubts,
    unsized_doubts,
)
from segtrain.data.images import image_size, shown, turned_hint
from segtrain.data.listing import check_split, find_root, list_files, subfolders
from segtrain.data.pairing import pair_marked
from segtrain.data.polygons import Shape, drawn, read_marks, with_background
from segtrain.errors import DataError, UserError, did_you_mean
from segtrain.structures.labels import LabelMap
from segtrain.structures.samples import IGNORE

SLIP = 5  # times as often as a misspelt label is the right one. Chosen by hand.
NEAR = 0.8  # difflib's ratio: `persn` and `person` have 0.91, `car` and `cat` 0.67
VOID = "__ignore__"  # labelme's name for what neither trains nor counts
BACKGROUND = "_background_"
LEAST_POINTS = 3


class Labelme(MaskSet):
    """Label maps of `root/<split>/a.json` with `root/<split>/a.jpg`, as labelme writes them.

    With `val_share` or `folds` images and files lie in `root` itself and are divided by their
    names. An image without a file holds no object where `unmarked` is `background`, and does not
    belong to the data set where it is `leave_out`. `labels` are the names of the classes, in any
    case; without them they are those that the files below `root` use, sorted. Background comes
    first. Polygons and rectangles are read, other shapes refused; `__ignore__` is ignored. Other
    .json files are left out, but beside an image of their name.

    Errors: UserError, DataError.
    """

    def __init__(
        self,
        root: str,
        split: str,
        labels: list[dict | str] | dict | None = None,
        unmarked: Unmarked = "background",
        val_share: float | None = None,
        folds: int | None = None,
        fold: int = 0,
    ) -> None:
        base = find_root(root)
        problems: list[str] = []
        counts = _labels_below(base) if labels is None else Counter()
        self._slips = _slips(counts)
        table = labels if labels is not None else sorted(counts)
        label_map = with_background(LabelMap.from_table(table, "labelme"))
        division = Division(val_share, folds, fold)
        if not division:
            if not subfolders(base) and list_files(base, []):
                raise UserError(
                    f"{shown(base)}: no split `{split}`, its images have no folders of splits; set "
                    "dataset.val_share=0.2 (a share of the images for validation)"
                )
            check_split(split, subfolders(base), shown(base))
        folder = base if division else base / split
        files = pair_marked(folder, folder, ".json", problems, base, _foreign(folder))
        self._train_id = {_plain(name): train for train, name in enumerate(label_map.names)}
        self._train_id |= {VOID: IGNORE, BACKGROUND: 0}
        files = side_of(files, split, division) if division else files
        files = marked(files, unmarked)
        self._image_of = {pair.annotation: pair.image for pair in files.values()}
        super().__init__(label_map, files, problems, unmarked=0)

    def read_mask(self, path: Path) -> np.ndarray:
        """Return the label map (H, W) uint8 of train ids that a file's objects make."""
        size = image_size(self._image_of[path])
        return drawn(self.shapes(path, size), size)

    def doubts(self, index: int) -> Sequence[str]:
        """Return the doubts: no file, a slip of the pen, a turned photo without a size."""
        image, path = self.files(index)
        if path is None:
            return unmarked_doubts(".json")
        content = _read(path)
        found = {label for entry in content["shapes"] if (label := _label(entry)) in self._slips}
        slips = [
            f"the label `{label}` is nearly `{self._slips[label]}`, and a class of its own; "
            "dataset.labels=[NAME,...] refuses what it does not list"
            for label in sorted(found)
        ]
        return [*slips, *(unsized_doubts(image) if _size(content) == (None, None) else ())]

    def shapes(self, path: Path, size: tuple[int, int]) -> list[Shape]:
        """Return the polygons and rectangles of a file."""
        content = _read(path)
        self._check_image(path, content.get("imagePath"))
        told = _size(content)
        if told != (None, None) and told != size:
            raise DataError(
                f"{shown(path)}: is of an image of {told[1]} x {told[0]} pixels, but its image has "
                f"{size[1]} x {size[0]}{turned_hint(self._image_of[path], told)}"
            )
        shapes = [
            self._shape(path, number, entry) for number, entry in enumerate(content["shapes"])
        ]
        if shapes and max(size) > 2 and max(max(shape.polygon) for shape in shapes) <= 1:
            raise DataError(
                f"{shown(path)}: none of its points lies beyond the first pixel; coordinates from "
                "0 to 1? labelme's are in pixels: multiply x by the width of the image, y by the "
                "height"
            )
        return shapes

    def _check_image(self, path: Path, named: Any) -> None:
        """Refuse a file that is of another image which is there too. Errors: DataError.

        A name of an image that is not there is one from before the files were renamed.
        """
        image = self._image_of[path]
        name = PureWindowsPath(named).name if isinstance(named, str) else ""
        if name and name.casefold() != image.name.casefold() and (path.parent / name).is_file():
            raise DataError(
                f"{shown(path)}: its imagePath says that it is of `{name}`, which is there too; "
                f"name the file as its image, or write `{image.name}` there"
            )

    def _shape(self, path: Path, number: int, entry: Any) -> Shape:
        where = f"{shown(path)}, shape {number}"
        name = _label(entry)
        if name is None:
            raise DataError(f"{where}: has no `label`")
        if _plain(name) not in self._train_id:
            raise DataError(
                f"{where}: label `{name}` is no class; there are {', '.join(self.labels.names)}."
                f"{did_you_mean(name, self.labels.names)}".removesuffix(".")
            )
        kind = entry.get("shape_type") or "polygon"
        points = entry.get("points")
        if not _are_points(points):
            raise DataError(f"{where}: `points` is no list of [x, y]")
        if kind == "rectangle" and (corners := _corners(points)):
            (x1, y1), (x2, y2) = corners
            points = [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]
        elif kind != "polygon":
            raise DataError(
                f"{where}: is a {kind} of {len(points)} points; outline it as a polygon"
            )
        elif len(points) < LEAST_POINTS:
            raise DataError(
                f"{where}: is a polygon of {len(points)} points; it needs {LEAST_POINTS}"
            )
        values = [float(value) for point in points for value in point]
        return Shape(self._train_id[_plain(name)], values)


def _label(entry: Any) -> str | None:
    """Return the label of a shape as text; None where it has none."""
    label = entry.get("label") if isinstance(entry, dict) else None
    return str(label).strip() if type(label) in (str, int, float) else None


def _plain(name: str) -> str:
    return " ".join(name.split()).casefold()


def _size(content: dict[str, Any]) -> tuple[Any, Any]:
    """Return the height and width that a file holds of its image, None for what it lacks."""
    told = [content.get(key) for key in ("imageHeight", "imageWidth")]
    height, width = (int(v) if isinstance(v, str) and v.strip().isdecimal() else v for v in told)
    return height, width


def _read(path: Path) -> dict[str, Any]:
    content = _json(path)
    if not _is_labelmes(content):
        raise DataError(f"{shown(path)}: is no file of labelme's: it has no list `shapes`")
    return content


def _json(path: Path) -> Any:
    try:
        return json.loads(read_marks(path))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{shown(path)}: is no JSON file ({error})") from None


def _is_labelmes(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("shapes"), list)


def _are_points(points: Any) -> bool:
    return isinstance(points, list) and all(
        isinstance(point, list)
        and len(point) == 2
        and all(type(value) in (int, float) and abs(value) < 1e7 for value in point)
        for point in points
    )


def _corners(points: list[list[float]]) -> list[list[float]]:
    """Return two opposite corners of a rectangle, [] where its points are not those of one.

    Newer versions write all four; sides that are not along the axes make no rectangle here.
    """
    if len(points) == 2:
        return points
    if len(points) != 4:
        return []
    (x1, y1), _, (x2, y2), _ = points
    either = ([[x2, y1], [x1, y2]], [[x1, y2], [x2, y1]])  # one way round, or the other
    return points[::2] if [points[1], points[3]] in either else []


def _foreign(folder: Path) -> set[str]:
    """Return the names of the .json files without an image that another program wrote."""
    if not folder.is_dir():
        return set()
    images = list_files(folder, [])
    others = [
        path for path in _json_files(folder.glob("*.json"), folder) if path.stem not in images
    ]
    return {path.stem for path in others if (content := _whole(path)) and not _is_labelmes(content)}


def _json_files(paths: Iterable[Path], base: Path) -> list[Path]:
    """Return files below `base` that neither are hidden nor lie in a hidden folder, sorted."""
    return sorted(
        path
        for path in paths
        if not any(part.startswith((".", "__MACOSX")) for part in path.relative_to(base).parts)
    )


def _whole(path: Path) -> Any:
    """Return what a file holds, None for one that cannot be read: that is told where it is used."""
    try:
        return _json(path)
    except DataError:
        return None


def _labels_below(base: Path) -> Counter[str]:
    """Return the labels that the files below a folder use, and how often.

    Errors: DataError for none, or two that differ only in case.
    """
    contents = map(_whole, _json_files(base.rglob("*.json"), base))
    labels = Counter(
        label
        for content in contents
        if _is_labelmes(content)
        for entry in content["shapes"]
        if (label := _label(entry)) and _plain(label) not in (VOID, BACKGROUND, "background")
    )
    if not labels:
        raise DataError(f"{shown(base)}: holds no files of labelme's with a labelled shape")
    spelled: dict[str, str] = {}
    for name in sorted(labels):
        first = spelled.setdefault(_plain(name), name)
        if first != name:
            raise DataError(
                f"{shown(base)}: its files have the labels `{first}` and `{name}`; with one of "
                f"them in dataset.labels=[{first},...] both are read as that"
            )
    return labels


def _slips(counts: Counter[str]) -> dict[str, str]:
    """Return the rare labels that differ by a letter or so from a frequent one, with that."""
    return {
        rare: near[0]
        for rare, count in counts.items()
        if (frequent := [name for name in counts if counts[name] >= SLIP * count])
        and (near := get_close_matches(rare, frequent, n=1, cutoff=NEAR))
    }
