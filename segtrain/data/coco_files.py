"""Find the image files that a COCO file lists.

Other tools write into `file_name` the folders that the images lay in on another machine.
"""

from __future__ import annotations

import os
from pathlib import Path

from segtrain.data.listing import SUFFIXES


class Listings:
    """The files of a folder and of those below: one listing each, not one question per file.

    train2017 has 118,287.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._names: dict[Path, set[str]] = {}
        self._in_lower_case: dict[Path, dict[str, list[str]]] = {}

    def has(self, path: Path) -> bool:
        """Tell whether a file is there."""
        return path.name in self._of(path.parent)

    def find(self, name: str) -> Path | None:
        """Return the file of a `file_name`, or of the longest end of it that is there; else None.

        The name may be written on Windows, have folders in front that are not there, and other
        capitals than the file.
        """
        plain = name.replace("\\", "/")
        for path in (self.folder / name, self.folder / plain):
            if self.has(path):
                return path
        parts = [part for part in plain.split("/") if part]
        for first in range(len(parts)):
            path = self.folder.joinpath(*parts[first:])
            as_written = self._whatever_capitals(path)
            if as_written:
                return path.with_name(as_written)
        return None

    def other_suffix(self, name: str) -> Path | None:
        """Return an image of this name, but with another suffix; None where there is none."""
        last = Path(name.replace("\\", "/")).name
        ends = [f"{stem}{suffix}" for stem in (last, Path(last).stem) for suffix in SUFFIXES]
        found = [self._whatever_capitals(self.folder / end) for end in ends]
        others = (each for each in found if each and each.lower() != last.lower())
        return next((self.folder / each for each in others), None)

    def _of(self, folder: Path) -> set[str]:
        if folder not in self._names:
            self._names[folder] = set(os.listdir(folder)) if folder.is_dir() else set()
        return self._names[folder]

    def _whatever_capitals(self, path: Path) -> str:
        """Return the name of the only file that differs in capitals at most, or ''."""
        names = self._of(path.parent)
        if path.name in names:
            return path.name
        if path.parent not in self._in_lower_case:
            self._in_lower_case[path.parent] = lower = {}
            for name in names:
                lower.setdefault(name.lower(), []).append(name)
        same = self._in_lower_case[path.parent].get(path.name.lower(), [])
        return same[0] if len(same) == 1 else ""
