"""PASCAL VOC 2012 segmentation (Everingham et al., IJCV 2015): 20 classes and background.

255 is void. Splits: train 1,464, val 1,449, trainval 2,913, test 1,456 without masks. With the
masks of SBD (Hariharan et al., ICCV 2011): train_aug 10,582 = SBD's train (8,498) and val (2,857)
and VOC's train, without VOC's val; trainval_aug 12,031. FCN (arXiv:1411.4038) trains on sbd_train,
SBD's train with SBD's own masks, and measures on the 736 images of VOC 2011's val that are not
among them: seg11valid.txt of its release, put beside the other lists. EncNet's release
(PyTorch-Encoding) trains on sbd_trainval, all 11,355 of SBD, many of which are in VOC's val.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from segtrain.data.file_sets import MaskSet, ObjectSet, check_size, instances_of
from segtrain.data.images import read_mask, shown
from segtrain.data.listing import check_split, find_root, list_paths, read_ids
from segtrain.data.mat import read_mat
from segtrain.data.nearest import alike, near_folder
from segtrain.data.pairing import images_listed, pair_listed
from segtrain.errors import DataError, UserError
from segtrain.structures.instances import Instances
from segtrain.structures.labels import LabelMap
from segtrain.structures.samples import IGNORE, Files

# Those that are SBD's alone -> its lists.
SBD_SPLITS = {"sbd_train": ("train",), "sbd_trainval": ("train", "val")}
AUG_SPLITS = ("train_aug", "trainval_aug")  # those that mix masks of VOC and SBD
SPLITS = ("train", "val", "trainval", "test", *AUG_SPLITS, *SBD_SPLITS)
VOID = 255  # in SegmentationClass and SegmentationObject


class VOC(MaskSet):
    """`root` is `VOCdevkit` or `VOCdevkit/VOC2012`.

    It holds `JPEGImages`, `SegmentationClass` and `ImageSets/Segmentation`; `split` is any list
    there. Images of VOC's val keep VOC's own masks. The others of train_aug and trainval_aug have
    theirs from `SegmentationClassAug`; or, where `sbd` is SBD's folder `benchmark_RELEASE/dataset`,
    VOC's own where they are in VOC's train, else SBD's `cls/<id>.mat`, which know no void. With
    `sbd` these two splits need no lists. sbd_train and sbd_trainval need `sbd` and take all their
    masks from there.
    """

    def __init__(self, root: str, split: str, sbd: str | None = None) -> None:
        base = _voc_folder(root)
        check_split(split, {*SPLITS, *_lists(base)}, "VOC 2012")
        problems: list[str] = []
        files = _files(base, split, sbd, problems)
        super().__init__(LabelMap.load("voc"), files, problems, labelled=split != "test")

    def read_mask(self, path: Path) -> np.ndarray:
        """Return the values of a mask as stored: VOC's are PNG, SBD's .mat."""
        if path.suffix.lower() == ".mat":
            return read_mat(path, "GTcls", "Segmentation")
        return read_mask(path)


class VOCInstance(ObjectSet):
    """Objects of the 20 classes.

    `SegmentationObject` holds a number per object, `SegmentationClass` its class. `root` as in
    `VOC`, `split` any list in `ImageSets/Segmentation`. Void (255 in either file) belongs to no
    object.
    """

    def __init__(self, root: str, split: str) -> None:
        base = _voc_folder(root)
        known = {*SPLITS, *_lists(base)} - {*AUG_SPLITS, *SBD_SPLITS}
        check_split(split, known, "VOC 2012 objects")
        labelled = split != "test"
        problems: list[str] = []
        ids = _listed(base, split, problems)
        classes: dict[str, Files] = {}
        if labelled:
            classes = _pairs(base, ids, "SegmentationClass", problems)
            # Only those with a class mask: an image that has none is noted once, not twice.
            ids = [name for name in ids if name in classes]
            files = _pairs(base, ids, "SegmentationObject", problems)
        else:
            files = images_listed(ids, base / "JPEGImages", problems)
        self._classes = {name: each.annotation for name, each in classes.items()}
        labels = LabelMap.load("voc").without("background")
        super().__init__(labels, files, problems, labelled)

    def extra_files(self) -> Mapping[str, Path]:
        """Return the files of SegmentationClass."""
        found = {name: self._classes[name] for name in self.ids if name in self._classes}
        return {f"classes of {name}": path for name, path in found.items() if path is not None}

    def objects(self, index: int, path: Path) -> Instances:
        """Return the objects in the order of their numbers in SegmentationObject."""
        classes = self._classes[self.ids[index]]
        assert classes is not None  # `_pairs` gives every image a mask
        return _objects(path, classes, self.labels)


def _voc_folder(root: str) -> Path:
    base = find_root(root)
    return base / "VOC2012" if (base / "VOC2012").is_dir() else base


def _lists(base: Path) -> dict[str, Path]:
    return list_paths(base / "ImageSets" / "Segmentation")


def _listed(base: Path, split: str, problems: list[str]) -> list[str]:
    path = _lists(base).get(split, base / "ImageSets" / "Segmentation" / f"{split}.txt")
    _check_present(path, split)
    return read_ids(path, problems)


def _pairs(base: Path, ids: Sequence[str], folder: str, problems: list[str]) -> dict[str, Files]:
    if not ids:
        return {}
    _check_present(base / folder, folder)
    return pair_listed(ids, base / "JPEGImages", base / folder, problems)


def _check_present(path: Path, what: str) -> None:
    """Say how to get the list or folder `what` where it is missing. Errors: DataError."""
    if path.exists():
        return
    if what in (*AUG_SPLITS, "SegmentationClassAug"):
        way = (
            "not part of the VOC archive: `segdata prepare dataset=voc` with dataset.sbd=FOLDER "
            "fetches SBD and makes it; or set dataset.sbd= to SBD's folder "
            "benchmark_RELEASE/dataset, or use dataset.train_split=train"
        )
    elif what == "test":
        way = "the test images are an archive of their own; unpack it into the same VOCdevkit"
    else:
        way = "set dataset.root= to the folder VOCdevkit"
        near = alike(path.stem, list_paths(path.parent)) if path.suffix else ""
        way = near_folder(path, synonyms=False) or way
        way = f"`{near}` is there in place of `{path.stem}`" if near else way
    raise DataError(f"{shown(path)}: missing; {way}")


def _files(base: Path, split: str, sbd: str | None, problems: list[str]) -> dict[str, Files]:
    """Return the split's ids, each with its image and mask."""
    images = base / "JPEGImages"
    if split == "test":
        return images_listed(_listed(base, split, problems), images, problems)
    if split in SBD_SPLITS:
        folder = _sbd_folder(sbd or "", split)
        parts = SBD_SPLITS[split]
        ids = [name for part in parts for name in read_ids(folder / f"{part}.txt", problems)]
        return pair_listed(ids, images, folder / "cls", problems, (".mat",))
    if split not in AUG_SPLITS:
        return _pairs(base, _listed(base, split, problems), "SegmentationClass", problems)
    if sbd is not None:
        ids, own = _sbd_ids(base, split, _sbd_folder(sbd), problems)
    else:
        ids, own = _aug_ids(base, split, problems)
    others = [name for name in ids if name not in own]
    if sbd is not None:
        files = pair_listed(others, images, _sbd_folder(sbd) / "cls", problems, (".mat",))
    else:
        files = _pairs(base, others, "SegmentationClassAug", problems)
    files |= _pairs(base, [name for name in ids if name in own], "SegmentationClass", problems)
    return {name: files[name] for name in ids if name in files}


def _sbd_ids(base: Path, split: str, sbd: Path, problems: list[str]) -> tuple[list[str], set[str]]:
    """Return the ids of `split`, and those that have a mask of VOC's own."""
    train = set(_listed(base, "train", problems))
    val = set(_listed(base, "val", problems))
    in_sbd = {name for part in ("train", "val") for name in read_ids(sbd / f"{part}.txt", problems)}
    ids = (in_sbd | train) - val
    return sorted(ids | val if split == "trainval_aug" else ids), train | val


def _aug_ids(base: Path, split: str, problems: list[str]) -> tuple[list[str], set[str]]:
    """Return what `_sbd_ids` does, from the lists that come with SegmentationClassAug."""
    lists = _lists(base)
    ids = _listed(base, split if split in lists else "train_aug", problems)
    val = _listed(base, "val", problems) if split == "trainval_aug" or "val" in lists else []
    if split == "trainval_aug":
        # The usual downloads have no such list; then it is train_aug and val.
        return ids if split in lists else list(dict.fromkeys([*ids, *val])), set(val)
    where = shown(base / "ImageSets" / "Segmentation" / "train_aug.txt")
    leaked = sorted(set(ids) & set(val))
    problems += [
        f"{where}: lists `{name}`, which is in val.txt too; take it out" for name in leaked
    ]
    return ids, set(val)


def _sbd_folder(sbd: str, split: str = "") -> Path:
    if not sbd:
        raise UserError(
            f"split {split}: its masks are SBD's; "
            "set dataset.sbd= to SBD's benchmark_RELEASE/dataset"
        )
    path = Path(sbd).expanduser()
    path = path / "dataset" if (path / "dataset").is_dir() else path
    if not (path / "cls").is_dir():
        raise UserError(
            f"{shown(path / 'cls')}: no such folder; "
            "set dataset.sbd= to SBD's benchmark_RELEASE/dataset"
        )
    return path


def _objects(objects: Path, classes: Path, labels: LabelMap) -> Instances:
    """Return the objects numbered in one file with their classes from another.

    Errors: DataError where an object's pixels are of no class, or of several.
    """
    numbers = read_mask(objects)
    stored = read_mask(classes)
    check_size(Files(classes, objects), stored.shape, numbers.shape)
    train = labels.encode(stored, shown(classes))
    void = (numbers == VOID) | (stored == VOID)
    classes_of: dict[int, list[int]] = {
        int(number): [] for number in np.flatnonzero(np.bincount(numbers.ravel())) if number != VOID
    }
    # One number for each pair of object and class that a pixel has.
    pairs = np.bincount(numbers[~void].astype(np.int64) * 256 + train[~void])
    for pair in np.flatnonzero(pairs).tolist():
        classes_of[pair // 256].append(pair % 256)
    classes_of.pop(0, None)  # pixels of no object
    for number, train_ids in classes_of.items():
        names = [labels.names[t] if t != IGNORE else "background" for t in train_ids]
        if len(train_ids) != 1 or train_ids == [IGNORE]:
            held = " and ".join(names) or "nothing but void"
            raise DataError(
                f"{shown(objects)}: object {number} is {held} in {shown(classes)}, "
                "but an object has one class"
            )
    class_of = {number: train_ids[0] for number, train_ids in classes_of.items()}
    return instances_of(np.where(void, 0, numbers), class_of)
