"""What a process and its workers hand to each other: environment, errors. No torch here."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from segtrain.errors import SegtrainError

_environment: dict[str, str] = {}

RESTARTS = "TORCHELASTIC_RESTART_COUNT"  # how often torchrun has started this group anew
ERRORS = "SEGTRAIN_ERRORS"  # folder where a worker leaves the reason of its death for the parent


def keep_environment() -> None:
    """Remember the environment as it is now, before any config is read, for the workers."""
    global _environment
    _environment = dict(os.environ)


@contextmanager
def environment_of_start(added: dict[str, str]) -> Generator[None]:
    """Restore, inside the block, the environment that was kept, and `added`.

    What is started there inherits nothing that a config or a library has set since.
    """
    before = dict(os.environ)
    _replace_environment({**(_environment or before), **added})
    try:
        yield
    finally:
        _replace_environment(before)


def _replace_environment(values: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(values)


def tell_parent(error: SegtrainError, sure: bool = False) -> bool:
    """Leave the reason for the parent that launched this process, which prints it once.

    `sure`: it is the cause, also where another process was killed since. False where nobody
    launched it that way.
    """
    folder = os.environ.get(ERRORS)
    if folder is None:
        return False
    cause = {
        "time": time.time(),
        "message": str(error),
        "exit_code": error.exit_code,
        "sure": sure,
    }
    Path(folder, f"{os.getpid()}.json").write_text(json.dumps(cause))
    return True


def launcher() -> str | None:
    """Name the torchrun that started this process and may start it anew; None without one.

    It is its process, which is the same at every restart, and no other one ever: a run id may be
    given to many.
    """
    if RESTARTS not in os.environ or ERRORS in os.environ:  # ours starts nothing anew
        return None
    pid = os.getppid()
    try:
        began = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
    return f"{socket.gethostname()} {pid} {began}"


def restarted() -> bool:
    """Tell whether torchrun started this process in place of one that ended."""
    return launcher() is not None and os.environ[RESTARTS] != "0"
