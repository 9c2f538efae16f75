"""Safe from outside: one process per run folder, and signals that wait for the end of a step. No torch here."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import socket
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, Self

from segtrain.errors import DiskError, LockedError, UserError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
SAME_KEY_PRESS = 0.5  # seconds: torchrun hands a Ctrl-C on to ranks that had it from the terminal already
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
            raise DiskError(f"{self.run_dir}/.lock: cannot be locked: {error.strerror}; take another folder") from None
        if holder is not None:
            os.close(descriptor)
            raise LockedError(f"{self.run_dir} is in use by {holder}. Wait, stop it, or take another folder")
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
            return os.open(self.run_dir / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise UserError(f"{error.filename}: in the way ({error.strerror}); take another run folder") from None
        except OSError as error:
            raise DiskError(
                f"{self.run_dir}: cannot be written: {error.strerror}; check its permissions or take another run folder"
            ) from None


def _identity() -> dict[str, Any]:
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": started, "command": shlex.join(sys.argv)}


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


class Signals:
    """`with Signals() as signals:` turns SIGTERM, SIGINT and SIGUSR1 into `signals.received`, the name of the first.

    The loop reads it after a step, saves and exits 75. A second SIGINT, more than `SAME_KEY_PRESS` after the first,
    exits at once with 130. Outside the main thread, where Python takes no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._interrupted: float | None = None
        self._old: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._old = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, old in self._old.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)
        self._old = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number).name
        if number != signal.SIGINT:
            return
        now = time.monotonic()
        if self._interrupted is None:
            self._interrupted = now
        elif now - self._interrupted > SAME_KEY_PRESS:
            os.write(2, b"segtrain: second interrupt, exit without saving; the last checkpoint is whole\n")
            os._exit(130)
