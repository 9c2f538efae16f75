"""COCO (Lin et al., ECCV 2014, arXiv:1405.0312): instances, proposals, VOC's classes as masks.

And anybody's own file of COCO's format. train2017 has 118,287 images, val2017 5,000. A split is
what its annotation file lists; the folder of images may hold more. Samples are sorted by image id
and named by it. Objects are labelled by the rank of their official category id.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from segtrain.data.base import BaseDataset
from segtrain.data.coco_index import CocoIndex, to_instances
from segtrain.data.coco_labels import read_labels
from segtrain.data.coco_photos import Photos
from segtrain.data.images import shown
from segtrain.data.listing import check_split, find_root
from segtrain.data.painting import painted
from segtrain.data.polygons import with_background
from segtrain.errors import DataError, UserError
from segtrain.structures.instances import Instances, Segments
from segtrain.structures.labels import BUILT_IN, LabelMap, RawId, voc_color
from segtrain.structures.samples import Files, Sample, Target, Truth

# (annotation, image): the two boxes without height of the official files, each around a polygon
# that is a line of area 0 (github.com/cocodataset/cocoapi, issue 355). Nothing can be learned from
# them; the metric reads what the file says.
KNOWN_FLAT_BOXES = ((918, 200365), (2206849, 550395))


def _is_train(split: str) -> bool:
    """Tell whether a split is one to train on; of the others every image counts."""
    return split.startswith("train")


class _Objects(BaseDataset):
    """Images with instances as labels: those of an index, or only those with an object.

    Images whose file is not there have their line in `problems`, and are left out. `keep_empty`
    False leaves out images without an object, `first` keeps only so many, by id.
    """

    labelled_with: ClassVar[Literal["masks", "instances"]] = "instances"

    def __init__(
        self,
        index: CocoIndex,
        photos: Photos,
        keep_empty: bool,
        labels: LabelMap,
        labelled: bool = True,
        first: int | None = None,
    ) -> None:
        self.index = index
        self.photos = photos
        self._label_of = np.array([labels.raw[raw] for raw in _ranked(index.labels)], np.int64)
        problems = list(index.problems)
        least_objects = 0 if keep_empty else 1
        rows = np.flatnonzero(np.diff(index.first) >= least_objects)[:first]
        self._rows = photos.present(rows, problems)
        super().__init__(labels, index.ids_of(self._rows), problems, labelled)
        self.notes = [*index.notes, *photos.notes]

    def __getitem__(self, index: int) -> Sample:
        """Return image and objects to learn from. Errors: DataError for an unusable file."""
        image = self.photos.read(int(self._rows[index]))
        return Sample(self.ids[index], image, instances=self.instances(index))

    def scored(self, index: int) -> Sample:
        """Return the sample with all objects of the file as its truth."""
        segments = self.segments(index)
        image = self.photos.read(int(self._rows[index]))
        instances = to_instances(segments, self.index.path)
        return Sample(self.ids[index], image, instances=instances, truth=segments)

    def sizes(self) -> np.ndarray:
        """Return (N, 2) height and width of every image, as annotated."""
        return self.index.sizes(self._rows)

    def segments(self, index: int) -> Segments:
        """Return all objects, exactly as the file says. The image is not read."""
        segments = self.index.segments(int(self._rows[index]))
        return replace(segments, labels=self._label_of[segments.labels])

    def instances(self, index: int) -> Instances:
        """Return what is learned (see `to_instances`). The image is not read."""
        return to_instances(self.segments(index), self.index.path)

    def target(self, index: int) -> Target:
        """Return what is learned. The image is not read."""
        return Target(instances=self.instances(index))

    def truth(self, index: int) -> Truth:
        """Return what the metric compares with: all objects. The image is not read."""
        return self.segments(index)

    def extra_files(self) -> Mapping[str, Path]:
        """Return the file of annotations."""
        return {"annotations": self.index.path}

    def files(self, index: int) -> Files:
        """Return the path of the image; the annotation of one image has no file.

        Errors: UserError where no folder of images is known.
        """
        return Files(self.photos.path(int(self._rows[index])))


class CocoInstances(_Objects):
    """`root/annotations/instances_<split>.json` with images in `root/<split>`: 80 classes.

    Test splits have `root/annotations/image_info_<split>.json`, images in `root/test2017`, and no
    annotations. `keep_empty`: images without an object stay (1,021 of train2017); False leaves
    those of train splits out, as Detectron does.
    """

    def __init__(self, root: str, split: str, keep_empty: bool = True) -> None:
        index, photos, labelled = _official(root, split)
        keep = keep_empty or not _is_train(split)
        super().__init__(index, photos, keep, index.labels, labelled)


class CocoProposals(_Objects):
    """The images of `CocoInstances`, in which every object is of the one class `object`.

    For systems that propose masks of anything. `val_first`: of splits that are not for training
    only the first so many images by id (DeepMask, FPN: 5,000 of val2014).
    """

    def __init__(
        self, root: str, split: str, keep_empty: bool = True, val_first: int | None = None
    ) -> None:
        if val_first is not None and val_first < 1:
            raise UserError(f"dataset.val_first={val_first}: at least 1 image, or null for all")
        index, photos, labelled = _official(root, split)
        raw = dict.fromkeys(sorted(index.labels.raw), 0)
        labels = LabelMap("coco_proposal", ("object",), (voc_color(1),), raw)
        first = None if _is_train(split) else val_first
        keep = keep_empty or not _is_train(split)
        super().__init__(index, photos, keep, labels, labelled, first)


class CocoJson(_Objects):
    """Any file of COCO's format, with the classes of its own `categories`.

    Split val reads `val_...` where given. `images` is needed only where images are read: scoring
    predictions does without. The classes are always those of `annotations`, so that both splits
    number them alike; where the other file has the same ones by name, its own ids stand for them.
    """

    def __init__(
        self,
        annotations: str,
        split: str,
        images: str | None = None,
        val_annotations: str | None = None,
        val_images: str | None = None,
        keep_empty: bool = True,
    ) -> None:
        index, photos = _any_file(annotations, split, images, val_annotations, val_images)
        super().__init__(index, photos, keep_empty or not _is_train(split), index.labels)


def _any_file(
    annotations: str,
    split: str,
    images: str | None,
    val_annotations: str | None,
    val_images: str | None,
) -> tuple[CocoIndex, Photos]:
    """Return what a file of COCO's format lists for a split, and its images."""
    check_split(split, ("train", "val"), "a file of COCO's format")
    path = Path(annotations).expanduser()
    given = images
    labels = None
    if split == "val":
        given = val_images or images
        if val_annotations is not None:
            path = Path(val_annotations).expanduser()
            labels = _with_ids_of(path, read_labels(Path(annotations).expanduser()))
    folder = None if given is None else Path(given).expanduser()
    index = CocoIndex(path, labels, folder=folder)
    return index, Photos(index, folder, optional=True)


def _with_ids_of(path: Path, labels: LabelMap) -> LabelMap:
    """Return `labels` with the ids that the file has for them, where its classes are the same."""
    try:
        theirs = read_labels(path)
    except DataError:
        return labels  # what is wrong with the file is told when all of it is read
    if sorted(theirs.names) != sorted(labels.names):
        return labels
    return replace(labels, raw=theirs.in_order(labels.names).raw)


class _Drawn(BaseDataset):
    """Label maps drawn from the objects of a file, see `painting.painted`.

    `class_of` (K,) uint8 is the class of each kind of object, 0 for background.
    """

    def __init__(
        self,
        index: CocoIndex,
        photos: Photos,
        rows: np.ndarray,
        labels: LabelMap,
        class_of: np.ndarray,
    ) -> None:
        self.index = index
        self.photos = photos
        self._class_of = class_of
        problems = list(index.problems)
        self._rows = photos.present(rows, problems)
        super().__init__(labels, index.ids_of(self._rows), problems)
        self.notes = [*index.notes, *photos.notes]

    def __getitem__(self, index: int) -> Sample:
        """Return image and mask. Errors: DataError for a file that cannot be used."""
        image = self.photos.read(int(self._rows[index]))
        segments = self._segments(index)
        return Sample(self.ids[index], image, self._drawn(segments), objects=segments)

    def sizes(self) -> np.ndarray:
        """Return (N, 2) height and width of every image, as annotated."""
        return self.index.sizes(self._rows)

    def mask(self, index: int) -> np.ndarray:
        """Return the mask (H, W) uint8. The image is not read."""
        return self._drawn(self._segments(index))

    def _segments(self, index: int) -> Segments:
        return self.index.segments(int(self._rows[index]))

    def _drawn(self, segments: Segments) -> np.ndarray:
        if segments.masks is None or segments.crowd is None:
            raise DataError(
                f"{shown(self.index.path)}: holds boxes and no masks (`segmentation`), needed here"
            )
        labels = self._class_of[segments.labels]
        return painted(segments.masks, labels, segments.crowd, segments.size)

    def target(self, index: int) -> Target:
        """Return the mask. The image is not read."""
        return Target(mask=self.mask(index))

    def truth(self, index: int) -> Truth:
        """Return what the metric compares with: the mask. The image is not read."""
        return self.mask(index)

    def extra_files(self) -> Mapping[str, Path]:
        """Return the file of annotations."""
        return {"annotations": self.index.path}

    def files(self, index: int) -> Files:
        """Return the path of the image; no file holds the mask."""
        return Files(self.photos.path(int(self._rows[index])))


class CocoVOC(_Drawn):
    """Masks of VOC's 20 classes and background from COCO's objects, to pre-train systems for VOC.

    Of train splits are kept images of whose annotated area more than `min_pixels` is of VOC's
    classes (DeepLabv3, arXiv:1706.05587, section 4: 1,000 pixels, about 60,000 images); null keeps
    all. All other classes are background.

    Where objects overlap the smaller one (by its pixels) is on top, for what lies in front is
    mostly smaller: of 36,880 pixels that two classes claim (78 images), 99 % are then as in COCO's
    own panoptic maps; with the first annotation on top, as PyTorch-Encoding draws them, 46 %. Crowd
    regions are drawn as their class, below everything: coarse as they are, those maps give 86 to
    100 % of their pixels the same class (four crowds), and void would teach nothing.
    """

    def __init__(self, root: str, split: str, min_pixels: int | None = 1000) -> None:
        index, photos = _annotated(root, split)
        class_of = _voc_classes()
        image_of = np.repeat(np.arange(len(index)), np.diff(index.first))
        voc_areas = index.areas * (class_of[index.classes] > 0)
        areas = np.bincount(image_of, voc_areas, len(index))
        least = min_pixels if min_pixels is not None and _is_train(split) else -1
        rows = np.flatnonzero(areas > least)
        if not len(rows):
            raise DataError(
                f"{shown(index.path)}: no image has more than {min_pixels} pixels of VOC's "
                "classes; lower dataset.min_pixels"
            )
        super().__init__(index, photos, rows, LabelMap.load("voc"), class_of)


class CocoJsonMasks(_Drawn):
    """Label maps of any file of COCO's format: background, then the classes of its `categories`.

    So semantic systems train on instance annotations (CVAT, Label Studio, Roboflow). The arguments
    are those of `CocoJson`.
    """

    def __init__(
        self,
        annotations: str,
        split: str,
        images: str | None = None,
        val_annotations: str | None = None,
        val_images: str | None = None,
    ) -> None:
        index, photos = _any_file(annotations, split, images, val_annotations, val_images)
        labels = with_background(index.labels)
        labels = replace(labels, raw={train: train for train in range(labels.num_classes)})
        rows = np.arange(len(index))
        class_of = [labels.names.index(name) for name in index.labels.names]
        super().__init__(index, photos, rows, labels, np.array(class_of, np.uint8))


class CocoThings(_Drawn):
    """Masks of COCO's objects by their category ids, 1 to 90, and background: 91 classes.

    Ten of the ids have no object. DeepLab v2's network that was trained on COCO has these outputs
    (the authors' init.caffemodel; configs/coco.yaml of kazuto1011's deeplab-pytorch).
    """

    def __init__(self, root: str, split: str) -> None:
        index, photos = _annotated(root, split)
        ids = np.array(_ranked(LabelMap.load("coco")), np.uint8)
        super().__init__(index, photos, np.arange(len(index)), _thing_labels(), ids)


def _thing_labels() -> LabelMap:
    """Return background and the things of COCO's ids 1 to 90, in which the train id is the id."""
    content = json.loads((BUILT_IN / "coco_stuff.json").read_text(encoding="utf-8"))
    things = [entry for entry in content["classes"] if entry["category_id"] <= 90]
    table = [{"id": 0, "name": "background", "color": [0, 0, 0]}]
    table += [
        {"id": entry["category_id"], "name": entry["name"], "color": list(voc_color(train))}
        for train, entry in enumerate(things, 1)
    ]
    return LabelMap.from_table(table, "coco_things")


def _ranked(labels: LabelMap) -> list[RawId]:
    """Return the official id of each train id, the first listed one."""
    first: dict[int, RawId] = {}
    for raw, train in labels.raw.items():
        first.setdefault(train, raw)
    return [first[train] for train in range(labels.num_classes)]


def _voc_classes() -> np.ndarray:
    """Return (80,) uint8, the VOC class of each COCO class; 0 for those that VOC does not have."""
    entries = json.loads((BUILT_IN / "coco.json").read_text(encoding="utf-8"))["classes"]
    entries = sorted(entries, key=lambda entry: entry["train"])
    return np.array([entry["voc_id"] or 0 for entry in entries], np.uint8)


def _official(root: str, split: str) -> tuple[CocoIndex, Photos, bool]:
    """Return index and images of an official split, and whether it is annotated."""
    base = find_root(root)
    folder = base / "annotations"
    if not folder.is_dir():
        raise DataError(f"{shown(folder)}: no such folder; is dataset.root right?")
    files = {
        path.stem.removeprefix(kind): path
        for kind in ("image_info_", "instances_")  # a split that has both is annotated
        for path in sorted(folder.glob(f"{kind}*.json"))
    }
    check_split(split, files, f"{shown(folder)}/instances_*.json and image_info_*.json")
    labelled = files[split].name.startswith("instances_")
    images = base / (split if labelled else split.replace("test-dev", "test"))
    index = CocoIndex(files[split], LabelMap.load("coco"), labelled, KNOWN_FLAT_BOXES, images)
    return index, Photos(index, images), labelled


def _annotated(root: str, split: str) -> tuple[CocoIndex, Photos]:
    """Return index and images of an official split. Errors: UserError where masks lack."""
    index, photos, labelled = _official(root, split)
    if not labelled:
        raise UserError(
            f"dataset.split={split}: COCO has no annotations of this split, so there are no masks"
        )
    return index, photos
