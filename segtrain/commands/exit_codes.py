"""Turn every error into one line and its exit code. Only here a process exits.

Exit code 0 means that the command did what it was asked to, whoever still listens.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segtrain.config import places, trust
from segtrain.errors import (
    DataError,
    DiskError,
    InternalError,
    Interrupted,
    ResourceError,
    SegtrainError,
    Stopped,
    UserError,
    printable,
)
from segtrain.runtime import console, parent, signals
from segtrain.runtime.exhausted import exhausted

# What is true of a command's files when a signal stopped it and it did not say more itself.
STOPPED = {
    "segtrain": "stopped before anything was saved; the same command begins again",
    "segeval": "stopped; no scores were written",
    "segpredict": "stopped; every file that was written is whole",
    "segdata": "stopped; every file that was written is whole, and the same command goes on",
    "segreport": "stopped; every file that was written is whole",
}


def run_command(
    name: str, command: Callable[[list[str]], None], arguments: list[str] | None = None
) -> None:
    """Call `command` with `arguments`, else those of the process, and exit as it ended.

    `--trust PACKAGE` is taken out of the arguments and holds for this call. SystemExit is raised
    for every code but 0.
    """
    parent.keep_environment()
    with console.forgiving(), _without_complaints():
        with signals.Stopping() as told:
            code = _ended(name, command, sys.argv[1:] if arguments is None else arguments, told)
        # The workers of Hydra's joblib launcher hold our pipes until its own exit hooks end them.
        if _launched() or (arguments is None and code and "joblib" not in sys.modules):
            # At once, without tearing the interpreter down: that would wait for threads and workers
            # that still read, and those of a process group may abort meanwhile and lose the code.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    if code:
        sys.exit(code)


def _launched() -> bool:
    """Tell whether this process is one of several."""
    if "torch" not in sys.modules:
        return False
    from segtrain.runtime.distributed import launched

    return launched()


def _ended(
    name: str,
    command: Callable[[list[str]], None],
    arguments: list[str],
    told: signals.Stopping,
) -> int:
    """Call `command`, turn whatever it raises into a line on stderr, and return the exit code.

    What an environment variable holds is not said; commands to go on with say whom to trust.
    """
    try:
        packages, arguments = trust.split_flags(arguments)
        with trust.trusting(packages):
            try:
                _check_place()
                command(arguments)
            except SegtrainError as error:
                error.args = (trust.in_commands(places.hidden(str(error))),)
                raise
        told.end()
    except SegtrainError as error:
        told.end()
        if told.received and not isinstance(error, (Interrupted, Stopped)):
            error = _stopped(name, told.received)  # what it broke off may look like any error
        elif not isinstance(error, ResourceError) and (ran_out := exhausted(error, name)):
            error = ResourceError(ran_out)
        return _tell(name, error)
    except KeyboardInterrupt as stop:
        told.end()
        return _tell(name, _stopped(name, str(stop) or "SIGINT"))
    except SystemExit as end:
        told.end()
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except Exception as error:
        told.end()
        if told.received:
            return _tell(name, _stopped(name, told.received))
        if ran_out := exhausted(error, name):
            return _tell(name, ResourceError(ran_out))
        if isinstance(error, OSError) and error.filename is not None:
            said = places.hidden(f"{error.filename}: {error.strerror}")
            return _tell(name, DataError(said) if _unreadable(error) else DiskError(said))
        traceback.print_exc()
        who = f"process {os.environ['RANK']}: " if _launched() and "RANK" in os.environ else ""
        lines = "the lines above are for its developers"
        return _tell(name, InternalError(f"{who}internal error ({lines})"))
    return 0


@contextmanager
def _without_complaints() -> Generator[None]:
    """Keep what a library had half built when something ran out from complaining as it goes."""
    before = sys.unraisablehook

    def told(unraisable: Any) -> None:
        if exhausted(unraisable.exc_value) is None:
            before(unraisable)

    sys.unraisablehook = told
    try:
        yield
    finally:
        sys.unraisablehook = before


def _check_place() -> None:
    """Refuse to start in a folder that was removed. Errors: UserError."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError("the working folder is no longer there; change to another one") from None


def _unreadable(error: OSError) -> bool:
    """Tell whether a file was to be read, and its rights or those of a folder above forbid it."""
    if not isinstance(error, PermissionError):
        return False
    path = Path(os.fsdecode(error.filename)).absolute()
    locked = any(above.is_dir() and not os.access(above, os.X_OK) for above in path.parents)
    return locked or (path.exists() and not os.access(path, os.R_OK))


def _stopped(name: str, signal: str) -> Stopped:
    """Return what to say of a command that a signal ended."""
    return Stopped(f"{signal}: {STOPPED.get(name, 'stopped')}")


def _tell(name: str, error: SegtrainError) -> int:
    """Say why the command ends, here or through the process that launched this one."""
    if not parent.tell_parent(error):  # the parent prints it once
        print(printable(f"{name}: {error}"), file=sys.stderr)
    return error.exit_code
