"""What the benchmarks' servers take: written while predicting, packed, read back and checked.

voc         results.tgz: results/VOC2012/Segmentation/comp6_<split>_cls/<id>.png, palette PNGs of
            class indices
cityscapes  cityscapes_<split>.zip: <city>_<sequence>_<frame>.png, one channel of labelIds, not of
            trainIds
context     context_<split>.zip: <id>.png, palette PNGs in the index order of `dataset.ids`
            (16-bit PNGs for 459)
coco        detections_<split>_segtrain_results.json, in a .zip of the same name
comp6 is VOC's competition for models that saw other data (ImageNet weights, SBD, COCO); comp5 is
for VOC data alone.
"""

from __future__ import annotations

import json
import shutil
import tarfile
import zipfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from segtrain.benchmarks.coco_results import (
    category_ids_of,
    check_results,
    image_number,
    result_entries,
)
from segtrain.contracts import Prediction
from segtrain.data.images import image_size, read_mask
from segtrain.errors import DataError, DiskError, InternalError, UserError
from segtrain.runtime.distributed import World
from segtrain.runtime.files import write_file
from segtrain.structures.labels import LabelMap
from segtrain.visualization.picture_files import save_labels

FORMS = ("voc", "cityscapes", "context", "coco")


class Images(Protocol):
    """What a submission must know of the images: those of a data set, or files to predict."""

    @property
    def labels(self) -> LabelMap:
        """The classes, and the benchmark's own ids."""
        ...

    @property
    def ids(self) -> list[str]:
        """One for each image, all different."""
        ...

    def files(self, index: int, /) -> tuple[Path, Path | None] | None:
        """Return the files of an image, the picture first; None for one that is generated."""
        ...


class Submission(Protocol):
    """One rank's part of a submission."""

    def add(self, sample_id: str, prediction: Prediction) -> None:
        """Take the prediction of one image. Errors: UserError for one of the wrong kind."""
        ...

    def finish(self, world: World) -> str:
        """Pack and check everything, all ranks together, and say in words what was packed.

        Errors: DataError, DiskError.
        """
        ...


def submission(form: str | None, folder: Path, images: Images, split: str) -> Submission:
    """Return the writer for a data set's own server.

    Errors: UserError for a data set without a server, or a folder in use.
    """
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
    if form == "voc":
        below = f"results/VOC2012/Segmentation/comp6_{split}_cls"
        return LabelPngs(folder, below, "results.tgz", images)
    return LabelPngs(folder, "", f"{form}_{split}.zip", images)


class LabelPngs:
    """Label maps as one-channel palette PNGs of the benchmark's own ids."""

    def __init__(self, folder: Path, below: str, archive: str, images: Images) -> None:
        """`below` is the folder of the PNG files in the archive, which the server knows."""
        self.folder = folder
        self.maps_folder = folder / below
        self.archive = folder / archive
        self.images = images
        if len({self.file(sample_id) for sample_id in images.ids}) < len(images.ids):
            raise UserError(
                f"eval.submission={folder}: two of these images have the same file name"
            )

    def file(self, sample_id: str) -> Path:
        """Return the path of one image's map: named as the server wants it, without sub-folders."""
        return self.maps_folder / f"{Path(sample_id).name.removesuffix('_leftImg8bit')}.png"

    def add(self, sample_id: str, prediction: Prediction) -> None:
        """Write one label map, in the benchmark's own ids."""
        if not isinstance(prediction, Tensor):
            raise UserError(
                f"eval.submission={self.folder}: this server takes label maps, "
                "the model gives instances"
            )
        labels: LabelMap = self.images.labels
        raw = labels.decode(prediction.cpu().numpy())
        save_labels(self.file(sample_id), raw, raw_colors(labels))

    def finish(self, world: World) -> str:
        """Pack the maps that all ranks wrote, and read every one of them back."""
        world.barrier()
        if not world.main:
            return ""
        files = [self.file(sample_id) for sample_id in self.images.ids]
        names = [file.relative_to(self.folder).as_posix() for file in files]
        pack(self.folder, names, self.archive)
        check_names(self.archive, set(names))
        for index, file in enumerate(files):
            self.check(file, size_of(self.images, index))
        return (
            f"{self.archive}: {len(files)} label maps, read back; "
            "every image is there, in its size, with legal ids"
        )

    def check(self, path: Path, size: tuple[int, int]) -> None:
        """Check one map.

        Errors: DataError for another size than the image's, or an id that the benchmark does not
        know.
        """
        mask = read_mask(path)
        if mask.shape != size:
            raise DataError(f"{path}: is {mask.shape}, its image {size} (height, width)")
        labels: LabelMap = self.images.labels
        legal = set(labels.decode(np.arange(labels.num_classes, dtype=np.uint8)).tolist())
        if strange := set(np.unique(mask).tolist()) - legal:
            raise DataError(f"{path}: holds {min(strange)}, which the server does not know")


class Detections:
    """Scored masks and boxes as a COCO results file."""

    def __init__(self, folder: Path, images: Images, split: str) -> None:
        self.path = folder / f"detections_{split}_segtrain_results.json"
        self.images = images
        self.category_ids = category_ids_of(images.labels)
        numbers = [image_number(sample_id) for sample_id in images.ids]
        if odd := [number for number in numbers if isinstance(number, str)]:
            raise UserError(
                f"eval.submission={folder}: this server knows images by number, `{odd[0]}` has none"
            )
        self.index = {number: index for index, number in enumerate(numbers)}
        if len(self.index) < len(numbers):
            raise UserError(f"eval.submission={folder}: two of these images have the same number")
        self.entries: list[dict[str, Any]] = []

    def add(self, sample_id: str, prediction: Prediction) -> None:
        """Keep the detections of one image."""
        if isinstance(prediction, Tensor):
            raise UserError(
                f"eval.submission={self.path.parent}: this server takes instances, "
                "the model gives label maps"
            )
        for entry in result_entries(image_number(sample_id), prediction, self.category_ids):
            if "segmentation" in entry:
                # pycocotools would tell small from large by the area of the box, not of the mask.
                del entry["bbox"]
            self.entries.append(entry)

    def finish(self, world: World) -> str:
        """Write the detections of all ranks in the images' order, pack them and check them."""
        parts = world.gather(self.entries)
        if not world.main:
            return ""
        entries = [entry for part in parts for entry in part]
        entries.sort(key=lambda entry: self.index[entry["image_id"]])
        write_text(self.path, json.dumps(entries))
        archive = self.path.with_suffix(".zip")
        pack(self.path.parent, [self.path.name], archive)
        check_names(archive, {self.path.name})
        sizes = {number: size_of(self.images, index) for number, index in self.index.items()}
        check_results(self.path, self.images.labels, sizes)
        return (
            f"{archive}: {len(entries)} detections of {len(self.index)} images, read back; "
            "ids, sizes and scores are legal"
        )


def size_of(images: Images, index: int) -> tuple[int, int]:
    """Return (height, width) of an image, by its file alone."""
    files = images.files(index)
    if files is None:
        raise InternalError(f"{images.ids[index]}: has no file, so no server takes it")
    return image_size(files[0])


@contextmanager
def whole(folder: str | None) -> Generator[None]:
    """Remove what is in the submission `folder` where a signal ends the block: a part is no use.

    It was empty, see `submission`; None is no folder.
    """
    try:
        yield
    except KeyboardInterrupt:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def pack(folder: Path, names: Sequence[str], archive: Path) -> None:
    """Put files of `folder` into one .tgz or .zip, under these names.

    Errors: DataError for a file that is not there, DiskError.
    """
    if missing := [name for name in names if not (folder / name).is_file()]:
        count = f"{len(missing)} of {len(names)} missing"
        raise DataError(f"{folder / missing[0]}: no prediction for this image ({count})")
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
    """Return the palette by the ids as written: index = the data set's own id."""
    palette = [(0, 0, 0)] * (1 + max(labels.mask_values))
    for raw, train in labels.mask_values.items():
        if train < len(labels.colors):
            palette[raw] = labels.colors[train]
    return palette


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, and make its folder. Errors: DiskError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, text.encode())
    except OSError as error:
        reason = error.strerror or error
        raise DiskError(f"{path}: cannot be written ({reason}); choose another folder") from error
