"""VOC as DeconvNet trains on it (arXiv:1505.04366, section 4.2): windows around objects, first easy ones, then proposals.

A window is a box enlarged about its middle, cut from the image and resized to a square. Where it reaches beyond the image,
the pixels are black, as at inference, and their labels IGNORE.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from scipy import ndimage

from segtrain.data.file_sets import Files, check_size
from segtrain.data.images import read_mask, shown
from segtrain.data.mat import read_mat
from segtrain.data.proposals import boxes_of, grid, read_proposals
from segtrain.data.transforms import View
from segtrain.datasets.voc import VOC
from segtrain.errors import DataError, SegtrainError, UserError
from segtrain.rng import generator_for
from segtrain.structures.boxes import enlarged, overlaps
from segtrain.structures.samples import IGNORE, Sample, Scene

VOID = 255  # in SegmentationObject; SBD knows none
ENOUGH = 0.5  # overlap of a proposal with an object's box
JITTERS = 16  # boxes drawn around every object where no proposals are given
GRID = 200  # boxes laid over every image then
THREADS = 8


class Window(NamedTuple):
    """One sample: image `index` of the split, the enlarged `box` x1, y1, x2, y2, and the `number` of its object (stage 1)."""

    index: int
    box: tuple[int, int, int, int]
    number: int


class VOCCrops:
    """The split `crops_of` as windows of `size` x `size` pixels; every other split as the whole images of `VOC`.

    stage "objects": a window per object of SegmentationObject. The object's pixels carry its class, all others are
    background, except void, which stays IGNORE. stage "proposals": the windows that overlap an object's box by at least
    half (intersection over union), with the labels of all classes. They come from the file `proposals` (COCO's results form,
    see `segtrain.data.proposals`); without one they are boxes drawn around the objects and those of a grid, always the same ones.

    `root`, `split` and `sbd` as in `VOC`; where an image's mask is SBD's, its objects are those of SBD's `inst`. All object
    maps of the split are read once, here. Errors: UserError, DataError.
    """

    def __init__(
        self,
        root: str,
        split: str,
        sbd: str | None = None,
        crops_of: str = "train",
        stage: Literal["objects", "proposals"] = "objects",
        proposals: str | None = None,
        enlarge: float = 1.2,
        size: int = 250,
    ) -> None:
        if stage not in ("objects", "proposals"):
            raise UserError(f"dataset.stage={stage}: use objects or proposals")
        if enlarge < 1 or size < 1:
            raise UserError(
                f"dataset.enlarge={enlarge}, dataset.size={size}: a factor from 1, and pixels from 1"
            )
        if proposals is not None and stage == "objects":
            raise UserError(f"dataset.proposals={proposals}: only dataset.stage=proposals reads it")
        self.voc = VOC(root, split, sbd)
        self.labels, self.labelled, self.problems = (
            self.voc.labels,
            self.voc.labelled,
            self.voc.problems,
        )
        self.stage, self.enlarge, self.size = stage, enlarge, size
        self.windows: list[Window] | None = None
        self.ids = self.voc.ids
        if split == crops_of:
            if not self.labelled:
                raise UserError(
                    f"dataset.crops_of={crops_of}: has no objects to make crops of; choose another split"
                )
            stored = None if proposals is None else _stored(proposals)
            self.windows = self._windows(stored, proposals)
            self.ids = [
                f"{self.voc.ids[w.index]}-{number}"
                for w, number in zip(self.windows, self._counts(), strict=True)
            ]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        """DataError for a file that cannot be used."""
        if self.windows is None:
            return self.voc[index]
        window = self.windows[index]
        sample = self.voc[window.index]
        mask = self._labelled(window, np.asarray(sample.mask))
        return Sample(
            self.ids[index], self._cut(window, sample.image, 0), self._cut(window, mask, IGNORE)
        )

    def files(self, index: int) -> Files:
        """(image path, mask path) that the sample is made from."""
        return self.voc.files(index if self.windows is None else self.windows[index].index)

    def target(self, index: int) -> np.ndarray:
        """The sample's target (H, W) uint8, without reading its image."""
        if self.windows is None:
            return self.voc.target(index)
        window = self.windows[index]
        return self._cut(window, self._labelled(window, self.voc.target(window.index)), IGNORE)

    def truth(self, index: int) -> np.ndarray | Scene:
        """What the metric compares with: the target."""
        return self.target(index)

    # ------------------------------------------------------------------ one window

    def _labelled(self, window: Window, mask: np.ndarray) -> np.ndarray:
        """The train ids (H, W) of the whole image as this window's stage sees them."""
        if self.stage == "proposals":
            return mask
        path = self._objects_path(window.index)
        mine = self._object_map(window.index) == window.number
        check_size((self.voc.files(window.index)[0], path), mask.shape, mine.shape)
        held = np.bincount(mask[mine], minlength=256)
        held[[0, IGNORE]] = 0
        if not held.any():
            raise DataError(
                f"{shown(path)}: object {window.number} has no class in {shown(self._mask_path(window.index))}"
            )
        result = np.where(mask == IGNORE, mask, np.uint8(0))
        result[mine & (mask != IGNORE)] = held.argmax()
        return result

    def _cut(self, window: Window, pixels: np.ndarray, outside: int) -> np.ndarray:
        """The window of an image (bilinear) or of a mask (nearest) as (size, size), `outside` beyond the image."""
        x1, y1, x2, y2 = window.box
        height, width = pixels.shape[:2]
        part = np.full((y2 - y1, x2 - x1, *pixels.shape[2:]), outside, np.uint8)
        top, left, bottom, right = max(y1, 0), max(x1, 0), min(y2, height), min(x2, width)
        if top < bottom and left < right:
            part[top - y1 : bottom - y1, left - x1 : right - x1] = pixels[top:bottom, left:right]
        size, square = (y2 - y1, x2 - x1), (self.size, self.size)
        return View(size, square, (0, 0, *size), square).show(part, smooth=pixels.ndim == 3)

    # ------------------------------------------------------------------ all windows

    def _windows(self, stored: dict[str, np.ndarray] | None, path: str | None) -> list[Window]:
        """The windows of all images, in the images' order; what cannot be read is noted in `problems`."""

        def look(index: int) -> list[Window] | str:
            try:
                return list(self._of_image(index, stored, path))
            except SegtrainError as error:
                return str(error)

        with ThreadPoolExecutor(THREADS) as pool:  # decoding releases the GIL
            found = list(pool.map(look, range(len(self.voc))))
        self.problems += dict.fromkeys(part for part in found if isinstance(part, str))
        return [window for part in found if not isinstance(part, str) for window in part]

    def _of_image(
        self, index: int, stored: dict[str, np.ndarray] | None, path: str | None
    ) -> Iterator[Window]:
        """The windows of one image."""
        numbers = self._object_map(index)
        numbers[numbers == VOID] = 0
        places = {
            n + 1: place
            for n, place in enumerate(ndimage.find_objects(numbers))
            if place is not None
        }
        if not places:
            return
        tight = np.array(
            [[x.start, y.start, x.stop, y.stop] for y, x in places.values()], np.float64
        )
        if self.stage == "objects":
            objects, boxes = list(places), tight
        else:
            if stored is not None:
                boxes = boxes_of(stored, self.voc.ids[index], path)
            else:
                boxes = np.concatenate([_around(tight, index), grid(*numbers.shape, GRID)])
            boxes = boxes[(overlaps(boxes, tight) >= ENOUGH).any(1)]
            objects = [0] * len(boxes)
        for number, (x1, y1, x2, y2) in zip(
            objects, enlarged(boxes, self.enlarge, *numbers.shape).tolist(), strict=True
        ):
            yield Window(index, (x1, y1, x2, y2), number)

    def _counts(self) -> Iterator[int]:
        """1, 2, 3 ... within each image, for the ids; in stage 1 the object's own number."""
        before, count = -1, 0
        for window in self.windows or ():
            count = count + 1 if window.index == before else 1
            before = window.index
            yield window.number or count

    # ------------------------------------------------------------------ files of an image

    def _mask_path(self, index: int) -> Path:
        path = self.voc.files(index)[1]
        assert path is not None  # the split is labelled
        return path

    def _objects_path(self, index: int) -> Path:
        """The map of objects that belongs to the image's mask."""
        mask = self._mask_path(index)
        folder = "inst" if mask.suffix.lower() == ".mat" else "SegmentationObject"
        return mask.parent.parent / folder / mask.name

    def _object_map(self, index: int) -> np.ndarray:
        """(H, W) number of each pixel's object, 0 for none. Errors: DataError."""
        path = self._objects_path(index)
        if not path.is_file():
            hint = (
                "; set dataset.sbd for the images of SBD"
                if "Aug" in self._mask_path(index).parent.name
                else ""
            )
            raise DataError(f"{shown(path)}: listed, but its objects are not there{hint}")
        if path.suffix.lower() == ".mat":
            return read_mat(path, "GTinst", "Segmentation").astype(np.int64)
        return read_mask(path).astype(np.int64)


def _stored(proposals: str) -> dict[str, np.ndarray]:
    path = Path(proposals).expanduser()
    if not path.is_file():
        raise UserError(
            f"dataset.proposals={proposals}: no such file; null makes windows around the objects instead"
        )
    return read_proposals(path)


def _around(tight: np.ndarray, index: int) -> np.ndarray:
    """`JITTERS` boxes around each object's box: middle moved by up to 0.2 of a side, sides times 0.75 to 1.33."""
    rng = generator_for(0, "crops", index)
    boxes = np.repeat(tight, JITTERS, 0)
    sides = boxes[:, 2:] - boxes[:, :2]
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2 + sides * rng.uniform(-0.2, 0.2, sides.shape)
    half = sides * np.exp(rng.uniform(-1, 1, sides.shape) * np.log(4 / 3)) / 2
    return np.concatenate([middle - half, middle + half], 1)
