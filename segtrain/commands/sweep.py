"""`segtrain -m`: one run folder per combination of settings, started by a launcher."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from segtrain.commands import gpus
from segtrain.commands.train import start
from segtrain.config import by_hydra, primary, trust
from segtrain.config.compose import check
from segtrain.config.files import masked_container
from segtrain.config.jobs import Job, Sweep, expand
from segtrain.config.schema import one_line
from segtrain.errors import (
    InternalError,
    Interrupted,
    SegtrainError,
    Stopped,
    UserError,
    printable,
)
from segtrain.runtime import console, parent
from segtrain.runtime.own_folder import own_folder
from segtrain.runtime.signals import Signals, Stopping

# Launchers that Hydra does not bring itself -> the package that does.
PACKAGES = {"joblib": "hydra-joblib-launcher", "submitit": "hydra-submitit-launcher"}
SUBMITIT = "SUBMITIT_EXECUTOR"  # in the environment of its jobs
GOES_ON = "the same sweep command runs what is missing"
HAND_ON_SECONDS = 0.1  # between two looks whether a signal has come


def run(
    overrides: Sequence[str],
    config_dirs: Sequence[str | Path] = (),
    config_name: str = primary.OURS,
) -> None:
    """Train one run per combination of `-m`.

    Jobs go on when one fails; the command then fails at the end. Errors: that of the first job
    that failed; UserError before any of them where one cannot be composed.
    """
    sweep = expand(overrides, config_dirs, config_name)
    if sweep.pool is not None:
        gpus.launch(sweep, sweep.pool)
        return
    packages = list(trust.folders())
    alone = len(sweep.jobs) == 1
    here = os.getpid()

    def train(number: int, stopped: Path) -> None:
        if os.getpid() == here:
            try:
                _train(number, sweep.jobs[number], alone)
            except (Interrupted, Stopped) as error:  # it is said already, and ends the sweep
                raise SystemExit(error.exit_code) from None
            return
        with console.forgiving(), trust.trusting(packages):
            _train_elsewhere(number, sweep.jobs[number], alone, stopped)

    try:
        with own_folder() as place:
            launch(sweep, train, place / "stopped")
    except KeyboardInterrupt as stop:
        if "submitit" in " ".join(sweep.launcher):
            raise Stopped(
                f"{stop}: no longer waits for the jobs that submitit started, which go on; once "
                f"they have ended {gpus.AGAIN}"
            ) from None
        raise gpus.stopped(str(stop), []) from None


def launch(sweep: Sweep, train: Callable[[int, Path], None], stopped: Path) -> None:
    """Let Hydra's launcher call `train` with the number of each job, and `stopped`.

    That is a file which is there once no other job shall begin. The launcher is given no config but
    ours, which starts nothing by itself: the jobs are composed and known already, and it is told
    their numbers alone. Errors: UserError where it cannot be set up, InternalError where it fails,
    and what `train` raised first.
    """
    from hydra._internal.callbacks import Callbacks
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.plugins import Plugins
    from hydra.types import HydraContext, RunMode

    def task(_: Any) -> SegtrainError | None:
        try:
            train(int(HydraConfig.get().job.num), stopped)
        except SegtrainError as error:  # returned: Hydra would print what is said already
            return error
        return None

    chosen = " ".join(sweep.launcher)
    if "submitit_slurm" in chosen and shutil.which("srun") is None:
        raise UserError(
            f"{chosen}: there is no Slurm here (srun is not found); start it where jobs are "
            "submitted. On this machine hydra/launcher=gpus takes a GPU per run"
        )
    settings = [
        *sweep.launcher,
        f"hydra.sweep.dir='{_escaped(sweep.folder)}'",
        "hydra.sweep.subdir=''",
        "hydra/hydra_logging=none",
        "hydra/job_logging=none",
    ]
    with by_hydra.initialized():
        loader = GlobalHydra.instance().config_loader()
        try:
            cfg = loader.load_configuration("train", settings, RunMode.MULTIRUN, from_shell=False)
            launcher = Plugins.instance().instantiate_launcher(
                hydra_context=HydraContext(config_loader=loader, callbacks=Callbacks()),
                task_function=task,
                config=cfg,
            )
        except Exception as error:
            said = one_line(error.__cause__ or error)
            for word, package in PACKAGES.items():
                if f"'hydra/launcher/{word}" in said and "Could not find" in said:
                    said = f"is not installed; pip install {package}"
            raise UserError(f"{chosen}: {said}") from error
        errors: list[SegtrainError] = []
        for first in range(0, len(sweep.jobs), sweep.batch):
            numbers = range(first, min(first + sweep.batch, len(sweep.jobs)))
            with _handed_on(stopped) if "joblib" in chosen else nullcontext() as signals:
                try:
                    results = launcher.launch([[] for _ in numbers], initial_job_idx=first)
                except Exception as error:  # not of a job: that is in the results
                    raise _of_launcher(chosen, error) from error
            errors += [result.return_value for result in results if result.return_value]
            if signals is not None and signals.received:
                raise gpus.stopped(signals.received, errors)
    if errors:
        raise gpus.of_many(errors, len(sweep.jobs))


def _of_launcher(chosen: str, error: Exception) -> SegtrainError:
    """Return what to say of a launcher that failed itself."""
    if isinstance(error, SegtrainError):
        return error
    return InternalError(f"{chosen or 'hydra/launcher=basic'}: {one_line(error)}; {gpus.AGAIN}")


@contextmanager
def _handed_on(stopped: Path) -> Generator[Signals]:
    """Hand a signal on to the processes of joblib, which would kill them, and wait for them.

    They save their runs, and no other begins: `stopped` is made.
    """
    over = threading.Event()

    def hand_on() -> None:
        while not signals.received:
            if over.wait(HAND_ON_SECONDS):
                return
        stopped.touch()
        for child in parent.children():
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM)

    with Signals() as signals:
        watch = threading.Thread(target=hand_on, daemon=True)
        watch.start()
        try:
            yield signals
        finally:
            over.set()
            watch.join()


def _escaped(folder: Path) -> str:
    """Return a path as it stands between quotes in Hydra's grammar, nothing in it interpolated."""
    return str(folder.absolute()).replace("${", "\\${").replace("'", "\\'")


def _train(number: int, job: Job, alone: bool) -> None:
    """Train one combination. What ends it is said at once; the other jobs still run."""
    print(f"[{number}] {job.name}", flush=True)
    try:
        start(check(job.cfg), masked_container(job.cfg), job.folder, job.words, again=True)
    except (Interrupted, Stopped) as error:
        _say(number, f"{error}; {GOES_ON}")
        raise
    except SegtrainError as error:
        if not alone:
            _say(number, str(error))
        raise


def _train_elsewhere(number: int, job: Job, alone: bool, stopped: Path) -> None:
    """Train one combination in a process of a launcher's, where signals are answered as in ours.

    Under Slurm submitit's own handler gets SIGUSR2 once the run is saved: it puts the job back into
    the queue, if its settings say so.
    """
    ended: SegtrainError | None = None
    with Stopping() as told:
        try:
            if stopped.exists():
                raise Stopped("stopped before it began")
            _train(number, job, alone)
        except KeyboardInterrupt as stop:
            ended = Stopped(f"{stop}: stopped; {GOES_ON}")
        except SegtrainError as error:
            ended = error
        told.end()
    preempted = isinstance(ended, (Interrupted, Stopped)) and told.received == signal.SIGUSR2.name
    if preempted and os.environ.get(SUBMITIT) == "slurm":
        with suppress(Exception):  # it stays out of the queue
            signal.raise_signal(signal.SIGUSR2)
    if ended is not None:
        raise ended


def _say(number: int, text: str) -> None:
    print(printable(f"segtrain: job {number}: {text}"), file=sys.stderr)
