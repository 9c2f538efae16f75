"""`segtrain resume=RUN`: go on where a run stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segtrain.commands.evidence import in_force
from segtrain.commands.train import train
from segtrain.errors import UserError
from segtrain.runtime.run_folder import check_folder


def resume(folder: Path, changes: Sequence[str]) -> None:
    """Go on with the run in `folder`, with the settings in force there and `changes`.

    Errors: UserError when it holds none, was tampered with, or a change is not allowed.
    """
    if str(folder) == ".":
        raise UserError("resume=: name the run folder, resume=RUN")
    check_folder(folder, "resume")
    if not (folder / "config.yaml").is_file():
        raise UserError(f"resume={folder}: not a run folder (no config.yaml in it)")
    run, told = in_force(folder, changes)
    train(run, folder, told)
