"""Images with a map of their objects each: 0 is background, 1, 2, ... the objects of one class.

That is the form of Penn-Fudan's pedestrians. `dataset=instance_maps` gives the objects,
`dataset=instance_maps_semantic` the class as a label map.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segtrain.data.division import Division, side_of
from segtrain.data.file_sets import MaskSet, ObjectSet, instances_of
from segtrain.data.images import read_mask
from segtrain.data.layouts import check_no_splits, check_there, split_folders
from segtrain.data.listing import find_root
from segtrain.data.pairing import pair_all
from segtrain.errors import UserError
from segtrain.structures.instances import Instances
from segtrain.structures.labels import RAW_VALUES, LabelMap, voc_color
from segtrain.structures.samples import IGNORE, Files

WHITE = 255  # what border and foreground are in maps of other kinds


class InstanceMaps(ObjectSet):
    """Hold the objects of one class `name`.

    `root/images/<split>/a.jpg` has its map in `root/masks/<split>/a.png`, or `root/<split>/images`
    and `root/<split>/masks` hold both. With `val_share` or `folds` the two folders have no splits
    and are divided by the names of the images. `images` and `masks` rename the folders,
    `mask_suffix` ends the names of maps. Pixels of value `void`, as of a border that is 255, belong
    to nobody.

    Errors: UserError, DataError.
    """

    def __init__(
        self,
        root: str,
        split: str,
        images: str = "images",
        masks: str = "masks",
        mask_suffix: str = "",
        name: str = "object",
        void: int | None = None,
        val_share: float | None = None,
        folds: int | None = None,
        fold: int = 0,
    ) -> None:
        problems: list[str] = []
        division = Division(val_share, folds, fold)
        files = _files(root, split, (images, masks), mask_suffix, division, problems)
        labels = LabelMap("instance_maps", (name,), (voc_color(1),), {1: 0})
        super().__init__(labels, files, problems, True)
        self._nobody = _nobody(void)

    def objects(self, index: int, path: Path) -> Instances:
        """Return the objects in the order of their values."""
        regions = read_mask(path)
        return instances_of(regions, dict.fromkeys(_values(regions, self._nobody), 0))

    def doubts(self, index: int) -> Sequence[str]:
        """Return the doubt about a white object."""
        path = self.files(index).annotation
        return () if path is None else _white(read_mask(path), self._nobody)


class InstanceMapsSemantic(MaskSet):
    """Label maps of the same, 0 background and 1 all objects; arguments as of `InstanceMaps`.

    Pixels of value `void` are ignored.
    """

    def __init__(
        self,
        root: str,
        split: str,
        images: str = "images",
        masks: str = "masks",
        mask_suffix: str = "",
        name: str = "object",
        void: int | None = None,
        val_share: float | None = None,
        folds: int | None = None,
        fold: int = 0,
    ) -> None:
        problems: list[str] = []
        division = Division(val_share, folds, fold)
        files = _files(root, split, (images, masks), mask_suffix, division, problems)
        table = {0: "background", 1: name} | ({} if void is None else {IGNORE: None})
        super().__init__(LabelMap.from_table(table, "instance_maps"), files, problems)
        self._nobody = _nobody(void)

    def read_mask(self, path: Path) -> np.ndarray:
        """Return the label map (H, W) uint8: 1 where an object is, IGNORE where nobody is."""
        regions = read_mask(path)
        drawn = (regions > 0).astype(np.uint8)
        for value in self._nobody[1:]:
            drawn[regions == value] = IGNORE
        return drawn

    def doubts(self, index: int) -> Sequence[str]:
        """Return the doubt about a white object beside others; alone it is all objects."""
        path = self.files(index).annotation
        regions = None if path is None else read_mask(path)
        if regions is None or len(_values(regions, self._nobody)) < 2:
            return ()
        return _white(regions, self._nobody)


def _nobody(void: int | None) -> tuple[int, ...]:
    """Return the values that are no object. Errors: UserError."""
    if void is not None and (type(void) is not int or not 1 <= void < RAW_VALUES):
        raise UserError(f"dataset.void={void}: a value of the maps, from 1 on, or null for none")
    return (0,) if void is None else (0, void)


def _values(regions: np.ndarray, nobody: Sequence[int]) -> list[int]:
    """Return the values of the objects in a map, ascending."""
    found = np.flatnonzero(np.bincount(regions.ravel())).tolist()
    return [value for value in found if value not in nobody]


def _white(regions: np.ndarray, nobody: Sequence[int]) -> list[str]:
    """Return the doubt about an object of value 255 that does not follow on 254."""
    values = _values(regions, nobody)
    if values == [WHITE]:
        return [f"all that is marked has the value {WHITE} and counts as one object"]
    if WHITE in values and WHITE - 1 not in values:
        return [
            f"the value {WHITE} counts as an object beside others (a border? dataset.void={WHITE} "
            "leaves it out)"
        ]
    return []


def _files(
    root: str,
    split: str,
    folders: tuple[str, str],
    mask_suffix: str,
    division: Division,
    problems: list[str],
) -> dict[str, Files]:
    base = find_root(root)
    if not division:
        return pair_all(*split_folders(base, split, folders), problems, mask_suffix)
    photos, maps = (base / folder for folder in folders)
    check_there(base, folders, photos, maps)
    check_no_splits(photos)
    return side_of(pair_all(photos, maps, problems, mask_suffix), split, division)
