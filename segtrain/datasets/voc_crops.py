"""VOC as DeconvNet trains on it (arXiv:1505.04366, section 4.2): windows around objects.

First easy ones, a window for each object, then those of proposals. A window is a box enlarged about
its middle, cut from the image and resized to a square. Where it reaches beyond the image, the
pixels are black, as at inference, and their labels IGNORE.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from scipy import ndimage

from segtrain.data.base import BaseDataset
from segtrain.data.file_sets import check_size
from segtrain.data.images import read_mask, shown
from segtrain.data.mat import read_mat
from segtrain.data.proposals import boxes_of, grid, read_proposals
from segtrain.data.view import View
from segtrain.datasets.voc import VOC
from segtrain.errors import DataError, SegtrainError, UserError
from segtrain.rng import generator_for
from segtrain.structures.boxes import enlarged, overlaps
from segtrain.structures.samples import IGNORE, Files, Sample, Target, Truth

VOID = 255  # in SegmentationObject; SBD knows none
MIN_OVERLAP = 0.5  # intersection over union of a proposal with an object's box (section 4.2)
# Both stand for the paper's proposals where none are given, and are chosen by hand.
JITTERED_BOXES = 16  # drawn around every object
GRID_BOXES = 200  # laid over every image
# Decoding releases the GIL, and files may lie on another machine. Chosen by hand.
READER_THREADS = 8


class Window(NamedTuple):
    """One sample: the enlarged `box` in image `index` of the split."""

    index: int
    box: tuple[int, int, int, int]  # x1, y1, x2, y2
    number: int  # of its object, in stage 1; 0 in stage 2


class VOCCrops(BaseDataset):
    """The split `crops_of` as windows of `size` x `size` pixels; other splits as whole images.

    stage "objects": a window per object of SegmentationObject. The object's pixels carry its class,
    all others are background, except void, which stays IGNORE. stage "proposals": the windows that
    overlap an object's box by at least half (intersection over union), with the labels of all
    classes. They come from the file `proposals` (COCO's results form, see
    `segtrain.data.proposals`); without one they are boxes drawn around the objects and those of a
    grid, always the same ones.

    `root`, `split` and `sbd` as in `VOC`; where an image's mask is SBD's, its objects are those of
    SBD's `inst`. All object maps of the split are read once, here. Errors: UserError, DataError.
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
                f"dataset.enlarge={enlarge}, dataset.size={size}: "
                "a factor from 1, and pixels from 1"
            )
        if proposals is not None and stage == "objects":
            raise UserError(f"dataset.proposals={proposals}: only dataset.stage=proposals reads it")
        self.voc = VOC(root, split, sbd)
        self.stage = stage
        self.enlarge = enlarge
        self.size = size
        self.proposals = proposals
        self.windows: list[Window] | None = None
        super().__init__(self.voc.labels, self.voc.ids, self.voc.problems, self.voc.labelled)
        if split == crops_of:
            if not self.labelled:
                raise UserError(
                    f"dataset.crops_of={crops_of}: has no objects to make crops of; "
                    "choose another split"
                )
            stored = None if proposals is None else _stored(proposals)
            self.windows = self._windows(stored, proposals)
            self.ids = [
                f"{self.voc.ids[window.index]}-{number}"
                for window, number in zip(self.windows, _numbers(self.windows), strict=True)
            ]

    def __getitem__(self, index: int) -> Sample:
        """Return a window, or a whole image. Errors: DataError for a file that cannot be used."""
        if self.windows is None:
            return self.voc[index]
        window = self.windows[index]
        whole = self.voc[window.index]
        assert whole.mask is not None
        mask = self._labelled(window, whole.mask)
        image = self._cut(window, whole.image, 0)
        return Sample(self.ids[index], image, self._cut(window, mask, IGNORE))

    def files(self, index: int) -> Files:
        """Return the paths of the image and mask that the sample is made from."""
        return self.voc.files(index if self.windows is None else self.windows[index].index)

    def extra_files(self) -> Mapping[str, Path]:
        """Return the maps of objects that windows are laid by, and the file of proposals."""
        if self.windows is None:
            return {}
        files = {} if self.proposals is None else {"proposals": Path(self.proposals).expanduser()}
        shown_in = dict.fromkeys(window.index for window in self.windows)
        return files | {f"objects of {self.voc.ids[i]}": self._objects_path(i) for i in shown_in}

    def mask(self, index: int) -> np.ndarray:
        """Return the sample's mask (H, W) uint8, without reading its image."""
        if self.windows is None:
            return self.voc.mask(index)
        window = self.windows[index]
        return self._cut(window, self._labelled(window, self.voc.mask(window.index)), IGNORE)

    def target(self, index: int) -> Target:
        """Return the mask, without reading its image."""
        return Target(mask=self.mask(index))

    def truth(self, index: int) -> Truth:
        """Return what the metric compares with, without reading the image: the mask."""
        return self.mask(index)

    # ------------------------------------------------------------------ one window

    def _labelled(self, window: Window, mask: np.ndarray) -> np.ndarray:
        """Return the train ids (H, W) of the whole image as this window's stage sees them."""
        if self.stage == "proposals":
            return mask
        path = self._objects_path(window.index)
        inside = self._object_map(window.index) == window.number
        check_size(Files(self.voc.files(window.index).image, path), mask.shape, inside.shape)
        pixels_of_class = np.bincount(mask[inside], minlength=256)
        pixels_of_class[[0, IGNORE]] = 0
        if not pixels_of_class.any():
            raise DataError(
                f"{shown(path)}: object {window.number} has no class in "
                f"{shown(self._mask_path(window.index))}"
            )
        result = np.where(mask == IGNORE, mask, np.uint8(0))
        result[inside & (mask != IGNORE)] = pixels_of_class.argmax()
        return result

    def _cut(self, window: Window, pixels: np.ndarray, outside: int) -> np.ndarray:
        """Return the window as (size, size), with `outside` beyond the image.

        An image is resized bilinearly; of a mask the nearest pixels are taken.
        """
        x1, y1, x2, y2 = window.box
        height, width = pixels.shape[:2]
        part = np.full((y2 - y1, x2 - x1, *pixels.shape[2:]), outside, np.uint8)
        top = max(y1, 0)
        left = max(x1, 0)
        bottom = min(y2, height)
        right = min(x2, width)
        if top < bottom and left < right:
            part[top - y1 : bottom - y1, left - x1 : right - x1] = pixels[top:bottom, left:right]
        size = (y2 - y1, x2 - x1)
        square = (self.size, self.size)
        return View(size, square, (0, 0, *size), square).show(part, smooth=pixels.ndim == 3)

    # ------------------------------------------------------------------ all windows

    def _windows(self, stored: dict[str, np.ndarray] | None, path: str | None) -> list[Window]:
        """Return the windows of all images, in the images' order.

        What cannot be read is noted in `problems`.
        """

        def read(index: int) -> list[Window] | str:
            try:
                return list(self._of_image(index, stored, path))
            except SegtrainError as error:
                return str(error)

        with ThreadPoolExecutor(READER_THREADS) as pool:
            results = list(pool.map(read, range(len(self.voc))))
        self.problems += dict.fromkeys(result for result in results if isinstance(result, str))
        return [window for result in results if not isinstance(result, str) for window in result]

    def _of_image(
        self, index: int, stored: dict[str, np.ndarray] | None, path: str | None
    ) -> Iterator[Window]:
        """Yield the windows of one image."""
        object_map = self._object_map(index)
        object_map[object_map == VOID] = 0
        slices = {
            number: where
            for number, where in enumerate(ndimage.find_objects(object_map), 1)
            if where is not None
        }
        if not slices:
            return
        corners = [[x.start, y.start, x.stop, y.stop] for y, x in slices.values()]
        tight = np.array(corners, np.float64)
        if self.stage == "objects":
            numbers = list(slices)
            boxes = tight
        else:
            if stored is not None:
                boxes = boxes_of(stored, self.voc.ids[index], path)
            else:
                laid = grid(*object_map.shape, GRID_BOXES)
                boxes = np.concatenate([_around(tight, index), laid])
            boxes = boxes[(overlaps(boxes, tight) >= MIN_OVERLAP).any(1)]
            numbers = [0] * len(boxes)
        cut = enlarged(boxes, self.enlarge, *object_map.shape).tolist()
        for number, (x1, y1, x2, y2) in zip(numbers, cut, strict=True):
            yield Window(index, (x1, y1, x2, y2), number)

    # ------------------------------------------------------------------ files of an image

    def _mask_path(self, index: int) -> Path:
        path = self.voc.files(index).annotation
        assert path is not None  # the split is labelled
        return path

    def _objects_path(self, index: int) -> Path:
        """Return the map of objects that belongs to the image's mask."""
        mask = self._mask_path(index)
        folder = "inst" if mask.suffix.lower() == ".mat" else "SegmentationObject"
        return mask.parent.parent / folder / mask.name

    def _object_map(self, index: int) -> np.ndarray:
        """Return (H, W) int64, the number of each pixel's object, 0 for none. Errors: DataError."""
        path = self._objects_path(index)
        if not path.is_file():
            is_aug = "Aug" in self._mask_path(index).parent.name
            hint = "; set dataset.sbd for the images of SBD" if is_aug else ""
            raise DataError(f"{shown(path)}: listed, but its objects are not there{hint}")
        if path.suffix.lower() == ".mat":
            return read_mat(path, "GTinst", "Segmentation").astype(np.int64)
        return read_mask(path).astype(np.int64)


def _numbers(windows: list[Window]) -> Iterator[int]:
    """Yield for the ids the object's own number, in stage 2 a count 1, 2, 3 ... in each image."""
    before = -1
    count = 0
    for window in windows:
        count = count + 1 if window.index == before else 1
        before = window.index
        yield window.number or count


def _stored(proposals: str) -> dict[str, np.ndarray]:
    path = Path(proposals).expanduser()
    if not path.is_file():
        raise UserError(
            f"dataset.proposals={proposals}: no such file; "
            "null makes windows around the objects instead"
        )
    return read_proposals(path)


def _around(tight: np.ndarray, index: int) -> np.ndarray:
    """Return `JITTERED_BOXES` boxes around each object's box.

    The middle is moved by up to 0.2 of a side, sides are multiplied by 0.75 to 1.33.
    """
    rng = generator_for(0, "crops", index)
    boxes = np.repeat(tight, JITTERED_BOXES, 0)
    sides = boxes[:, 2:] - boxes[:, :2]
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2 + sides * rng.uniform(-0.2, 0.2, sides.shape)
    half = sides * np.exp(rng.uniform(-1, 1, sides.shape) * np.log(4 / 3)) / 2
    return np.concatenate([middle - half, middle + half], 1)
