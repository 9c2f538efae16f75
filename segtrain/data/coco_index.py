"""Hold a COCO annotation file (Lin et al., ECCV 2014) as flat arrays.

Masks stay as the file has them until they are asked for. train2017 holds 860,001 objects. As
dictionaries they cost gigabytes, and a copy in every loader worker, because counting references
writes to each page that is read. Here the file is read entry by entry, nothing of an object stays a
Python object, and forked workers share the arrays.

I images are sorted by id, N objects by image and then as in the file. Boxes are (x, y, width,
height) in pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segtrain.data.coco_read import Columns, read_columns
from segtrain.data.images import shown
from segtrain.errors import DataError, UserError
from segtrain.structures import run_lengths
from segtrain.structures.instances import Instances, Segments
from segtrain.structures.labels import LabelMap, voc_color

TABLES = ("images", "categories", "annotations")
MAX_OUTSIDE = 1.0  # pixels that a box may reach beyond its image: official boxes are rounded


class CocoIndex:
    """Read `path` once. `problems` names every wrong entry; what can be used of it is kept.

    `labels` maps the file's category ids to train ids; None: the file's own categories, in the
    order of their ids. `labelled` False: a file without annotations, as of a test split. `known`
    are (object id, image id) whose flat box is known and not a problem. Errors: DataError when the
    file is missing, no JSON, or lacks a table.
    """

    def __init__(
        self,
        path: Path,
        labels: LabelMap | None = None,
        labelled: bool = True,
        known: Collection[tuple[int, int]] = (),
    ) -> None:
        read = read_columns(path, TABLES if labelled else TABLES[:2])
        self.path = path
        self.problems = read.problems
        self.labels = labels or _labels(path, read.categories)
        if labels:
            self.problems += _other_names(path, read.categories, labels)
        self._keep_images(read)
        image_of = self._keep_objects(read)
        # (I + 1,): the objects of image i begin at first[i].
        self.first = np.searchsorted(image_of, np.arange(len(self) + 1))
        self._points = np.asarray(read.points)
        self._polygon_stops = np.asarray(read.polygon_stops)
        self._mask_stops = np.asarray(read.mask_stops)
        self._count_stops = np.asarray(read.count_stops)
        self._counts = bytes(read.counts)
        # False: a file of boxes.
        self.masked = bool(len(self._polygon_stops) > 1 or self._counts or not len(self.ids))
        self.problems += read.empty if self.masked else []
        if shares := self._shares():
            self.problems.append(shares)
        self.problems += self._wrong_objects(image_of, known)

    def __len__(self) -> int:
        return len(self.image_ids)

    def _keep_images(self, read: Columns) -> None:
        """Set image_ids, heights, widths (I,) and the names."""
        ids = np.asarray(read.image_ids)
        order = np.argsort(ids, kind="stable")
        again = np.zeros(len(ids), bool)
        again[1:] = ids[order][1:] == ids[order][:-1]
        self.problems += [
            f"{shown(self.path)}: image {i}: this id is used twice"
            for i in ids[order][again].tolist()
        ]
        self._name_of = order[~again]
        self._names = bytes(read.names)
        self._name_stops = np.asarray(read.name_stops)
        self.image_ids = ids[self._name_of]
        self.heights = np.asarray(read.heights)[self._name_of]
        self.widths = np.asarray(read.widths)[self._name_of]

    def _keep_objects(self, read: Columns) -> np.ndarray:
        """Set the columns of objects; return the image (N,) of each, ascending."""
        ids = np.asarray(read.ids)
        images = np.asarray(read.images)
        categories = np.asarray(read.object_categories)
        image_of, has_image = _find(images, self.image_ids)
        legal = np.array(sorted(self.labels.raw), np.int64)
        category, has_category = _find(categories, legal)
        there_is = f"{self.labels.name} has {self.labels.legal()}"
        # The image of these has its line already.
        noted = np.isin(images, np.array(sorted(read.refused), np.int64))
        for k in np.flatnonzero(~has_image & ~noted):
            line = f"belongs to image {images[k]}, which the file does not list"
            self.problems.append(f"{self._object(ids[k], images[k])}: {line}")
        for k in np.flatnonzero(~has_category):
            line = f"category {categories[k]} is unknown, {there_is}"
            self.problems.append(f"{self._object(ids[k], images[k])}: {line}")
        kept = np.flatnonzero(has_image & has_category)
        order = kept[np.argsort(image_of[kept], kind="stable")]
        self._row = order  # of the file; masks are not sorted
        self.ids = ids[order]
        self.areas = np.asarray(read.areas)[order]
        train_ids = np.array([self.labels.raw[raw] for raw in legal.tolist()], np.uint8)
        self.classes = train_ids[category[order]]
        self.boxes = np.asarray(read.boxes).reshape(-1, 4)[order]
        self.crowd = np.asarray(read.crowd)[order].astype(bool)
        self._rle_sizes = np.asarray(read.rle_sizes).reshape(-1, 2)[order]
        return image_of[order]

    def _object(self, object_id: int, image_id: int) -> str:
        return f"{shown(self.path)}: annotation {object_id} (image {image_id})"

    def _wrong_objects(self, image_of: np.ndarray, known: Collection[tuple[int, int]]) -> list[str]:
        """Return a line for every fault that shows only when images and objects are together."""
        height = self.heights[image_of]
        width = self.widths[image_of]
        images = self.image_ids[image_of]
        x, y, w, h = self.boxes.T
        by_id = np.argsort(self.ids, kind="stable")
        again = np.zeros(len(by_id), bool)
        again[by_id[1:]] = self.ids[by_id][1:] == self.ids[by_id][:-1]
        fine = np.zeros(len(by_id), bool)
        for object_id, image_id in known:
            fine |= (self.ids == object_id) & (images == image_id)
        runs = self._rle_sizes.all(1)
        before = (x < -MAX_OUTSIDE) | (y < -MAX_OUTSIDE)
        # In whole files of corners (x1, y1, x2, y2) the second two are larger than the first.
        corners = bool(len(x)) and bool(((w > x) & (h > y)).all())
        way = "; are these corners? `bbox` is [x, y, width, height]" if corners else ""
        beyond = before | (x + w > width + MAX_OUTSIDE) | (y + h > height + MAX_OUTSIDE)
        other = runs & (self._rle_sizes != np.column_stack([height, width])).any(1)
        faults = (
            (again, "this id is used twice"),
            (~fine & ((w <= 0) | (h <= 0)), "box {box} has no width or no height"),
            (
                beyond,
                "box {box} leaves its image of {width} x {height} pixels (width x height)" + way,
            ),
            (~fine & (self.areas <= 0), "area is {area}, but must be above 0"),
            (
                other,
                "run-length mask of {rle} pixels (height, width) in an image of {height} x {width}",
            ),
            (
                self._far_points(height, width),
                "a polygon lies far outside its image of {width} x {height} pixels",
            ),
        )
        lines = []
        for bad, text in faults:
            for k in np.flatnonzero(bad):
                line = text.format(
                    box=self.boxes[k].tolist(),
                    area=self.areas[k],
                    rle=self._rle_sizes[k].tolist(),
                    height=height[k],
                    width=width[k],
                )
                lines.append(f"{self._object(self.ids[k], images[k])}: {line}")
        self._rle_sizes[other] = 0  # such masks cannot be drawn
        return lines

    def _shares(self) -> str:
        """Return a line where boxes are given in shares of the image, or ''."""
        _, _, w, h = self.boxes.T
        if not len(self.boxes) or max(w.max(), h.max()) > 1:
            return ""
        return (
            f"{shown(self.path)}: none of its boxes is larger than one pixel; coordinates from 0 "
            "to 1? COCO's are in pixels: multiply x by the width of the image, y by the height"
        )

    def _far_points(self, height: np.ndarray, width: np.ndarray) -> np.ndarray:
        """Return (N,) bool, which objects have a polygon that lies far outside their image.

        Far is more than the image's own size; drawing such a polygon could take hours.
        """
        if not len(self._points):
            return np.zeros(len(self._row), bool)
        starts = self._polygon_stops[:-1] // 2
        far = np.zeros(len(starts), bool)
        owner = np.repeat(np.arange(len(self._mask_stops) - 1), np.diff(self._mask_stops))
        for axis, size in ((0, width), (1, height)):
            limit = np.full(len(self._mask_stops) - 1, np.inf)
            limit[self._row] = size
            along = self._points[axis::2]
            low = np.minimum.reduceat(along, starts)
            high = np.maximum.reduceat(along, starts)
            # Written so that nan is far.
            far |= ~((low >= -limit[owner]) & (high <= 2 * limit[owner]))
        for polygon in np.flatnonzero(far):
            self._points[self._polygon_stops[polygon] : self._polygon_stops[polygon + 1]] = 0
        return np.isin(self._row, owner[far])

    def ids_of(self, images: np.ndarray) -> list[str]:
        """Return the ids of images as text, by which samples are named."""
        return [str(image_id) for image_id in self.image_ids[images].tolist()]

    def name(self, image: int) -> str:
        """Return the `file_name` of an image."""
        row = self._name_of[image]
        return self._names[self._name_stops[row] : self._name_stops[row + 1]].decode("utf-8")

    def size(self, image: int) -> tuple[int, int]:
        """Return (height, width) of an image."""
        return int(self.heights[image]), int(self.widths[image])

    def sizes(self, images: np.ndarray) -> np.ndarray:
        """Return (N, 2) height and width of images."""
        return np.stack([self.heights[images], self.widths[images]], 1)

    def segments(self, image: int) -> Segments:
        """Return the objects of an image, exactly as the file says.

        `masks` is None where the file holds boxes only.
        """
        rows = slice(self.first[image], self.first[image + 1])
        size = self.size(image)
        masks = [
            self._mask(row, size, rle_size)
            for row, rle_size in zip(self._row[rows], self._rle_sizes[rows], strict=True)
        ]
        return Segments(
            size=size,
            labels=self.classes[rows].astype(np.int64),
            boxes=self.boxes[rows].copy(),
            masks=masks if self.masked else None,
            areas=self.areas[rows].copy(),
            crowd=self.crowd[rows].copy(),
        )

    def instances(self, image: int) -> Instances:
        """Return the objects of an image to learn from, as `to_instances` makes them.

        Errors: DataError where the file holds boxes only.
        """
        return to_instances(self.segments(image), self.path)

    def _mask(self, row: int, size: tuple[int, int], rle_size: np.ndarray) -> run_lengths.Rle:
        """Return the mask in `row` of the file; empty where it has none that can be drawn."""
        first = self._mask_stops[row]
        last = self._mask_stops[row + 1]
        if last > first:
            stops = self._polygon_stops[first : last + 1]
            polygons = [self._points[a:b].tolist() for a, b in itertools.pairwise(stops)]
            return run_lengths.from_polygons(polygons, size)
        if rle_size.all():
            counts = self._counts[self._count_stops[row] : self._count_stops[row + 1]]
            return {"size": list(size), "counts": counts.decode("ascii")}
        return run_lengths.from_counts([size[0] * size[1]], size)


def to_instances(segments: Segments, path: Path) -> Instances:
    """Return dense masks and corner boxes to learn from.

    Left out are objects without a pixel, and with a box of no width or height; `dropped` counts
    them. Crowd regions are kept and marked. Errors: DataError naming the file `path` where it has
    no masks.
    """
    masks = segments.masks
    if masks is None:
        raise DataError(
            f"{shown(path)}: holds boxes and no masks (`segmentation`), which are needed here"
        )
    x, y, w, h = segments.boxes.T
    boxes = np.stack([x, y, x + w, y + h], 1).astype(np.float32)
    kept = np.flatnonzero((run_lengths.areas(masks) > 0) & (boxes[:, 2:] > boxes[:, :2]).all(1))
    crowd = np.zeros(len(segments), bool) if segments.crowd is None else segments.crowd
    return Instances(
        boxes=torch.from_numpy(boxes[kept]),
        labels=torch.from_numpy(segments.labels[kept]),
        masks=torch.from_numpy(run_lengths.decode([masks[k] for k in kept], segments.size)),
        crowd=torch.from_numpy(crowd[kept]),
        dropped=len(segments) - len(kept),
    )


def read_labels(path: Path) -> LabelMap:
    """Return the classes of a file, in the order of their ids. Errors: DataError."""
    return _labels(path, read_columns(path, ("categories",)).categories)


def ids_by_name(path: Path) -> dict[str, int]:
    """Return the id of every image that a file names, by its `file_name`. Errors: DataError."""
    index = CocoIndex(path, labelled=False)
    return {index.name(image): int(index.image_ids[image]) for image in range(len(index))}


def _find(values: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the index of each value in ascending `known`, and whether it is there."""
    if not len(known):
        return np.zeros(len(values), np.int64), np.zeros(len(values), bool)
    index = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return index, known[index] == values


def _labels(path: Path, categories: Sequence[Any]) -> LabelMap:
    try:
        table = [
            {key: entry[key] for key in ("id", "name", "color") if key in entry}
            for entry in categories
        ]
        labels = LabelMap.from_table(sorted(table, key=lambda entry: entry["id"]), path.stem)
    except (UserError, TypeError, KeyError) as error:
        detail = error if isinstance(error, UserError) else "expected {id: 1, name: person}, ..."
        raise DataError(f"{shown(path)}: its `categories` cannot be read: {detail}") from None
    if any("color" in entry for entry in table):
        return labels
    # There is no background, so no class is black.
    return replace(labels, colors=tuple(voc_color(t + 1) for t in range(labels.num_classes)))


def _other_names(path: Path, categories: Sequence[Any], labels: LabelMap) -> list[str]:
    """Return a line for each category that has another name here than in `labels`."""
    named = {
        entry["id"]: entry.get("name")
        for entry in categories
        if isinstance(entry, dict) and isinstance(entry.get("id"), int)
    }
    pairs = [
        (raw, named[raw], labels.names[train]) for raw, train in labels.raw.items() if raw in named
    ]
    way = "; dataset=coco_json takes the classes of the file" if labels.name == "coco" else ""
    return [
        f"{shown(path)}: category {raw} is `{here}`, but `{there}` in {labels.name}{way}"
        for raw, here, there in pairs
        if str(here).strip() != there
    ]
