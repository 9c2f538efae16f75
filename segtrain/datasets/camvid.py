"""CamVid in the SegNet split: 367 / 101 / 233 street scenes of 480 x 360, 11 classes, void stored as 11.

Brostow, Fauqueur and Cipolla, "Semantic object classes in video" (2009); protocol of SegNet (arXiv:1511.00561).
"""

from __future__ import annotations

from ..contracts import Sample
from .labels import LabelMap
from .pairs import Pair, check_split, find_root, pair_all, read_pair

SPLITS = ("train", "val", "test")


class CamVid:
    """`root/{train,val,test}/<id>.{png,jpg}` with `root/{train,val,test}annot/<id>.png`."""

    def __init__(self, root: str, split: str) -> None:
        check_split(split, SPLITS, "CamVid")
        base = find_root(root)
        self.labels = LabelMap.load("camvid")
        self.problems: list[str] = []
        self._pairs = pair_all(base / split, base / f"{split}annot", self.problems)
        self.ids = list(self._pairs)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        return read_pair(self.ids[index], self.files(index), self.labels)

    def files(self, index: int) -> Pair:
        """(image path, mask path)."""
        return self._pairs[self.ids[index]]
