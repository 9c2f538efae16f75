"""`hydra/launcher=gpus`: a process per run of a sweep, each on a device of its own.

What a process is given, and its result, are those of a run that is started alone: only where it
computes differs. Its lines are read from its run folder.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from segtrain.commands import train
from segtrain.commands.job_lines import JobLines
from segtrain.config import trust
from segtrain.config.compose import check
from segtrain.config.files import masked_container
from segtrain.config.jobs import Job, Sweep
from segtrain.config.launchers import CHOICE, OURS, PoolConf
from segtrain.config.schema import RunConf
from segtrain.errors import (
    DiskError,
    InternalError,
    Interrupted,
    SegtrainError,
    Stopped,
    UserError,
)
from segtrain.logs.follow import Followed
from segtrain.runtime import devices, parent
from segtrain.runtime.own_folder import own_folder
from segtrain.runtime.pool import Pool, PoolJob

AGAIN = "the same command runs what is missing"
KILLED = "was killed by"
# What a job on the CPU is counted with, so that the default number of jobs fits into the memory:
# torch and a small network at work. Chosen by hand; hydra.launcher.jobs sets the number itself.
JOB_BYTES = 2 * 2**30
# What ends a process that has not yet said what it does with signals: nothing has begun.
STOPPED_EARLY = (-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)


@dataclass(frozen=True)
class _Begun:
    """A job of the pool, the run that it is, and where it leaves its reason to end."""

    number: int
    job: Job
    run: RunConf
    errors: Path
    followed: Followed


def launch(sweep: Sweep, conf: PoolConf) -> None:
    """Train the runs of a sweep, as many at a time as there is room for.

    Errors: that of the first run that failed, once all have ended; Interrupted where a signal
    stopped runs that are saved, else Stopped.
    """
    left = iter(sweep.jobs)
    numbers = {id(job): number for number, job in enumerate(sweep.jobs)}
    errors: dict[int, SegtrainError] = {}

    def ended(job: Job, error: SegtrainError | None) -> None:
        if error is not None:
            errors[numbers[id(job)]] = error

    pool = pool_of(conf, [job.cfg.train.device for job in sweep.jobs], len(sweep.jobs))
    progress = any(job.cfg.log.progress for job in sweep.jobs)
    try:
        run_jobs(pool, lambda: next(left, None), ended, total=len(sweep.jobs), progress=progress)
    except KeyboardInterrupt as stop:
        raise stopped(str(stop), list(errors.values())) from None
    if errors:
        raise of_many([errors[number] for number in sorted(errors)], len(sweep.jobs))


def stopped(by: str, errors: Sequence[SegtrainError]) -> SegtrainError:
    """Return the error of a sweep that a signal stopped, when its runs had ended with `errors`."""
    saved = sum(error.exit_code == Interrupted.exit_code for error in errors)
    if saved:
        return Interrupted(f"{by}: saved {saved} of the runs that were under way; {AGAIN}")
    return Stopped(f"{by}: stopped; {AGAIN}")


def of_many(errors: list[SegtrainError], runs: int) -> SegtrainError:
    """Return the one error of a sweep in which runs failed: the first one."""
    if runs == 1:
        return errors[0]
    failed = SegtrainError(f"{len(errors)} of {runs} runs failed: {errors[0]}")
    failed.exit_code = errors[0].exit_code
    return failed


def pool_of(conf: PoolConf, asked: Sequence[str], jobs: int | None) -> Pool:
    """Return the pool that the settings describe on this machine, and say what it is.

    `asked` are the values of train.device; where all are cpu, the GPUs are left alone. `jobs` is
    how many there are to be in all, None where that is not known. Errors: UserError for GPUs that
    are not ours to use, and under a launcher that starts this command several times.
    """
    require_one_start(f"{CHOICE}={OURS}")
    on_gpus = conf.devices is not None or any(device != "cpu" for device in asked)
    names: list[str] = []
    if on_gpus:
        names = (
            devices.devices_here()
            if conf.devices is None
            else devices.chosen(conf.devices, conf.where)
        )
    cores = devices.cores_here()
    if names:
        places = len(names) * conf.jobs_per_gpu
        pool = Pool(names, conf.jobs_per_gpu, _at_most(jobs, conf.jobs or places), cores)
        _say_gpus(pool, conf, jobs)
        return pool
    memory = devices.free_memory()
    fitting = cores if memory is None else max(1, min(cores, memory // JOB_BYTES))
    pool = Pool([], at_once=_at_most(jobs, conf.jobs or fitting), cores=cores)
    print(
        f"{pool.at_once} at a time on the CPU, {pool.threads()} of {cores} cores each", flush=True
    )
    return pool


def require_one_start(what: str) -> None:
    """Refuse a command that a launcher started several times. Errors: UserError."""
    if parent.launched():
        raise UserError(
            f"{what}: torchrun or srun started this command several times, and each would "
            "train every run; start it once"
        )


def _at_most(jobs: int | None, places: int) -> int:
    return places if jobs is None else max(1, min(jobs, places))


def _say_gpus(pool: Pool, conf: PoolConf, jobs: int | None) -> None:
    """Say which GPUs are used, and which are not."""
    each = f", {conf.jobs_per_gpu} on each" if conf.jobs_per_gpu > 1 else ""
    print(
        f"{pool.at_once} at a time on {len(pool.devices)} GPUs ({', '.join(pool.devices)}){each}",
        flush=True,
    )
    if pool.at_once < len(pool.devices):
        idle = len(pool.devices) - pool.at_once
        why = f"there are {jobs} runs" if conf.jobs is None else f"hydra.launcher.jobs={conf.jobs}"
        _warn(f"{idle} of {len(pool.devices)} GPUs are used by no run: {why}")
    if not devices.has_driver():
        _warn("this machine has no driver of a GPU: with train.device=auto the CPU computes")


def _warn(text: str) -> None:
    print(f"warn   {text}", file=sys.stderr, flush=True)


def _never(_: Job, __: Followed) -> bool:
    return False


def run_jobs(
    pool: Pool,
    next_job: Callable[[], Job | None],
    ended: Callable[[Job, SegtrainError | None], None],
    watch: Callable[[Job, Followed], bool] = _never,
    total: int | None = None,
    progress: bool = True,
) -> None:
    """Train jobs in a pool, and show how far they are, until `next_job` has no more.

    `next_job` is asked whenever there is room for one; None: there is none now, and it is asked
    again once a running job has ended. `ended` is told of every job that was given, None where its
    run is complete, else why it is not: Interrupted (75) where it was stopped and is saved.
    `watch` is asked about every running job several times a second, with what its run has written
    so far (look at `validations`), whether it shall stop; it saves and ends. Jobs whose folder is
    complete end at once. `progress` false shows only what begins and ends.

    KeyboardInterrupt goes on once all jobs have saved and ended.
    """
    with own_folder() as handed:
        jobs = _Jobs(pool, handed, next_job, ended, JobLines(total, progress))
        try:
            pool.run(jobs.next, jobs.ended, jobs.watched_by(watch), jobs.began, jobs.lines.tick)
        finally:
            jobs.lines.close()


class _Jobs:
    """The jobs of a pool, which knows them as processes, as runs."""

    def __init__(
        self,
        pool: Pool,
        handed: Path,
        next_job: Callable[[], Job | None],
        ended: Callable[[Job, SegtrainError | None], None],
        lines: JobLines,
    ) -> None:
        self.lines = lines
        self._pool = pool
        self._handed = handed
        self._next = next_job
        self._ended = ended
        self._number = 0  # of the next job
        self._begun: dict[PoolJob, _Begun] = {}
        self._unwanted: set[int] = set()  # that were told to stop because of what they wrote

    def next(self) -> PoolJob | None:
        """Return the next job that is to be started, None where there is none now."""
        while (job := self._next()) is not None:
            number = self._number
            self._number += 1
            try:
                prepared = self._prepared(number, job)
            except SegtrainError as error:
                self._failed(number, error)
                self.lines.skip()
                self._ended(job, error)
                continue
            if prepared is not None:
                return prepared
            self.lines.say(f"[{number}] {job.folder}: complete already, left alone")
            self.lines.skip()
            self._ended(job, None)
        return None

    def _prepared(self, number: int, job: Job) -> PoolJob | None:
        """Return the process that trains a job, None where its folder is complete.

        Errors: UserError, LockedError or DiskError where it cannot be trained there.
        """
        run = check(job.cfg)
        told = train.told_of(masked_container(job.cfg), job.words, again=True)
        if not train.is_left(job.folder, told):
            return None
        names = self._pool.devices
        if names and (run.train.processes or 1) > len(names):
            raise UserError(
                f"train.processes={run.train.processes}: takes as many GPUs, and there are "
                f"{len(names)}: {', '.join(names)}"
            )
        handed = self._handed / str(number)
        errors = handed / "errors"
        errors.mkdir(parents=True)
        told.write(handed)
        pool_job = PoolJob(
            name=f"{number}",
            command=(*parent.program(), "--job", str(job.folder), str(handed), *trust.flags()),
            output=output_of(job),
            devices=run.train.processes or 1,
            environment=parent.told_to_children(errors),
        )
        _check_output(pool_job.output)
        limits = (run.train.steps, run.train.batch_size, run.train.monitor, run.train.monitor_mode)
        self._begun[pool_job] = _Begun(number, job, run, errors, Followed(job.folder, *limits))
        return pool_job

    def began(self, pool_job: PoolJob, names: list[str]) -> None:
        """Show a job that has been started on the devices `names`."""
        begun = self._begun[pool_job]
        place = f"GPU {','.join(names)}" if names else ""
        monitor = begun.run.train.monitor
        self.lines.begin(begun.number, begun.job.name, place, begun.followed, monitor)

    def watched_by(self, watch: Callable[[Job, Followed], bool]) -> Callable[[PoolJob], bool]:
        """Return `watch` as the pool asks it."""

        def ask(pool_job: PoolJob) -> bool:
            begun = self._begun[pool_job]
            if watch is _never:
                return False
            begun.followed.look()
            if unwanted := watch(begun.job, begun.followed):
                self._unwanted.add(begun.number)
            return unwanted

        return ask

    def ended(self, pool_job: PoolJob, code: int) -> None:
        """Show and tell how a job ended."""
        begun = self._begun.pop(pool_job)
        error = _why(code, begun.errors)
        self.lines.end(begun.number, complete=error is None)
        if begun.number in self._unwanted and isinstance(error, Interrupted):
            _said(pool_job, error)
            self.lines.say(f"[{begun.number}] pruned at step {begun.followed.step}")
        elif error is not None:
            self._failed(begun.number, error, pool_job.output if _said(pool_job, error) else None)
        self._ended(begun.job, error)

    def _failed(self, number: int, error: SegtrainError, output: Path | None = None) -> None:
        kept = isinstance(error, (Interrupted, Stopped)) or output is None
        where = "" if kept else f" (its output: {output})"
        self.lines.say(f"segtrain: job {number}: {error}{where}", error=True)


def _said(pool_job: PoolJob, error: SegtrainError) -> bool:
    """Add why a job ended to what it wrote. Where that is nothing the file goes: false."""
    with suppress(OSError):
        if pool_job.output.stat().st_size == 0:
            pool_job.output.unlink()
            return False
        with pool_job.output.open("a") as output:
            print(f"segtrain: {error}", file=output)
    return True


def output_of(job: Job) -> Path:
    """Return the file that a job's process writes to: beside its folder, which need not begin."""
    return job.folder.with_name(f"{job.folder.name}.log")


def _check_output(file: Path) -> None:
    """Make the file if it is not there. Errors: DiskError, UserError for one that is a link."""
    if file.is_symlink():
        raise UserError(f"{file}: is a symbolic link, which segtrain does not follow; remove it")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("ab").close()
    except OSError as error:
        raise DiskError(f"{error.filename}: cannot be written ({error.strerror})") from None


def was_killed(error: SegtrainError) -> bool:
    """Tell whether a job was ended from outside, which says nothing about what it computed."""
    return str(error).startswith(KILLED)


def _why(code: int, errors: Path) -> SegtrainError | None:
    """Return why a process ended with `code`, None where it did its work."""
    if code == 0:
        return None
    if told := parent.reasons(errors):
        error = parent.as_error(told[0])
        kinds = (Interrupted, Stopped)
        kind = next((k for k in kinds if k.exit_code == error.exit_code), None)
        return kind(str(error)) if kind else error
    if code == Stopped.exit_code or code in STOPPED_EARLY:
        return Stopped("stopped before anything was saved")
    if code < 0:
        return InternalError(f"{KILLED} {signal.Signals(-code).name}; {AGAIN}")
    error = SegtrainError(f"ended with exit code {code}")
    error.exit_code = code
    return error
