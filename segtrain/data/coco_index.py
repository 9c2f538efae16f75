"""Hold a COCO annotation file (Lin et al., ECCV 2014) as flat arrays.

Masks stay as the file has them until they are asked for. train2017 holds 860,001 objects. As
dictionaries they cost gigabytes, and a copy in every loader worker, because counting references
writes to each page that is read. Here the file is read entry by entry, nothing of an object stays a
Python object, and forked workers share the arrays.

I images are sorted by id, N objects by image and then as in the file. Boxes are (x, y, width,
height) in pixels. Ids are numbers of `coco_ids.Ids`. What the file does not say of an object (box,
area) or of an image (size) is taken from the mask, or from the image file's header.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segtrain.data.coco_files import Listings
from segtrain.data.coco_labels import labels_of, other_names
from segtrain.data.coco_read import Columns, read_columns
from segtrain.data.images import image_size, shown
from segtrain.errors import DataError
from segtrain.structures import run_lengths
from segtrain.structures.instances import Instances, Segments
from segtrain.structures.labels import LabelMap

TABLES = ("images", "categories", "annotations")
MAX_OUTSIDE = 1.0  # pixels that a box may reach beyond its image: official boxes are rounded


class CocoIndex:
    """Read `path` once. `problems` names every wrong entry; what can be used of it is kept.

    `labels` maps the file's category ids to train ids; None: the file's own categories, in the
    order of their ids. `labelled` False: a file without annotations, as of a test split. `known`
    are (object id, image id) whose flat box is known and not a problem. `folder` holds the images,
    of which only those without a size are looked at. `notes` has a line for what is read, but good
    to know. Errors: DataError when the file is missing, no JSON, or lacks a table.
    """

    def __init__(
        self,
        path: Path,
        labels: LabelMap | None = None,
        labelled: bool = True,
        known: Collection[tuple[int, int]] = (),
        folder: Path | None = None,
    ) -> None:
        read = read_columns(path, TABLES if labelled else TABLES[:2])
        self.path = path
        self.problems = read.problems
        self.notes: list[str] = []
        self._known_ids = read.known
        if labels:
            self.labels = labels
            self.problems += other_names(path, read, labels)
        else:
            self.labels, self.notes = labels_of(path, read)
        self._keep_images(read, folder)
        # False: a file of boxes.
        self.masked = len(read.empty) < len(read.ids) or not len(read.ids)
        image_of = self._keep_objects(read)
        # (I + 1,): the objects of image i begin at first[i].
        self.first = np.searchsorted(image_of, np.arange(len(self) + 1))
        self._points = np.asarray(read.points)
        self._polygon_stops = np.asarray(read.polygon_stops)
        self._mask_stops = np.asarray(read.mask_stops)
        self._count_stops = np.asarray(read.count_stops)
        self._counts = bytes(read.counts)
        faults = self._wrong_objects(image_of, known)
        if shares := self._shares():
            self.problems.append(shares)
        self.problems += faults
        if repeated := self._repeated(image_of):
            self.notes.append(repeated)

    def __len__(self) -> int:
        return len(self.image_ids)

    def _keep_images(self, read: Columns, folder: Path | None) -> None:
        """Set image_ids, heights, widths (I,) and the names."""
        ids = np.asarray(read.image_ids)
        order = np.argsort(ids, kind="stable")
        again = np.zeros(len(ids), bool)
        again[1:] = ids[order][1:] == ids[order][:-1]
        self.problems += [
            f"{shown(self.path)}: image {read.known.shown(i)}: this id is used twice"
            for i in ids[order][again].tolist()
        ]
        self._names = bytes(read.names)
        self._name_stops = np.asarray(read.name_stops)
        self._name_of = order[~again]
        self.image_ids = ids[self._name_of]
        self.heights = np.asarray(read.heights)[self._name_of]
        self.widths = np.asarray(read.widths)[self._name_of]
        if not self.heights.all():
            self._read_sizes(read, folder)
        self.problems += self._names_twice()

    def _read_sizes(self, read: Columns, folder: Path | None) -> None:
        """Set sizes that the file lacks by the images' headers; leave out images without any."""
        listings = Listings(folder) if folder is not None and folder.is_dir() else None
        for image in np.flatnonzero(self.heights == 0).tolist():
            name = self.name(image)
            found = None if listings is None else listings.find(name)
            reason = "set dataset.images=FOLDER, and they are taken from its file"
            if folder is not None:
                reason = f"and its file {shown(folder / name)} is not there"
            try:
                if found:
                    self.heights[image], self.widths[image] = image_size(found)
                    continue
            except DataError as error:
                reason = f"and {error}"
            which = f"image {self.id_of(image)}"
            self.problems.append(
                f"{shown(self.path)}: {which}: has no `height` and `width`; {reason}"
            )
            read.refused.add(int(self.image_ids[image]))
        kept = self.heights > 0
        self._name_of = self._name_of[kept]
        self.image_ids = self.image_ids[kept]
        self.heights = self.heights[kept]
        self.widths = self.widths[kept]

    def _names_twice(self) -> list[str]:
        """Return a line for each file name that several images have."""
        first: dict[bytes, int] = {}
        lines = []
        starts = self._name_stops[self._name_of].tolist()
        stops = self._name_stops[self._name_of + 1].tolist()
        for image, (start, stop) in enumerate(zip(starts, stops, strict=True)):
            name = self._names[start:stop]
            if first.setdefault(name, image) != image:
                ids = f"{self.id_of(first[name])} and {self.id_of(image)}"
                lines.append(f"{shown(self.path)}: images {ids} are both `{self.name(image)}`")
        return lines

    def _keep_objects(self, read: Columns) -> np.ndarray:
        """Set the columns of objects; return the image (N,) of each, ascending."""
        ids = np.asarray(read.ids)
        images = np.asarray(read.images)
        categories = np.asarray(read.object_categories)
        image_of, has_image = _find(images, self.image_ids)
        # The categories' numbers, ascending, and the train id of each.
        numbers = [(read.known.number(raw), train) for raw, train in self.labels.raw.items()]
        pairs = sorted((number, train) for number, train in numbers if number is not None)
        legal = np.array([number for number, _ in pairs], np.int64)
        category, has_category = _find(categories, legal)
        there_is = f"{self.labels.name} has {self.labels.legal()}"
        # The image of these has its line already.
        noted = np.isin(images, np.array(sorted(read.refused), np.int64))
        for k in np.flatnonzero(~has_image & ~noted):
            line = f"belongs to image {read.known.shown(images[k])}, which the file does not list"
            self.problems.append(f"{self._object(ids[k], images[k])}: {line}")
        if shifted := self._from_zero(categories, legal):
            self.problems.append(shifted)
        for k in np.flatnonzero(~has_category) if not shifted else ():
            line = f"category {read.known.shown(categories[k])} is unknown, {there_is}"
            self.problems.append(f"{self._object(ids[k], images[k])}: {line}")
        has_mask = np.ones(len(ids), bool)
        if self.masked:
            has_mask[np.asarray(read.empty)] = False
            self._note_empty(int((~has_mask).sum()), len(ids))
        kept = np.flatnonzero(has_image & has_category & has_mask)
        order = kept[np.argsort(image_of[kept], kind="stable")]
        self._row = order  # of the file; masks are not sorted
        self.ids = ids[order]
        self.areas = np.asarray(read.areas)[order]
        train_ids = np.array([train for _, train in pairs], np.uint8)
        self.classes = train_ids[category[order]]
        self.boxes = np.asarray(read.boxes).reshape(-1, 4)[order]
        self.crowd = np.asarray(read.crowd)[order].astype(bool)
        self._rle_sizes = np.asarray(read.rle_sizes).reshape(-1, 2)[order]
        return image_of[order]

    def _object(self, object_id: int, image_id: int) -> str:
        own = self._known_ids.shown(object_id)
        return f"{shown(self.path)}: annotation {own} (image {self._known_ids.shown(image_id)})"

    def _from_zero(self, categories: np.ndarray, legal: np.ndarray) -> str:
        """Return a line where annotations number the categories from 0 and the file from 1."""
        below = (categories == 0).sum()
        if not below or 0 in legal or not np.isin(np.unique(categories) + 1, legal).all():
            return ""
        return (
            f"{shown(self.path)}: the `category_id` of {below:,} annotations is 0, but "
            f"{self.labels.name} has {self.labels.legal()}; numbered from 0? Add 1 to every "
            "`category_id`"
        )

    def _note_empty(self, count: int, total: int) -> None:
        """Say how many objects of a file of masks have none: a problem where most of them do."""
        if not count:
            return
        line = f"{shown(self.path)}: {count:,} of {total:,} annotations have no `segmentation`"
        if 2 * count > total:
            way = "draw their masks, or take them out of the file"
            self.problems.append(f"{line}; {way}")
        else:
            self.notes.append(f"{line} and are left out")

    def _repeated(self, image_of: np.ndarray) -> str:
        """Say how many objects are another one again: image, class, box and mask; "" for none."""
        columns = (*self.boxes.T, self.classes, image_of)
        # Few share their image and left edge with another: to sort these first is much quicker.
        near = _alike(self.boxes[:, 0], image_of)
        alike = near[_alike(*(column[near] for column in columns))]
        first: dict[tuple[Any, ...], int] = {}
        again = []
        for k in alike.tolist():
            key = (*(column[k] for column in columns), *self._content(self._row[k]))
            one = first.setdefault(key, k)
            if one != k:
                again.append((one, k))
        if not again:
            return ""
        one, two = (self._known_ids.shown(self.ids[k]) for k in again[0])
        return (
            f"{shown(self.path)}: {len(again):,} of {len(self.ids):,} annotations repeat another "
            f"one of their image under a new id (as {one} and {two})"
        )

    def _content(self, row: int) -> tuple[bytes, bytes, bytes]:
        """Return what the mask in `row` of the file is made of: points, ends of polygons, runs."""
        stops = self._polygon_stops[self._mask_stops[row] : self._mask_stops[row + 1] + 1]
        points = self._points[stops[0] : stops[-1]]
        runs = self._counts[self._count_stops[row] : self._count_stops[row + 1]]
        return points.tobytes(), (stops - stops[0]).tobytes(), runs

    def _wrong_objects(self, image_of: np.ndarray, known: Collection[tuple[int, int]]) -> list[str]:
        """Return a line for every fault that shows only when images and objects are together."""
        height = self.heights[image_of]
        width = self.widths[image_of]
        images = self.image_ids[image_of]
        runs = self._rle_sizes.all(1)
        other = runs & (self._rle_sizes != np.column_stack([height, width])).any(1)
        swapped = other & (self._rle_sizes == np.column_stack([width, height])).all(1)
        rle_sizes = self._rle_sizes.copy()
        self._rle_sizes[other] = 0  # such masks cannot be drawn
        far = self._far_points(height, width)
        no_box, no_area = self._from_masks(image_of)
        x, y, w, h = self.boxes.T
        by_id = np.argsort(self.ids, kind="stable")
        again = np.zeros(len(by_id), bool)
        again[by_id[1:]] = self.ids[by_id][1:] == self.ids[by_id][:-1]
        fine = np.zeros(len(by_id), bool)
        for object_id, image_id in known:
            fine |= (self.ids == object_id) & (images == image_id)
        before = (x < -MAX_OUTSIDE) | (y < -MAX_OUTSIDE)
        # In whole files of corners (x1, y1, x2, y2) the second two are larger than the first.
        corners = bool(len(x)) and bool(((w > x) & (h > y)).all())
        way = "; are these corners? `bbox` is [x, y, width, height]" if corners else ""
        beyond = before | (x + w > width + MAX_OUTSIDE) | (y + h > height + MAX_OUTSIDE)
        faults = (
            (again, "this id is used twice"),
            (~fine & ~no_box & ((w <= 0) | (h <= 0)), "box {box} has no width or no height"),
            (
                beyond,
                "box {box} leaves its image of {width} x {height} pixels (width x height)" + way,
            ),
            (~fine & ~no_area & (self.areas <= 0), "area is {area}, but must be above 0"),
            (
                other & ~swapped,
                "run-length mask of {rle} pixels (height, width) in an image of {height} x {width}",
            ),
            (
                swapped,
                "the `size` {rle} of its run-length mask is [width, height] of the image; it must "
                "be [height, width], and the runs go down the columns",
            ),
            (
                far,
                "a polygon lies far outside its image of {width} x {height} pixels",
            ),
        )
        lines = []
        for bad, text in faults:
            for k in np.flatnonzero(bad):
                line = text.format(
                    box=self.boxes[k].tolist(),
                    area=self.areas[k],
                    rle=rle_sizes[k].tolist(),
                    height=height[k],
                    width=width[k],
                )
                lines.append(f"{self._object(self.ids[k], images[k])}: {line}")
        return lines

    def _from_masks(self, image_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Set boxes and areas that the file lacks by the masks; return (N,) bool, which those are.

        As COCO's own they are those of the polygons, and of the pixels. Without a mask the area is
        that of the box.
        """
        no_box = np.isnan(self.boxes[:, 0])
        no_area = np.isnan(self.areas)
        for k in np.flatnonzero(no_box | no_area).tolist():
            mask = self._mask(self._row[k], self.size(image_of[k]), self._rle_sizes[k])
            if no_box[k]:
                points = np.array(list(itertools.chain(*self._polygons(self._row[k]))))
                box = run_lengths.boxes([mask])[0]
                if len(points):
                    low = points.reshape(-1, 2).min(0)
                    box = np.concatenate([low, points.reshape(-1, 2).max(0) - low])
                self.boxes[k] = box
            if no_area[k]:
                area = run_lengths.areas([mask])[0] if self.masked else self.boxes[k, 2:].prod()
                self.areas[k] = area
        return no_box, no_area

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
        return [self._known_ids.shown(number) for number in self.image_ids[images].tolist()]

    def id_of(self, image: int) -> str:
        """Return the id of an image as text."""
        return self._known_ids.shown(int(self.image_ids[image]))

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
        if polygons := self._polygons(row):
            return run_lengths.from_polygons(polygons, size)
        if rle_size.all():
            return {"size": list(size), "counts": self._runs(row)}
        return run_lengths.from_counts([size[0] * size[1]], size)

    def _polygons(self, row: int) -> list[list[float]]:
        stops = self._polygon_stops[self._mask_stops[row] : self._mask_stops[row + 1] + 1]
        return [self._points[a:b].tolist() for a, b in itertools.pairwise(stops)]

    def _runs(self, row: int) -> str:
        return self._counts[self._count_stops[row] : self._count_stops[row + 1]].decode("ascii")


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


def _alike(*columns: np.ndarray) -> np.ndarray:
    """Return the rows (M,), ascending, that another row equals in all columns (N,)."""
    order = np.lexsort(columns)
    same = np.ones(max(len(order) - 1, 0), bool)
    for column in columns:
        ordered = column[order]
        same &= ordered[1:] == ordered[:-1]
    return np.union1d(order[:-1][same], order[1:][same])


def _find(values: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the index of each value in ascending `known`, and whether it is there."""
    if not len(known):
        return np.zeros(len(values), np.int64), np.zeros(len(values), bool)
    index = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return index, known[index] == values
