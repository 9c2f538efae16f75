"""Files that reach the disk whole or not at all. No torch here."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def replace_file(path: Path, content: bytes) -> None:
    """Give `path` new content: after a crash it holds the old or the new, never a part.

    The content is on the disk before it gets its name, and the name is there before this returns.
    Errors: OSError.
    """
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.unlink(missing_ok=True)  # of an earlier process that was killed here
    write_synced(temporary, lambda file: file.write(content))
    temporary.replace(path)
    sync_folder(path.parent)


def write_synced(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Create `path`, let `write` fill it, and wait until the disk has it.

    Errors: OSError, also where `path` exists.
    """
    with path.open("xb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names in `folder`.

    Without it a file that was renamed may have its old name after a power cut. Errors: OSError.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
