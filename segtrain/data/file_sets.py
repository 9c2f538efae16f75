"""Data sets of images with a file of labels each: label maps or objects."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch

from segtrain.data.base import BaseDataset
from segtrain.data.images import (
    image_size,
    orientation,
    read_image,
    read_mask,
    shown,
    turned_hint,
)
from segtrain.errors import DataError
from segtrain.structures import run_lengths
from segtrain.structures.instances import Instances, Segments
from segtrain.structures.labels import RAW_VALUES, LabelMap
from segtrain.structures.samples import IGNORE, Files, Sample, Target, Truth

Unmarked = Literal["background", "leave_out"]  # what an image without a file of objects is
# Reading a header from another machine's disk is mostly waiting. Chosen by hand.
HEADER_THREADS = 8


class MaskSet(BaseDataset):
    """Hold what data sets of images with a label map each have in common.

    `files`: image and mask by id, in order. `labelled` False: a split without masks, whose masks
    are all IGNORE. `hint`: the way out that an illegal mask value is reported with, where the data
    set knows one. `unmarked`: the train id of all of an image without a file.
    """

    def __init__(
        self,
        labels: LabelMap,
        files: Mapping[str, Files],
        problems: list[str],
        labelled: bool = True,
        hint: str = "",
        unmarked: int = IGNORE,
    ) -> None:
        super().__init__(labels, list(files), problems, labelled)
        self.hint = hint
        self.unmarked = unmarked
        self._files = files

    def __getitem__(self, index: int) -> Sample:
        """Return image and mask.

        Errors: DataError for a file that cannot be used, or a mask of another size than its image.
        """
        files = self.files(index)
        image = read_image(files.image)
        mask = None if files.annotation is None else self.read_mask(files.annotation)
        if mask is not None:
            check_size(files, image.shape[:2], mask.shape[:2])
        return Sample(self.ids[index], image, self._encoded(files, mask))

    def sizes(self) -> np.ndarray:
        """Return (N, 2) height and width of every image, from the headers. Errors: DataError."""
        return header_sizes(self._files)

    def files(self, index: int) -> Files:
        """Return the paths of image and mask; no second path in a split without masks."""
        return self._files[self.ids[index]]

    def mask(self, index: int) -> np.ndarray:
        """Return the mask (H, W) uint8 of train ids, without reading its image."""
        files = self.files(index)
        return self._encoded(
            files, None if files.annotation is None else self.read_mask(files.annotation)
        )

    def target(self, index: int) -> Target:
        """Return the mask, without reading its image."""
        return Target(mask=self.mask(index))

    def truth(self, index: int) -> Truth:
        """Return what the metric compares with, without reading the image: the mask."""
        return self.mask(index)

    def read_mask(self, path: Path) -> np.ndarray:
        """Return the values of a mask file (H, W) as stored."""
        return read_mask(path)

    def _encoded(self, files: Files, mask: np.ndarray | None) -> np.ndarray:
        if files.annotation is None or mask is None:
            return np.full(image_size(files.image), self.unmarked, np.uint8)
        return self.labels.encode(mask, shown(files.annotation), self.hint)


class ObjectSet(BaseDataset):
    """Hold what data sets of images with a map of their objects each have in common.

    A subclass defines `objects(index, path)`. `files` and `labelled` are as in `MaskSet`.
    """

    labelled_with: ClassVar[Literal["masks", "instances"]] = "instances"

    def __init__(
        self, labels: LabelMap, files: Mapping[str, Files], problems: list[str], labelled: bool
    ) -> None:
        super().__init__(labels, list(files), problems, labelled)
        self._files = files

    def __getitem__(self, index: int) -> Sample:
        """Return image and objects.

        Errors: DataError for a file that cannot be used, or a map of another size than its image.
        """
        files = self.files(index)
        image = read_image(files.image)
        instances = self.instances(index)
        check_size(files, image.shape[:2], instances.masks.shape[1:])
        return Sample(self.ids[index], image, instances=instances)

    def sizes(self) -> np.ndarray:
        """Return (N, 2) height and width of every image, from the headers. Errors: DataError."""
        return header_sizes(self._files)

    def files(self, index: int) -> Files:
        """Return the paths of image and objects; no second path in a split without labels."""
        return self._files[self.ids[index]]

    def instances(self, index: int) -> Instances:
        """Return the objects in the order of their values, without reading their image."""
        image, path = self.files(index)
        if path is None:
            return instances_of(np.zeros(image_size(image), np.uint8), {})
        return self.objects(index, path)

    @abstractmethod
    def objects(self, index: int, path: Path) -> Instances:
        """Return the objects in the map at `path`, which belongs to image `index`."""

    def segments(self, index: int) -> Segments:
        """Return the objects in run-length form."""
        return run_lengths.segments(self.instances(index))

    def target(self, index: int) -> Target:
        """Return the objects, without reading their image."""
        return Target(instances=self.instances(index))

    def truth(self, index: int) -> Truth:
        """Return what the metric compares with, without reading the image: the objects."""
        return self.segments(index)


def marked(files: Mapping[str, Files], unmarked: Unmarked) -> dict[str, Files]:
    """Return the images that belong to a set whose images may lack a file of objects."""
    return {
        name: each
        for name, each in files.items()
        if unmarked == "background" or each.annotation is not None
    }


def unmarked_doubts(suffix: str) -> list[str]:
    """Return the doubt about an image without a file: it is empty, or nobody has labelled it."""
    return [
        f"no {suffix} beside it, so that all of it is background (dataset.unmarked=leave_out "
        "leaves such images out)"
    ]


def unsized_doubts(image: Path) -> list[str]:
    """Return the doubt about labels that hold no size of their own, where a tag turns their image.

    Of a square image the size would tell nothing either, and `verify` names it in any case.
    """
    height, width = image_size(image)
    if orientation(image) < 5 or height == width:
        return []
    return [
        "labels without a size of their own beside a photo that its orientation tag turns: they "
        "must be those of the turned photo"
    ]


def header_sizes(files: Mapping[str, Files]) -> np.ndarray:
    """Return (N, 2) height and width of every image, from the headers of the files.

    Errors: DataError.
    """
    with ThreadPoolExecutor(HEADER_THREADS) as pool:
        sizes = list(pool.map(image_size, (each.image for each in files.values())))
    return np.array(sizes, np.int64).reshape(-1, 2)


def check_size(files: Files, image: Sequence[int], mask: Sequence[int]) -> None:
    """Refuse a mask of another size (height, width, ...) than its image. Errors: DataError."""
    if tuple(image) != tuple(mask):
        sizes = f"{mask[1]} x {mask[0]} pixels, but its image {shown(files.image)}"
        raise DataError(
            f"{shown(files.annotation or files.image)}: mask of {sizes} has "
            f"{image[1]} x {image[0]}{turned_hint(files.image, mask[:2], files.annotation)}"
        )


def instances_of(
    regions: np.ndarray, labels: Mapping[int, int], crowd: Sequence[int] = ()
) -> Instances:
    """Return the regions of a map (H, W) of non-negative integers as objects with tightest boxes.

    `labels` maps the value of each object to its train id; every value must occur. Objects come in
    the order of `labels`, values that it does not list belong to nobody, values in `crowd` are
    marked.
    """
    from scipy import ndimage  # it takes long to import, and only maps of objects need it

    number_of = np.zeros(RAW_VALUES, np.int32)
    number_of[list(labels)] = np.arange(1, len(labels) + 1)
    numbered = number_of.take(regions)
    slices = ndimage.find_objects(numbered, max_label=len(labels))
    boxes = [[x.start, y.start, x.stop, y.stop] for y, x in slices]
    masks = numbered[None] == np.arange(1, len(labels) + 1, dtype=np.int32)[:, None, None]
    return Instances(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(list(labels.values()), dtype=torch.int64),
        masks=torch.from_numpy(masks),
        crowd=torch.tensor([value in crowd for value in labels], dtype=torch.bool),
    )
