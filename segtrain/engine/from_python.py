"""Train from Python: what `segtrain` does, in a script's or a notebook's own process.

The folder gets what the command would write, to the bit. Whatever happens is an error that is
raised; the process is never ended, and is as it was afterwards.
"""

from __future__ import annotations

import json
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from segtrain.config import parts, places, trust
from segtrain.config.files import stored_text
from segtrain.config.schema import RunConf
from segtrain.data.workers import none_left
from segtrain.engine.evidence import Told, gone_on_with
from segtrain.engine.train import fit as fit_here
from segtrain.errors import InternalError, Interrupted, ResourceError, SegtrainError, UserError
from segtrain.runtime import launch
from segtrain.runtime.distributed import join, launched, patience
from segtrain.runtime.exhausted import exhausted
from segtrain.runtime.guest import as_new_process
from segtrain.runtime.own_folder import own_folder
from segtrain.runtime.run_folder import NewRun, has_checkpoints, holds_run, left_to_do

_TRAINING = threading.Lock()  # threads and random numbers are the whole process's


def fit(run: RunConf, folder: Path) -> dict[str, Any]:
    """Train `run` in `folder` to the end, from where it stands there, and return its summary.

    It is {} on ranks above 0 of a launcher such as torchrun. Errors: those of training, and
    UserError while this process trains another run.
    """
    if not _TRAINING.acquire(blocking=False):
        raise UserError(
            "segtrain.fit: this process trains a run already, and has one state of random numbers; "
            "wait for it, or train in another process"
        )
    try:
        with as_new_process(), none_left():
            return _fit(run, folder)
    except SegtrainError as error:
        error.args = (trust.in_commands(places.hidden(str(error))),)
        raise
    except SystemExit as end:  # rank 0 of a launcher refused, and says why
        refused = InternalError("rank 0 ended this run; it says why")
        refused.exit_code = end.code if isinstance(end.code, int) else refused.exit_code
        raise refused from None
    except Exception as error:
        if (ran_out := exhausted(error)) is None:
            raise
        raise ResourceError(ran_out) from error
    finally:
        _TRAINING.release()


def _fit(run: RunConf, folder: Path) -> dict[str, Any]:
    plain = places.as_stored(asdict(run))
    new = NewRun(stored_text(plain), (), str(Path.cwd()))
    parts.check(run)
    told = Told(plain, new.started_in, new)
    processes = run.train.processes or launch.default_processes(run.train.device)
    if processes > 1 and not launched():
        if _left_to_do(folder, told):
            _launch(processes, folder, _as_it_stands(run, folder, told)[1])
        return summary_of(folder)
    with join(run.train.device, patience(run.train.watchdog_floor)) as world:
        if world.decide(lambda: _left_to_do(folder, told)):
            run, told = _as_it_stands(run, folder, told)
            fit_here(run, folder, world, told.new, told.config, guest=not launched())
        return summary_of(folder) if world.main else {}


def _left_to_do(folder: Path, told: Told) -> bool:
    """Tell whether there is something to train. Errors: UserError where it holds another run."""
    if not holds_run(folder):
        return left_to_do(folder, told.new)
    todo = left_to_do(folder, None)
    gone_on_with(folder, told.config)
    if not todo:
        print(f"{folder}: complete already, left alone")
    return todo


def _as_it_stands(run: RunConf, folder: Path, told: Told) -> tuple[RunConf, Told]:
    return gone_on_with(folder, told.config) if holds_run(folder) else (run, told)


def _launch(processes: int, folder: Path, told: Told) -> None:
    """Train in new processes, as `segtrain` does, and wait for them.

    Errors: after an interrupt Interrupted where a checkpoint can be resumed.
    """
    try:
        with own_folder() as handed:
            told.write(handed)
            launch.launch(processes, ["--worker", str(folder), str(handed), *trust.flags()])
    except KeyboardInterrupt:
        if not has_checkpoints(folder):
            raise
        way = trust.command(f"resume={folder}")
        raise Interrupted(f"interrupted: stopped; go on with: {way}") from None


def summary_of(folder: Path) -> dict[str, Any]:
    """Return the summary of a complete run."""
    return json.loads((folder / "summary.json").read_text())
