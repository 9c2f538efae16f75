"""Plain functions that data sets on disk share: find the root, list files, pair images with masks, read one pair.

What is wrong with single files is added to a list `problems`, which a data set keeps: `assemble.dataset` refuses a data
set that has any, `segdata verify` reports all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from ..contracts import Sample
from ..errors import DataError, UserError, did_you_mean
from .io import read_image, read_mask, shown
from .labels import LabelMap

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
Pair = tuple[Path, Path]


def find_root(root: str) -> Path:
    """The data set's folder, or a UserError that names the key."""
    path = Path(root).expanduser()
    if not path.is_dir():
        raise UserError(f"{shown(path)}: no such folder; set dataset.root=FOLDER to where the data set is")
    return path


def check_split(split: str, known: Iterable[str], where: str) -> None:
    """UserError unless `split` is one of `known`."""
    known = sorted(known)
    if split not in known:
        have, hint = ", ".join(known) or "none", did_you_mean(split, known)
        raise UserError(f"{where}: no split `{split}`; there is {have} (dataset.split=).{hint}")


def list_files(folder: Path, problems: list[str]) -> dict[str, Path]:
    """Image files directly in `folder` by name without suffix, sorted; hidden and other files are left out.

    Of files that differ only by suffix the first is taken, and a problem noted. DataError where the folder is missing.
    """
    if not folder.is_dir():
        raise DataError(f"{shown(folder)}: no such folder; is dataset.root right?")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in found:
            problems.append(f"{shown(path)}: has the same name as {shown(found[path.stem])}; keep one of them")
        else:
            found[path.stem] = path
    return found


def read_ids(path: Path, problems: list[str]) -> list[str]:
    """The ids of a list file, one per line, in the file's order; doubles are noted. DataError if missing or empty."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{shown(path)}: cannot read the list of ids ({error.__class__.__name__})") from error
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        name = line.strip()
        if name in seen:
            problems.append(f"{shown(path)}, line {number}: `{name}` is listed twice (first in line {seen[name]})")
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
            f"{shown(path)}: has no partner {shown(folder / name)}.*" for name, path in one.items() if name not in other
        ]
    return {name: (path, mask_files[name]) for name, path in image_files.items() if name in mask_files}


def pair_listed(ids: list[str], images: Path, masks: Path, problems: list[str]) -> dict[str, Pair]:
    """The listed ids only, in their order; each image and mask that is not there is noted."""
    image_files, mask_files = list_files(images, []), list_files(masks, [])
    for files, folder in ((image_files, images), (mask_files, masks)):
        for name in ids:
            if name not in files:
                hint = "; list ids without the suffix" if Path(name).stem in files else ""
                problems.append(f"{shown(folder / name)}.*: listed, but not there{hint}")
    return {name: (image_files[name], mask_files[name]) for name in ids if name in image_files and name in mask_files}


def read_pair(name: str, pair: Pair, labels: LabelMap) -> Sample:
    """Image (H, W, 3) uint8 RGB and mask (H, W) uint8 in train ids; DataError where their sizes differ."""
    image, mask = read_image(pair[0]), read_mask(pair[1])
    if image.shape[:2] != mask.shape:
        sizes = f"{mask.shape[1]} x {mask.shape[0]} pixels, but its image {shown(pair[0])}"
        raise DataError(f"{shown(pair[1])}: mask of {sizes} has {image.shape[1]} x {image.shape[0]}")
    return Sample(name, image, labels.encode(mask, shown(pair[1])))


def subfolders(folder: Path) -> Mapping[str, Path]:
    """Folders directly in `folder` by name."""
    return {p.name: p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")} if folder.is_dir() else {}
