"""CamVid in the SegNet split: 367 / 101 / 233 street scenes of 480 x 360, 11 classes, void as 11.

Brostow, Fauqueur and Cipolla, "Semantic object classes in video" (2009); the protocol is that of
SegNet (arXiv:1511.00561).
"""

from __future__ import annotations

from segtrain.data.file_sets import MaskSet
from segtrain.data.listing import check_split, find_root
from segtrain.data.pairing import pair_all
from segtrain.structures.labels import LabelMap

SPLITS = ("train", "val", "test")


class CamVid(MaskSet):
    """`root/{train,val,test}/<id>.{png,jpg}` with `root/{train,val,test}annot/<id>.png`."""

    def __init__(self, root: str, split: str) -> None:
        check_split(split, SPLITS, "CamVid")
        base = find_root(root)
        problems: list[str] = []
        files = pair_all(base / split, base / f"{split}annot", problems)
        super().__init__(LabelMap.load("camvid"), files, problems)
