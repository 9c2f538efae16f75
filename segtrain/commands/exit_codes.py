"""Turn every error into one line and its exit code. Only here a process exits."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

from segtrain.config import trust
from segtrain.errors import DiskError, SegtrainError


def run_command(
    name: str, command: Callable[[list[str]], None], arguments: list[str] | None = None
) -> None:
    """Call `command` with `arguments`, else those of the process, and exit as it ended.

    `--trust PACKAGE` is taken out of the arguments and holds for this call.
    """
    try:
        _guarded(name, command, sys.argv[1:] if arguments is None else arguments)
    except SystemExit as end:
        _leave(end.code)
        raise
    _leave(0)


def _leave(code: int | str | None) -> None:
    """End one of several processes at once, without tearing the interpreter down.

    Threads of its process group may abort while that happens, and the exit code would be lost.
    """
    if "torch" in sys.modules:
        from segtrain.runtime.distributed import launched

        if launched() and isinstance(code, int):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def _guarded(name: str, command: Callable[[list[str]], None], arguments: list[str]) -> None:
    """Call `command` and turn whatever it raises into a line on stderr and SystemExit."""
    try:
        packages, arguments = trust.split_flags(arguments)
        with trust.trusting(packages):
            command(arguments)
    except SegtrainError as error:
        _fail(name, error)
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os._exit(0)
    except OSError as error:
        if error.filename is None:
            raise
        _fail(name, DiskError(f"{error.filename}: {error.strerror}"))
    except Exception:
        traceback.print_exc()
        print(f"{name}: internal error (the lines above are for its developers)", file=sys.stderr)
        sys.exit(70)


def _fail(name: str, error: SegtrainError) -> None:
    """Say why the command ends, here or through the process that launched this one."""
    if "torch" in sys.modules:
        from segtrain.runtime.launch import tell_parent

        if tell_parent(error):  # the parent prints it once
            sys.exit(error.exit_code)
    print(f"{name}: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
