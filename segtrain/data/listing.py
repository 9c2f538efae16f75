"""List what a data set on disk holds: its root, its splits, its files and its ids.

What is wrong with single files is added to a list `problems`, which a data set keeps:
`config.parts.dataset` refuses a data set that has any, `segdata verify` reports all of them.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from segtrain.data import nearest
from segtrain.data.images import shown
from segtrain.errors import DataError, UserError, did_you_mean

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
        near = nearest.alike(split, known)
        hint = f" Did you mean `{near}`?" if near else did_you_mean(split, known)
        if near and split in (*nearest.TRAIN, *nearest.VAL):
            hint += f" Set dataset.{'train' if split in nearest.TRAIN else 'val'}_split={near}"
        raise UserError(f"{where}: no split `{split}`; there is {have} (dataset.split=).{hint}")


def list_files(
    folder: Path, problems: list[str], suffixes: Sequence[str] = SUFFIXES
) -> dict[str, Path]:
    """Return the files directly in `folder` by name without suffix, sorted.

    Hidden files and those of other kinds are left out. Of files that differ only by suffix the
    first is taken, and a problem noted. Errors: DataError where the folder is missing.
    """
    files, doubles = files_and_doubles(folder, suffixes)
    problems += doubles.values()
    return files


def files_and_doubles(
    folder: Path, suffixes: Sequence[str] = SUFFIXES
) -> tuple[dict[str, Path], dict[str, str]]:
    """Return what `list_files` does, and the problems by name.

    Names are in Unicode's composed form (NFC): a Mac writes the same text in another one.
    """
    if not folder.is_dir():
        near = nearest.near_folder(folder) or "is dataset.root right?"
        raise DataError(f"{shown(folder)}: no such folder; {near}")
    files: dict[str, Path] = {}
    doubles: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        name = unicodedata.normalize("NFC", path.stem)
        if name in files:
            doubles[name] = (
                f"{shown(path)}: has the same name as {shown(files[name])}; keep one of them"
            )
        else:
            files[name] = path
    return files, doubles


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


def list_paths(folder: Path) -> dict[str, Path]:
    """Return the lists of ids in a folder, `<split>.txt`, by split; none where it is not there."""
    if not folder.is_dir():
        return {}
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() == ".txt"}


def read_ids(path: Path, problems: list[str], may_be_empty: bool = False) -> list[str]:
    """Return the ids of a list file, one per line, in the file's order; doubles are noted.

    Spaces around ids, quotes, commas behind them and lines that begin with `# ` are left away.
    Errors: DataError where the file is missing, or lists none.
    """
    line_of: dict[str, int] = {}
    for number, line in enumerate(_text(path).splitlines(), 1):
        if re.match(r"\s*#+(\s|$)", line):
            continue
        name = unicodedata.normalize("NFC", line.strip().rstrip(",;").strip("\"' \t"))
        if name in line_of:
            problems.append(
                f"{shown(path)}, line {number}: `{name}` is listed twice "
                f"(first in line {line_of[name]})"
            )
        elif name:
            line_of[name] = number
    if not line_of and not may_be_empty:
        raise DataError(f"{shown(path)}: lists no ids")
    return list(line_of)


def _text(path: Path) -> str:
    """Return the text of a list, which is UTF-8, or UTF-16 with its mark. Errors: DataError."""
    try:
        content = path.read_bytes()
        wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except OSError as error:
        raise DataError(
            f"{shown(path)}: cannot read the list of ids ({error.__class__.__name__})"
        ) from error
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise DataError(f"{shown(path)}: the list of ids is no UTF-8 text; save it again as that")
    return text
