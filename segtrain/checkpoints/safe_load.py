"""Read files from anyone as plain tensors, or refuse them.

Nothing in them is run, links and pipes inside a checkpoint are refused, and so is whatever unpacks
to more than its own size. A link that the user names is followed.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from segtrain.errors import UserError

READ_BYTES = 1 << 20  # hashed at once: files of gigabytes must not be read into memory for that


class Damaged(Exception):
    """A file that is not what it should be; the text is the reason.

    Callers make it a UserError with the path.
    """


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading.

    A path whose last part is a link is refused; a pipe is refused instead of waited for. Errors:
    Damaged.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise Damaged(f"{path.name}: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Damaged(f"{path.name} is not a regular file")
    return os.fdopen(descriptor, "rb")


def check_hash(file: BinaryIO, name: str, size: int, sha256: str) -> None:
    """Compare a file with its size in bytes and hash, and rewind it. Errors: Damaged."""
    actual = os.fstat(file.fileno()).st_size
    if actual != size:
        raise Damaged(f"{name} has {actual} bytes instead of {size}")
    digest = hashlib.sha256()
    while piece := file.read(READ_BYTES):
        digest.update(piece)
    if digest.hexdigest() != sha256:
        raise Damaged(f"{name} does not have the bytes that were saved")
    file.seek(0)


def load(file: BinaryIO, path: Path, map_location: str | torch.device) -> Any:
    """Load tensors and plain types.

    Errors: UserError, whatever goes wrong with a stranger's file.
    """
    try:
        if file.read(4) == b"PK\x03\x04":
            _refuse_bomb(file)
        file.seek(0)
        with warnings.catch_warnings(action="ignore"):  # torch's remarks on odd pickles: two lines
            return torch.load(file, map_location=map_location, weights_only=True)
    except Exception as error:  # a hostile file can raise anything inside torch
        named = re.search(r"GLOBAL ([\w.]+)|class ([\w.]+)", str(error))
        reason = (
            f"it asks for {named[1] or named[2]}"
            if named
            else f"{type(error).__name__}: {str(error)[:80]!r}"
        )
        raise UserError(
            f"{path}: not a file of plain tensors ({reason}), so it is not loaded; "
            "save a state_dict() with torch.save"
        ) from None


def _refuse_bomb(file: BinaryIO) -> None:
    """Refuse a zip file that unpacks to more than its own size.

    torch stores without compression, so it is no checkpoint.
    """
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if packed or sum(member.file_size for member in members) > os.fstat(file.fileno()).st_size:
        raise ValueError("declares more bytes than it has")
