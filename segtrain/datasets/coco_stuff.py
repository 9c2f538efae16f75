"""COCO-Stuff 164k (Caesar et al., CVPR 2018, arXiv:1612.03716): 80 things and 91 kinds of stuff.

Every pixel of COCO 2017 has a label: 118,287 train and 5,000 val images. Maps hold official id - 1
(0 to 181); 255 is unlabeled and ignored.
"""

from __future__ import annotations

import json
from typing import Literal

from segtrain.data.file_sets import MaskSet
from segtrain.data.images import shown
from segtrain.data.listing import check_split, find_root, list_files, subfolders
from segtrain.errors import DataError
from segtrain.structures.labels import BUILT_IN, LabelMap
from segtrain.structures.samples import Files


class CocoStuff(MaskSet):
    """`root/stuffthingmaps/<split>/*.png` with images of the same names in `root/<split>`.

    The maps make the list, for the folder of images may hold more. `classes`: 171 leaves out the 11
    things that nobody annotated (their values are ignored); 182 gives all ids a class, as the
    DeepLabv2 results were trained, where the 11 stay without a pixel.
    """

    def __init__(self, root: str, split: str, classes: Literal[171, 182] = 171) -> None:
        base = find_root(root)
        maps = base / "stuffthingmaps"
        images = base / split
        if not maps.is_dir():
            raise DataError(
                f"{shown(maps)}: no such folder; unpack stuffthingmaps_trainval2017.zip there"
            )
        check_split(split, subfolders(maps), shown(maps))
        problems: list[str] = []
        mask_files = list_files(maps / split, problems)
        image_files = list_files(images, [])
        if not mask_files:
            raise DataError(f"{shown(maps / split)}: holds no maps")
        problems += [
            f"{shown(path)}: has no image {shown(images / name)}.*"
            for name, path in mask_files.items()
            if name not in image_files
        ]
        files = {
            name: Files(image_files[name], path)
            for name, path in mask_files.items()
            if name in image_files
        }
        labels = LabelMap.load("coco_stuff") if classes == 171 else _all_labels()
        super().__init__(labels, files, problems)


def _all_labels() -> LabelMap:
    """Return the map of 182 classes, in which the train id is the value in the map."""
    content = json.loads((BUILT_IN / "coco_stuff.json").read_text(encoding="utf-8"))
    table = [{key: entry[key] for key in ("id", "name", "color")} for entry in content["classes"]]
    return LabelMap.from_table([*table, {"id": 255, "ignore": True}], "coco_stuff")
