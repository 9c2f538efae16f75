"""A folder of this process among the temporary ones, for what it hands to its workers."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "segtrain-"
HELD = "held"  # a file that its process has locked as long as it lives


@contextmanager
def own_folder() -> Generator[Path]:
    """Yield a new folder that ends with the block; those of processes that were killed go too.

    Errors: OSError where there is no place for one.
    """
    remove_left(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=PREFIX) as name:
        place = Path(name)
        new = place / "new"
        with new.open("wb") as file:
            # Locked before it has its name. Without locks nobody can tell that a process is gone.
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                new.rename(place / HELD)
            yield place


def remove_left(below: Path) -> None:
    """Remove the folders that killed processes of this user left in `below`."""
    for place in below.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if place.is_symlink() or place.stat().st_uid != os.getuid():
                continue
            descriptor = os.open(place / HELD, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while it lives
                shutil.rmtree(place)
            finally:
                os.close(descriptor)
