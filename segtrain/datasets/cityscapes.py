"""Cityscapes (Cordts et al., CVPR 2016): street scenes of 50 cities, 2048 x 1024 pixels, 19 evaluated classes.

Splits: train 2,975, val 500, test 1,525 (labels not published), train_extra 19,998 with coarse labels only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from segtrain.data.file_sets import (
    Files,
    MaskSet,
    ObjectSet,
    check_size,
    check_split,
    find_root,
    instances_of,
    subfolders,
)
from segtrain.data.images import read_mask, shown
from segtrain.errors import DataError, UserError
from segtrain.structures.instances import Instances
from segtrain.structures.labels import LabelMap
from segtrain.structures.samples import IGNORE, Sample, Scene

SPLITS = ("train", "val", "test", "train_extra")
IMAGE = "_leftImg8bit.png"
INSTANCE_CLASSES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
FIRST_INSTANCE = 1000  # instance maps hold label id * 1000 + number; below it plain label ids: no object, or a group
OTHER_VEHICLES, OTHER_VEHICLE = (
    (29, 30),
    254,
)  # caravan and trailer; how the metric takes them as predictions
MOST_STRANGE = 0.01  # share of a mask's pixels that may differ from its instance map
RAW_IDS = (
    "segtrain reads labelIds (0-33) as they come in the Cityscapes archives and makes trainIds itself; a file that holds 255 "
    "holds trainIds: put the original back"
)
INSTANCE_IDS = (
    "an instanceIds file holds label ids (0-33) and label id * 1000 + number; put the original back"
)


class Cityscapes(MaskSet):
    """`root/leftImg8bit/<split>/<city>/<id>_leftImg8bit.png` with `root/gtFine/<split>/<city>/<id>_gtFine_labelIds.png`.

    Ids are `<city>/<city>_<sequence>_<frame>`. coarse: take the labels of `gtCoarse`, whose masks leave much of an image
    ignored; train_extra has no others. The split test counts as unlabelled: its label files are placeholders.
    """

    def __init__(self, root: str, split: str, coarse: bool = False) -> None:
        check_split(split, SPLITS, "Cityscapes")
        if coarse and split == "test":
            raise UserError(
                "dataset.coarse=true: the split test has no coarse labels; dataset.split=train_extra, train or val"
            )
        labelled, problems = split != "test", []
        self._kind = "gtCoarse" if coarse or split == "train_extra" else "gtFine"
        files = _files(
            find_root(root),
            split,
            self._kind,
            f"_{self._kind}_labelIds.png" if labelled else None,
            problems,
        )
        super().__init__(LabelMap.load("cityscapes"), files, problems, labelled, hint=RAW_IDS)

    def encode_prediction(self, raw: np.ndarray, where: str) -> np.ndarray:
        """Label ids that another program predicted -> train ids as `CityscapesEvaluator` takes them. DataError.

        254 stands for caravan and trailer, which are not evaluated but right for the category vehicle, IGNORE for others.
        """
        train = self.labels.encode(raw, where)
        train[np.isin(raw, OTHER_VEHICLES)] = OTHER_VEHICLE
        return train

    def scored(self, index: int) -> Sample:
        """The sample with a `Scene` as truth where it has fine labels and their instanceIds file."""
        sample = self[index]
        assert sample.mask is not None
        return replace(sample, truth=self._scene(index, sample.mask))

    def truth(self, index: int) -> Scene | np.ndarray:
        """What the metric compares with, without reading the image: the `Scene` of `scored`, else the target."""
        target = self.target(index)
        scene = self._scene(index, target)
        return target if scene is None else scene

    def _scene(self, index: int, target: np.ndarray) -> Scene | None:
        image, mask = self.files(index)
        if mask is None or self._kind != "gtFine":
            return None
        path = mask.with_name(mask.name.replace("_labelIds.png", "_instanceIds.png"))
        if not path.exists():
            return None
        instances = read_mask(path)
        check_size((mask, path), target.shape, instances.shape)
        strange = float(
            (self.labels.encode(_label_ids(instances), shown(path), INSTANCE_IDS) != target).mean()
        )
        if strange > MOST_STRANGE:
            raise DataError(
                f"{shown(mask)}: {strange:.0%} of its pixels are of another class in {path.name}; {RAW_IDS}"
            )
        return Scene(target, instances)


class CityscapesInstance(ObjectSet):
    """Objects of the 8 classes that are counted, from `*_gtFine_instanceIds.png`; layout and ids as in `Cityscapes`.

    A group, whose objects could not be told apart, is one crowd region per class. Caravans and trailers are left out.
    """

    def __init__(self, root: str, split: str) -> None:
        check_split(split, SPLITS[:3], "Cityscapes objects")
        labelled, problems = split != "test", []
        labels = "_gtFine_instanceIds.png" if labelled else None
        files = _files(find_root(root), split, "gtFine", labels, problems)
        super().__init__(
            LabelMap.load("cityscapes").only(INSTANCE_CLASSES), files, problems, labelled
        )

    def objects(self, index: int, path: Path) -> Instances:
        """Objects and groups by their values in instanceIds."""
        regions = read_mask(path)
        self.labels.encode(
            _label_ids(regions), shown(path), INSTANCE_IDS
        )  # refuses what is no label
        values = np.flatnonzero(np.bincount(regions.ravel()))
        classes = {int(value): self.labels.raw[int(_label_ids(value))] for value in values}
        counted = {value: train for value, train in classes.items() if train != IGNORE}
        return instances_of(
            regions, counted, crowd=[value for value in counted if value < FIRST_INSTANCE]
        )


def _label_ids(instances: np.ndarray) -> np.ndarray:
    """Values of an instance map -> label ids."""
    return np.where(instances >= FIRST_INSTANCE, instances // FIRST_INSTANCE, instances)


def _files(
    base: Path, split: str, kind: str, labels: str | None, problems: list[str]
) -> dict[str, Files]:
    """Every image of a split with its file of labels, by id; what has no partner is noted. `labels` None: images only."""
    images = _by_id(base / "leftImg8bit" / split, IMAGE)
    if not images:
        raise DataError(f"{shown(base / 'leftImg8bit' / split)}: holds no images <city>/*{IMAGE}")
    if labels is None:
        return {name: (path, None) for name, path in images.items()}
    masks = _by_id(base / kind / split, labels)
    problems += _lonely(images, masks, base / kind / split, labels)
    problems += _lonely(masks, images, base / "leftImg8bit" / split, IMAGE)
    return {name: (path, masks[name]) for name, path in images.items() if name in masks}


def _by_id(folder: Path, suffix: str) -> dict[str, Path]:
    if not folder.is_dir():
        way = "set dataset.root= to the folder with leftImg8bit and gtFine (gtCoarse), and unpack the archive of this split"
        raise DataError(f"{shown(folder)}: no such folder; {way}")
    found = {}
    for city, place in sorted(subfolders(folder).items()):
        for path in sorted(place.iterdir()):
            if path.name.endswith(suffix) and not path.name.startswith("."):
                found[f"{city}/{path.name.removesuffix(suffix)}"] = path
    return found


def _lonely(
    files: Mapping[str, Path], partners: Mapping[str, Path], folder: Path, suffix: str
) -> list[str]:
    """A line for each file without partner."""
    lines = []
    for name, path in files.items():
        if name in partners:
            continue
        made = folder / f"{name}{suffix}".replace("_labelIds", "_labelTrainIds")
        hint = f"; {made.name} is not read: {RAW_IDS}" if suffix != IMAGE and made.exists() else ""
        lines.append(f"{shown(path)}: has no partner {shown(folder / name)}{suffix}{hint}")
    return lines
