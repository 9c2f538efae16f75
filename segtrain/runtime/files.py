"""Files that reach the disk whole or not at all. No torch here."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

NOT_PLAIN = "is no plain file"  # what a link, a pipe or a device is called where one is in the way


def replace_file(path: Path, content: bytes) -> None:
    """Give `path` new content: after a crash it holds the old or the new, never a part.

    The content is on the disk before it gets its name, and the name is there before this returns.
    Errors: OSError.
    """
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.unlink(missing_ok=True)  # of an earlier process that was killed here
    try:
        write_synced(temporary, lambda file: file.write(content))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # of a full disk, or where a signal ends the command
    sync_folder(path.parent)


def write_synced(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Create `path`, let `write` fill it, and wait until the disk has it.

    Errors: OSError, also where `path` exists.
    """
    with path.open("xb") as file:  # exclusive: it follows no link either
        write(file)
        file.flush()
        os.fsync(file.fileno())


def write_file(path: Path, content: bytes) -> None:
    """Give `path` new content, which appears whole, without waiting for the disk.

    A link of this name is replaced, not followed. Errors: OSError.
    """
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.unlink(missing_ok=True)  # of an earlier process that was killed here
    try:
        with temporary.open("xb") as file:
            file.write(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def open_to_append(path: Path) -> BinaryIO:
    """Open a file that grows, unbuffered.

    A link is not followed. A file with a second name (a hard link, as backups make them) is copied
    first, so that only this one grows. Errors: OSError, also where no plain file is in the way.
    """
    _refuse_unplain(path)
    if path.exists() and path.stat().st_nlink > 1:
        replace_file(path, path.read_bytes())
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    return os.fdopen(os.open(path, flags, 0o666), "ab", buffering=0)


def _refuse_unplain(path: Path) -> None:
    if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
        raise OSError(errno.EEXIST, NOT_PLAIN, str(path))


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names in `folder`.

    Without it a file that was renamed may have its old name after a power cut. Errors: OSError.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
