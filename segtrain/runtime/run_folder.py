"""One run, one folder: who owns it and who is using it. No torch here."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from segtrain.errors import DataError, DiskError, LockedError, UserError
from segtrain.runtime.files import replace_file

if TYPE_CHECKING:
    from segtrain.runtime.distributed import World

# In the environment of a worker: process id and command line of the process that launched it, which
# is what a user knows and can stop.
PARENT = "SEGTRAIN_PARENT"
PARENT_COMMAND = "SEGTRAIN_PARENT_COMMAND"

# What stands in a run folder before its first step.
BEFORE_FIRST_STEP = (
    ".lock",
    ".hydra",
    "config.yaml",
    "metrics.jsonl",
    "timing.jsonl",
    "train.log",
    "tensorboard",
)
# Time to wait for a lock whose holder is dead: its workers let go within milliseconds.
LOCK_PATIENCE_SECONDS = 1.0


# ---------------------------------------------------------------------- whose folder it is


@dataclass(frozen=True)
class NewRun:
    """A run that is to begin in a folder, as it is stored there."""

    config: str  # text of config.yaml
    overrides: tuple[str, ...]  # what the user typed
    # A job of a sweep: its folder may hold the same run, unfinished or complete.
    again: bool = False

    def write(self, folder: Path) -> None:
        """Store it in `folder`. Errors: OSError."""
        (folder / ".hydra").mkdir(parents=True, exist_ok=True)
        overrides = "".join(f"- {override}\n" for override in self.overrides)
        (folder / ".hydra" / "overrides.yaml").write_text(overrides)
        (folder / ".hydra" / "config.yaml").write_text(self.config)
        replace_file(folder / "config.yaml", self.config.encode())

    def hand_over(self, folder: Path) -> None:
        """Leave it in `folder` for the workers, which store it once they know that it can begin."""
        (folder / "config.yaml").write_text(self.config)
        rest = {"overrides": self.overrides, "again": self.again}
        (folder / "new.json").write_text(json.dumps(rest))

    @classmethod
    def taken_over(cls, folder: Path) -> NewRun | None:
        """Read what `hand_over` left in `folder`; None where it left nothing."""
        if not (folder / "new.json").exists():
            return None
        rest = json.loads((folder / "new.json").read_text())
        config = (folder / "config.yaml").read_text()
        return cls(config, tuple(rest["overrides"]), rest["again"])


@contextmanager
def claimed(folder: Path, new: NewRun | None, world: World) -> Generator[bool]:
    """Hold `folder` for the whole run on rank 0; the other ranks wait for its answer.

    It yields False on all ranks when there is nothing left to do. A refusal ends all ranks, and
    rank 0 tells it. A new run that is refused before its first step (by its data, or by the weights
    it shall start from) leaves nothing behind: no folder, no log, no lock file.
    """
    world.gather(None)  # all are here: a rank that refused its parts would have left
    with ExitStack() as stack:
        yield world.decide(lambda: stack.enter_context(_held(folder, new)))


def left_to_do(folder: Path, new: NewRun | None) -> bool:
    """Tell whether there is something to train in `folder`; nothing is written.

    It is asked before parts are built, which can take minutes. `new` is the run that is to begin
    there, None to go on with the one it holds. Errors: LockedError where a process is training
    there; UserError where the folder holds another run.
    """
    if not (folder / ".lock").exists():
        return _left_to_do(folder, new)
    with RunLock(folder):
        return _left_to_do(folder, new)


def begun(folder: Path) -> bool:
    """Tell whether a run left something in its folder.

    One that was killed before its first step did not: a new one may begin there.
    """
    results = (
        folder / "summary.json",
        folder / "metrics.jsonl",
        *(folder / "checkpoints").glob("*"),
    )
    return any(path.exists() and (path.is_dir() or path.stat().st_size > 0) for path in results)


def _left_to_do(folder: Path, new: NewRun | None) -> bool:
    complete = (folder / "summary.json").exists()
    if new is None or not holds_run(folder):
        return not complete
    if not new.again:
        raise UserError(
            f"{folder}: holds a run already; go on with it by resume={folder}, or choose another "
            "hydra.run.dir"
        )
    return not complete


def holds_run(folder: Path) -> bool:
    """Tell whether a run has begun in `folder`, so that a new one may not."""
    return (folder / "config.yaml").exists() and begun(folder)


@contextmanager
def _held(folder: Path, new: NewRun | None) -> Generator[bool]:
    """Lock `folder` and store `new` in it; see `claimed`."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]  # innermost first
    before = [name for name in BEFORE_FIRST_STEP if (folder / name).exists()]
    with RunLock(folder):
        todo = _left_to_do(folder, new)
        if not todo or new is None or holds_run(folder):
            yield todo
            return
        try:
            new.write(folder)
            yield True
        except (UserError, DataError, KeyboardInterrupt):  # refused, or stopped by a signal
            if not begun(folder):
                # In a folder that was there before, only what a run leaves is removed: the user
                # may write there meanwhile.
                names = [path.name for path in folder.iterdir()] if made else BEFORE_FIRST_STEP
                _remove([folder / name for name in names if name not in before], made)
            raise


def _remove(entries: list[Path], folders: list[Path]) -> None:
    """Remove `entries`, then each of `folders` that is empty.

    What cannot be removed stays: there is another error to tell.
    """
    with suppress(OSError):
        for path in entries:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        for folder in folders:
            folder.rmdir()


# ---------------------------------------------------------------------- who is using it

_held_locks: set[int] = set()  # descriptors of the locks of this process


def _drop_in_child() -> None:
    """Close the locks in a forked loader worker, which must not keep the lock of a killed parent.

    Closing them there does not unlock them here.
    """
    while _held_locks:
        os.close(_held_locks.pop())


os.register_at_fork(after_in_child=_drop_in_child)


class RunLock:
    """Hold `run_dir/.lock` inside `with RunLock(run_dir):`.

    The kernel frees it when the process ends, however it ends. Raises LockedError naming the
    holder, who and all of whose files stay untouched; UserError or DiskError when the folder cannot
    be used. The file stays behind, empty; only the holder may remove it.
    """

    def __init__(self, run_dir: str | Path) -> None:
        self.run_dir = Path(run_dir)
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        while self._descriptor is None:
            self._try()
        return self

    def __exit__(self, *exception: object) -> None:
        descriptor = self._descriptor
        self._descriptor = None
        if descriptor in _held_locks:  # not in a forked child
            _held_locks.discard(descriptor)
            os.ftruncate(descriptor, 0)
            os.close(descriptor)

    def _try(self) -> None:
        """Lock the file, unless its last holder removed it meanwhile: then there is another one."""
        descriptor = self._open()
        try:
            holder = _take(descriptor)
            current = holder is None and os.fstat(descriptor).st_nlink > 0
            if current:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(_identity()).encode(), 0)
        except OSError as error:
            os.close(descriptor)
            raise DiskError(
                f"{self.run_dir}/.lock: cannot be locked: {error.strerror}; take another folder"
            ) from None
        if current:
            self._descriptor = descriptor
            _held_locks.add(descriptor)
            return
        os.close(descriptor)
        if holder is not None:
            raise LockedError(
                f"{self.run_dir} is in use by {holder}. Wait, stop it, or take another folder"
            )

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
                f"{self.run_dir}: cannot be written: {error.strerror}; check its permissions or "
                "take another run folder"
            ) from None


def _identity() -> dict[str, Any]:
    """Describe the process that a user can stop: a worker's parent, else this one."""
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    return {
        "pid": int(os.environ.get(PARENT, os.getpid())),
        "host": socket.gethostname(),
        "started": started,
        "command": os.environ.get(PARENT_COMMAND, shlex.join(sys.argv)),
    }


def _take(descriptor: int, patience: float = LOCK_PATIENCE_SECONDS) -> str | None:
    """Lock the open file and return None, or who holds it.

    A living holder is told at once. The name of a dead one means that the real holder has not
    written its own yet, or that a worker of the dead one is about to let go: both get `patience`
    seconds.
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
        time.sleep(0.01)  # chosen by hand: workers let go within milliseconds


def _holder(descriptor: int) -> tuple[str, bool]:
    """Return (who wrote its name into the file last, whether that process may still live)."""
    try:
        # 64 KiB, chosen by hand, hold any command line that a person types.
        who = json.loads(os.pread(descriptor, 1 << 16, 0))
        text = f"pid {who['pid']} on host {who['host']} since {who['started']}: {who['command']}"
        return text, who["host"] != socket.gethostname() or Path("/proc", str(who["pid"])).exists()
    except (ValueError, LookupError, TypeError):
        return "another process", False
