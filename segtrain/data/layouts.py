"""Say how the folders of a data set lie where they lie otherwise than its settings say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segtrain.data.images import shown
from segtrain.data.listing import SUFFIXES, check_split, list_paths, subfolders
from segtrain.data.nearest import IMAGES, MASKS, TRAIN, VAL, alike, near_folder
from segtrain.errors import DataError, UserError

LISTS = ("lists", "splits", "split", "ImageSets/Segmentation", "ImageSets", ".")


def split_folders(
    base: Path, split: str, folders: tuple[str, str], fixed: bool = False
) -> tuple[Path, Path]:
    """Return the folders of a split's images and masks: `images/train`, or `train/images`.

    `fixed`: no setting names others, and that of masks may be missing. Errors: UserError,
    DataError, with the settings that fit what is there.
    """
    images, masks = folders
    outer = [name for name, folder in subfolders(base).items() if (folder / images).is_dir()]
    inner = subfolders(base / images)
    if not inner and not outer:
        if fixed and (base / images).is_dir():
            way = f"{images}/ has no folder of a split"
        elif fixed:
            way = near_folder(base / images) or what_is_there(base)
        else:
            found = layout_of(base, images, masks)
            way = f"set {found}" if found else what_is_there(base)
        raise UserError(
            f"{shown(base)}: no split `{split}`, no {images}/{split} and no {split}/{images}; {way}"
        )
    check_split(split, {*inner, *outer}, f"{base / images} and {base}/*/{images}")
    pair = (base / images / split, base / masks / split)
    if not pair[0].is_dir():
        pair = (base / split / images, base / split / masks)
    if not fixed:
        check_there(base, folders, *pair)
    return pair


def check_no_splits(folder: Path) -> None:
    """Refuse to divide a folder that is divided already. Errors: UserError."""
    known = {*TRAIN, *VAL, "test"}
    splits = sorted(name for name in subfolders(folder) if name.casefold() in known)
    if splits:
        raise UserError(
            f"{shown(folder)}: has folders of splits ({', '.join(splits)}); leave "
            "dataset.val_share and dataset.folds out"
        )


def check_there(base: Path, folders: tuple[str, str], *needed: Path) -> None:
    """Refuse a missing folder with the settings that fit what is there. Errors: DataError."""
    for folder in needed:
        if not folder.is_dir():
            found = layout_of(base, *folders)
            near = near_folder(folder)
            way = f"set {found}" if found else near or what_is_there(base)
            what = "a file, not a folder" if folder.is_file() else "no such folder"
            raise DataError(f"{shown(folder)}: {what}; {way}")


def layout_of(base: Path, images: str, masks: str) -> str:
    """Return the settings of `dataset=folder` that fit what lies in `base`; "" where none do."""
    for place in (base, *(folder for _, folder in sorted(subfolders(base).items()))):
        photos = _named(place, images, IMAGES)
        maps = _named(place, masks, MASKS)
        if photos and maps:
            words = [f"dataset.images={photos}"] if photos != images else []
            words += [f"dataset.masks={maps}"] if maps != masks else []
            if place == base and _flat(base / photos):
                words.append(_division(base))
            return " ".join(words)
    return ""


def _named(place: Path, wanted: str, known: Sequence[str]) -> str:
    """Return the folder `wanted`, else the one that stands for it; "" where there is none."""
    if (place / wanted).is_dir():
        return wanted
    there = [name for name, folder in subfolders(place).items() if _holds_images(folder)]
    return alike(wanted, there) or next((n for w in known if (n := alike(w, there))), "")


def _holds_images(folder: Path) -> bool:
    """Tell whether images lie in a folder, below it in those of splits, or in folders of these."""
    splits = subfolders(folder).values()
    inner = [each for split in splits for each in subfolders(split).values()]
    return any(
        path.suffix.lower() in SUFFIXES
        for each in (folder, *splits, *inner)
        for path in each.iterdir()
    )


def _flat(folder: Path) -> bool:
    """Tell whether images lie in a folder itself and not in folders of splits."""
    return not subfolders(folder) and _holds_images(folder)


def _division(base: Path) -> str:
    """Return how a folder without splits is divided: by its lists, else by a share."""
    for name in LISTS:
        if "train" in {split.lower() for split in list_paths(base / name)}:
            return f"dataset.lists={name}"
    return "dataset.val_share=0.2 (a share of the images for validation)"


def what_is_there(base: Path) -> str:
    """Return the names of the folders in `base` in words, for a message."""
    names = sorted(subfolders(base))
    return f"{shown(base)} holds {', '.join(names[:8]) or 'no folders'}"
