"""The list of SHA-256 sums of a data set: `dataset.manifest=FILE`, in the form of `sha256sum`.

    d2a8...41  images/train/a.png

Paths start from the root of the data set. Every file that is listed must be there and have its sum,
and every file that is read must be listed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from segtrain.data.fingerprint import sum_of
from segtrain.data.images import shown
from segtrain.data.threads import in_threads
from segtrain.errors import DataError, SegtrainError

LINE = re.compile(rb"(\\?)([0-9a-fA-F]{64}) [ *](.+)", re.DOTALL)
Progress = Callable[[int, int], None]  # (done, total)


def root_of(root: str | None, files: Iterable[Path]) -> Path:
    """Return the folder that listed paths start from: `dataset.root`, else that of all files."""
    if root is not None:
        return Path(root).expanduser()
    folders = {str(path.parent.absolute()) for path in files}
    return Path(os.path.commonpath(folders)) if folders else Path()


def sums_of(files: Iterable[Path], root: Path, progress: Progress | None = None) -> bytes:
    """Return the list of some files, sorted by path, as bytes: a name may be no text.

    Errors: DataError for a file that cannot be read.
    """
    paths = {_below(path, root): path for path in files}
    lines = []
    sums = in_threads(sum_of, paths.values())
    for done, (name, digest) in enumerate(zip(paths, sums, strict=True), 1):
        lines.append(_line(name, digest))
        if progress:
            progress(done, len(paths))
    return b"".join(sorted(lines, key=lambda line: line.partition(b"  ")[2]))


def _line(name: str, digest: str) -> bytes:
    """Return a line as `sha256sum` writes it: a backslash before it tells that some follow."""
    raw = os.fsencode(name)
    escaped = raw.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
    return (b"\\" if escaped != raw else b"") + digest.encode() + b"  " + escaped + b"\n"


def read_sums(path: Path) -> dict[str, str]:
    """Return the sums of a list by path. Errors: DataError naming the line that is none."""
    sum_of(path)  # refuses what is no plain file
    sums: dict[str, str] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        line = line.removesuffix(b"\r")
        if not line:
            continue
        found = LINE.fullmatch(line)
        if found is None:
            raise DataError(
                f"{shown(path)}, line {number}: is not `SHA-256  path`, as sha256sum and segdata "
                "manifest write it"
            )
        name = re.sub(rb"\\[\\nr]", _unescaped, found[3]) if found[1] else found[3]
        sums[os.path.normpath(os.fsdecode(name))] = found[2].decode().lower()
    if not sums:
        raise DataError(f"{shown(path)}: lists no files")
    return sums


def _unescaped(found: re.Match[bytes]) -> bytes:
    return {b"\\\\": b"\\", b"\\n": b"\n", b"\\r": b"\r"}[found[0]]


def wrong(path: Path, root: str | None, files: Sequence[Path]) -> list[str]:
    """Return a line for all in which the list at `path` and `files` differ. Errors: DataError."""
    path = path.expanduser()
    base = root_of(root, files)
    sums = read_sums(path)
    return [*wrong_sums(sums, list(sums), base, path), *not_listed(sums, files, base, path)]


def wrong_sums(sums: Mapping[str, str], names: Sequence[str], root: Path, of: Path) -> list[str]:
    """Return a line for each of `names`, of the list `of`, whose file is not as it says."""

    def look(name: str) -> str:
        path = root / name
        try:
            right = sum_of(path) == sums[name]
        except SegtrainError as error:
            return f"{error} (it is listed in {shown(of)})"
        return "" if right else f"{shown(path)}: is not what {shown(of)} lists, by its SHA-256"

    return [line for line in in_threads(look, names) if line]


def not_listed(sums: Mapping[str, str], files: Iterable[Path], root: Path, of: Path) -> list[str]:
    """Return a line for each of `files` that the list `of` does not have."""
    return [
        f"{shown(path)}: is not listed in {shown(of)}"
        for path in files
        if _below(path, root) not in sums
    ]


def _below(path: Path, root: Path) -> str:
    return os.path.relpath(path, root)
