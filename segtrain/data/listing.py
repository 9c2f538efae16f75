"""List what a data set on disk holds: its root, its files, its ids, and which image has which mask.

What is wrong with single files is added to a list `problems`, which a data set keeps:
`config.parts.dataset` refuses a data set that has any, `segdata verify` reports all of them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from segtrain.data.images import shown
from segtrain.errors import DataError, UserError, did_you_mean
from segtrain.structures.samples import Files

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
HEIC = (".heic", ".heif", ".avif")  # photos that are named where they are left out


def find_root(root: str) -> Path:
    """Return the data set's folder. Errors: UserError that names the key."""
    path = Path(root).expanduser()
    if not path.is_dir():
        raise UserError(
            f"{shown(path)}: no such folder; set dataset.root=FOLDER to where the data set is"
        )
    return path


def check_split(split: str, known: Iterable[str], where: str) -> None:
    """Refuse a split that is not one of `known`. Errors: UserError."""
    known = sorted(known)
    if split not in known:
        have = ", ".join(known) or "none"
        hint = did_you_mean(split, known)
        raise UserError(f"{where}: no split `{split}`; there is {have} (dataset.split=).{hint}")


def list_files(
    folder: Path, problems: list[str], suffixes: Sequence[str] = SUFFIXES
) -> dict[str, Path]:
    """Return the files directly in `folder` by name without suffix, sorted.

    Hidden files and those of other kinds are left out. Of files that differ only by suffix the
    first is taken, and a problem noted. Errors: DataError where the folder is missing.
    """
    if not folder.is_dir():
        raise DataError(f"{shown(folder)}: no such folder; is dataset.root right?")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        if path.stem in files:
            problems.append(
                f"{shown(path)}: has the same name as {shown(files[path.stem])}; keep one of them"
            )
        else:
            files[path.stem] = path
    return files


@dataclass(frozen=True)
class Found:
    """The images below a folder, sorted, and how many other files lie there, by suffix or kind."""

    images: list[Path]
    left_out: Counter[str]


def in_words(left_out: Counter[str]) -> str:
    """Say what is left out; "" where nothing is."""
    words = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()))
    return words + " (convert HEIC and AVIF to JPEG)" * any(kind in HEIC for kind in left_out)


def images_below(folder: Path) -> Found:
    """Find the images in a folder and below, also behind links to folders.

    Hidden files and folders are left out, as a Mac writes `._photo.jpg` beside every photo.
    """
    images: list[Path] = []
    left_out: Counter[str] = Counter()
    seen: set[tuple[int, int]] = set()  # folders, for a link may lead back to one above

    def locked(error: OSError) -> None:
        left_out["folder that cannot be read"] += 1

    for place, folders, files in os.walk(folder, onerror=locked, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            folders[:] = []
            continue
        seen.add((status.st_dev, status.st_ino))
        left_out["hidden"] += sum(name.startswith(".") for name in (*folders, *files))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(place, name) for name in files if not name.startswith(".")):
            suffix = path.suffix.lower()
            if not path.exists():
                left_out["broken link"] += 1
            elif not path.is_file():
                left_out["no file"] += 1
            elif suffix in SUFFIXES:
                images.append(path)
            else:
                left_out[suffix or "without a suffix"] += 1
    return Found(sorted(images), +left_out)


def not_listed(folder: Path, marks: Collection[str] = ()) -> Counter[str]:
    """Count what lies in a folder and is no image, by kind; `marks` are suffixes that belong there.

    It is what `list_files` leaves out.
    """
    kinds: Counter[str] = Counter()
    for path in folder.iterdir():
        suffix = path.suffix.lower()
        if path.name.startswith("."):
            kinds["hidden"] += 1
        elif path.is_dir():
            kinds["folder"] += 1
        elif suffix not in (*SUFFIXES, *marks):
            kinds[suffix or "without a suffix"] += 1
    return kinds


def subfolders(folder: Path) -> Mapping[str, Path]:
    """Return the folders directly in `folder` by name; none where it is not there."""
    if not folder.is_dir():
        return {}
    return {
        path.name: path
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith(".")
    }


def read_ids(path: Path, problems: list[str]) -> list[str]:
    """Return the ids of a list file, one per line, in the file's order; doubles are noted.

    Errors: DataError where the file is missing or lists none.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{shown(path)}: cannot read the list of ids ({error.__class__.__name__})"
        ) from error
    line_of: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        name = line.strip()
        if name in line_of:
            problems.append(
                f"{shown(path)}, line {number}: `{name}` is listed twice "
                f"(first in line {line_of[name]})"
            )
        elif name:
            line_of[name] = number
    if not line_of:
        raise DataError(f"{shown(path)}: lists no ids")
    return list(line_of)


def _without(files: Mapping[str, Path], end: str) -> dict[str, Path]:
    """Return the files whose name without suffix ends in `end`, by what stands before it."""
    return {
        name[: len(name) - len(end)]: path for name, path in files.items() if name.endswith(end)
    }


def _common_end(images: Mapping[str, Path], masks: Mapping[str, Path]) -> str:
    """Return what most names of masks have behind the name of an image; "" where some just fit."""
    if not masks or any(name in images for name in masks):
        return ""
    ends = Counter(
        name[place:] for name in masks for place in range(1, len(name)) if name[:place] in images
    )
    end, count = ends.most_common(1)[0] if ends else ("", 0)
    return end if 2 * count > len(masks) else ""


def pair_all(
    images: Path, masks: Path, problems: list[str], mask_suffix: str = ""
) -> dict[str, Files]:
    """Return every image of one folder with the mask of the same name in another.

    `mask_suffix` ends the names of masks. Files without a partner are noted. Both folders may be
    empty, as a split may be. Errors: DataError where there are masks and no images.
    """
    image_files = list_files(images, problems)
    mask_files = _without(list_files(masks, problems), mask_suffix)
    if images == masks:  # photo.jpg and photo_mask.png lie side by side
        image_files = {n: p for n, p in image_files.items() if p not in mask_files.values()}
    if mask_files and not image_files:
        raise DataError(f"{shown(images)}: holds no images ({', '.join(SUFFIXES)})")
    if end := _common_end(image_files, mask_files):
        problems.append(
            f"{shown(masks)}: its masks are named as the images with `{end}` at the end; set "
            f"dataset.mask_suffix={end}{mask_suffix}"
        )
        return {}
    for files, partners, folder, end in (
        (image_files, mask_files, masks, mask_suffix),
        (mask_files, image_files, images, ""),
    ):
        problems += [
            f"{shown(path)}: has no partner {shown(folder / name)}{end}.*"
            for name, path in files.items()
            if name not in partners
        ]
    return {
        name: Files(path, mask_files[name])
        for name, path in image_files.items()
        if name in mask_files
    }


def pair_marked(photos: Path, marks: Path, suffix: str, problems: list[str]) -> dict[str, Files]:
    """Return every image of one folder, with its file of the same name and `suffix` in another.

    An image may have none; a file without an image is noted. Errors: DataError without images.
    """
    image_files = list_files(photos, problems)
    mark_files = list_files(marks, problems, (suffix,)) if marks.is_dir() else {}
    if not image_files:
        raise DataError(f"{shown(photos)}: holds no images ({', '.join(SUFFIXES)})")
    problems += [
        f"{shown(path)}: has no image {shown(photos / name)}.*"
        for name, path in mark_files.items()
        if name not in image_files
    ]
    return {name: Files(path, mark_files.get(name)) for name, path in image_files.items()}


def pair_listed(
    ids: Sequence[str],
    images: Path,
    masks: Path,
    problems: list[str],
    suffixes: Sequence[str] = SUFFIXES,
    mask_suffix: str = "",
) -> dict[str, Files]:
    """Return the listed images only, in their order, with their masks.

    Each id that lacks its image or mask is noted. `suffixes` are those of masks, and `mask_suffix`
    ends their names.
    """
    image_files = list_files(images, [])
    mask_files = _without(list_files(masks, [], suffixes), mask_suffix)
    for name in ids:
        missing = [
            (files, folder)
            for files, folder in ((image_files, images), (mask_files, masks))
            if name not in files
        ]
        if missing:  # one line for an id, also where neither file is there
            bare = PureWindowsPath(name).stem  # it takes both kinds of slashes
            folders = "folder and " if bare != Path(name).stem or "/" in name else ""
            known = any(bare in files for files, _ in missing)
            hint = f"; list ids without {folders or 'the '}suffix" if known else ""
            paths = " and ".join(f"{shown(folder / name)}.*" for _, folder in missing)
            problems.append(f"{paths}: listed, but not there{hint}")
    return {
        name: Files(image_files[name], mask_files[name])
        for name in ids
        if name in image_files and name in mask_files
    }


def images_listed(ids: Sequence[str], images: Path, problems: list[str]) -> dict[str, Files]:
    """Return the images of a split without masks; each that is not there is noted."""
    files = list_files(images, [])
    problems += [
        f"{shown(images / name)}.*: listed, but not there" for name in ids if name not in files
    ]
    return {name: Files(files[name]) for name in ids if name in files}
