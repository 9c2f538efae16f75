"""`segtrain -m`: one run folder per combination of settings, started by a launcher."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from segtrain.commands import gpus
from segtrain.commands.train import start
from segtrain.config import trust
from segtrain.config.compose import check
from segtrain.config.files import masked_container
from segtrain.config.jobs import Job, Sweep, expand
from segtrain.config.schema import CONF_DIR, one_line
from segtrain.errors import Interrupted, SegtrainError, Stopped, UserError, printable
from segtrain.runtime import console

# Launchers that Hydra does not bring itself -> the package that does.
PACKAGES = {"joblib": "hydra-joblib-launcher", "submitit": "hydra-submitit-launcher"}


def run(overrides: Sequence[str], config_dirs: Sequence[str | Path] = ()) -> None:
    """Train one run per combination of `-m`.

    Jobs go on when one fails; the command then fails at the end. Errors: that of the first job
    that failed; UserError before any of them where one cannot be composed.
    """
    sweep = expand(overrides, config_dirs)
    if sweep.pool is not None:
        gpus.launch(sweep, sweep.pool)
        return
    packages = list(trust.folders())

    def train(number: int) -> None:
        # A launcher of Hydra's may call us in another process.
        with console.forgiving(), trust.trusting(packages):
            _train(number, sweep.jobs[number], alone=len(sweep.jobs) == 1)

    try:
        launch(sweep, train)
    except KeyboardInterrupt as stop:
        raise Stopped(f"{stop}: stopped; the same command runs what is missing") from None


def launch(sweep: Sweep, train: Callable[[int], None]) -> None:
    """Let Hydra's launcher call `train` with the number of each job.

    The launcher is given no config but ours, which starts nothing by itself: the jobs are composed
    and known already, and it is told their numbers alone. Errors: UserError where it cannot be set
    up, and what `train` raised first.
    """
    from hydra import initialize_config_dir
    from hydra._internal.callbacks import Callbacks
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.plugins import Plugins
    from hydra.types import HydraContext, RunMode

    def task(_: Any) -> SegtrainError | None:
        try:
            train(int(HydraConfig.get().job.num))
        except SegtrainError as error:  # returned: Hydra would print what is said already
            return error
        return None

    settings = [
        *sweep.launcher,
        f"hydra.sweep.dir='{_escaped(sweep.folder)}'",
        "hydra.sweep.subdir=''",
        "hydra/hydra_logging=none",
        "hydra/job_logging=none",
    ]
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
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
            raise UserError(f"{' '.join(sweep.launcher)}: {said}") from error
        errors: list[SegtrainError] = []
        for first in range(0, len(sweep.jobs), sweep.batch):
            numbers = range(first, min(first + sweep.batch, len(sweep.jobs)))
            results = launcher.launch([[] for _ in numbers], initial_job_idx=first)
            errors += [result.return_value for result in results if result.return_value]
    if errors:
        raise gpus.of_many(errors, len(sweep.jobs))


def _escaped(folder: Path) -> str:
    """Return a path as it stands between quotes in Hydra's grammar, nothing in it interpolated."""
    return str(folder.absolute()).replace("${", "\\${").replace("'", "\\'")


def _train(number: int, job: Job, alone: bool) -> None:
    """Train one combination. What ends it is said at once; the other jobs still run."""
    print(f"[{number}] {job.name}", flush=True)
    try:
        start(check(job.cfg), masked_container(job.cfg), job.folder, job.words, again=True)
    except (Interrupted, Stopped) as error:
        goes_on = "the same sweep command runs what is missing"
        print(f"segtrain: job {number}: {error}; {goes_on}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except SegtrainError as error:
        if not alone:
            print(printable(f"segtrain: job {number}: {error}"), file=sys.stderr)
        raise
