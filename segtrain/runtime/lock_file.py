"""A lock for file systems without locks: a file that only one process can create. No torch here.

It holds the host and the process id of its owner. Where that process is gone from this very host,
the next one takes the lock over; a process of another host cannot be looked for, so its file stays
until somebody removes it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from segtrain.runtime.files import warn_once

# What `flock` answers where the file system, or the server behind it, has no locks.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

WRITTEN_SECONDS = 0.1  # chosen by hand: a line is written in less


def flock(descriptor: int) -> bool:
    """Lock an open file; False where the file system cannot.

    Errors: BlockingIOError where another process holds it; OSError.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        warn_once(
            f"this file system has no locks ({error.strerror}): a file with host and process id "
            "stands for one; after a crash of this machine it may have to be removed"
        )
        return False
    return True


def take(path: Path) -> str | None:
    """Create the lock file `path` and return None, or say who holds it. Errors: OSError."""
    if _created(path):
        return None
    holder = _holder(path)
    if holder is not None:
        return holder
    # Its owner is gone. Of several that see so only one removes it, and looks again before.
    taking = path.with_name(f"{path.name}.taking")
    if not _created(taking):
        return f"a process that takes {path} over (if there is none, remove {taking})"
    try:
        holder = _holder(path)
        if holder is None:
            path.unlink(missing_ok=True)
            holder = None if _created(path) else "another process"
    finally:
        taking.unlink(missing_ok=True)
    return holder


def release(path: Path) -> None:
    """Remove the lock file, if this process created it."""
    with suppress(OSError):
        if path.read_text() == _me():
            path.unlink()


def _me() -> str:
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname()})


def _created(path: Path) -> bool:
    """Create a file with our name, unless it is there."""
    try:
        with path.open("x") as file:
            file.write(_me())
    except FileExistsError:
        return False
    return True


def owner(path: Path) -> tuple[int, str] | None:
    """Return process id and host of whoever created a lock file; None of what is none."""
    try:
        said = json.loads(path.read_text())
        return int(said["pid"]), str(said["host"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _holder(path: Path) -> str | None:
    """Return who holds `path`; None where that process is gone, or the file is."""
    found = owner(path)
    if found is None and path.exists():  # it may be created, and not written yet
        time.sleep(WRITTEN_SECONDS)
        found = owner(path)
    if found is None:
        return f"another process ({path}; if there is none, remove it)" if path.exists() else None
    pid, host = found
    if host == socket.gethostname() and not Path("/proc", str(pid)).exists():
        return None
    return f"pid {pid} on host {host} ({path}; if there is no such process, remove it)"
