"""Find the id that a COCO file gives an image, by its name."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from segtrain.data.coco_read import read_columns
from segtrain.data.images import shown
from segtrain.errors import DataError

URL = re.compile(r"[a-z][a-z0-9+.-]+://")
QUERY = re.compile(r"[?#].*$", re.DOTALL)


class ImageNames:
    """The images that a file names, with their ids as it writes them.

    Nothing but `images` is read of it, and no size. Errors: DataError, also for a name of several
    images.
    """

    def __init__(self, path: Path) -> None:
        read = read_columns(path, ("images",))
        self.path = path
        self.problems = read.problems
        as_text = set(read.text_ids)
        names = bytes(read.names)
        stops = read.name_stops
        self._ids: dict[str, int | str] = {}
        self._by_last: dict[str, list[tuple[list[str], int | str]]] = {}
        for row, number in enumerate(read.image_ids):
            name = names[stops[row] : stops[row + 1]].decode("utf-8")
            text = read.known.shown(number)
            image_id = text if number in as_text else int(text)
            if name in self._ids:
                raise DataError(
                    f"{shown(path)}: images {self._ids[name]} and {text} are both `{name}`, so the "
                    "name is the id of none; keep one of them"
                )
            self._ids[name] = image_id
            parts = _parts(name)
            self._by_last.setdefault(parts[-1], []).append((parts, image_id))

    def id_of(self, path: Path, name: str) -> int | str:
        """Return the id of a file; `name` is its name below the folder that was given.

        Of names that end alike the one is taken of which most folders are those of the file.
        Errors: DataError where none or several fit.
        """
        if name in self._ids:
            return self._ids[name]
        parts = _parts(path.as_posix())
        same = self._by_last.get(parts[-1], [])
        if not same:
            fault = f"; its first fault: {self.problems[0]}" if self.problems else ""
            raise DataError(f"{shown(path)}: is not named in annotations={shown(self.path)}{fault}")
        fit = [_common_end(parts, other) for other, _ in same]
        best = [same[k][1] for k in range(len(same)) if fit[k] == max(fit)]
        if len(best) > 1:
            listed = " and ".join(str(image_id) for image_id in best[:2])
            raise DataError(
                f"{shown(path)}: is named by {len(best)} images in annotations={shown(self.path)} "
                f"(as {listed})"
            )
        return best[0]


def _parts(name: str) -> list[str]:
    """Return the parts of a name in the form in which names are compared.

    It may be a URL, of which the query is no part of the name, or be written on Windows; a Mac
    writes letters with accents in two characters.
    """
    if URL.match(name):
        name = unquote(QUERY.sub("", name))
    elif "?" in name:
        name = QUERY.sub("", name)
    parts = [part for part in name.replace("\\", "/").split("/") if part]
    return [unicodedata.normalize("NFC", part) for part in parts] or [name]


def _common_end(one: Sequence[str], two: Sequence[str]) -> int:
    """Return how many parts at the end are the same."""
    same = 0
    for a, b in zip(reversed(one), reversed(two), strict=False):
        if a != b:
            break
        same += 1
    return same
