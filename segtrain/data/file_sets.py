"""What data sets on disk share: find the root, list files, pair images with masks, read what was paired.

What is wrong with single files is added to a list `problems`, which a data set keeps: `assemble.dataset` refuses a data
set that has any, `segdata verify` reports all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from segtrain.data.images import image_size, read_image, read_mask, shown
from segtrain.errors import DataError, UserError, did_you_mean
from segtrain.structures import run_lengths
from segtrain.structures.instances import Instances, Segments
from segtrain.structures.labels import RAW_VALUES, LabelMap
from segtrain.structures.samples import IGNORE, Sample, Scene

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
THREADS = 8  # a header on another machine is mostly waiting
Pair = tuple[Path, Path]
Files = tuple[Path, Path | None]  # the image, and the mask where the split has masks


def find_root(root: str) -> Path:
    """The data set's folder, or a UserError that names the key."""
    path = Path(root).expanduser()
    if not path.is_dir():
        raise UserError(
            f"{shown(path)}: no such folder; set dataset.root=FOLDER to where the data set is"
        )
    return path


def check_split(split: str, known: Iterable[str], where: str) -> None:
    """UserError unless `split` is one of `known`."""
    known = sorted(known)
    if split not in known:
        have, hint = ", ".join(known) or "none", did_you_mean(split, known)
        raise UserError(f"{where}: no split `{split}`; there is {have} (dataset.split=).{hint}")


def list_files(
    folder: Path, problems: list[str], suffixes: Sequence[str] = SUFFIXES
) -> dict[str, Path]:
    """Files directly in `folder` by name without suffix, sorted; hidden files and those of other kinds are left out.

    Of files that differ only by suffix the first is taken, and a problem noted. DataError where the folder is missing.
    """
    if not folder.is_dir():
        raise DataError(f"{shown(folder)}: no such folder; is dataset.root right?")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        if path.stem in found:
            problems.append(
                f"{shown(path)}: has the same name as {shown(found[path.stem])}; keep one of them"
            )
        else:
            found[path.stem] = path
    return found


def read_ids(path: Path, problems: list[str]) -> list[str]:
    """The ids of a list file, one per line, in the file's order; doubles are noted. DataError if missing or empty."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{shown(path)}: cannot read the list of ids ({error.__class__.__name__})"
        ) from error
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        name = line.strip()
        if name in seen:
            problems.append(
                f"{shown(path)}, line {number}: `{name}` is listed twice (first in line {seen[name]})"
            )
        elif name:
            seen[name] = number
    if not seen:
        raise DataError(f"{shown(path)}: lists no ids")
    return list(seen)


def pair_all(images: Path, masks: Path, problems: list[str]) -> dict[str, Pair]:
    """Every image of one folder with the mask of the same name in another; files without a partner are noted."""
    image_files, mask_files = list_files(images, problems), list_files(masks, problems)
    if not image_files:
        raise DataError(f"{shown(images)}: holds no images ({', '.join(SUFFIXES)})")
    for one, other, folder in ((image_files, mask_files, masks), (mask_files, image_files, images)):
        problems += [
            f"{shown(path)}: has no partner {shown(folder / name)}.*"
            for name, path in one.items()
            if name not in other
        ]
    return {
        name: (path, mask_files[name]) for name, path in image_files.items() if name in mask_files
    }


def pair_listed(
    ids: Sequence[str],
    images: Path,
    masks: Path,
    problems: list[str],
    suffixes: Sequence[str] = SUFFIXES,
) -> dict[str, Pair]:
    """The listed ids only, in their order; each that lacks its image or mask is noted. `suffixes` are those of masks."""
    image_files, mask_files = list_files(images, []), list_files(masks, [], suffixes)
    for name in ids:
        gone = [
            (files, folder)
            for files, folder in ((image_files, images), (mask_files, masks))
            if name not in files
        ]
        if gone:  # one line for an id, also where neither file is there
            hint = (
                "; list ids without the suffix"
                if any(Path(name).stem in files for files, _ in gone)
                else ""
            )
            places = " and ".join(f"{shown(folder / name)}.*" for _, folder in gone)
            problems.append(f"{places}: listed, but not there{hint}")
    return {
        name: (image_files[name], mask_files[name])
        for name in ids
        if name in image_files and name in mask_files
    }


def images_listed(ids: Sequence[str], images: Path, problems: list[str]) -> dict[str, Files]:
    """The images of a split without masks; each that is not there is noted."""
    files = list_files(images, [])
    problems += [
        f"{shown(images / name)}.*: listed, but not there" for name in ids if name not in files
    ]
    return {name: (files[name], None) for name in ids if name in files}


class MaskSet:
    """A data set of images with a mask file each: what all of them share.

    `files`: image and mask by id, in order. `labelled` False: a split without masks, whose targets are all IGNORE. `hint`:
    the way out that an illegal mask value is reported with, where the data set knows one.
    """

    def __init__(
        self,
        labels: LabelMap,
        files: Mapping[str, Files],
        problems: list[str],
        labelled: bool = True,
        hint: str = "",
    ) -> None:
        self.labels, self.problems, self.labelled, self.hint = labels, problems, labelled, hint
        self._files = files
        self.ids = list(files)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        """DataError for a file that cannot be used, or a mask of another size than its image."""
        files = self.files(index)
        image, mask = read_image(files[0]), None if files[1] is None else self.read_mask(files[1])
        if mask is not None:
            check_size(files, image.shape[:2], mask.shape)
        return Sample(self.ids[index], image, self._encoded(files, mask))

    def sizes(self) -> np.ndarray:
        """See `header_sizes`."""
        return header_sizes(self._files)

    def files(self, index: int) -> Files:
        """(image path, mask path); no mask path in a split without masks."""
        return self._files[self.ids[index]]

    def target(self, index: int) -> np.ndarray:
        """The sample's target (H, W) uint8, without reading its image."""
        files = self.files(index)
        return self._encoded(files, None if files[1] is None else self.read_mask(files[1]))

    def truth(self, index: int) -> np.ndarray | Scene:
        """What the metric compares with, without reading the image: the target, where a data set knows no more."""
        return self.target(index)

    def read_mask(self, path: Path) -> np.ndarray:
        """(H, W) values as stored."""
        return read_mask(path)

    def _encoded(self, files: Files, mask: np.ndarray | None) -> np.ndarray:
        if files[1] is None or mask is None:
            return np.full(image_size(files[0]), IGNORE, np.uint8)
        return self.labels.encode(mask, shown(files[1]), self.hint)


class ObjectSet(ABC):
    """A data set of images with a map of their objects each: what all of them share. `files` as in `MaskSet`.

    A set defines `objects(index, path)`: the objects in the map at `path`.
    """

    def __init__(
        self, labels: LabelMap, files: Mapping[str, Files], problems: list[str], labelled: bool
    ) -> None:
        self.labels, self.problems, self.labelled = labels, problems, labelled
        self._files = files
        self.ids = list(files)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        """DataError for a file that cannot be used, or a map of another size than its image."""
        image = read_image(self.files(index)[0])
        instances = self.target(index)
        check_size(self.files(index), image.shape[:2], instances.masks.shape[1:])
        return Sample(self.ids[index], image, instances=instances)

    def sizes(self) -> np.ndarray:
        """See `header_sizes`."""
        return header_sizes(self._files)

    def files(self, index: int) -> Files:
        """(image path, path of its objects); no second path in a split without labels."""
        return self._files[self.ids[index]]

    def target(self, index: int) -> Instances:
        """The sample's objects in the order of their values, without reading its image."""
        image, path = self.files(index)
        return (
            instances_of(np.zeros(image_size(image), np.uint8), {})
            if path is None
            else self.objects(index, path)
        )

    @abstractmethod
    def objects(self, index: int, path: Path) -> Instances:
        """See the class."""

    def segments(self, index: int) -> Segments:
        """The sample's objects in run-length form."""
        return run_lengths.segments(self.target(index))

    def truth(self, index: int) -> Segments:
        """What the metric compares with: the objects."""
        return self.segments(index)


def header_sizes(files: Mapping[str, Files]) -> np.ndarray:
    """(N, 2) height and width of every image, from the headers of the files. Errors: DataError."""
    with ThreadPoolExecutor(THREADS) as pool:
        return np.array(
            list(pool.map(image_size, (image for image, _ in files.values()))), np.int64
        ).reshape(-1, 2)


def check_size(files: Files, image: Sequence[int], mask: Sequence[int]) -> None:
    """DataError unless both sizes (height, width, ...) are equal."""
    if tuple(image) != tuple(mask):
        sizes = f"{mask[1]} x {mask[0]} pixels, but its image {shown(files[0])}"
        raise DataError(
            f"{shown(files[1] or files[0])}: mask of {sizes} has {image[1]} x {image[0]}"
        )


def instances_of(
    regions: np.ndarray, labels: Mapping[int, int], crowd: Sequence[int] = ()
) -> Instances:
    """The regions (H, W) of non-negative integers as objects: `labels` maps the value of each to its train id.

    Objects come in the order of `labels`, values that it does not list belong to nobody, values in `crowd` are marked.
    Every listed value must occur. Boxes are the tightest ones.
    """
    from scipy import ndimage  # it takes long to import, and only maps of objects need it

    number = np.zeros(RAW_VALUES, np.int32)
    number[list(labels)] = np.arange(1, len(labels) + 1)
    numbered = number.take(regions)
    slices = ndimage.find_objects(numbered, max_label=len(labels))
    boxes = [[x.start, y.start, x.stop, y.stop] for y, x in slices]
    masks = numbered[None] == np.arange(1, len(labels) + 1, dtype=np.int32)[:, None, None]
    return Instances(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(list(labels.values()), dtype=torch.int64),
        masks=torch.from_numpy(masks),
        crowd=torch.tensor([value in crowd for value in labels], dtype=torch.bool),
    )


def subfolders(folder: Path) -> Mapping[str, Path]:
    """Folders directly in `folder` by name."""
    return (
        {p.name: p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")}
        if folder.is_dir()
        else {}
    )
