"""Train a run: claim its folder, start its processes, resume it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from segtrain.commands.exit_codes import run_command
from segtrain.config import parts, trust
from segtrain.config.compose import with_overrides
from segtrain.config.files import load_run
from segtrain.config.old_names import modern_overrides
from segtrain.config.schema import RunConf, changed
from segtrain.errors import SegtrainError, UserError
from segtrain.runtime.run_folder import claim

# What a resumed run may change: none of it changes a number on one machine except through float summation order.
RESUME_KEYS = (
    "train.processes",
    "train.threads",
    "train.workers",
    "train.keep",
    "log.progress",
    "writer",
)


def start(
    run: RunConf, plain: dict[str, Any], folder: Path, overrides: Sequence[str], again: bool = False
) -> None:
    """Train a run in `folder`. `again` (sweeps): a complete run is left alone, an unfinished one goes on.

    Errors: UserError when the folder holds another run, LockedError when it is in use.
    """
    occupy(run, folder, lambda place: claim(plain, place, overrides, again))


def occupy(run: RunConf, folder: Path, prepare: Callable[[Path], bool]) -> None:
    """Lock the folder, `prepare` it (False: nothing to do) and train in it, in one process or many.

    Under torchrun or Slurm rank 0 decides on the folder and prepares it; the other ranks follow or leave with it.
    """
    from segtrain.runtime import distributed
    from segtrain.runtime.run_folder import RunLock

    if not distributed.launched():
        with RunLock(folder):
            if prepare(folder):
                train(run, folder)
            else:
                print(f"{folder}: complete already, left alone")
        return
    with distributed.join(run.train.device) as world:
        from segtrain.engine.train import fit

        folder = Path(world.broadcast(str(folder)))
        with _main_prepares(world, folder, prepare) as go:
            if go:
                fit(run, folder, world)


@contextmanager
def _main_prepares(world: Any, folder: Path, prepare: Callable[[Path], bool]) -> Generator[bool]:
    """Rank 0 holds the lock and prepares; a refusal ends all ranks, told once."""
    from segtrain.runtime.run_folder import RunLock

    if not world.main:
        go, refused = world.broadcast(None)
        if refused is not None:
            sys.exit(refused)
        yield go
        return
    lock, told = RunLock(folder), False
    try:
        with lock:
            go = prepare(folder)
            world.broadcast((go, None))
            told = True
            yield go
    except SegtrainError as error:
        if not told:
            world.broadcast((False, error.exit_code))
        raise


def train(run: RunConf, folder: Path) -> None:
    """Train in this process, or in several of this machine, as the run says."""
    from segtrain.runtime import distributed, launch

    processes = run.train.processes or launch.default_processes(run.train.device)
    if processes > 1:
        hint = f"stopped; go on with: {trust.command(f'resume={folder}')}"
        launch.launch(processes, ["--worker", str(folder), *_overridden(run), *trust.flags()], hint)
        return
    with distributed.join(run.train.device) as world:
        from segtrain.engine.train import fit

        fit(run, folder, world)


def _overridden(run: RunConf) -> list[str]:
    """What a resume may change, handed on to workers that read the stored config."""
    values = {"writer": run.writer}
    for group, node in {"train": run.train, "log": run.log}.items():
        values |= {f"{group}.{key}": value for key, value in asdict(node).items()}
    return [f"{key}={json.dumps(values[key])}" for key in RESUME_KEYS]


def worker(arguments: list[str]) -> None:
    """One process of a run whose parent composed, checked and locked: it only needs the run folder."""

    def command(arguments: list[str]) -> None:
        from segtrain.runtime import distributed, launch

        launch.die_with_parent()
        folder = Path(arguments[0])
        run = changed(load_run(folder / "config.yaml"), arguments[1:])
        with distributed.join(run.train.device) as world:
            from segtrain.engine.train import fit

            fit(run, folder, world)

    run_command("segtrain", command, arguments)


def resume(folder: Path, changes: list[str]) -> None:
    """Go on with the run in `folder`. Errors: UserError when it holds none, or a change is not allowed."""
    if str(folder) == ".":
        raise UserError("resume=: name the run folder, resume=RUN")
    if not (folder / "config.yaml").is_file():
        raise UserError(f"resume={folder}: not a run folder (no config.yaml in it)")
    run = load_run(folder / "config.yaml")
    parts.check(run)
    run = with_changes(run, changes)
    occupy(run, folder, lambda place: not (place / "summary.json").exists())


def with_changes(run: RunConf, changes: Sequence[str]) -> RunConf:
    """A stored run with the few settings a resume may change. Errors: UserError naming them."""
    for change in modern_overrides(changes):
        key = change.partition("=")[0]
        if key not in RESUME_KEYS:
            raise UserError(
                f"{change}: a resumed run keeps its settings; only {', '.join(RESUME_KEYS)} may change."
            )
    return with_overrides(run, changes)
