"""Files that reach the disk whole or not at all. No torch here."""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

T = TypeVar("T")

NOT_PLAIN = "is no plain file"  # what a link, a pipe or a device is called where one is in the way
# A disk that fails once may be a cable or a server that comes back; both numbers are chosen by
# hand, so that a lasting fault is told within a second.
TRIES = 3
WAIT_SECONDS = 0.2
# What file systems answer that have no such call: some of networks, of FUSE, of containers.
UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


def retried(write: Callable[[], T]) -> T:
    """Call what writes a file or a folder anew, up to three times where the disk fails (EIO).

    It must begin from nothing each time: what a failed `fsync` should have written is lost, though
    the next `fsync` of the same file succeeds. Errors: OSError.
    """
    for _ in range(TRIES - 1):
        try:
            return write()
        except OSError as error:
            if error.errno != errno.EIO:
                raise
        time.sleep(WAIT_SECONDS)
    return write()


def replace_file(path: Path, content: bytes) -> None:
    """Give `path` new content: after a crash it holds the old or the new, never a part.

    The content is on the disk before it gets its name, and the name is there before this returns.
    Errors: OSError.
    """
    retried(lambda: _replace_file(path, content))


def _replace_file(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.unlink(missing_ok=True)  # of an earlier process that was killed here
    try:
        write_synced(temporary, lambda file: file.write(content))
        rename(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # of a full disk, or where a signal ends the command
    sync_folder(path.parent)


def rename(old: Path, new: Path) -> None:
    """Give a file or folder of this process another name.

    A network disk may do it, lose its answer, and do it again: then the old name is gone, and the
    new one is there. Errors: OSError.
    """
    try:
        os.rename(old, new)
    except FileNotFoundError:
        if os.path.lexists(old) or not os.path.lexists(new):
            raise


def sync(descriptor: int) -> None:
    """Wait until the disk has an open file or folder.

    Where the file system knows no such call, one line says so, and nothing is waited for: a power
    cut may then cost the newest checkpoint, which is found to be damaged. Errors: OSError.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        warn_once(
            f"this file system cannot wait for its disk (fsync: {error.strerror}): a power cut may "
            "cost the newest checkpoint; what is damaged is found, and an older one taken"
        )


_said: set[str] = set()


def warn_once(line: str) -> None:
    """Say in one line what holds for the whole command."""
    if line not in _said:
        _said.add(line)
        logging.getLogger("segtrain").warning(line)


def write_synced(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Create `path`, let `write` fill it, and wait until the disk has it.

    Errors: OSError, also where `path` exists.
    """
    with path.open("xb") as file:  # exclusive: it follows no link either
        write(file)
        file.flush()
        sync(file.fileno())


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
        sync(descriptor)
    finally:
        os.close(descriptor)
