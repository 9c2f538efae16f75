"""One run, one folder: who owns it and who is using it. No torch here."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import stat
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import yaml

from segtrain.errors import DataError, DiskError, LockedError, UserError, check_name, printable
from segtrain.runtime import lock_file
from segtrain.runtime.files import replace_file
from segtrain.runtime.parent import PARENT, PARENT_COMMAND, launcher

if TYPE_CHECKING:
    from segtrain.runtime.distributed import World

STAND_IN = ".lock.pid"  # for the lock where there are none, see `lock_file`
STALLED = "stalled"  # folder of the stacks of a training that stood still
ALIVE = ".alive"  # folder of the signs of life of several processes
TRACKERS = "trackers.json"  # by which name W&B and MLflow know the run
# Folder of W&B, which reads nothing there: each start makes a folder of its own. Links that another
# version of it left inside are no reason to refuse the run.
WANDB = "wandb"
# What stands in a run folder before the first step.
BEFORE_FIRST_STEP = (
    ".lock",
    STAND_IN,
    ".hydra",
    "config.yaml",
    "metrics.jsonl",
    "timing.jsonl",
    "bad_samples.jsonl",
    "spikes.jsonl",
    STALLED,
    ALIVE,
    "train.log",
    "tensorboard",
    TRACKERS,
    "mlflow",
    WANDB,
)
FINGERPRINT = "fingerprint.json"  # what the data were when the run read them
# What a run, and the commands that measure it, write there.
OURS = (*BEFORE_FIRST_STEP, "summary.json", "checkpoints", "samples", "eval", FINGERPRINT)
TEMPORARY = ".tmp-"  # begins the name of a file that is being written
RECORD = ".hydra/hydra.yaml"  # where the run was started, in Hydra's place for it; as JSON
LAUNCHER = ".hydra/torchrun"  # which torchrun began the run, see `parent.launcher`
KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}
MAX_WIDTH = 1 << 16  # of a line of overrides.yaml: each setting stands on one
LOCK_BYTES = 1 << 16  # chosen by hand: they hold any command line that a person types
# Time to wait for a lock whose holder is dead: its workers let go within milliseconds.
LOCK_PATIENCE_SECONDS = 1.0


# ---------------------------------------------------------------------- whose folder it is


def check_folder(folder: Path, key: str = "hydra.run.dir") -> None:
    """Refuse a run folder with a name that cannot be shown, or with a link among our entries.

    Errors: UserError naming the entry, or `key`.
    """
    check_name(key, folder)
    check_entries(folder)


def check_run(folder: Path, key: str) -> None:
    """Refuse what is no run folder, and whatever `check_folder` refuses. Errors: UserError."""
    check_folder(folder, key)
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{key}={folder}: not a run folder (no config.yaml in it)")


def check_entries(folder: Path, names: Sequence[str] = OURS) -> None:
    """Refuse links, pipes and devices among the entries `names` of a run folder, and below them.

    What is read or written through one lies outside of the folder. The path to the folder itself
    may pass through links. Errors: UserError naming the entry.
    """
    for name in names:
        for path in (folder / name, folder / f"{TEMPORARY}{name}"):
            if os.path.lexists(path):
                _check_plain(path, inside=name != WANDB)


def _check_plain(path: Path, inside: bool = True) -> None:
    kind = stat.S_IFMT(path.lstat().st_mode)
    if kind == stat.S_IFDIR:
        for entry in path.iterdir() if inside else ():
            _check_plain(entry)
    elif kind != stat.S_IFREG:
        what = KINDS.get(kind, "no plain file")
        raise UserError(
            f"{printable(str(path))}: is {what}, which segtrain does not "
            "follow inside a run folder; remove it, or put a plain file or folder in its place"
        )


@dataclass(frozen=True)
class NewRun:
    """A run that is to begin in a folder, as it is stored there."""

    config: str  # text of config.yaml
    overrides: Sequence[str]  # what the user typed
    started_in: str  # folder that relative places mean
    # A job of a sweep: its folder may hold the same run, unfinished or complete.
    again: bool = False

    def write(self, folder: Path) -> None:
        """Store it in `folder`. Errors: OSError."""
        (folder / ".hydra").mkdir(parents=True, exist_ok=True)
        # First: by it the rest is known as ours, should this process be killed here.
        replace_file(folder / RECORD, _record(self.started_in).encode())
        if (began := launcher()) is not None:
            replace_file(folder / LAUNCHER, began.encode())
        overrides = yaml.safe_dump(list(self.overrides), allow_unicode=True, width=MAX_WIDTH)
        replace_file(folder / ".hydra" / "overrides.yaml", overrides.encode())
        replace_file(folder / ".hydra" / "config.yaml", self.config.encode())
        replace_file(folder / "config.yaml", self.config.encode())


def _record(folder: str) -> str:
    """Return the text of `RECORD`. Only segtrain writes JSON there: by that a run is known."""
    return json.dumps({"hydra": {"job": {"name": "segtrain"}, "runtime": {"cwd": folder}}}) + "\n"


def started_in(folder: Path) -> str | None:
    """Return the folder that the run in `folder` was started from; None where it does not say."""
    try:
        text = (folder / RECORD).read_text()
        place = json.loads(text)["hydra"]["runtime"]["cwd"]
        return place if _record(place) == text else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def begun_by_launcher(folder: Path) -> Path | None:
    """Return the folder in which this process's torchrun began its run; None without one.

    It is `folder`, or one beside it: the time stands in the name that a run gets by itself.
    """
    for place in (folder, *sorted(folder.parent.glob("*"), reverse=True)):
        with suppress(OSError):
            if (place / LAUNCHER).read_text() == launcher() and holds_run(place):
                return place
    return None


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
    there; UserError where the folder holds another run, or what no run wrote under one of our
    names.
    """
    check_folder(folder)
    if not (folder / ".lock").exists():
        return _left_to_do(folder, new)
    with RunLock(folder):
        return _left_to_do(folder, new)


def has_checkpoints(folder: Path) -> bool:
    """Tell whether a run folder holds checkpoints, whole or not."""
    return next((folder / "checkpoints").glob("step_*"), None) is not None


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
    if new is None:
        return not complete
    if not holds_run(folder):
        _check_free(folder)
        return True
    if not new.again:
        raise UserError(
            f"{folder}: holds a run already; go on with it by segtrain resume={folder}, or choose "
            "another hydra.run.dir"
        )
    return not complete


def _check_free(folder: Path) -> None:
    """Refuse a folder where a new run would write over, or beside, what no run of ours wrote.

    Errors: UserError naming it.
    """
    there = [name for name in OURS if os.path.lexists(folder / name) and not _is_lock(folder, name)]
    if there == [".hydra"] and _holds_nothing(folder / ".hydra"):
        return  # of a run that was killed at its first file
    strange = [name for name in there if name not in BEFORE_FIRST_STEP]
    if there and not strange and started_in(folder) is None:
        strange = there
    if not strange and (folder / "config.yaml").exists() and not as_begun(folder):
        strange = ["config.yaml"]
    if strange:
        raise UserError(
            f"{folder / strange[0]}: stands where a run would write, and no run that can begin "
            "again has left it; move it away, or choose another hydra.run.dir"
        )


def _holds_nothing(folder: Path) -> bool:
    return folder.is_dir() and all(p.name.startswith(TEMPORARY) for p in folder.iterdir())


def _is_lock(folder: Path, name: str) -> bool:
    """Tell whether an entry is a lock as `RunLock` leaves it behind: empty, or with its holder."""
    if name == STAND_IN:
        return lock_file.owner(folder / name) is not None
    if name != ".lock" or not (folder / name).is_file():
        return False
    text = (folder / name).read_bytes()
    return not text or _identifies(text)


def as_begun(folder: Path) -> bool:
    """Tell whether config.yaml is what the run in `folder` was begun with."""
    try:
        return (folder / "config.yaml").read_bytes() == (folder / ".hydra/config.yaml").read_bytes()
    except OSError:
        return False


def holds_run(folder: Path) -> bool:
    """Tell whether a run has begun in `folder`, so that a new one may not."""
    return (folder / "config.yaml").exists() and begun(folder)


@contextmanager
def _held(folder: Path, new: NewRun | None) -> Generator[bool]:
    """Lock `folder` and store `new` in it; see `claimed`."""
    check_folder(folder)
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
            self._close(descriptor, held=True)

    def _try(self) -> None:
        """Lock the file, unless its last holder removed it meanwhile: then there is another one.

        Errors: UserError for a file that is no lock.
        """
        descriptor = self._open()
        try:
            holder = _take(descriptor, self._stand_in)
            names = os.fstat(descriptor).st_nlink
            if holder is None and not _ours(descriptor):
                raise UserError(
                    f"{self.run_dir}/.lock: in the way (no run has written it); take another run "
                    "folder"
                )
            if holder is None and names > 1:  # a hard link: what has the other name is left alone
                (self.run_dir / ".lock").unlink(missing_ok=True)
            current = holder is None and names == 1
            if current:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(_identity()).encode(), 0)
        except UserError:
            self._close(descriptor, held=True)
            raise
        except OSError as error:
            self._close(descriptor, held=False)
            raise DiskError(
                f"{self.run_dir}/.lock: cannot be locked: {error.strerror}; take another folder"
            ) from None
        if current:
            self._descriptor = descriptor
            _held_locks.add(descriptor)
            return
        self._close(descriptor, held=holder is None)
        if holder is not None:
            raise LockedError(
                f"{self.run_dir} is in use by {holder}. Wait, stop it, or take another folder"
            )

    @property
    def _stand_in(self) -> Path:
        """The file that stands for the lock where the file system has none."""
        return self.run_dir / STAND_IN

    def _close(self, descriptor: int, held: bool) -> None:
        """Close the file, and let go of a lock that this object held."""
        os.close(descriptor)
        if held:
            lock_file.release(self._stand_in)

    def _open(self) -> int:
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            return os.open(
                self.run_dir / ".lock",
                os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK,
                0o644,
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


def require_held(run_dir: Path) -> None:
    """Refuse to write into a folder that has taken the place of the one that was claimed.

    That one was moved, and another run may have begun under its name. Errors: DiskError.
    """
    try:
        name = (run_dir / ".lock").read_bytes()
        held = any(os.pread(lock, len(name) + 1, 0) == name for lock in _held_locks)
    except OSError:  # a lock that somebody removed is no other folder
        held = (run_dir / "config.yaml").exists()
    if not held:
        raise DiskError(
            f"{run_dir}: is no longer the folder that this run began in; it was moved or replaced. "
            "Go on where it is now: segtrain resume=FOLDER"
        )


def _ours(descriptor: int) -> bool:
    """Tell whether an open file is a lock: empty, or with the name of its last holder."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return False
    text = os.pread(descriptor, LOCK_BYTES, 0)
    return not text or _identifies(text)


def _identifies(text: bytes) -> bool:
    try:
        who = json.loads(text)
        return isinstance(who, dict) and who.keys() == {"pid", "host", "started", "command"}
    except ValueError:
        return False


def _identity() -> dict[str, Any]:
    """Describe the process that a user can stop: a worker's parent, else this one."""
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    return {
        "pid": int(os.environ.get(PARENT, os.getpid())),
        "host": socket.gethostname(),
        "started": started,
        "command": os.environ.get(PARENT_COMMAND, shlex.join(sys.argv)),
    }


def _take(descriptor: int, stand_in: Path, patience: float = LOCK_PATIENCE_SECONDS) -> str | None:
    """Lock the open file, else `stand_in`, and return None, or who holds it.

    A living holder is told at once. The name of a dead one means that the real holder has not
    written its own yet, or that a worker of the dead one is about to let go: both get `patience`
    seconds.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            return None if lock_file.flock(descriptor) else lock_file.take(stand_in)
        except BlockingIOError:
            holder, alive = _holder(descriptor)
        if alive or time.monotonic() > deadline:
            return holder
        time.sleep(0.01)  # chosen by hand: workers let go within milliseconds


def _holder(descriptor: int) -> tuple[str, bool]:
    """Return (who wrote its name into the file last, whether that process may still live)."""
    try:
        who = json.loads(os.pread(descriptor, LOCK_BYTES, 0))
        text = f"pid {who['pid']} on host {who['host']} since {who['started']}: {who['command']}"
        return text, who["host"] != socket.gethostname() or Path("/proc", str(who["pid"])).exists()
    except (ValueError, LookupError, TypeError):
        return "another process", False
