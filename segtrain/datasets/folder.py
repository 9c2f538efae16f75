"""Any folder of images and masks: `segtrain dataset=folder dataset.root=FOLDER`."""

from __future__ import annotations

from pathlib import Path

from segtrain.data.file_sets import MaskSet
from segtrain.data.listing import (
    check_split,
    find_root,
    pair_all,
    pair_listed,
    read_ids,
    subfolders,
)
from segtrain.errors import UserError
from segtrain.structures.labels import LabelMap, Table
from segtrain.structures.samples import Files


class Folder(MaskSet):
    """Images and masks paired by file name without suffix, in one of three layouts.

    1. `root/images/<split>/a.jpg` with `root/masks/<split>/a.png`
    2. `root/<split>/images/a.jpg` with `root/<split>/masks/a.png`
    3. `lists` given: `root/images/a.jpg`, `root/masks/a.png`, and `root/<lists>/<split>.txt` with
       one id (`a`) per line

    Classes come from `labels` ([{id, name, color?, ignore?}, ...], in short [background, car] or
    {0: background, 1: car, 255: null}), else from `classes` (a built-in
    name such as voc, or a .json file), else from `root/classes.json`. Masks hold the ids as
    1-channel values or palette indices.
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
    ) -> None:
        base = find_root(root)
        problems: list[str] = []
        label_map = _labels(base, classes, labels)
        files = _pairs(base, split, (images, masks), lists, problems)
        super().__init__(label_map, files, problems)


def _labels(base: Path, classes: str | None, labels: Table | None) -> LabelMap:
    if labels is not None:
        return LabelMap.from_table(labels, "dataset.labels")
    if classes is not None:
        return LabelMap.load(classes)
    if (base / "classes.json").is_file():
        return LabelMap.load(str(base / "classes.json"))
    way = (
        "dataset.labels=[{id: 0, name: background}, {id: 1, name: object}, {id: 255, ignore: true}]"
    )
    raise UserError(
        f"{base}: which mask value is which class? Set '{way}' or dataset.classes=FILE.json"
    )


def _pairs(
    base: Path, split: str, folders: tuple[str, str], lists: str | None, problems: list[str]
) -> dict[str, Files]:
    images, masks = folders
    if lists is not None:
        known = [path.stem for path in (base / lists).glob("*.txt")]
        check_split(split, known, f"{base / lists}/*.txt")
        ids = read_ids(base / lists / f"{split}.txt", problems)
        return pair_listed(ids, base / images, base / masks, problems)
    outer = [name for name, folder in subfolders(base).items() if (folder / images).is_dir()]
    inner = subfolders(base / images)
    check_split(split, {*inner, *outer}, f"{base / images} and {base}/*/{images}")
    if (base / images / split).is_dir():
        return pair_all(base / images / split, base / masks / split, problems)
    return pair_all(base / split / images, base / split / masks, problems)
