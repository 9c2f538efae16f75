"""Say how the folders of a data set lie where they lie otherwise than its settings say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segtrain.data.images import shown
from segtrain.data.listing import SUFFIXES, list_paths, subfolders
from segtrain.data.nearest import IMAGES, MASKS, alike

LISTS = ("lists", "splits", "split", "ImageSets/Segmentation", "ImageSets", ".")


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
