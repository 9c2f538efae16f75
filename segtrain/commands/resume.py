"""`segtrain resume=RUN`: go on where a run stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segtrain.commands.train import train
from segtrain.engine.evidence import in_force
from segtrain.errors import UserError
from segtrain.runtime.run_folder import check_run


def resume(folder: Path, changes: Sequence[str]) -> None:
    """Go on with the run in `folder`, with the settings in force there and `changes`.

    Errors: UserError when it holds none, was tampered with, or a change is not allowed.
    """
    if str(folder) == ".":
        raise UserError("resume=: name the run folder, resume=RUN")
    check_run(folder, "resume")
    run, told = in_force(folder, changes)
    train(run, folder, told)
