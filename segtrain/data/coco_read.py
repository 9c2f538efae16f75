"""Read a COCO annotation file entry by entry into flat columns.

So it never stands in memory as a whole.
"""

from __future__ import annotations

import itertools
import json
import math
from array import array
from collections.abc import Collection
from pathlib import Path
from typing import Any

from segtrain.data.coco_ids import Ids, is_plain
from segtrain.data.images import MAX_PIXELS, shown
from segtrain.data.json_entries import Entries
from segtrain.errors import DataError
from segtrain.structures import run_lengths

MAX_NUMBER = 1e15  # beyond any coordinate or area; also refuses nan and infinity
MAX_SHOWN = 60  # characters of a wrong value in a message
NO_BOX = (math.nan,) * 4
MARKS = (b"\xff\xfe", b"\xfe\xff")  # with which a file of UTF-16 begins, as Notepad writes it


def read_columns(path: Path, tables: Collection[str]) -> Columns:
    """Return the entries of these tables.

    Errors: DataError where the file cannot be read, is no JSON, or lacks one of them.
    """
    columns = Columns(shown(path))
    add = {
        "images": columns.add_image,
        "annotations": columns.add_annotation,
        "categories": columns.categories.append,
    }
    if not path.is_file():
        raise DataError(f"{shown(path)}: no such annotation file")
    try:
        with open(path, encoding=_encoding(path)) as file:
            entries = Entries(file)
            for table, entry in entries:
                if table in tables:
                    add[table](entry)
    except OSError as error:
        raise DataError(f"{shown(path)}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{shown(path)}: not whole, or no JSON: {entries.fault(error)}") from error
    for table in tables:
        if table not in entries.tables:
            there = ", ".join(f"`{name}`" for name in entries.tables) or "none"
            raise DataError(
                f"{shown(path)}: no COCO annotation file: it has no list `{table}`, but {there}"
            )
    columns.sort_ids()
    return columns


def _encoding(path: Path) -> str:
    with open(path, "rb") as file:
        return "utf-16" if file.read(2) in MARKS else "utf-8-sig"


class Columns:
    """Collect images and objects in columns, one row each.

    What has no usable form is noted in `problems` and left out. Arrays of `..._stops` hold where
    the parts of a column end, with a 0 in front. Ids are numbers of `known`. Where the file says
    nothing a height and width are 0, boxes and areas nan.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.problems: list[str] = []
        self.categories: list[Any] = []
        self.known = Ids()
        self.refused: set[int] = set()  # ids of images that were left out
        self.annotations = 0  # entries seen
        self.image_ids = array("q")
        self.text_ids = array("q")  # of images, those that the file writes as text
        self.heights = array("i")
        self.widths = array("i")
        self.names = bytearray()
        self.name_stops = array("q", [0])
        self.ids = array("q")
        self.images = array("q")
        self.object_categories = array("q")
        self.crowd = array("b")
        self.areas = array("d")
        self.boxes = array("d")
        self.points = array("d")
        self.polygon_stops = array("q", [0])
        self.mask_stops = array("q", [0])
        self.counts = bytearray()
        self.count_stops = array("q", [0])
        self.rle_sizes = array("i")
        self.empty = array("q")  # rows of objects without a segmentation

    def add_image(self, entry: Any) -> None:
        """Add one entry of `images`."""
        number = self.known.number(entry.get("id")) if isinstance(entry, dict) else None
        size = (0, 0)
        if number is None:
            fault = "`id` must be an integer, or text"
        else:
            size = (_side(entry.get("height")), _side(entry.get("width")))
            fault = _image_fault(entry, size)
        if fault or number is None:
            self.problems.append(f"{self.where}: image {_id(entry)}: {fault}")
            if number is not None:
                self.refused.add(number)
            return
        self.image_ids.append(number)
        if isinstance(entry["id"], str):
            self.text_ids.append(number)
        self.heights.append(size[0])
        self.widths.append(size[1])
        self.names += entry["file_name"].encode("utf-8")
        self.name_stops.append(len(self.names))

    def add_annotation(self, entry: Any) -> None:
        """Add one entry of `annotations`."""
        self.annotations += 1
        fault = _object_fault(entry)
        ids = (0, 0, 0)
        if not fault:
            fault, ids = self._object_ids(entry)
        if fault:
            self.problems.append(f"{self.where}: annotation {self._which(entry)}: {fault}")
            return
        object_id, image_id, category_id = ids
        self.ids.append(object_id)
        self.images.append(image_id)
        self.object_categories.append(category_id)
        self.crowd.append(int(entry.get("iscrowd") or 0))
        area = entry.get("area")
        self.areas.append(math.nan if area is None else area)
        self.boxes.extend(entry.get("bbox") or NO_BOX)
        mask = entry.get("segmentation")
        size = (0, 0)
        if isinstance(mask, dict):
            fault, size = self._add_runs(mask.get("size"), mask.get("counts"))
        elif mask:
            fault = self._add_polygons(mask)
        else:
            self.empty.append(len(self.ids) - 1)
        self.rle_sizes.extend(size)
        self.mask_stops.append(len(self.polygon_stops) - 1)
        self.count_stops.append(len(self.counts))
        if fault:
            image = self.known.shown(image_id)
            which = f"annotation {self._which(entry)} (image {image})"
            self.problems.append(f"{self.where}: {which}: {fault}")

    def sort_ids(self) -> None:
        """Give the ids that are text the order of their text, when all have been read."""
        refused = array("q", self.refused)
        self.known.sort_texts(
            (
                self.image_ids,
                self.text_ids,
                self.ids,
                self.images,
                self.object_categories,
                refused,
            )
        )
        self.refused = set(refused)

    def _object_ids(self, entry: dict[str, Any]) -> tuple[str, tuple[int, int, int]]:
        """Return what is wrong, or '', and the numbers of an annotation, its image and category."""
        own = entry.get("id")
        image = entry.get("image_id")
        category = entry.get("category_id")
        if is_plain(own) and is_plain(image) and is_plain(category):
            return "", (own, image, category)
        numbers = []
        for key in ("id", "image_id", "category_id"):
            value = entry.get(key)
            number = self.known.number(value)
            if key == "id" and value is None:
                number = self.known.missing(self.annotations)
            if number is None:
                return f"`{key}` is {_short(value)}, but must be an integer, or text", (0, 0, 0)
            numbers.append(number)
        return "", (numbers[0], numbers[1], numbers[2])

    def _which(self, entry: Any) -> str:
        """Name an annotation by its id; where it has none, by its place in the list."""
        number = self.known.number(entry.get("id")) if isinstance(entry, dict) else None
        return self.known.shown(self.known.missing(self.annotations) if number is None else number)

    def _add_polygons(self, polygons: Any) -> str:
        """Add polygons; return what is wrong with them, or ''."""
        listed: list[Any] = polygons if isinstance(polygons, list) else [None]
        if all(map(_number, listed)) or (len(listed) > 2 and all(map(_is_point, listed))):
            listed = [listed]  # one polygon with a bracket too few means nothing else
        for polygon in listed:
            pairs = isinstance(polygon, list) and polygon and isinstance(polygon[0], list)
            if pairs and all(map(_is_point, polygon)):  # points in brackets of their own
                polygon = list(itertools.chain(*polygon))
            try:
                points = array("d", polygon)
            except (TypeError, OverflowError):
                return "its polygons are not lists of numbers [[x1, y1, x2, y2, x3, y3, ...], ...]"
            if len(points) < 6 or len(points) % 2:
                return (
                    f"a polygon of {len(points)} numbers; "
                    "three points or more are 6, 8, ... numbers"
                )
            self.points.extend(points)
            self.polygon_stops.append(len(self.points))
        return ""

    def _add_runs(self, size: Any, counts: Any) -> tuple[str, tuple[int, int]]:
        """Add a run-length mask; return what is wrong, or '', and (height, width)."""
        good = (
            isinstance(size, list)
            and len(size) == 2
            and all(type(side) is int and side > 0 for side in size)
        )
        if not good or size[0] * size[1] > MAX_PIXELS:
            return f"run-length mask of size {_short(size)}, expected [height, width]", (0, 0)
        pixels = size[0] * size[1]
        if isinstance(counts, list):
            fits = all(type(run) is int and run >= 0 for run in counts) and sum(counts) == pixels
            counts = run_lengths.from_counts(counts, (size[0], size[1]))["counts"] if fits else None
        elif not isinstance(counts, str) or not _fits(counts, pixels) or _fits(counts, pixels - 1):
            counts = None
        if counts is None:
            return f"the runs of its mask do not add up to its {size[0]} x {size[1]} pixels", (0, 0)
        self.counts += counts.encode("ascii")
        return "", (size[0], size[1])


def _fits(counts: str, pixels: int) -> bool:
    """Tell whether compressed runs are well formed and cover no more than so many pixels."""
    try:
        run_lengths.areas([{"size": [1, pixels], "counts": counts}])
    except ValueError:
        return False
    return True


def _image_fault(entry: dict[str, Any], size: tuple[int, int]) -> str:
    """Return what is wrong with an entry of `images`, or ''; `size` is what it says of it."""
    height, width = size
    if min(size) < 0 or (height == 0) != (width == 0) or height * width > MAX_PIXELS:
        said = [_short(entry.get(key)) for key in ("height", "width")]
        return f"height {said[0]} and width {said[1]} are no image size"
    name = entry.get("file_name")
    if not isinstance(name, str) or not name or "\0" in name or not _encodes(name):
        return f"`file_name` is {_short(name)}"
    return ""


def _side(value: Any) -> int:
    """Return a height or width, which some tools write as 48.0 or "48".

    0 where there is none, -1 where it is no size.
    """
    if value is None:
        return 0
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        value = int(value)
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 < value <= MAX_PIXELS else -1


def _object_fault(entry: Any) -> str:
    """Return what is wrong with the numbers of an entry of `annotations`, or ''."""
    if not isinstance(entry, dict):
        return "is no table"
    crowd = entry.get("iscrowd")
    unusual = type(crowd) not in (int, bool) or crowd not in (0, 1)
    if unusual and crowd not in (None, "0", "1"):  # some tools write these
        return f"`iscrowd` is {_short(crowd)}, but must be 0 or 1"
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_number, box)):
        if box is not None and box != []:
            return f"`bbox` is {_short(box)}, but must be [x, y, width, height]"
        if not entry.get("segmentation"):
            return "has neither `bbox` nor `segmentation`"
    area = entry.get("area")
    if area is not None and not _number(area):
        return f"`area` is {_short(area)}, but must be a number"
    return ""


def _id(entry: Any) -> str:
    return _short(entry.get("id")) if isinstance(entry, dict) else _short(entry)


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_number, value))


def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < MAX_NUMBER


def _encodes(name: str) -> bool:
    """Tell whether a file name can hold it: not half of a surrogate pair, which JSON can spell."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _short(value: Any) -> str:
    text = "missing" if value is None else json.dumps(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."
