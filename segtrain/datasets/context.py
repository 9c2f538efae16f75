"""PASCAL-Context (Mottaghi et al., CVPR 2014): whole scenes of VOC 2010.

Train has 4,998 and val 5,105 images. The 59 most frequent of 459 labels are classes, everything
else is background. Train ids always follow the data set's own 59-label list (aeroplane .. wood),
however the masks are numbered.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from segtrain.data.file_sets import MaskSet
from segtrain.data.images import read_mask, shown
from segtrain.data.listing import SUFFIXES, check_split, find_root, read_ids
from segtrain.data.mat import read_mat
from segtrain.data.pairing import pair_listed
from segtrain.errors import DataError, UserError
from segtrain.structures.labels import LabelMap
from segtrain.structures.samples import IGNORE

SPLITS = ("train", "val", "trainval")
# The one folder whose name says how its masks are numbered.
MASKS = "59_context_labels"
# The key of each numbering in classes/context.json.
NUMBERING_KEYS = {"official": "id", "sorted": "sorted_index", 459: "id_459"}
WAYS = (
    "dataset.ids=official (1 aeroplane .. 59 wood, as in 59_labels.txt), dataset.ids=sorted "
    "(PyTorch-Encoding, detail-api, mmsegmentation: by 459-label id, 1 aeroplane, 2 bag ..) "
    "or dataset.ids=459 (.mat label maps)"
)


class Context(MaskSet):
    """`root` is `VOC2010` or the folder above: `JPEGImages`, and the folder `masks`.

    `masks` is relative to `root`, or absolute.
    classes: 59 = background is ignored; 60 = background is class 0. Published numbers differ by
    about 5 points: say which.
    ids: how the masks are numbered. "official" and "sorted" are index PNGs of 0 background,
    1 .. 59 that cannot be told apart by their values; 459 are the .mat files of the original
    release (field LabelMap), where all other labels (431 `unknown`, and 0) are background. None is
    "official" for the folder `59_context_labels` and refused for any other.
    lists: folder of <split>.txt; without it `<split>.txt` is looked for in `root`,
    `ImageSets/SegmentationContext` and `ImageSets/Main` (the original train and val are VOC 2010's
    own).
    """

    def __init__(
        self,
        root: str,
        split: str,
        classes: Literal[59, 60] = 59,
        masks: str = MASKS,
        ids: Literal["official", "sorted", 459] | None = None,
        lists: str | None = None,
    ) -> None:
        base = find_root(root)
        base = base / "VOC2010" if (base / "VOC2010").is_dir() else base
        numbering = _numbering(base / masks, ids)
        problems: list[str] = []
        listed = read_ids(_list(base, split, lists), problems)
        suffixes = (".mat",) if numbering == 459 else SUFFIXES
        files = pair_listed(listed, base / "JPEGImages", base / masks, problems, suffixes)
        hint = f"Another numbering? Set {WAYS}; it is {numbering} now"
        super().__init__(label_map(classes, numbering), files, problems, hint=hint)

    def read_mask(self, path: Path) -> np.ndarray:
        """Return the values of an index PNG, or of a .mat file of the original release."""
        return read_mat(path, "LabelMap") if path.suffix.lower() == ".mat" else read_mask(path)


def label_map(classes: Literal[59, 60], ids: Literal["official", "sorted", 459]) -> LabelMap:
    """Return the 59 or 60 classes in official order, with the raw values of the numbering `ids`."""
    labels = LabelMap.load("context", NUMBERING_KEYS[ids])
    if ids == 459:
        # 0 comes first because background is written as the first of its values. 255 is a label
        # like the others here.
        others = {value: 0 for value in range(460) if labels.raw.get(value, IGNORE) == IGNORE}
        labels = replace(labels, raw={**labels.raw, **others})
    return labels if classes == 60 else labels.without("background")


def _numbering(
    masks: Path, ids: Literal["official", "sorted", 459] | None
) -> Literal["official", "sorted", 459]:
    """Return how the masks in a folder are numbered.

    Errors: UserError where nobody says so, or the files are of another kind.
    """
    if not masks.is_dir():
        raise UserError(
            f"{shown(masks)}: no such folder; set dataset.masks= to the folder of masks and {WAYS}"
        )
    if ids is None and masks.name != MASKS:
        raise UserError(f"{shown(masks)}: how are these masks numbered? Set {WAYS}")
    suffixes = {path.suffix.lower() for path in masks.iterdir()}
    if ids == 459 and ".mat" not in suffixes:
        raise UserError(f"dataset.ids=459: {shown(masks)} holds no .mat files; set {WAYS}")
    if ids != 459 and ".mat" in suffixes and not suffixes & set(SUFFIXES):
        raise UserError(f"dataset.ids={ids}: {shown(masks)} holds .mat files; set dataset.ids=459")
    return ids or "official"


def _list(base: Path, split: str, lists: str | None) -> Path:
    """Return the file that lists the ids of a split."""
    if lists is not None:
        known = [path.stem for path in (base / lists).glob("*.txt")]
        check_split(split, known, f"{shown(base / lists)}/*.txt")
        return base / lists / f"{split}.txt"
    check_split(split, SPLITS, "PASCAL-Context")
    folders = (base, base / "ImageSets" / "SegmentationContext", base / "ImageSets" / "Main")
    paths = [folder / f"{split}.txt" for folder in folders]
    for path in paths:
        if path.is_file():
            return path
    raise DataError(
        f"{' or '.join(map(shown, paths))}: missing; "
        "set dataset.root= to VOC2010, or dataset.lists=FOLDER"
    )
