"""Pair the images of a folder with their masks, and say of those without what is there instead.

What is wrong is added to a list `problems`, as in `listing`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from segtrain.data import nearest
from segtrain.data.images import shown
from segtrain.data.listing import (
    SUFFIXES,
    files_and_doubles,
    images_below,
    list_files,
    subfolders,
)
from segtrain.errors import DataError
from segtrain.structures.samples import Files

JPEG = {".jpg", ".jpeg"}  # of masks these are refused, so the folders may be swapped
SYSTEMATIC = 3  # names that differ in one way, from which on it is said once for the folder


class Hint(NamedTuple):
    """What is known of a file that is not there: what it says of many, an example, the way out."""

    what: str
    example: str = ""
    way: str = ""

    def text(self, of: str = "") -> str:
        """Return it in words; `of` names what the example stands for."""
        names = [f"`{name}`" for name in (self.example, of) if name]
        example = f" ({' for '.join(names)})" if names else ""
        return f"{self.what}{example}" + (f"; {self.way}" if self.way else "")


def hints_of(
    missing: Collection[str],
    folder: Path,
    spare: Mapping[str, Path],
    suffix: str | None = None,
    both: bool = False,
) -> dict[str, Hint]:
    """Return what is there in place of missing names, where something is.

    `spare` are the files that belong to nobody else; `suffix` is the `dataset.mask_suffix` that
    the missing names end in, None where there is no such setting, or it fits others. `both`: there
    is `dataset.image_suffix` too.
    """
    hints: dict[str, Hint] = {}
    if not missing:
        return hints
    for name, match in nearest.matches(missing, spare).items():
        way = "name both alike"
        if suffix is not None and match.ends is not None and suffix.endswith(match.ends[0]):
            end = suffix.removesuffix(match.ends[0]) + match.ends[1]
            way = f"set dataset.mask_suffix={end}" if end else "leave dataset.mask_suffix out"
        elif both and suffix == "" and match.ends is not None:
            ends = match.ends
            way = f"set dataset.image_suffix={ends[0]} dataset.mask_suffix={ends[1]}"
        hints[name] = Hint(f"found only {match.how}", spare[match.there].name, way)
    rest = {name for name in missing if name not in hints}
    if not rest:
        return hints
    inner = nearest.below(folder, rest, SUFFIXES)
    hints |= {name: Hint("found only in a sub-folder", inner[name], "move it up") for name in inner}
    other = nearest.unread(folder, rest)
    kinds = {name: Path(file).suffix.lower() for name, file in other.items()}
    hints |= {
        name: Hint(f"found only as {kinds[name]}, which is not read", other[name], "convert it")
        for name in other
    }
    return hints


def _explained(
    lines: Mapping[str, str], hints: Mapping[str, Hint], folder: Path, what: str
) -> list[str]:
    """Return the lines about missing names with what is known of them.

    What is so of several names is said once for their folder, which lacks {count} `what`.
    """
    groups: dict[Hint, list[str]] = {}
    for name in lines:
        if name in hints:
            groups.setdefault(hints[name]._replace(example=""), []).append(name)
    out = []
    for name, line in lines.items():
        if name not in hints:
            out.append(line)
            continue
        hint = hints[name]
        group = groups[hint._replace(example="")]
        if len(group) < SYSTEMATIC:
            out.append(f"{line}; {hint.text()}")
        elif name == group[0]:
            out.append(f"{shown(folder)}: {len(group)} {what}; {hint.text(name)}")
    return out


def _unpaired(files: Mapping[str, Path], what: str, partners: Path) -> dict[str, str]:
    """Return the line about each file, by its name, that it has no `what` among its partners."""
    return {
        name: f"{shown(path)}: has no {what} {shown(partners / name)}.*"
        for name, path in files.items()
    }


def _without(files: Mapping[str, Path], end: str) -> dict[str, Path]:
    """Return the files whose name without suffix ends in `end`, by what stands before it."""
    return {
        name[: len(name) - len(end)]: path for name, path in files.items() if name.endswith(end)
    }


def _check_one_folder(folder: Path, files: Mapping[str, Path], mask_suffix: str) -> None:
    """Refuse a folder of images and masks in which nothing tells them apart. Errors: DataError."""
    if mask_suffix and any(name.endswith(mask_suffix) for name in files):
        return
    ends = Counter(
        name[place:]
        for name in files
        for place in range(1, len(name))
        if name[:place] in files and not (name[place - 1] + name[place]).isdigit()
    )
    end, count = ends.most_common(1)[0] if ends else ("", 0)
    way = f"set dataset.mask_suffix={end}, or " if 3 * count >= len(files) else ""
    raise DataError(
        f"{shown(folder)}: holds images and masks; {way}give masks a folder of their own"
    )


def _no_images(folder: Path, partner: Path) -> DataError:
    inner = nearest.deeper(folder, SUFFIXES)
    others = Counter(path.suffix.lower() for path in folder.iterdir() if path.is_file())
    kinds = ", ".join(f"{others[kind]} {kind}" for kind in sorted(others) if kind in nearest.UNREAD)
    swapped = partner.is_dir() and list_files(partner, []) and not folder.samefile(partner)
    hint = f"; {inner}" if inner else ""
    hint += f"; {kinds} are there, which are not read: convert them" if kinds else ""
    hint += f"; {shown(partner)} does: are the two folders swapped?" if swapped and others else ""
    return DataError(f"{shown(folder)}: holds no images ({', '.join(SUFFIXES)}){hint}")


def _check_kinds(images: Mapping[str, Path], masks: Mapping[str, Path]) -> None:
    """Refuse photos in the folder of masks with maps in that of images. Errors: DataError."""
    photos = {path.suffix.lower() for path in masks.values()}
    maps = {path.suffix.lower() for path in images.values()}
    if photos and photos <= JPEG and maps == {".png"}:
        mask, image = (next(iter(files.values())) for files in (masks, images))
        raise DataError(
            f"{shown(mask.parent)}: holds only JPEG, and {shown(image.parent)} only PNG: are the "
            "folders of images and masks swapped? Masks are never JPEG"
        )


def pair_all(
    images: Path,
    masks: Path,
    problems: list[str],
    mask_suffix: str | None = None,
    image_suffix: str = "",
) -> dict[str, Files]:
    """Return every image of one folder with the mask of the same name in another.

    Where images lie in folders of the folder only, as Cityscapes' cities do, masks lie in folders
    of the same names, and a sample is `city/name`. `mask_suffix` ends the names of masks, None:
    there is no such setting; `image_suffix` ends those of images. Files without a partner are
    noted, with what is there instead. Both folders may be empty, as a split may be. Errors:
    DataError where there are masks and no images, or the folders are swapped.
    """
    inner = _inner_folders(images, masks)
    if not inner:
        return _pair_folder(images, masks, problems, mask_suffix, image_suffix)
    return {
        f"{folder}/{name}": files
        for folder in inner
        for name, files in pair_all(
            images / folder, masks / folder, problems, mask_suffix, image_suffix
        ).items()
    }


def _inner_folders(images: Path, masks: Path) -> list[str]:
    """Return the folders in a folder that hold images, where it holds none itself."""
    if images == masks or not images.is_dir() or list_files(images, []):
        return []
    return [
        name
        for name, folder in sorted(subfolders(images).items())
        if not masks.is_relative_to(folder) and images_below(folder).images
    ]


def _pair_folder(
    images: Path, masks: Path, problems: list[str], mask_suffix: str | None, image_suffix: str
) -> dict[str, Files]:
    """Pair what lies directly in two folders, as `pair_all`."""
    end = mask_suffix or ""
    every_image = list_files(images, problems)
    image_files = _without(every_image, image_suffix)
    every_mask = list_files(masks, problems)
    mask_files = _without(every_mask, end)
    if images == masks:  # photo.jpg and photo_mask.png lie side by side
        if every_mask:
            _check_one_folder(masks, every_mask, end)
        image_files = {n: p for n, p in image_files.items() if p not in mask_files.values()}
    if not image_files and (mask_files or nearest.deeper(images, SUFFIXES)):
        raise _no_images(images, masks)
    strange = _unlisted(every_image, [f"{name}{image_suffix}" for name in image_files])
    if strange and images != masks:
        problems.append(
            f"{shown(images)}: {len(strange)} images do not end in dataset.image_suffix="
            f"{image_suffix}, e.g. {next(iter(strange.values())).name}"
        )
    _check_kinds(image_files, mask_files)
    paired = {n: Files(p, mask_files[n]) for n, p in image_files.items() if n in mask_files}
    used = {path for files in paired.values() for path in files}
    spare = {
        name: path
        for name, path in every_mask.items()
        if path not in used and (images != masks or path not in image_files.values())
    }
    lonely = {f"{name}{end}": path for name, path in image_files.items() if name not in paired}
    suffix = None if paired or image_suffix else mask_suffix
    hints = hints_of(lonely, masks, spare, suffix, both=True)
    problems += _explained(
        _unpaired(lonely, "partner", masks),
        hints,
        masks,
        f"of {len(image_files)} images have no mask of their name",
    )
    explained = {hint.example for hint in hints.values()}
    widowed = {
        name: path
        for name, path in mask_files.items()
        if name not in paired and path.name not in explained
    }
    problems += _explained(
        _unpaired(widowed, "partner", images),
        hints_of(widowed, images, {}),
        images,
        f"of {len(mask_files)} masks have no image of their name",
    )
    return paired


def pair_marked(
    photos: Path,
    marks: Path,
    suffix: str,
    problems: list[str],
    root: Path,
    others: Collection[str] = (),
) -> dict[str, Files]:
    """Return every image of one folder, with its file of the same name and `suffix` in another.

    An image may have none; a file without an image is noted, but for those named in `others`, and
    so is a folder of images none of which has one, with where below `root` such files are. Errors:
    DataError without images.
    """
    image_files = list_files(photos, problems)
    mark_files = list_files(marks, problems, (suffix,)) if marks.is_dir() else {}
    if not image_files:
        raise _no_images(photos, marks)
    mark_files = {n: p for n, p in mark_files.items() if n in image_files or n not in others}
    lonely = {name: path for name, path in mark_files.items() if name not in image_files}
    hints = hints_of(lonely, photos, _unlisted(image_files, mark_files))
    if len(lonely) == len(mark_files) and len(hints) < SYSTEMATIC:
        there = nearest.elsewhere(root, suffix, image_files)
        near = nearest.near_folder(marks) if not marks.is_dir() else ""
        said = "; ".join(hint for hint in (near, there) if hint) or "nothing is labelled"
        problems.append(
            f"{shown(marks)}: holds no {suffix} for any of the {len(image_files)} images in "
            f"{shown(photos)}; {said}"
        )
    problems += _explained(
        _unpaired(lonely, "image", photos),
        hints,
        photos,
        f"of {len(mark_files)} {suffix} files have no image of their name",
    )
    return {name: Files(path, mark_files.get(name)) for name, path in image_files.items()}


def pair_listed(
    ids: Sequence[str],
    images: Path,
    masks: Path,
    problems: list[str],
    suffixes: Sequence[str] = SUFFIXES,
    mask_suffix: str | None = None,
) -> dict[str, Files]:
    """Return the listed images only, in their order, with their masks.

    Each id that lacks its image or mask is noted, with what is there instead, and each that has two
    of them. `suffixes` are those of masks, and `mask_suffix` is that of `pair_all`. Errors:
    DataError.
    """
    end = mask_suffix or ""
    image_files, twice = files_and_doubles(images)
    every_mask, masks_twice = files_and_doubles(masks, suffixes)
    if images == masks and every_mask:
        _check_one_folder(masks, every_mask, end)
    mask_files = _without(every_mask, end)
    _check_kinds(image_files, mask_files)
    problems += [twice[name] for name in ids if name in twice]
    problems += [masks_twice[name + end] for name in ids if name + end in masks_twice]
    paired = {
        name: Files(image_files[name], mask_files[name])
        for name in ids
        if name in image_files and name in mask_files
    }
    no_image = [name for name in ids if name not in image_files]
    hints = hints_of(no_image, images, _unlisted(image_files, ids))
    known = {**mask_files, **image_files}
    problems += _missing(
        {
            name: f"{shown(images / name)}.*"
            + ("" if name in mask_files else f" and {shown(masks / name)}{end}.*")
            for name in no_image
        },
        {**hints, **_id_hints(no_image, known)},
        images,
        len(ids),
    )
    no_mask = [name for name in ids if name in image_files and name not in mask_files]
    taken = [f"{name}{end}" for name in ids if name in mask_files]
    beside = _unlisted(every_mask, [*taken, *ids] if images == masks else taken)
    found = hints_of(
        [f"{name}{end}" for name in no_mask], masks, beside, None if paired else mask_suffix
    )
    problems += _missing(
        {name: f"{shown(masks / name)}{end}.*" for name in no_mask},
        {name: found[f"{name}{end}"] for name in no_mask if f"{name}{end}" in found},
        masks,
        len(ids),
    )
    return paired


def images_listed(ids: Sequence[str], images: Path, problems: list[str]) -> dict[str, Files]:
    """Return the images of a split without masks; each that is not there, or twice, is noted."""
    files, twice = files_and_doubles(images)
    problems += [twice[name] for name in ids if name in twice]
    gone = [name for name in ids if name not in files]
    problems += _missing(
        {name: f"{shown(images / name)}.*" for name in gone},
        {**hints_of(gone, images, _unlisted(files, ids)), **_id_hints(gone, files)},
        images,
        len(ids),
    )
    return {name: Files(files[name]) for name in ids if name in files}


def _unlisted(files: Mapping[str, Path], ids: Iterable[str]) -> dict[str, Path]:
    listed = set(ids)
    return {name: path for name, path in files.items() if name not in listed}


def _id_hints(ids: Iterable[str], files: Mapping[str, Path]) -> dict[str, Hint]:
    """Return what to say of ids that name a file with more than its name."""
    hints = {}
    for name in ids:
        first = re.split(r"[\s,;]+", name)[0]
        bare = PureWindowsPath(name).stem  # it takes both kinds of slashes
        if bare in files:
            folders = "folder and " if bare != Path(name).stem or "/" in name else ""
            hints[name] = Hint(f"list ids without {folders or 'the '}suffix")
        elif first != name and {first, PureWindowsPath(first).stem} & files.keys():
            hints[name] = Hint("list one id a line, without other columns")
    return hints


def _missing(
    paths: Mapping[str, str], hints: Mapping[str, Hint], folder: Path, total: int
) -> list[str]:
    return _explained(
        {name: f"{path}: listed, but not there" for name, path in paths.items()},
        hints,
        folder,
        f"of {total} listed ids are not there",
    )
