"""Images with a map of their objects each: 0 is background, 1, 2, ... the objects of one class.

That is the form of Penn-Fudan's pedestrians. `dataset=instance_maps` gives the objects,
`dataset=instance_maps_semantic` the class as a label map.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from segtrain.data.division import Division, side_of
from segtrain.data.file_sets import MaskSet, ObjectSet, instances_of
from segtrain.data.images import read_mask
from segtrain.data.listing import check_split, find_root, subfolders
from segtrain.data.pairing import pair_all
from segtrain.structures.instances import Instances
from segtrain.structures.labels import LabelMap, voc_color
from segtrain.structures.samples import Files


class InstanceMaps(ObjectSet):
    """Objects of one class `name`: `root/images/<split>/a.jpg` with `root/masks/<split>/a.png`.

    With `val_share` or `folds` the two folders have no splits and are divided by the names of the
    images. `images` and `masks` rename the folders, `mask_suffix` ends the names of maps.

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
        val_share: float | None = None,
        folds: int | None = None,
        fold: int = 0,
    ) -> None:
        problems: list[str] = []
        division = Division(val_share, folds, fold)
        files = _files(root, split, (images, masks), mask_suffix, division, problems)
        labels = LabelMap("instance_maps", (name,), (voc_color(1),), {1: 0})
        super().__init__(labels, files, problems, True)

    def objects(self, index: int, path: Path) -> Instances:
        """Return the objects in the order of their values."""
        regions = read_mask(path)
        values = np.flatnonzero(np.bincount(regions.ravel()))
        return instances_of(regions, {int(value): 0 for value in values if value})


class InstanceMapsSemantic(MaskSet):
    """Label maps of the same, 0 background and 1 all objects; arguments as of `InstanceMaps`."""

    def __init__(
        self,
        root: str,
        split: str,
        images: str = "images",
        masks: str = "masks",
        mask_suffix: str = "",
        name: str = "object",
        val_share: float | None = None,
        folds: int | None = None,
        fold: int = 0,
    ) -> None:
        problems: list[str] = []
        division = Division(val_share, folds, fold)
        files = _files(root, split, (images, masks), mask_suffix, division, problems)
        super().__init__(
            LabelMap.from_table(["background", name], "instance_maps"), files, problems
        )

    def read_mask(self, path: Path) -> np.ndarray:
        """Return the label map (H, W) uint8: 1 where an object is."""
        return (read_mask(path) > 0).astype(np.uint8)


def _files(
    root: str,
    split: str,
    folders: tuple[str, str],
    mask_suffix: str,
    division: Division,
    problems: list[str],
) -> dict[str, Files]:
    base = find_root(root)
    photos = base / folders[0]
    maps = base / folders[1]
    if division:
        return side_of(pair_all(photos, maps, problems, mask_suffix), split, division)
    check_split(split, subfolders(photos), str(photos))
    return pair_all(photos / split, maps / split, problems, mask_suffix)
