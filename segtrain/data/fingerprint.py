"""What a data set was when a run read it, so that a resume notices what became of it since.

The fingerprint of a split, in plain types:

    {"ids": [...], "classes": {...}, "files": {name: [bytes, SHA-256 or None], ...}}

Names say nothing of where a file lies (`image a`, `labels of a`): data that moved are the same.
Lists and tables of classes are no files here: what they say stands in `ids` and `classes`. Of up to
`HASHED` files all are read for their SHA-256, of more so many that are evenly spaced. A change that
keeps the size of one of the others is missed; a list of sums (`sums.py`) misses none.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segtrain.contracts import Dataset
from segtrain.data.images import reason, shown
from segtrain.data.splits import listed
from segtrain.data.threads import in_threads
from segtrain.errors import DataError, SegtrainError

HASHED = 2_000  # files of a split: seconds for most data sets
Record = dict[str, Any]  # the fingerprint of a split
Marks = dict[str, list[Any]]  # name -> [bytes, SHA-256 or None]


def named_files(dataset: Dataset) -> dict[str, Path]:
    """Return every file of a split by its name in a fingerprint; {} of a generated set.

    Files that hold the labels of many images come first, and no file comes twice.
    """
    files = dict(dataset.extra_files())
    known = set(files.values())
    for index, name in enumerate(dataset.ids):
        each = dataset.files(index)
        if each is None:
            return {}
        for what, path in ((f"image {name}", each.image), (f"labels of {name}", each.annotation)):
            if path is not None and path not in known:
                known.add(path)
                files[what] = path
    return files


def spread(names: Sequence[str], most: int | None = None) -> set[str]:
    """Return those of the names whose files are hashed: all, or `most` of them, evenly spaced.

    The first is always among them, as it may hold the labels of all images.
    """
    most = HASHED if most is None else most
    if len(names) <= most:
        return set(names)
    return {names[place] for place in np.linspace(0, len(names) - 1, most).astype(int).tolist()}


def sum_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits. Errors: DataError."""
    _plain(path)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def marks(files: Mapping[str, Path], hashed: Collection[str]) -> tuple[Marks, list[str]]:
    """Return the size of each file, the sum of those in `hashed`, and a line for each bad one.

    The size of one that cannot be read is -1.
    """
    problems = []

    def mark(name: str) -> list[Any]:
        path = files[name]
        try:
            return [_plain(path), sum_of(path) if name in hashed else None]
        except SegtrainError as error:
            problems.append(str(error))
            return [-1, None]

    return dict(zip(files, in_threads(mark, files), strict=True)), problems


def _plain(path: Path) -> int:
    """Return the bytes of a plain file. Errors: DataError, as a pipe would be waited for."""
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{shown(path)}: is a folder or a device, not a file")
    return status.st_size


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{shown(path)}: {reason(path, error)}")


def record(dataset: Dataset, found: Marks) -> Record:
    """Return the fingerprint of a split."""
    classes = dataset.labels.record()
    return {
        "ids": list(dataset.ids),
        "classes": {key: classes[key] for key in ("names", "colors", "raw")},
        "files": found,
    }


def differences(before: Record, now: Record, files: Mapping[str, Path]) -> list[str]:
    """Say what differs between two fingerprints of a split, in a phrase for each kind of change.

    `files` are those of `now`. Errors: LookupError, TypeError or ValueError for a fingerprint that
    no run wrote.
    """
    lines = []
    old_ids = set(before["ids"])
    new_ids = set(now["ids"])
    added = [name for name in now["ids"] if name not in old_ids]
    removed = [name for name in before["ids"] if name not in new_ids]
    if added:
        lines.append(_some(added, "image", "added"))
    if removed:
        lines.append(_some(removed, "image", "removed"))
    if not added and not removed and before["ids"] != now["ids"]:
        lines.append("the images come in another order")
    old = before["files"]
    new = now["files"]
    if not added and not removed:  # whose files come and go with them
        if come := [name for name in new if name not in old]:
            lines.append(_some(come, "file", "added"))
        if gone := [name for name in old if name not in new]:
            lines.append(_some(gone, "file", "removed"))
    altered = [name for name, mark in new.items() if name in old and _differ(old[name], mark)]
    if altered:
        paths = [shown(files[name]) if name in files else name for name in altered]
        lines.append(_some(paths, "file", "altered"))
    return lines + _classes(before["classes"], now["classes"])


def _differ(before: Sequence[Any], now: Sequence[Any]) -> bool:
    """Tell whether two marks differ in what both know."""
    size, digest = before
    both = digest is not None and now[1] is not None
    return size != now[0] or (both and digest != now[1])


def _classes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say which classes have another value, colour or name in the files."""
    said = []
    for train, (old, new) in enumerate(zip(before["names"], now["names"], strict=False)):
        if old != new:
            said.append(f"class {train} was `{old}`, is `{new}`")
            continue
        values = [
            sorted(str(raw) for raw, of in table["raw"] if of == train) for table in (before, now)
        ]
        if values[0] != values[1]:
            said.append(f"`{new}` was {' '.join(values[0])}, is {' '.join(values[1])}")
        elif before["colors"][train] != now["colors"][train]:
            said.append(
                f"`{new}` had the colour {before['colors'][train]}, has {now['colors'][train]}"
            )
    if len(before["names"]) != len(now["names"]):
        said.append(f"there were {len(before['names'])} classes, are {len(now['names'])}")
    if not said and _pairs(before) != _pairs(now):
        said.append("other values are ignored")
    return [f"classes changed ({listed(said)})"] if said else []


def _pairs(table: Mapping[str, Any]) -> list[tuple[str, int]]:
    return sorted((str(raw), train) for raw, train in table["raw"])


def _some(names: Sequence[str], what: str, became: str) -> str:
    count = f"{len(names):,} {what}" + ("s" if len(names) > 1 else "")
    return f"{count} {became} ({listed(names)})"


def unseen(records: Iterable[Record]) -> str:
    """Say which changes these fingerprints would not show; "" where they show all."""
    found = [mark for each in records for mark in each["files"].values()]
    plain = sum(digest is None for _, digest in found)
    if not plain:
        return ""
    return (
        f"of {plain:,} of the {len(found):,} files a resume compares the size alone, so that a "
        "change which keeps it is not noticed; dataset.manifest=FILE, of segdata manifest, misses "
        "none"
    )
