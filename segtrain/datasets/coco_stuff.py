"""COCO-Stuff 164k (Caesar et al., CVPR 2018, arXiv:1612.03716): 80 things and 91 kinds of stuff, every pixel of COCO 2017.

Maps hold official id - 1 (0 to 181); 255 is unlabeled and ignored. 118,287 train and 5,000 val images.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np

from ..contracts import Sample
from ..errors import DataError
from .io import read_mask, shown
from .labels import BUILT_IN, LabelMap
from .pairs import Pair, check_split, find_root, list_files, read_pair, subfolders


class CocoStuff:
    """`root/stuffthingmaps/<split>/*.png` with images of the same names in `root/<split>`. The maps make the list.

    `classes`: 171 leaves out the 11 things that nobody annotated (their values are ignored); 182 gives all ids a class, as
    the DeepLabv2 results were trained, where the 11 stay without a pixel.
    """

    def __init__(self, root: str, split: str, classes: Literal[171, 182] = 171) -> None:
        base = find_root(root)
        maps, images = base / "stuffthingmaps", base / split
        if not maps.is_dir():
            raise DataError(f"{shown(maps)}: no such folder; unpack stuffthingmaps_trainval2017.zip there")
        check_split(split, subfolders(maps), shown(maps))
        self.labels = LabelMap.load("coco_stuff") if classes == 171 else _all_labels()
        self.problems: list[str] = []
        mask_files, image_files = list_files(maps / split, self.problems), list_files(images, [])
        if not mask_files:
            raise DataError(f"{shown(maps / split)}: holds no maps")
        self.problems += [
            f"{shown(path)}: has no image {shown(images / name)}.*"
            for name, path in mask_files.items()
            if name not in image_files
        ]
        self._pairs = {name: (image_files[name], path) for name, path in mask_files.items() if name in image_files}
        self.ids = list(self._pairs)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        return read_pair(self.ids[index], self.files(index), self.labels)

    def target(self, index: int) -> np.ndarray:
        """The mask (H, W) uint8 in train ids. The image is not read."""
        path = self.files(index)[1]
        return self.labels.encode(read_mask(path), shown(path))

    truth = target  # what the metric reads

    def files(self, index: int) -> Pair:
        """(image path, mask path)."""
        return self._pairs[self.ids[index]]

    def image_path(self, index: int) -> Path:
        """Where the image lies."""
        return self.files(index)[0]


def _all_labels() -> LabelMap:
    """182 classes: the train id is the value in the map."""
    content = json.loads((BUILT_IN / "coco_stuff.json").read_text(encoding="utf-8"))
    table = [{key: entry[key] for key in ("id", "name", "color")} for entry in content["classes"]]
    return LabelMap.from_table([*table, {"id": 255, "ignore": True}], "coco_stuff")
