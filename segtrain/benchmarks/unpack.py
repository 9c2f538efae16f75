"""Unpack an archive whole or not at all, inside one folder of its own.

Only folders and new files are made: links become copies or are refused, nothing is overwritten.
"""

from __future__ import annotations

import os
import posixpath
import shutil
import stat
import sys
import tarfile
import zipfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import IO, NamedTuple

from segtrain.benchmarks.download import CHUNK_BYTES, closing, room, text_of, writing
from segtrain.errors import DataError, SegtrainError
from segtrain.logs.progress import Progress

MAX_MEMBERS = 1_000_000  # files of one archive; COCO train2017 has 118,287


class _Entry(NamedTuple):
    """One member as the archive declares it."""

    name: str
    size: int  # bytes; 0 for a link
    kind: str  # "file", "folder", "link" to a file of the same archive; anything else is refused
    open: Callable[[], IO[bytes] | None]


Checked = dict[tuple[str, ...], _Entry]  # files and links, keyed by the parts of their path


def unpack(
    archive: Path, target: Path, limit_bytes: int, inside: str = "", progress: bool = True
) -> Path:
    """Make the folder `target` of the files of a tar (packed or not) or zip below its `inside`.

    They are written to a folder beside it, which is then renamed. A `target` that is there keeps
    its files and gets those that it lacks. Errors: DataError for a damaged or hostile archive or
    one that unpacks to more than `limit_bytes`, DiskError; then nothing is left behind.
    """
    staging = (target if target.is_dir() else target.parent) / f".unpacking-{target.name}"
    try:
        with _entries(archive, target) as entries:
            files = _below(_checked(entries, limit_bytes), tuple(PureWindowsPath(inside).parts))
            if not files:
                raise ValueError(f"holds no file{f' in a folder {inside}' if inside else ''}")
            total = sum(entry.size for entry in files.values())
            with writing(staging):
                shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed
                staging.mkdir(parents=True)
            room(staging, total)
            with Progress(total, f"unpacking {archive.name}", progress, "B") as meter:
                _write_all(files, staging, limit_bytes, meter)
        with writing(target):
            _move_into_place(staging, target)
    except SegtrainError:
        raise
    except Exception as error:  # readers of damaged archives raise nearly anything
        raise DataError(
            f"{archive}: cannot be unpacked, nothing was written: {text_of(error)}"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


@contextmanager
def _entries(archive: Path, target: Path) -> Generator[Iterator[_Entry]]:
    """Open the archive and yield its members in their order.

    A tar may end in a zip, so the first bytes decide. Errors: anything.
    """
    if not stat.S_ISREG(archive.stat().st_mode):
        raise ValueError("is a folder or a device, not an archive")
    with archive.open("rb") as file:
        packed_as_zip = file.read(4) in (b"PK\3\4", b"PK\5\6")
    if packed_as_zip:
        with zipfile.ZipFile(archive) as packed:
            yield (
                _Entry(info.filename, info.file_size, _zip_kind(info), partial(packed.open, info))
                for info in packed.infolist()
            )
    else:
        with tarfile.open(archive) as tar:
            yield _tar_entries(tar, str(target))


def _zip_kind(info: zipfile.ZipInfo) -> str:
    mode = stat.S_IFMT(info.external_attr >> 16)
    if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "a link or a device"
    return "folder" if info.is_dir() else "file"


def _tar_entries(tar: tarfile.TarFile, target: str) -> Iterator[_Entry]:
    for info in tar:
        yield _Entry(info.name, info.size, _tar_kind(info), partial(_tar_file, tar, info, target))
    file = tar.fileobj
    assert file is not None
    # tarfile ends silently at a damaged header; a whole archive ends in zeros.
    file.seek(tar.offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise ValueError("is truncated or damaged")


def _tar_kind(info: tarfile.TarInfo) -> str:
    if info.issym() or info.islnk():
        start = posixpath.dirname(info.name) if info.issym() else ""
        aim = posixpath.normpath(posixpath.join(start, info.linkname))
        return "a link leading out of the archive" if aim.startswith(("/", "..")) else "link"
    return "file" if info.isreg() else "folder" if info.isdir() else "a device"


def _tar_file(tar: tarfile.TarFile, info: tarfile.TarInfo, target: str) -> IO[bytes] | None:
    """Open the content of a member, or of the member that a link leads to.

    Python's own filter for data, there since 3.11.4, has the last word.
    """
    if sys.version_info >= (3, 11, 4):
        info = tarfile.data_filter(info, target)
    return tar.extractfile(info)


def _checked(entries: Iterator[_Entry], limit_bytes: int) -> Checked:
    """Return the files by the parts of their path, when all of them have passed.

    Nothing is written before. Errors: ValueError.
    """
    files: Checked = {}
    total = 0
    for number, entry in enumerate(entries, 1):
        # A Windows path knows both separators and drive letters, whatever system packed it.
        path = PureWindowsPath(entry.name)
        if path.anchor or ".." in path.parts or any(ord(letter) < 32 for letter in entry.name):
            raise ValueError(
                f"its member {entry.name!r} would leave the folder, or has no plain name"
            )
        if entry.kind not in ("file", "folder", "link"):
            raise ValueError(f"its member {entry.name!r} is {entry.kind}")
        total += entry.size
        if total > limit_bytes or number > MAX_MEMBERS:
            raise ValueError(f"unpacks to more than {limit_bytes:,} bytes or {MAX_MEMBERS:,} files")
        if entry.kind == "folder":
            continue
        if path.parts in files or not path.parts:
            raise ValueError(f"its member {entry.name!r} is there twice")
        files[path.parts] = entry
    for parts in files:
        if any(parts[:depth] in files for depth in range(1, len(parts))):
            raise ValueError(f"its member {'/'.join(parts)!r} lies below a file")
    return files


def _below(files: Checked, folder: tuple[str, ...]) -> Checked:
    """Return the files below `folder`, by their path from there."""
    depth = len(folder)
    return {
        parts[depth:]: entry
        for parts, entry in files.items()
        if parts[:depth] == folder and parts != folder
    }


def _write_all(files: Checked, staging: Path, limit_bytes: int, meter: Progress) -> None:
    """Copy every file into `staging`, counting what really comes.

    Errors: DiskError, or anything from the archive.
    """
    written = 0
    for parts, entry in files.items():
        path = staging.joinpath(*parts)
        before = written
        source = entry.open()
        if source is None:
            raise ValueError(f"its member {entry.name!r} is a link to no file")
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("xb")
        with source, closing(file, path):
            while chunk := source.read(CHUNK_BYTES):
                written += len(chunk)
                if written > limit_bytes:
                    raise ValueError(f"unpacks to more than {limit_bytes:,} bytes")
                with writing(path):
                    file.write(chunk)
                meter.add(len(chunk))
        if entry.kind == "file" and written - before != entry.size:
            raise ValueError(f"its member {entry.name!r} is truncated")


def _move_into_place(staging: Path, target: Path) -> None:
    """Rename the folder, or move into an existing one the files that it lacks."""
    if not target.is_dir():
        staging.rename(target)
        return
    for folder, _, names in os.walk(staging):
        own = target / Path(folder).relative_to(staging)
        own.mkdir(exist_ok=True)
        for name in names:
            if not os.path.lexists(own / name):
                Path(folder, name).rename(own / name)
