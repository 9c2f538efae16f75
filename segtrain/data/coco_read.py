"""Read a COCO annotation file entry by entry into flat columns.

So it never stands in memory as a whole.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, TextIO

from segtrain.data.images import MAX_PIXELS, shown
from segtrain.errors import DataError
from segtrain.structures import run_lengths

# Characters of the file in memory at a time. Chosen by hand: many entries, and little memory.
CHUNK = 1 << 22
MAX_NUMBER = 1e15  # beyond any coordinate or area; also refuses nan and infinity
MAX_SHOWN = 60  # characters of a wrong value in a message
AFTER_NUMBER = tuple(" \t\r\n,]}")
SPACE = re.compile(r"[ \t\r\n]*")


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
        with open(path, encoding="utf-8-sig") as file:
            entries = Entries(file)
            for table, entry in entries:
                if table in tables:
                    add[table](entry)
    except OSError as error:
        raise DataError(f"{shown(path)}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        where = f"after {entries.before + entries.at:,} characters"
        reason = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise DataError(f"{shown(path)}: not whole, or no JSON: {reason} ({where})") from error
    for table in tables:
        if table not in entries.tables:
            there = ", ".join(f"`{name}`" for name in entries.tables) or "none"
            raise DataError(
                f"{shown(path)}: no COCO annotation file: it has no list `{table}`, but {there}"
            )
    return columns


class Entries:
    """Iterate (table, entry) over the lists of a JSON object, one entry at a time.

    Other values are passed over. Errors: ValueError or RecursionError where the text is no JSON
    object.
    """

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.decode = json.JSONDecoder().raw_decode
        self.text = ""  # a piece of the file
        self.at = 0  # offset in the piece
        self.before = 0  # characters before the piece
        self.tables: list[str] = []

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        self.need("{")
        for _ in self.items("}"):
            key = self.value()
            if not isinstance(key, str):
                raise ValueError(f"`{key}` stands where a name must stand")
            self.need(":")
            if not self.take("["):
                self.value()
                continue
            self.tables.append(key)
            for _ in self.items("]"):
                yield key, self.value()
        if self.peek():
            raise ValueError(f"`{self.peek()}` after the end")

    def items(self, end: str) -> Iterator[None]:
        """Yield before each item of a list or object whose opening bracket has been passed."""
        if self.take(end):
            return
        yield
        while not self.take(end):
            self.need(",")
            yield

    def peek(self) -> str:
        """Skip spaces, and return the next character without passing it.

        It reads on where the piece ends, and returns '' at the end of the file.
        """
        while True:
            space = SPACE.match(self.text, self.at)
            self.at = space.end() if space else self.at
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def take(self, character: str) -> bool:
        """Pass the next character if it is this one, and tell whether it is."""
        is_next = self.peek() == character
        self.at += is_next
        return is_next

    def need(self, character: str) -> None:
        """Pass this character. Errors: ValueError where another is next."""
        if not self.take(character):
            raise ValueError(f"expected `{character}`, found `{self.peek()}`")

    def value(self) -> Any:
        """Return the next value, decoded, and pass it; read on where the piece ends within it."""
        self.peek()
        while True:
            try:
                value, end = self.decode(self.text, self.at)
            except json.JSONDecodeError:
                if not self.more():
                    raise
                continue
            # A number may go on in the next piece: 1, 1. and 1.5 all are numbers.
            number = isinstance(value, int | float) and self.text[end : end + 1] not in AFTER_NUMBER
            if number and self.more():
                continue
            self.at = end
            return value

    def more(self) -> bool:
        """Read the next piece, and tell whether there was one; at the end nothing changes."""
        piece = self.file.read(CHUNK)
        if piece:
            self.text = self.text[self.at :] + piece
            self.before += self.at
            self.at = 0
        return bool(piece)


class Columns:
    """Collect images and objects in columns, one row each.

    What has no usable form is noted in `problems` and left out. Arrays of `..._stops` hold where
    the parts of a column end, with a 0 in front.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.problems: list[str] = []
        self.empty: list[str] = []  # a line for each object without a segmentation
        self.categories: list[Any] = []
        self.refused: set[int] = set()  # ids of images that were left out
        self.image_ids = array("q")
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

    def add_image(self, entry: Any) -> None:
        """Add one entry of `images`."""
        fault = _image_fault(entry)
        if fault:
            self.problems.append(f"{self.where}: image {_id(entry)}: {fault}")
            if isinstance(entry, dict) and _whole(entry.get("id")):
                self.refused.add(entry["id"])
            return
        self.image_ids.append(entry["id"])
        self.heights.append(entry["height"])
        self.widths.append(entry["width"])
        self.names += entry["file_name"].encode("utf-8")
        self.name_stops.append(len(self.names))

    def add_annotation(self, entry: Any) -> None:
        """Add one entry of `annotations`."""
        fault = _object_fault(entry)
        if fault:
            self.problems.append(f"{self.where}: annotation {_id(entry)}: {fault}")
            return
        self.ids.append(entry["id"])
        self.images.append(entry["image_id"])
        self.object_categories.append(entry["category_id"])
        self.crowd.append(entry.get("iscrowd") or 0)
        self.areas.append(entry["area"])
        self.boxes.extend(entry["bbox"])
        mask = entry.get("segmentation")
        size = (0, 0)
        if isinstance(mask, dict):
            fault, size = self._add_runs(mask.get("size"), mask.get("counts"))
        elif mask:
            fault = self._add_polygons(mask)
        self.rle_sizes.extend(size)
        self.mask_stops.append(len(self.polygon_stops) - 1)
        self.count_stops.append(len(self.counts))
        where = f"{self.where}: annotation {entry['id']} (image {entry['image_id']})"
        if fault:
            self.problems.append(f"{where}: {fault}")
        elif not mask:
            self.empty.append(f"{where}: has no segmentation")

    def _add_polygons(self, polygons: Any) -> str:
        """Add polygons; return what is wrong with them, or ''."""
        listed: list[Any] = polygons if isinstance(polygons, list) else [None]
        if all(map(_number, listed)):
            listed = [listed]  # one polygon with a bracket too few means nothing else
        for polygon in listed:
            try:
                points: array[float] = array("d", polygon)
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


def _image_fault(entry: Any) -> str:
    """Return what is wrong with an entry of `images`, or ''."""
    if not isinstance(entry, dict) or not _whole(entry.get("id")):
        return "`id` must be an integer"
    height = entry.get("height")
    width = entry.get("width")
    name = entry.get("file_name")
    whole = _whole(height) and _whole(width)
    if not whole or min(height, width) <= 0 or height * width > MAX_PIXELS:
        return f"height {_short(height)} and width {_short(width)} are no image size"
    if not isinstance(name, str) or not name or "\0" in name or not _encodes(name):
        return f"`file_name` is {_short(name)}"
    return ""


def _object_fault(entry: Any) -> str:
    """Return what is wrong with the numbers of an entry of `annotations`, or ''."""
    if not isinstance(entry, dict):
        return "is no table"
    for key in ("id", "image_id", "category_id"):
        if not _whole(entry.get(key)):
            return f"`{key}` is {_short(entry.get(key))}, but must be an integer"
    crowd = entry.get("iscrowd")  # some tools write null
    if crowd is not None and (type(crowd) not in (int, bool) or crowd not in (0, 1)):
        return f"`iscrowd` is {_short(crowd)}, but must be 0 or 1"
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_number, box)):
        return f"`bbox` is {_short(box)}, but must be [x, y, width, height]"
    if not _number(entry.get("area")):
        return f"`area` is {_short(entry.get('area'))}, but must be a number"
    return ""


def _id(entry: Any) -> str:
    return _short(entry.get("id")) if isinstance(entry, dict) else _short(entry)


def _whole(value: Any) -> bool:
    return type(value) is int and abs(value) < 1 << 62  # the columns hold 64 bits


def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < MAX_NUMBER


def _encodes(name: str) -> bool:
    """Tell whether a file name can hold it: not half of a surrogate pair, which JSON can spell."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _short(value: Any) -> str:
    text = "missing" if value is None else json.dumps(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."
