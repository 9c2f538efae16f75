"""Say what is there in place of a name that is not: only names are compared, no file is opened."""

from __future__ import annotations

import os
import re
import unicodedata
from bisect import bisect
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from segtrain.data.images import shown

# Kinds in which people have pictures and maps, and which are not read.
UNREAD = (
    *(".heic", ".heif", ".avif", ".gif", ".jp2", ".jfif", ".dng", ".tga", ".ppm", ".pgm", ".svg"),
    *(".npy", ".npz", ".mat", ".nii", ".dcm", ".exr", ".pdf"),
)
FOLDERS_SHOWN = 5
MOST_FOLDERS = 1_000  # that are looked at for an answer: more would take long on a slow disk
# Words for one thing. The first is what the data sets call it.
IMAGES = (
    "images",
    "image",
    "imgs",
    "img",
    "jpegimages",
    "pngimages",
    "photos",
    "pictures",
    "rgb",
    "leftimg8bit",
)
MASKS = (
    *("masks", "mask", "labels", "label", "annotations", "annotation", "gt", "gts", "groundtruth"),
    *("ground_truth", "segmentationclass", "segmentation", "targets", "pedmasks", "gtfine"),
)
TRAIN = ("train", "training", "trainset", "train_set")
VAL = ("val", "valid", "validation", "valset", "val_set", "dev")
_SEPARATORS = "_-. "


class Match(NamedTuple):
    """A name that is there, how it differs in words, and its end in place of the missing one's."""

    there: str
    how: str
    ends: tuple[str, str] | None = None  # of the missing name, and of this one


def plain(name: str) -> str:
    """Return a name without what people overlook: case, zeros, spaces, separators, Unicode."""
    text = _joined(unicodedata.normalize("NFKC", name).strip().casefold())
    return re.sub(r"\d+", lambda match: match[0].lstrip("0") or "0", text)


def matches(missing: Iterable[str], there: Iterable[str]) -> dict[str, Match]:
    """Return for each missing name the one of `there` that likely is it, where there is one.

    They are the same but for case, spaces or zeros; or the missing one has something added or
    replaced at its end or beginning, in the same way as others.
    """
    missing = list(missing)
    names = set(there) - set(missing)
    seen_alike = {plain(name): name for name in names}
    found = {
        name: Match(near, f"with {_difference(name, near)}")
        for name in missing
        if (near := seen_alike.get(plain(name))) is not None
    }
    for turned in (False, True):
        rest = [name for name in missing if name not in found]
        found |= _replaced(rest, names - {match.there for match in found.values()}, turned)
    return found


def _joined(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", name)


def _difference(one: str, other: str) -> str:
    """Say in what two names of one `plain` form differ."""
    one = unicodedata.normalize("NFKC", one)
    other = unicodedata.normalize("NFKC", other)
    if one == other:
        return "another form of Unicode"
    if one.strip() == other.strip():
        return "other spaces"
    if one.casefold() == other.casefold():
        return "other upper and lower case"
    if _joined(one) == _joined(other):
        return "other spaces, dashes or underscores"
    if len(one) != len(other):
        return "other zeros before numbers"
    return "other letters"


def _replaced(missing: Sequence[str], there: Collection[str], turned: bool) -> dict[str, Match]:
    """Return the matches by the most frequent pair of ends; `turned`: of beginnings."""
    step = -1 if turned else 1
    ordered = sorted(name[::step] for name in there)
    ends = Counter(
        pair for name in missing if (pair := _ends(name[::step], ordered)) != ("", "")
    ).most_common(1)
    if not ends:
        return {}
    (mine, other), count = ends[0]
    if count == 1 and (turned or (mine and other)):  # chance, but where one name goes on
        return {}
    how = _how(mine[::step], other[::step], "beginning" if turned else "end")
    known = set(ordered)
    found: dict[str, Match] = {}
    for name in missing:
        start = name[::step].removesuffix(mine)
        if name[::step].endswith(mine) and start + other in known:
            near = (start + other)[::step]
            found[name] = Match(near, how, None if turned else (mine, other))
    return found


def _how(mine: str, other: str, where: str) -> str:
    if not mine:
        return f"with `{other}` at the {where}"
    if not other:
        return f"without `{mine}` at the {where}"
    return f"with `{other}` in place of `{mine}` at the {where}"


def _ends(name: str, ordered: Sequence[str]) -> tuple[str, str]:
    """Return where a name and its neighbour in an ordered list part; ("", "") inside a number."""
    place = bisect(ordered, name)
    best = ("", "")
    longest = 0
    for near in ordered[max(place - 1, 0) : place + 1]:
        cut = 0
        while cut < min(len(name), len(near)) and name[cut] == near[cut]:
            cut += 1
        after = name[cut : cut + 1] + near[cut : cut + 1]
        if cut and name[cut - 1].isdigit() and any(letter.isdigit() for letter in after):
            continue
        if any(letter.isalpha() for letter in after):  # words are kept whole
            while cut and name[cut - 1].isalpha():
                cut -= 1
        while cut and name[cut - 1] in _SEPARATORS:
            cut -= 1
        if cut > longest:
            longest = cut
            best = (name[cut:], near[cut:])
    return best


def alike(name: str, there: Iterable[str], synonyms: bool = True) -> str:
    """Return the one of `there` that is the same but for case; "" where none is.

    With `synonyms` also one that stands for the same thing.
    """
    by_name = {unicodedata.normalize("NFC", other).strip().casefold(): other for other in there}
    key = name.strip().casefold()
    groups = (IMAGES, MASKS, TRAIN, VAL) if synonyms else ()
    words = next((group for group in groups if key in group), ())
    return next((by_name[word] for word in (key, *words) if word in by_name), "")


def near_folder(folder: Path, synonyms: bool = True) -> str:
    """Say what is there in place of a folder that is not, by `alike`; "" where nothing is."""
    missing = folder
    while not missing.parent.is_dir() and missing != missing.parent:
        missing = missing.parent
    if not missing.parent.is_dir():
        return ""
    there = [path.name for path in _inside(missing.parent) if path.is_dir()]
    near = alike(missing.name, there, synonyms)
    return f"`{near}` is there in place of `{missing.name}`" if near else ""


def unread(folder: Path, names: Collection[str]) -> dict[str, str]:
    """Return the files in a folder of kinds that are not read, by those of `names` they have."""
    return {
        path.stem: path.name
        for path in _inside(folder)
        if path.suffix.lower() in UNREAD and path.stem in names
    }


def below(folder: Path, names: Collection[str], suffixes: Collection[str]) -> dict[str, str]:
    """Return the files in the folders directly below by those of `names` they have."""
    return {
        path.stem: f"{inner.name}/{path.name}"
        for inner in _inside(folder)[:MOST_FOLDERS]
        if inner.is_dir()
        for path in _inside(inner)
        if path.suffix.lower() in suffixes and path.stem in names
    }


def deeper(folder: Path, suffixes: Collection[str]) -> str:
    """Say that the folders directly below hold files of these kinds; "" where none does."""
    counts = {
        inner.name: sum(path.suffix.lower() in suffixes for path in _inside(inner))
        for inner in _inside(folder)[:MOST_FOLDERS]
        if inner.is_dir()
    }
    held = [name for name, count in sorted(counts.items()) if count]
    if not held:
        return ""
    names = ", ".join(held[:FOLDERS_SHOWN]) + ", ..." * (len(held) > FOLDERS_SHOWN)
    return f"{sum(counts.values())} lie in its sub-folders {names}, which are not looked into"


def elsewhere(root: Path, suffix: str, names: Collection[str]) -> str:
    """Say which folder below `root` holds most files with a suffix and one of `names`."""
    counts: Counter[str] = Counter()
    for number, (place, folders, files) in enumerate(os.walk(root)):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        count = sum(
            path.suffix.lower() == suffix and path.stem in names for path in map(Path, files)
        )
        if count:
            counts[place] = count
        if number == MOST_FOLDERS:
            break
    if not counts:
        return ""
    (place, count) = counts.most_common(1)[0]
    return f"{count} lie in {shown(place)}"


def _inside(folder: Path) -> list[Path]:
    """Return what lies in a folder but what is hidden, sorted; nothing where it is not there."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
