"""What a process and those it starts hand to each other: environment, errors. No torch here."""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from segtrain.errors import SegtrainError

_environment: dict[str, str] = {}

RESTARTS = "TORCHELASTIC_RESTART_COUNT"  # how often torchrun has started this group anew
ERRORS = "SEGTRAIN_ERRORS"  # folder where a worker leaves the reason of its death for the parent
# In the environment of a worker: process id and command line of the process that launched it, which
# is what a user knows and can stop.
PARENT = "SEGTRAIN_PARENT"
PARENT_COMMAND = "SEGTRAIN_PARENT_COMMAND"
CORES = "SEGTRAIN_CORES"  # the share of this machine's cores that a job of several may compute on

# A worker looks for its parent this often where the kernel does not tell it: a dead parent's run
# folder is free again at once, and looking costs nothing.
WATCH_SECONDS = 0.2
PR_SET_PDEATHSIG = 1  # linux/prctl.h: the signal that a process gets when its parent ends


def keep_environment() -> None:
    """Remember the environment as it is now, before any config is read, for the workers."""
    global _environment
    _environment = dict(os.environ)


def start_environment() -> dict[str, str]:
    """Return the environment as it was kept; as it is, where nobody kept it."""
    return dict(_environment or os.environ)


def program() -> list[str]:
    """Return the command line that starts segtrain in another process, without its arguments.

    A process started by `-m` looks for modules in the working folder first, where a stranger's
    torch.py may lie. Only a checkout that is used as it stands needs that.
    """
    checkout = Path(__file__).resolve().parents[2] == Path.cwd().resolve()
    return [sys.executable, *([] if checkout else ["-P"]), "-m", "segtrain"]


def told_to_children(errors: Path) -> dict[str, str]:
    """Return the variables by which those we start know us, and leave the reasons of their ends.

    They are left in the folder `errors`, see `tell_parent`.
    """
    return {ERRORS: str(errors), PARENT: str(os.getpid()), PARENT_COMMAND: shlex.join(sys.argv)}


def cores() -> int:
    """Return how many cores this process may compute on."""
    share = os.environ.get(CORES, "")
    return int(share) if share.isdecimal() and int(share) else os.cpu_count() or 1


@contextmanager
def environment_of_start(added: dict[str, str]) -> Generator[None]:
    """Restore, inside the block, the environment that was kept, and `added`.

    What is started there inherits nothing that a config or a library has set since.
    """
    before = dict(os.environ)
    _replace_environment({**start_environment(), **added})
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


def reasons(folder: Path) -> list[dict[str, Any]]:
    """Return what those we started left there by `tell_parent`, the earliest first."""
    told = (json.loads(path.read_text()) for path in folder.glob("*.json"))
    return sorted(told, key=lambda cause: cause["time"])


def as_error(cause: Mapping[str, Any]) -> SegtrainError:
    """Return one of `reasons` as the error that it was."""
    reason = SegtrainError(cause["message"])
    reason.exit_code = cause["exit_code"]
    return reason


def die_with_parent() -> None:
    """End this process when its parent ends, however it ends.

    It must not go on writing into a run folder that is free for others.
    """
    parent = int(os.environ.get(PARENT, os.getppid()))  # it may have been killed before this line
    killed_with_parent()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os._exit(128 + signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def killed_with_parent() -> None:
    """Have the kernel kill this process when its parent ends; only Linux's does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def children() -> list[int]:
    """Return the processes that this one started and that live, as far as the system tells."""
    found = []
    for file in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # a thread that has just ended
            found += [int(word) for word in file.read_text().split()]
    return found


def launched() -> bool:
    """Whether a launcher (torchrun, Slurm's srun) started this process as one of several."""
    return "RANK" in os.environ or under_slurm()


def under_slurm() -> bool:
    """Whether Slurm's srun started this process as one of several."""
    return (
        "SLURM_PROCID" in os.environ
        and int(os.environ.get("SLURM_NTASKS", "1")) > 1
        and "SLURM_STEP_ID" in os.environ
    )


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
