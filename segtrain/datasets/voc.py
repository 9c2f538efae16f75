"""PASCAL VOC 2012 segmentation (Everingham et al., IJCV 2015): 20 classes and background, 255 = void.

Splits: train 1,464, val 1,449, trainval 2,913; train_aug 10,582 with the masks of SBD (Hariharan et al., ICCV 2011).
"""

from __future__ import annotations

from pathlib import Path

from ..contracts import Sample
from ..errors import DataError
from .labels import LabelMap
from .pairs import Pair, check_split, find_root, pair_listed, read_ids, read_pair

MASKS = {
    "train": "SegmentationClass",
    "val": "SegmentationClass",
    "trainval": "SegmentationClass",
    "train_aug": "SegmentationClassAug",
}


class VOC:
    """`root` is `VOCdevkit` or `VOCdevkit/VOC2012`: `JPEGImages`, `SegmentationClass`, `ImageSets/Segmentation`."""

    def __init__(self, root: str, split: str) -> None:
        check_split(split, MASKS, "VOC 2012")
        base = find_root(root)
        base = base / "VOC2012" if (base / "VOC2012").is_dir() else base
        ids, masks = base / "ImageSets" / "Segmentation" / f"{split}.txt", base / MASKS[split]
        _check_present(ids, masks, split)
        self.labels = LabelMap.load("voc")
        self.problems: list[str] = []
        self._pairs = pair_listed(read_ids(ids, self.problems), base / "JPEGImages", masks, self.problems)
        self.ids = list(self._pairs)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        return read_pair(self.ids[index], self.files(index), self.labels)

    def files(self, index: int) -> Pair:
        """(image path, mask path)."""
        return self._pairs[self.ids[index]]


def _check_present(ids: Path, masks: Path, split: str) -> None:
    for path in (ids, masks):
        if path.exists():
            continue
        if split == "train_aug":
            way = "not part of the VOC archive: add the 10,582 SBD ids and masks, or use dataset.train_split=train"
        else:
            way = "set dataset.root= to the folder VOCdevkit"
        raise DataError(f"{path}: missing; {way}")
