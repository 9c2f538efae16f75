"""One run, one folder: who owns it and who is using it. No torch here."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from segtrain.config.files import load_yaml, to_yaml
from segtrain.config.old_names import modern
from segtrain.errors import DiskError, LockedError, UserError


def claim(plain: dict[str, Any], folder: Path, overrides: Sequence[str], again: bool) -> bool:
    """Make `folder` the home of this run; False when the run is there and complete. Errors: UserError."""
    if (folder / "config.yaml").exists() and begun(folder):
        if not again:
            raise UserError(
                f"{folder}: holds a run already; go on with it by resume={folder}, or choose another hydra.run.dir"
            )
        if modern(load_yaml(folder / "config.yaml"), str(folder)) != modern(plain):
            raise UserError(
                f"{folder}: holds a run with another configuration; choose another hydra.sweep.dir"
            )
        return not (folder / "summary.json").exists()
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    (folder / ".hydra" / "overrides.yaml").write_text(
        "".join(f"- {override}\n" for override in overrides)
    )
    (folder / ".hydra" / "config.yaml").write_text(to_yaml(plain))
    temporary = folder / ".config.tmp"
    temporary.write_text(to_yaml(plain))
    temporary.replace(folder / "config.yaml")
    return True


def begun(folder: Path) -> bool:
    """Whether a run left something in its folder. One refused by its data before the first step did not: start anew."""
    results = (
        folder / "summary.json",
        folder / "metrics.jsonl",
        *(folder / "checkpoints").glob("*"),
    )
    return any(path.exists() and (path.is_dir() or path.stat().st_size > 0) for path in results)


_held: set[int] = set()  # descriptors of the locks of this process


def _drop_in_child() -> None:
    """A forked loader worker must not keep the lock of a killed parent; closing here does not unlock there."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_drop_in_child)


class RunLock:
    """`with RunLock(run_dir):` holds `run_dir/.lock`; the kernel frees it when the process ends, however it ends.

    Raises LockedError naming the holder, who and all of whose files stay untouched; UserError or DiskError when the
    folder cannot be used. The file stays behind, empty: to delete it would let two processes lock two files.
    """

    def __init__(self, run_dir: str | Path) -> None:
        self.run_dir = Path(run_dir)
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        descriptor = self._open()
        try:
            holder = _take(descriptor)
            if holder is None:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(_identity()).encode(), 0)
        except OSError as error:
            os.close(descriptor)
            raise DiskError(
                f"{self.run_dir}/.lock: cannot be locked: {error.strerror}; take another folder"
            ) from None
        if holder is not None:
            os.close(descriptor)
            raise LockedError(
                f"{self.run_dir} is in use by {holder}. Wait, stop it, or take another folder"
            )
        self._descriptor = descriptor
        _held.add(descriptor)
        return self

    def __exit__(self, *exception: object) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor in _held:  # not in a forked child
            _held.discard(descriptor)
            os.ftruncate(descriptor, 0)
            os.close(descriptor)

    def _open(self) -> int:
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            return os.open(
                self.run_dir / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644
            )
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise UserError(
                f"{error.filename}: in the way ({error.strerror}); take another run folder"
            ) from None
        except OSError as error:
            raise DiskError(
                f"{self.run_dir}: cannot be written: {error.strerror}; check its permissions or take another run folder"
            ) from None


def _identity() -> dict[str, Any]:
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": started,
        "command": shlex.join(sys.argv),
    }


def _take(descriptor: int, patience: float = 1.0) -> str | None:
    """Lock the open file; None when it is ours, else who holds it.

    A living holder is told at once. A dead one's name means that the real holder has not written its own yet, or that a
    worker of the dead one is about to let go: it gets a little time.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return None
        except BlockingIOError:
            holder, alive = _holder(descriptor)
        if alive or time.monotonic() > deadline:
            return holder
        time.sleep(0.01)


def _holder(descriptor: int) -> tuple[str, bool]:
    """(who wrote the file's name last, whether that process may still live)."""
    try:
        who = json.loads(os.pread(descriptor, 1 << 16, 0))
        text = f"pid {who['pid']} on host {who['host']} since {who['started']}: {who['command']}"
        return text, who["host"] != socket.gethostname() or Path("/proc", str(who["pid"])).exists()
    except (ValueError, LookupError, TypeError):
        return "another process", False
