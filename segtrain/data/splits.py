"""Compare the splits of a data set with each other, and with the folders they are read from."""

from __future__ import annotations

import filecmp
from collections.abc import Iterable, Sequence
from pathlib import Path

from segtrain.contracts import Dataset
from segtrain.data.agreement import EXAMPLES
from segtrain.data.images import shown
from segtrain.data.listing import in_words, list_files, not_listed
from segtrain.structures.samples import Files

ONE_FILE = (".json", ".txt")  # suffixes of a file with the labels, or the names, of many images


def shared(train: Dataset, measured: Dataset) -> str:
    """Say that images are trained on and measured too, or copies of their name; "" if none are."""
    known = [files.image for files in _files_of(measured)]
    names = {path.name for path in known}
    trained: dict[tuple[str, int], list[Path]] = {}
    for files in _files_of(train):
        if files.image.name in names:
            trained.setdefault(_name_and_size(files.image), []).append(files.image)
    both = [
        path
        for path in known
        if any(_same(path, other) for other in trained.get(_name_and_size(path), ()))
    ]
    if not both:
        return ""
    return (
        f"{len(both):,} of {len(measured):,} validation images are trained on too "
        f"({_first(both)}): their scores say nothing about new images"
    )


def _name_and_size(path: Path) -> tuple[str, int]:
    """Return the name and the bytes of a file, -1 for one that is not there."""
    try:
        return path.name, path.stat().st_size
    except OSError:
        return path.name, -1


def _same(one: Path, other: Path) -> bool:
    """Tell whether two files hold the same bytes; False for one that cannot be read."""
    try:
        return one == other or filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False


def in_no_split(splits: Iterable[Dataset]) -> str:
    """Say that images beside those of the splits belong to none of them; "" where all do."""
    files = [each for dataset in splits for each in _files_of(dataset)]
    used = {path for each in files for path in each}
    beside = [
        path
        for folder in _folders(files)
        for path in list_files(folder, []).values()
        if path not in used
    ]
    if not beside:
        return ""
    return f"{len(beside):,} images beside those in neither split ({_first(beside)})"


def left_out(dataset: Dataset) -> list[str]:
    """Say for each folder of images what lies there and is not read, as folders and other kinds."""
    files = _files_of(dataset)
    marks = {each.annotation.suffix.lower() for each in files if each.annotation is not None}
    # Without a file for each image there is one for all, and it may lie beside them.
    found = {folder: not_listed(folder, marks or ONE_FILE) for folder in _folders(files)}
    return [
        f"left out in {shown(folder)}: {in_words(kinds)}"
        for folder, kinds in found.items()
        if kinds
    ]


def _files_of(dataset: Dataset) -> list[Files]:
    """Return the files of every sample; none of a set that is generated."""
    found = (dataset.files(index) for index in range(len(dataset)))
    return [files for files in found if files is not None]


def _folders(files: Iterable[Files]) -> list[Path]:
    """Return the folders that images are read from and that are there."""
    return [
        folder for folder in dict.fromkeys(each.image.parent for each in files) if folder.is_dir()
    ]


def _first(paths: Sequence[Path]) -> str:
    return listed([shown(path) for path in paths[: EXAMPLES + 1]])


def listed(names: Sequence[str]) -> str:
    """Return the first of many names in words."""
    return ", ".join(names[:EXAMPLES]) + ", ..." * (len(names) > EXAMPLES)
