"""Cityscapes (Cordts et al., CVPR 2016): street scenes of 50 cities, 2048 x 1024 pixels.

19 classes are evaluated. Splits: train 2,975, val 500, test 1,525 (labels not published),
train_extra 19,998 with coarse labels only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from segtrain.data.file_sets import MaskSet, ObjectSet, check_size, instances_of
from segtrain.data.images import read_mask, shown
from segtrain.data.listing import check_split, find_root, subfolders
from segtrain.data.nearest import near_folder
from segtrain.errors import DataError, UserError
from segtrain.structures.instances import Instances
from segtrain.structures.labels import LabelMap
from segtrain.structures.samples import IGNORE, Files, Sample, Scene, Truth

SPLITS = ("train", "val", "test", "train_extra")
IMAGE_SUFFIX = "_leftImg8bit.png"
INSTANCE_CLASSES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
# Instance maps hold label id * 1000 + number. Values below are plain label ids: no object, or a
# group whose objects could not be told apart.
FIRST_INSTANCE = 1000
OTHER_VEHICLE_IDS = (29, 30)  # caravan and trailer
OTHER_VEHICLE = 254  # the value by which the metric knows them in a prediction
# Share of a mask's pixels that may differ from its instance map. A mask that holds train ids
# differs nearly everywhere; single pixels are let pass.
MAX_STRANGE_SHARE = 0.01
RAW_IDS = (
    "segtrain reads labelIds (0-33) as they come in the Cityscapes archives and makes trainIds "
    "itself; a file that holds 255 holds trainIds: put the original back. For classes of your own "
    "take dataset=folder dataset.images=leftImg8bit dataset.masks=gtFine "
    "dataset.image_suffix=_leftImg8bit dataset.mask_suffix=_gtFine_labelIds"
)
INSTANCE_IDS = (
    "an instanceIds file holds label ids (0-33) and label id * 1000 + number; put the original back"
)


class Cityscapes(MaskSet):
    """`root/leftImg8bit/<split>/<city>/<id>_leftImg8bit.png` with the masks of `gtFine`.

    Masks are `root/gtFine/<split>/<city>/<id>_gtFine_labelIds.png`. Ids are
    `<city>/<city>_<sequence>_<frame>`. coarse: take the labels of `gtCoarse`, whose masks leave
    much of an image ignored; train_extra has no others. The split test counts as unlabelled: its
    label files are placeholders.
    """

    def __init__(self, root: str, split: str, coarse: bool = False) -> None:
        check_split(split, SPLITS, "Cityscapes")
        if coarse and split == "test":
            raise UserError(
                "dataset.coarse=true: the split test has no coarse labels; "
                "dataset.split=train_extra, train or val"
            )
        labelled = split != "test"
        problems: list[str] = []
        self._kind = "gtCoarse" if coarse or split == "train_extra" else "gtFine"
        suffix = f"_{self._kind}_labelIds.png" if labelled else None
        files = _files(find_root(root), split, self._kind, suffix, problems)
        super().__init__(LabelMap.load("cityscapes"), files, problems, labelled, hint=RAW_IDS)

    def encode_prediction(self, raw: np.ndarray, where: str) -> np.ndarray:
        """Return predicted label ids as the train ids that `CityscapesEvaluator` takes.

        254 stands for caravan and trailer, which are not evaluated but right for the category
        vehicle, IGNORE for other classes that are not evaluated. Errors: DataError.
        """
        train = self.labels.encode(raw, where)
        train[np.isin(raw, OTHER_VEHICLE_IDS)] = OTHER_VEHICLE
        return train

    def scored(self, index: int) -> Sample:
        """Return the sample; its truth is a `Scene` where there is a fine instanceIds file."""
        sample = self[index]
        assert sample.mask is not None
        return replace(sample, truth=self._scene(index, sample.mask))

    def truth(self, index: int) -> Truth:
        """Return the `Scene` of `scored`, else the mask. The image is not read."""
        mask = self.mask(index)
        scene = self._scene(index, mask)
        return mask if scene is None else scene

    def extra_files(self) -> Mapping[str, Path]:
        """Return the fine instanceIds files, which `scored` reads."""
        found = {name: self._instance_ids(index) for index, name in enumerate(self.ids)}
        return {f"objects of {name}": path for name, path in found.items() if path is not None}

    def _instance_ids(self, index: int) -> Path | None:
        """Return the file that tells the objects of an image apart, where there is one."""
        labels = self.files(index).annotation
        if labels is None or self._kind != "gtFine":
            return None
        path = labels.with_name(labels.name.replace("_labelIds.png", "_instanceIds.png"))
        return path if path.exists() else None

    def _scene(self, index: int, mask: np.ndarray) -> Scene | None:
        labels = self.files(index).annotation
        path = self._instance_ids(index)
        if labels is None or path is None:
            return None
        instances = read_mask(path)
        check_size(Files(labels, path), mask.shape, instances.shape)
        classes = self.labels.encode(_label_ids(instances), shown(path), INSTANCE_IDS)
        strange = float((classes != mask).mean())
        if strange > MAX_STRANGE_SHARE:
            raise DataError(
                f"{shown(labels)}: {strange:.0%} of its pixels are of another class in "
                f"{path.name}; {RAW_IDS}"
            )
        return Scene(mask, instances)


class CityscapesInstance(ObjectSet):
    """Objects of the 8 classes that are counted, from `*_gtFine_instanceIds.png`.

    Layout and ids are those of `Cityscapes`. A group, whose objects could not be told apart, is one
    crowd region per class. Caravans and trailers are left out.
    """

    def __init__(self, root: str, split: str) -> None:
        check_split(split, SPLITS[:3], "Cityscapes objects")
        labelled = split != "test"
        problems: list[str] = []
        suffix = "_gtFine_instanceIds.png" if labelled else None
        files = _files(find_root(root), split, "gtFine", suffix, problems)
        labels = LabelMap.load("cityscapes").only(INSTANCE_CLASSES)
        super().__init__(labels, files, problems, labelled)

    def objects(self, index: int, path: Path) -> Instances:
        """Return objects and groups in the order of their values in instanceIds."""
        regions = read_mask(path)
        # Only for its error: a value that is no label is refused.
        self.labels.encode(_label_ids(regions), shown(path), INSTANCE_IDS)
        values = np.flatnonzero(np.bincount(regions.ravel()))
        classes = {int(value): self.labels.raw[int(_label_ids(value))] for value in values}
        counted = {value: train for value, train in classes.items() if train != IGNORE}
        groups = [value for value in counted if value < FIRST_INSTANCE]
        return instances_of(regions, counted, crowd=groups)


def _label_ids(instances: np.ndarray) -> np.ndarray:
    """Return the label ids of values of an instance map."""
    return np.where(instances >= FIRST_INSTANCE, instances // FIRST_INSTANCE, instances)


def _files(
    base: Path, split: str, kind: str, suffix: str | None, problems: list[str]
) -> dict[str, Files]:
    """Return every image of a split with its file of labels, by id; lonely files are noted.

    Files of labels end in `suffix`; None: images only.
    """
    images = _by_id(base / "leftImg8bit" / split, IMAGE_SUFFIX)
    if not images:
        folder = base / "leftImg8bit" / split
        raise DataError(f"{shown(folder)}: holds no images <city>/*{IMAGE_SUFFIX}")
    if suffix is None:
        return {name: Files(path) for name, path in images.items()}
    masks = _by_id(base / kind / split, suffix)
    problems += _lonely(images, masks, base / kind / split, suffix)
    problems += _lonely(masks, images, base / "leftImg8bit" / split, IMAGE_SUFFIX)
    return {name: Files(path, masks[name]) for name, path in images.items() if name in masks}


def _by_id(folder: Path, suffix: str) -> dict[str, Path]:
    """Return the files of all cities in `folder` whose names end in `suffix`, by id."""
    if not folder.is_dir():
        way = near_folder(folder, synonyms=False) or (
            "set dataset.root= to the folder with leftImg8bit and gtFine (gtCoarse), and unpack "
            "the archive of this split"
        )
        raise DataError(f"{shown(folder)}: no such folder; {way}")
    files = {}
    for city, city_folder in sorted(subfolders(folder).items()):
        for path in sorted(city_folder.iterdir()):
            if path.name.endswith(suffix) and not path.name.startswith("."):
                files[f"{city}/{path.name.removesuffix(suffix)}"] = path
    return files


def _lonely(
    files: Mapping[str, Path], partners: Mapping[str, Path], folder: Path, suffix: str
) -> list[str]:
    """Return a line for each file without partner."""
    lines = []
    for name, path in files.items():
        if name in partners:
            continue
        made = folder / f"{name}{suffix}".replace("_labelIds", "_labelTrainIds")
        is_made = suffix != IMAGE_SUFFIX and made.exists()
        hint = f"; {made.name} is not read: {RAW_IDS}" if is_made else ""
        lines.append(f"{shown(path)}: has no partner {shown(folder / name)}{suffix}{hint}")
    return lines
