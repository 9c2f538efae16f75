"""Train a run: look at its folder, start its processes, resume it."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from segtrain.commands import exit_codes
from segtrain.config import parts, trust
from segtrain.config.compose import with_overrides
from segtrain.config.files import load_run, load_yaml, stored_text
from segtrain.config.old_names import modern, modern_overrides
from segtrain.config.schema import RunConf, changed
from segtrain.errors import Interrupted, Stopped, UserError
from segtrain.runtime.run_folder import NewRun, holds_run, left_to_do

# What a resumed run may change: none of it changes a number on one machine, except through the
# order in which floats are summed.
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
    """Train a run in `folder`.

    `again` (a job of a sweep): a complete run is left alone, an unfinished one goes on.
    Errors: UserError when a part does not fit or the folder holds another run, LockedError when it
    is in use; then nothing is left behind.
    """
    try:
        _train(run, folder, NewRun(stored_text(plain), tuple(overrides), again), plain)
    finally:
        if again:  # Hydra makes the folder of a job; of a refused one it stays empty
            with suppress(OSError):
                folder.rmdir()


def _train(
    run: RunConf, folder: Path, new: NewRun | None = None, plain: dict[str, Any] | None = None
) -> None:
    """Train in this process, or in several of this machine as the run says.

    Under a launcher, such as torchrun, it is this process. The folder is looked at first, as parts
    can take minutes to build. Whoever builds them claims it: see `fit`.
    """
    from segtrain.runtime import distributed, launch

    if distributed.launched():
        with _told(folder), distributed.join(run.train.device) as world:
            from segtrain.engine.train import fit

            folder = Path(world.broadcast(str(folder)))
            if world.decide(lambda: _left_to_do(folder, new, plain)):
                fit(run, folder, world, new)
        return
    if not _left_to_do(folder, new, plain):
        print(f"{folder}: complete already, left alone")
        return
    processes = run.train.processes or launch.default_processes(run.train.device)
    with _told(folder):
        if processes > 1:
            _launch(processes, run, folder, new)
            return
        with distributed.join(run.train.device) as world:
            from segtrain.engine.train import fit

            fit(run, folder, world, new)


@contextmanager
def _told(folder: Path) -> Generator[None]:
    """Turn a signal that the loop did not answer into what is true of the run in `folder`.

    Errors: Interrupted where a checkpoint can be resumed, else Stopped.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        if next((folder / "checkpoints").glob("step_*"), None) is None:
            raise Stopped(f"{stop}: {exit_codes.STOPPED['segtrain']}") from None
        raise Interrupted(
            f"{stop}: stopped; go on with: {trust.command(f'resume={folder}')}"
        ) from None


def _left_to_do(folder: Path, new: NewRun | None, plain: dict[str, Any] | None) -> bool:
    """Return whether there is something to train.

    Errors: as `left_to_do`, and UserError where a sweep meets another run.
    """
    todo = left_to_do(folder, new)
    if plain is not None and holds_run(folder):  # only a job of a sweep comes here
        stored = load_yaml(folder / "config.yaml")
        if modern(stored, str(folder)) != modern(plain):
            raise UserError(
                f"{folder}: holds a run with another configuration; choose another hydra.sweep.dir"
            )
    return todo


def _launch(processes: int, run: RunConf, folder: Path, new: NewRun | None) -> None:
    """Start the workers and wait for them. They build the parts, and rank 0 claims the folder."""
    from segtrain.runtime import launch

    with TemporaryDirectory(prefix="segtrain-") as handed:
        if new is not None:
            new.hand_over(Path(handed))
        arguments = ["--worker", str(folder), handed, *_overridden(run), *trust.flags()]
        launch.launch(processes, arguments)


def _overridden(run: RunConf) -> list[str]:
    """Return what a resume may change, for workers that read the stored config."""
    values = {"writer": run.writer}
    for group, node in {"train": run.train, "log": run.log}.items():
        values |= {f"{group}.{key}": value for key, value in asdict(node).items()}
    return [f"{key}={json.dumps(values[key])}" for key in RESUME_KEYS]


def worker(arguments: list[str]) -> None:
    """Train as one of several processes, `--worker FOLDER HANDED key=value...`.

    Its parent composed and checked the run. HANDED is the folder of a run that is to begin, and
    empty where the one in FOLDER goes on.
    """

    def command(arguments: list[str]) -> None:
        from segtrain.runtime import distributed, launch

        launch.die_with_parent()
        folder = Path(arguments[0])
        handed = Path(arguments[1])
        new = NewRun.taken_over(handed)
        config = (folder if new is None else handed) / "config.yaml"
        run = changed(load_run(config), arguments[2:])
        with _told(folder), distributed.join(run.train.device) as world:
            from segtrain.engine.train import fit

            fit(run, folder, world, new)

    exit_codes.run_command("segtrain", command, arguments)


def resume(folder: Path, changes: list[str]) -> None:
    """Go on with the run in `folder`.

    Errors: UserError when it holds none, or a change is not allowed.
    """
    if str(folder) == ".":
        raise UserError("resume=: name the run folder, resume=RUN")
    if not (folder / "config.yaml").is_file():
        raise UserError(f"resume={folder}: not a run folder (no config.yaml in it)")
    run = load_run(folder / "config.yaml")
    parts.check(run)
    run = with_changes(run, changes)
    _train(run, folder)


def with_changes(run: RunConf, changes: Sequence[str]) -> RunConf:
    """Return a stored run with the few settings changed that a resume may change.

    Errors: UserError naming them.
    """
    for change in modern_overrides(changes):
        key = change.partition("=")[0]
        if key not in RESUME_KEYS:
            raise UserError(
                f"{change}: a resumed run keeps its settings; only {', '.join(RESUME_KEYS)} "
                "may change."
            )
    return with_overrides(run, changes)
