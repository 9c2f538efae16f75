"""`segtrain -m hydra/sweeper=optuna`: train what a search asks for, and say which run is best."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from segtrain.commands import gpus
from segtrain.commands.study import Study, Trial, opened
from segtrain.config import primary, trust
from segtrain.config.jobs import Job
from segtrain.config.launchers import PoolConf
from segtrain.config.search import OPTUNA, SWEEPER, Search, read
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
from segtrain.logs.follow import Followed
from segtrain.runtime.devices import devices_here
from segtrain.runtime.run_folder import holds_run

AGAIN = "the same command goes on with the study"
MAX_SHOWN = 5  # trials that failed, in the summary
# What ends a run because of its values: they are as bad as can be. All else that ends one (a
# signal, a kill, data, a disk, a folder in use) says nothing about them: the trial stays open.
OF_ITS_VALUES = (InternalError.exit_code, ResourceError.exit_code)
# What would end every other trial too.
OF_ALL = (UserError.exit_code, DataError.exit_code, DiskError.exit_code)


def run(
    overrides: Sequence[str],
    config_dirs: Sequence[str | Path] = (),
    config_name: str = primary.OURS,
) -> None:
    """Make the trials of a study that are missing, and name the best one.

    A trial that diverges or is refused counts as the worst; the others go on. Errors: UserError
    before any trial; Interrupted or Stopped after a signal; what kept trials open; SegtrainError
    where none came to a value.
    """
    gpus.require_one_start(f"{SWEEPER}={OPTUNA}")
    search = read(overrides, config_dirs, config_name)
    with opened(search) as study:
        trials = Trials(search, study)
        left = study.left
        if left:
            pool = gpus.pool_of(_pool(search), [search.device], left)
            try:
                gpus.run_jobs(pool, trials.next, trials.ended, trials.watch, total=left)
            except KeyboardInterrupt as stop:
                if trials.saved:
                    saved = "1 trial is" if trials.saved == 1 else f"{trials.saved} trials are"
                    raise Interrupted(f"{stop}: {saved} saved; {AGAIN}") from None
                raise Stopped(f"{stop}: stopped; {AGAIN}") from None
        print("\n".join(summary(search, study)), flush=True)
        if trials.kept_open:
            raise _open(trials.kept_open)
        if study.best is None:
            raise SegtrainError(f"no trial came to a value; the first one: {study.failure}")


def _open(errors: Sequence[SegtrainError]) -> SegtrainError:
    """Return the one error of a search whose trials are not all told: the first one."""
    many = f"{len(errors)} trials stay" if len(errors) > 1 else "1 trial stays"
    error = SegtrainError(f"{many} open, and {AGAIN}: {errors[0]}")
    error.exit_code = errors[0].exit_code
    return error


def _pool(search: Search) -> PoolConf:
    """Return where trials are trained: one at a time on the CPU, one per GPU, or as was typed."""
    conf = search.pool or PoolConf()
    jobs = search.settings.n_jobs
    if jobs is None and search.pool is None and (search.device == "cpu" or not devices_here()):
        jobs = 1
    return conf if jobs is None else replace(conf, jobs=jobs)


class Trials:
    """The trials of a study as jobs of a pool."""

    def __init__(self, search: Search, study: Study) -> None:
        self.kept_open: list[SegtrainError] = []
        self.saved = 0  # trials that a signal stopped, and that go on where they were
        self._search = search
        self._study = study
        self._running: dict[Path, Trial] = {}
        self._pruned: set[int] = set()
        self._over = False

    def next(self) -> Job | None:
        """Return the run of the next trial that is to be trained, None where there is none."""
        while not self._over and (trial := self._study.next()) is not None:
            before = self._study.known(trial.texts)
            if before is not None:
                self._study.tell(trial.number, before.value, before.why)
                continue
            try:
                job = self._search.job(trial.number, trial.texts)
            except UserError as error:
                self._study.tell(trial.number, math.nan, str(error))
                continue
            self._running[job.folder] = trial
            return job
        return None

    def watch(self, job: Job, followed: Followed) -> bool:
        """Tell the study what a running trial has reached; return whether it shall stop."""
        trial = self._running[job.folder]
        if self._search.settings.pruner is None or trial.number in self._pruned:
            return False
        for step, value in followed.validations:
            # The last one is the end of the run, which is not worth stopping.
            if step in trial.known or value is None or step >= followed.steps:
                continue
            trial.known[step] = value
            if self._study.report(trial.number, step, value):
                self._pruned.add(trial.number)
        return trial.number in self._pruned

    def ended(self, job: Job, error: SegtrainError | None) -> None:
        """Tell the study what a trial came to, or leave it open."""
        trial = self._running.pop(job.folder)
        if error is None:
            value = best_of(job.folder)
            why = "" if value is not None else f"{self._search.monitor} was never measured"
            self._study.tell(trial.number, math.nan if value is None else value, why)
        elif trial.number in self._pruned and isinstance(error, Interrupted):
            self._study.tell_pruned(trial.number)
        elif self._is_its_own(job, error):
            self._study.tell(trial.number, math.nan, str(error))
        elif isinstance(error, (Interrupted, Stopped)):
            self.saved += isinstance(error, Interrupted)
            self.kept_open.append(error)
        else:
            self.kept_open.append(error)
            self._over |= error.exit_code in OF_ALL

    def _is_its_own(self, job: Job, error: SegtrainError) -> bool:
        """Tell whether what ended a trial says something about its values."""
        if error.exit_code in OF_ITS_VALUES:
            return not gpus.was_killed(error)
        refused = error.exit_code == UserError.exit_code
        # Before any trial came to a value, what is refused is likely so in all of them.
        return refused and self._study.best is not None and not holds_run(job.folder)


def best_of(folder: Path) -> float | None:
    """Return the best monitored value of a complete run, None where none was measured."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        return float(json.loads((folder / "summary.json").read_text())["best"]["value"])
    return None


def summary(search: Search, study: Study) -> list[str]:
    """Say what came of a study: which trial is best, where its run lies, how it is made alone."""
    counts = ", ".join(f"{count} {what}" for what, count in study.counts.items() if count)
    lines = [f"study  {sum(study.counts.values())} trials: {counts}"]
    failed = [told for told in study.told if told.why]
    lines += [
        printable(f"failed trial {told.number}, counts as the worst: {told.why}")
        for told in failed[:MAX_SHOWN]
    ]
    if (more := len(failed) - MAX_SHOWN) > 0:
        lines.append(f"failed {more} more")
    if (best := study.best) is not None:
        job = search.job(best.number, best.texts)
        values = ", ".join(f"{key}={text}" for key, text in best.texts.items())
        lines += [
            f"best   trial {best.number}: {search.monitor} {best.value:.4f}, {values}",
            f"run    {job.folder}",
            f"again  {trust.command(*search.choice.flags, *job.words)}",
        ]
    return lines
