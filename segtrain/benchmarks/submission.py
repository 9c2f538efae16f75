"""What the benchmarks' servers take: written while predicting, packed, read back and checked.

| form | what | packed as |
|---|---|---|
| voc | results/VOC2012/Segmentation/comp6_<split>_cls/<id>.png, palette PNGs of class indices | results.tgz |
| cityscapes | <city>_<sequence>_<frame>.png, one channel of labelIds (not trainIds) | cityscapes_<split>.zip |
| context | <id>.png, palette PNGs in the index order of `dataset.ids` (16-bit PNGs for 459) | context_<split>.zip |
| coco | detections_<split>_segtrain_results.json | the same name, .zip |

comp6 is VOC's competition for models that saw other data (ImageNet weights, SBD, COCO); comp5 is for VOC data alone.
"""

from __future__ import annotations

import json
import math
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from segtrain.data.images import image_size, read_mask
from segtrain.errors import DataError, DiskError, InternalError, UserError
from segtrain.runtime.distributed import World
from segtrain.structures import run_lengths
from segtrain.structures.instances import Instances, Segments
from segtrain.structures.labels import LabelMap
from segtrain.visualization import picture_files

FORMS = ("voc", "cityscapes", "context", "coco")


class Submission(Protocol):
    """One rank's part of a submission."""

    def add(self, sample_id: str, prediction: Any) -> None:
        """Take the prediction of one image."""
        ...

    def finish(self, world: World) -> str:
        """Pack and check everything, all ranks together; what was found, in words. Errors: DataError, DiskError."""
        ...


def submission(form: str | None, folder: Path, images: Any, split: str) -> Submission:
    """The writer for a data set's own server. Errors: UserError for a data set without one, or a folder in use."""
    if form not in FORMS:
        raise UserError(
            f"eval.submission={folder}: this data set has no server; there are {', '.join(FORMS)}"
        )
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        what = "is not empty" if folder.is_dir() else "is a file"
        raise UserError(
            f"eval.submission={folder}: {what}; name a new folder, so that nothing old is packed"
        )
    if form == "coco":
        return Detections(folder, images, split)
    place = {"voc": f"results/VOC2012/Segmentation/comp6_{split}_cls"}.get(form, "")
    return LabelPngs(
        folder, place, "results.tgz" if form == "voc" else f"{form}_{split}.zip", images
    )


class LabelPngs:
    """Label maps as one-channel palette PNGs of the benchmark's own ids."""

    def __init__(self, folder: Path, place: str, archive: str, images: Any) -> None:
        self.folder, self.place, self.archive, self.images = folder, place, folder / archive, images
        if len({self.file(sample_id) for sample_id in images.ids}) < len(images.ids):
            raise UserError(
                f"eval.submission={folder}: two of these images have the same file name"
            )

    def file(self, sample_id: str) -> Path:
        """Where the map of one image lies: named as the server wants it, without sub-folders."""
        return self.folder / self.place / f"{Path(sample_id).name.removesuffix('_leftImg8bit')}.png"

    def add(self, sample_id: str, prediction: Any) -> None:
        """See `Submission`."""
        if isinstance(prediction, (Instances, Segments)):
            raise UserError(
                f"eval.submission={self.folder}: this server takes label maps, the model gives instances"
            )
        labels: LabelMap = self.images.labels
        picture_files.save_labels(
            self.file(sample_id), labels.decode(prediction.cpu().numpy()), raw_colors(labels)
        )

    def finish(self, world: World) -> str:
        """See `Submission`."""
        world.barrier()
        if not world.main:
            return ""
        files = {sample_id: self.file(sample_id) for sample_id in self.images.ids}
        names = {
            sample_id: path.relative_to(self.folder).as_posix() for sample_id, path in files.items()
        }
        pack(self.folder, list(names.values()), self.archive)
        check_names(self.archive, set(names.values()))
        for index, sample_id in enumerate(self.images.ids):
            self.check(files[sample_id], self.images.files(index)[0])
        return f"{self.archive}: {len(files)} label maps, read back; every image is there, in its size, with legal ids"

    def check(self, path: Path, image: Path) -> None:
        """Errors: DataError for another size than the image's, or an id that the benchmark does not know."""
        mask = read_mask(path)
        if mask.shape != image_size(image):
            raise DataError(
                f"{path}: is {mask.shape}, its image {image_size(image)} (height, width)"
            )
        legal = set(
            self.images.labels.decode(
                np.arange(self.images.labels.num_classes, dtype=np.uint8)
            ).tolist()
        )
        if strange := set(np.unique(mask).tolist()) - legal:
            raise DataError(f"{path}: holds {min(strange)}, which the server does not know")


class Detections:
    """Scored masks and boxes as a COCO results file."""

    def __init__(self, folder: Path, images: Any, split: str) -> None:
        self.path, self.images = folder / f"detections_{split}_segtrain_results.json", images
        self.category = categories(images.labels)
        self.place = {
            image_number(sample_id): number for number, sample_id in enumerate(images.ids)
        }
        if odd := [sample_id for sample_id in images.ids if type(image_number(sample_id)) is str]:
            raise UserError(
                f"eval.submission={folder}: this server knows images by number, `{odd[0]}` has none"
            )
        if len(self.place) < len(images.ids):
            raise UserError(f"eval.submission={folder}: two of these images have the same number")
        self.found: list[dict[str, Any]] = []

    def add(self, sample_id: str, prediction: Any) -> None:
        """See `Submission`."""
        if not isinstance(prediction, (Instances, Segments)):
            raise UserError(
                f"eval.submission={self.path.parent}: this server takes instances, the model gives label maps"
            )
        for entry in results(sample_id, prediction, self.category):
            if "segmentation" in entry:
                del entry[
                    "bbox"
                ]  # pycocotools would take the box's area, not the mask's, to tell small from large
            self.found.append(entry)

    def finish(self, world: World) -> str:
        """See `Submission`."""
        parts = world.gather(self.found)
        if not world.main:
            return ""
        entries = sorted(
            (entry for part in parts for entry in part),
            key=lambda entry: self.place[entry["image_id"]],
        )
        write_text(self.path, json.dumps(entries))
        archive = self.path.with_suffix(".zip")
        pack(self.path.parent, [self.path.name], archive)
        check_names(archive, {self.path.name})
        check_results(self.path, self.images)
        said = f"{len(entries)} detections of {len(self.place)} images"
        return f"{archive}: {said}, read back; ids, sizes and scores are legal"


def results(
    sample_id: str, prediction: Instances | Segments, category: Mapping[int, int]
) -> list[dict[str, Any]]:
    """The detections of one image as entries of a COCO results file; boxes are x, y, width, height, masks as they are.

    Entries of a prediction without masks have no `segmentation`.
    """
    found = run_lengths.segments(prediction) if isinstance(prediction, Instances) else prediction
    if found.scores is None:
        raise InternalError(f"{sample_id}: a prediction without scores")
    image_id = image_number(sample_id)
    rows = zip(found.labels.tolist(), found.boxes.tolist(), found.scores.tolist(), strict=True)
    entries = [
        {"image_id": image_id, "category_id": category[label], "bbox": box, "score": score}
        for label, box, score in rows
    ]
    if found.masks is not None:
        entries = [
            entry | {"segmentation": mask} for entry, mask in zip(entries, found.masks, strict=True)
        ]
    return entries


def image_number(sample_id: str) -> int | str:
    """COCO's number of an image: "139", or "val2017/000000000139" as segpredict names files; else the id itself."""
    name = Path(sample_id).name
    return int(name) if name.isascii() and name.isdecimal() else sample_id


def categories(labels: LabelMap) -> dict[int, int]:
    """Train id -> the data set's own category id, the first listed one."""
    return {train: raw for raw, train in reversed(labels.raw.items()) if train < labels.num_classes}


def check_results(path: Path, images: Any) -> None:
    """Errors: DataError naming the entry that the server would refuse."""
    legal = set(categories(images.labels).values())
    sizes = {
        image_number(name): list(image_size(images.files(i)[0]))
        for i, name in enumerate(images.ids)
    }
    for number, entry in enumerate(read_results(path)):
        sample_id, where = entry["image_id"], f"{path}, entry {number}"
        if sample_id not in sizes or entry["category_id"] not in legal:
            raise DataError(
                f"{where}: image {sample_id}, category {entry['category_id']}: one of them is unknown"
            )
        if "segmentation" in entry and entry["segmentation"]["size"] != sizes[sample_id]:
            raise DataError(
                f"{where}: mask of {entry['segmentation']['size']}, image of {sizes[sample_id]}"
            )
        if not math.isfinite(entry["score"]):
            raise DataError(f"{where}: score {entry['score']}")


def read_results(path: Path) -> list[dict[str, Any]]:
    """A COCO results file. Errors: DataError when it is not one."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a readable JSON file ({error})") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(
            f"{path}: not a COCO results file, which is a list of {{image_id, category_id, score, ...}}"
        )
    return entries


def pack(folder: Path, names: Sequence[str], archive: Path) -> None:
    """Put files of `folder` into one .tgz or .zip, under these names. Errors: DataError for one not there, DiskError."""
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise DataError(
            f"{folder / missing[0]}: no prediction for this image ({len(missing)} of {len(names)} missing)"
        )
    try:
        if archive.suffix == ".tgz":
            with tarfile.open(archive, "w:gz") as tar:
                for name in names:
                    tar.add(folder / name, name)
        else:
            with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
                for name in names:
                    packed.write(folder / name, name)
    except OSError as error:
        raise DiskError(f"{archive}: cannot be written ({error.strerror or error})") from error


def check_names(archive: Path, names: set[str]) -> None:
    """Read the archive back. Errors: DataError when it does not hold exactly these files, whole."""
    if archive.suffix == ".tgz":
        with tarfile.open(archive) as tar:
            held = {member.name for member in tar}  # reads through the whole file
    else:
        with zipfile.ZipFile(archive) as packed:
            held = set(packed.namelist()) if packed.testzip() is None else set()
    if held != names:
        raise DataError(
            f"{archive}: holds {len(held)} files instead of {len(names)}; write it again"
        )


def raw_colors(labels: LabelMap) -> list[tuple[int, int, int]]:
    """The palette by the ids as written: index = the data set's own id."""
    palette = [(0, 0, 0)] * (1 + max(labels.raw))
    for raw, train in labels.raw.items():
        if train < len(labels.colors):
            palette[raw] = labels.colors[train]
    return palette


def write_text(path: Path, text: str) -> None:
    """Errors: DiskError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DiskError(
            f"{path}: cannot be written ({error.strerror or error}); choose another folder"
        ) from error
