"""Train a run: look at its folder, start its processes."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segtrain.commands import exit_codes
from segtrain.config import trust
from segtrain.config.files import load_yaml, stored_text
from segtrain.config.old_names import modern
from segtrain.config.schema import RunConf
from segtrain.engine.evidence import Told, in_force, run_of, with_found
from segtrain.errors import Interrupted, ResourceError, Stopped, UserError
from segtrain.runtime.exhausted import exhausted
from segtrain.runtime.parent import die_with_parent, restarted
from segtrain.runtime.run_folder import (
    NewRun,
    begun_by_launcher,
    has_checkpoints,
    holds_run,
    left_to_do,
)

if TYPE_CHECKING:
    from segtrain.runtime.distributed import World


def start(
    run: RunConf, plain: dict[str, Any], folder: Path, overrides: Sequence[str], again: bool = False
) -> None:
    """Train a run in `folder`.

    `again` (a job of a sweep): a complete run is left alone, an unfinished one goes on.
    Errors: UserError when a part does not fit or the folder holds another run, LockedError when it
    is in use; then nothing is left behind.
    """
    train(run, folder, told_of(plain, overrides, again))


def told_of(plain: dict[str, Any], overrides: Sequence[str], again: bool = False) -> Told:
    """Return what is known of a run that is to begin; `again` as for `start`."""
    new = NewRun(stored_text(plain), tuple(overrides), str(Path.cwd()), again)
    return Told(plain, new.started_in, new)


def train(run: RunConf, folder: Path, told: Told) -> None:
    """Train in this process, or in several of this machine as the run says.

    Under a launcher, such as torchrun, it is this process. The folder is looked at first, as parts
    can take minutes to build. Whoever builds them claims it: see `fit`.
    """
    from segtrain.runtime import distributed, launch

    if distributed.launched():
        with _stop_told(folder), _joined(run) as world:
            from segtrain.engine.train import fit

            folder, told = _as_restarted(folder, told, world)
            if world.decide(lambda: is_left(folder, told)):
                run, told = _as_it_stands(run, folder, told)
                fit(run, folder, world, told.new, told.config)
        return
    if not is_left(folder, told):
        print(f"{folder}: complete already, left alone")
        return
    run, told = _as_it_stands(run, folder, told)
    processes = run.train.processes or launch.default_processes(run.train.device)
    with _stop_told(folder):
        if processes > 1:
            _launch(processes, folder, told)
            return
        with _joined(run) as world:
            from segtrain.engine.train import fit

            fit(run, folder, world, told.new, told.config)


def _joined(run: RunConf) -> AbstractContextManager[World]:
    """Join the processes of the launcher, or be alone."""
    from segtrain.runtime import distributed

    return distributed.join(run.train.device, distributed.patience(run.train.watchdog_floor))


def _as_restarted(folder: Path, told: Told, world: World) -> tuple[Path, Told]:
    """Return rank 0's folder; after a restart by torchrun, that of the run it goes on with."""
    before = world.decide(lambda: _begun_before(folder, told))
    if before is None or told.new is None:
        return Path(world.broadcast(str(folder))), told
    return Path(before), replace(told, new=replace(told.new, again=True))


def _begun_before(folder: Path, told: Told) -> str | None:
    place = begun_by_launcher(folder) if told.new is not None and restarted() else None
    return None if place is None else str(place)


@contextmanager
def _stop_told(folder: Path) -> Generator[None]:
    """Turn what the loop did not answer into what is true of the run in `folder`.

    Errors: after a signal Interrupted where a checkpoint can be resumed, else Stopped;
    ResourceError where the machine ran out of something.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, ResourceError) or (ran_out := exhausted(error)) is None:
            raise
        saved = has_checkpoints(folder)
        on = f"; then go on with: {trust.command(f'resume={folder}')}" if saved else ""
        raise ResourceError(f"{ran_out}{on}") from error
    except KeyboardInterrupt as stop:
        if not has_checkpoints(folder):
            raise Stopped(f"{stop}: {exit_codes.STOPPED['segtrain']}") from None
        raise Interrupted(
            f"{stop}: stopped; go on with: {trust.command(f'resume={folder}')}"
        ) from None


def is_left(folder: Path, told: Told) -> bool:
    """Return whether there is something to train in `folder`; nothing is written.

    Errors: as `left_to_do`, and UserError where a sweep meets another run.
    """
    todo = left_to_do(folder, told.new)
    if told.new is not None and holds_run(folder):  # a job of a sweep, or a restart by torchrun
        stored = modern(load_yaml(folder / "config.yaml"), str(folder))
        if stored != with_found(modern(told.config), stored):
            raise UserError(
                f"{folder}: holds a run with another configuration; choose another hydra.sweep.dir"
            )
    return todo


def _as_it_stands(run: RunConf, folder: Path, told: Told) -> tuple[RunConf, Told]:
    """Return the settings in force where a run is gone on with that was there, else what it is."""
    if told.new is None or not holds_run(folder):
        return run, told
    return in_force(folder)


def _launch(processes: int, folder: Path, told: Told) -> None:
    """Start the workers and wait for them. They build the parts, and rank 0 claims the folder."""
    from segtrain.runtime import launch
    from segtrain.runtime.own_folder import own_folder

    with own_folder() as handed:
        told.write(handed)
        launch.launch(processes, ["--worker", str(folder), str(handed), *trust.flags()])


def _handed(arguments: list[str]) -> tuple[RunConf, Path, Told]:
    """Return what our parent has left for us: FOLDER HANDED. We end when it does."""
    die_with_parent()
    folder = Path(arguments[0])
    told = Told.read(Path(arguments[1]))
    return run_of(told.config, str(folder), told.started_in), folder, told


def job(arguments: list[str]) -> None:
    """Train a run of a sweep in a process of its own, `--job FOLDER HANDED`.

    Its parent composed and checked the run, and left what it knows in the folder HANDED.
    """

    def command(arguments: list[str]) -> None:
        train(*_handed(arguments))

    exit_codes.run_command("segtrain", command, arguments)


def worker(arguments: list[str]) -> None:
    """Train as one of several processes, `--worker FOLDER HANDED`.

    Its parent composed and checked the run, and left what it knows in the folder HANDED.
    """

    def command(arguments: list[str]) -> None:
        run, folder, told = _handed(arguments)
        with _stop_told(folder), _joined(run) as world:
            from segtrain.engine.train import fit

            fit(run, folder, world, told.new, told.config)

    exit_codes.run_command("segtrain", command, arguments)
