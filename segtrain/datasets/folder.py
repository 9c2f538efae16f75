"""Any folder of images and masks: `segtrain dataset=folder dataset.root=FOLDER`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from segtrain.data.division import Division, side_of
from segtrain.data.file_sets import MaskSet
from segtrain.data.images import read_colors, shown
from segtrain.data.layouts import check_no_splits, check_there, split_folders
from segtrain.data.listing import check_split, find_root, list_paths, read_ids
from segtrain.data.pairing import pair_all, pair_listed
from segtrain.errors import DataError, UserError
from segtrain.structures.labels import LabelMap, Table
from segtrain.structures.samples import Files


class Folder(MaskSet):
    """Images and masks paired by file name without suffix, in one of four layouts.

    1. `root/images/<split>/a.jpg` with `root/masks/<split>/a.png`
    2. `root/<split>/images/a.jpg` with `root/<split>/masks/a.png`
    3. `lists` given: `root/images/a.jpg`, `root/masks/a.png`, and `root/<lists>/<split>.txt` with
       one id (`a`) per line
    4. `val_share` or `folds` given: `root/images/a.jpg` and `root/masks/a.png`, divided by a hash
       of the id: about that share is `val`, or fold number `fold` of so many. An image keeps its
       side when others are added.

    In layouts 1, 2 and 4 the images of a folder may all lie in folders of their own, with masks in
    folders of the same names: `root/images/train/city/a.jpg`, `root/masks/train/city/a.png`.

    `mask_suffix` ends the names of masks: with `_mask`, `a_mask.png` is the mask of `a.jpg`.
    `image_suffix` ends those of images, which are not otherwise the name of a sample.

    Classes come from `labels` ([{id, name, color?, ignore?}, ...], in short [background, car] or
    {0: background, 1: car, 255: null}), else from `classes` (a built-in name such as voc, or a
    .json file), else from `root/classes.json`. Masks hold the ids as 1-channel values or palette
    indices; with `rgb` they are drawn in the classes' colours.

    Errors: UserError, DataError.
    """

    def __init__(
        self,
        root: str,
        split: str,
        images: str = "images",
        masks: str = "masks",
        lists: str | None = None,
        classes: str | None = None,
        labels: list[dict | str] | dict | None = None,
        image_suffix: str = "",
        mask_suffix: str = "",
        rgb: bool = False,
        val_share: float | None = None,
        folds: int | None = None,
        fold: int = 0,
    ) -> None:
        base = find_root(root)
        problems: list[str] = []
        label_map = _labels(base, classes, labels)
        if val_share is None and folds is None:
            ends = (image_suffix, mask_suffix)
            files = _pairs(base, split, (images, masks), lists, ends, problems)
        else:
            if lists is not None:
                raise UserError("dataset.val_share, dataset.folds: leave them or dataset.lists out")
            check_there(base, (images, masks), base / images, base / masks)
            check_no_splits(base / images)
            pairs = pair_all(base / images, base / masks, problems, mask_suffix, image_suffix)
            files = side_of(pairs, split, Division(val_share, folds, fold))
        if rgb:
            label_map.check_colors("dataset.rgb=true")
        self.rgb = rgb
        super().__init__(label_map, files, problems)

    def _encoded(self, files: Files, mask: np.ndarray | None) -> np.ndarray:
        """Return the train ids of a mask, also of one that is drawn in colours."""
        if self.rgb and mask is not None and files.annotation is not None:
            return self.labels.encode_colors(mask, shown(files.annotation))
        return super()._encoded(files, mask)

    def read_mask(self, path: Path) -> np.ndarray:
        """Return the values of a mask file (H, W) as stored, or its colours (H, W, 3)."""
        if not self.rgb:
            return super().read_mask(path)
        drawn = read_colors(path)
        if drawn is None:
            raise DataError(
                f"{shown(path)}: is not drawn in colours (a PNG of mode RGB), as dataset.rgb=true "
                "says"
            )
        return drawn


def _labels(base: Path, classes: str | None, labels: Table | None) -> LabelMap:
    if labels is not None:
        return LabelMap.from_table(labels, "dataset.labels")
    if classes is not None:
        beside = base / classes  # as somebody writes who thinks of the data set's folder
        own = beside.is_file() and not Path(classes).is_file()
        return LabelMap.load(str(beside) if own else classes)
    if (base / "classes.json").is_file():
        return LabelMap.load(str(base / "classes.json"))
    way = "dataset.labels={0: background, 1: object, 255: null}"
    listed = base / "classes.txt"
    file = f"{listed} (if its lines are the values 0, 1, ...)" if listed.is_file() else "FILE.json"
    raise UserError(
        f"{base}: which mask value is which class? Set '{way}' or dataset.classes={file}"
    )


def _pairs(
    base: Path,
    split: str,
    folders: tuple[str, str],
    lists: str | None,
    ends: tuple[str, str],
    problems: list[str],
) -> dict[str, Files]:
    images, masks = folders
    image_suffix, mask_suffix = ends
    if lists is not None:
        check_there(base, folders, base / lists)
        known = list_paths(base / lists)
        check_split(split, known, f"{base / lists}/*.txt")
        if image_suffix:
            raise UserError("dataset.image_suffix: with dataset.lists ids are whole names")
        ids = read_ids(known[split], problems, may_be_empty=True)
        check_there(base, folders, base / images, base / masks)
        return pair_listed(ids, base / images, base / masks, problems, mask_suffix=mask_suffix)
    pair = split_folders(base, split, folders)
    return pair_all(*pair, problems, mask_suffix, image_suffix)
