"""A pool of devices: a process per job, and never more jobs on a device than it shall hold.

The jobs need not be known beforehand, and one that runs may be stopped: see `Pool.run`. No torch.
"""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from segtrain.errors import DiskError, SegtrainError, UserError
from segtrain.runtime.devices import VISIBLE
from segtrain.runtime.parent import CORES, start_environment

# Between two looks at the jobs: a device stands still no longer, and looking costs microseconds.
TICK_SECONDS = 0.1
# From SIGTERM to SIGKILL. A job of several processes gives them 25 s (`launch.SHUTDOWN_SECONDS`),
# and all are gone within the 30 s that docs/reliability.md promises.
SAVE_SECONDS = 28.0


@dataclass(frozen=True, eq=False)  # two jobs are never the same one
class PoolJob:
    """A process that is to be started."""

    name: str
    command: Sequence[str]
    output: Path  # what it writes to both streams is appended here
    devices: int = 1  # GPUs that it computes on; on CPUs every job has one share of the cores
    environment: Mapping[str, str] = field(default_factory=dict)  # beside that of our own start


@dataclass
class _Running:
    """A job with its process, and the devices that it holds."""

    job: PoolJob
    process: subprocess.Popen[bytes]
    devices: list[str]
    told_at: float | None = None  # to stop, on the monotonic clock


def _go_on(_: PoolJob) -> bool:
    return False


def _begun(_: PoolJob, __: list[str]) -> None:
    return None


def _nothing() -> None:
    return None


class Pool:
    """Devices, and how many jobs each holds at a time.

    `devices` are names as CUDA_VISIBLE_DEVICES has them; a job sees only its own. Without any,
    `at_once` jobs compute on the CPU. `at_once` limits all jobs together; None: as many as the
    devices hold. `cores` are shared out evenly: a job computes with its share of threads, unless
    its own settings say otherwise.
    """

    def __init__(
        self,
        devices: Sequence[str],
        per_device: int = 1,
        at_once: int | None = None,
        cores: int = 1,
    ) -> None:
        self.devices = list(devices)
        self._per_device = per_device
        places = len(self.devices) * per_device or at_once or 1
        self.at_once = min(places, at_once or places)
        self._cores = cores
        self._running: list[_Running] = []

    def threads(self, job_devices: int = 1) -> int:
        """Return the cores that a job on so many devices computes on."""
        shares = job_devices if self.devices else 1
        return max(1, self._cores * shares // self.at_once)

    def run(
        self,
        next_job: Callable[[], PoolJob | None],
        ended: Callable[[PoolJob, int], None],
        watch: Callable[[PoolJob], bool] = _go_on,
        began: Callable[[PoolJob, list[str]], None] = _begun,
        tick: Callable[[], None] = _nothing,
    ) -> None:
        """Run jobs until `next_job` has no more and all have ended.

        `next_job` is asked whenever there is room for one; None: there is none now, and it is asked
        again once a running job has ended. `ended` is told of every end, with the exit code as of
        subprocess: negative for a signal that killed it. `watch` is asked on every tick whether a
        running job shall stop: then it gets SIGTERM, saves and ends, and SIGKILL if it does not.
        `began` is told of every start with the devices that the job holds, and `tick` is called
        about ten times a second.

        An exception, a signal's too, reaches all jobs as SIGTERM, and goes on once all of them have
        ended. Errors: UserError for a job that needs more devices than there are.
        """
        waiting: PoolJob | None = None
        try:
            asked = True
            while True:
                while asked and len(self._running) < self.at_once:
                    waiting = waiting or next_job()
                    asked = waiting is not None
                    if waiting is None or (devices := self._free(waiting)) is None:
                        break
                    self._start(waiting, devices)
                    began(waiting, devices)
                    waiting = None
                if not self._running:
                    return
                time.sleep(TICK_SECONDS)
                for one in self._running:
                    if one.told_at is None and watch(one.job):
                        self._tell(one)
                asked = self._settle(ended) or asked
                tick()
        except BaseException:  # inside here no other signal raises: the command is ending
            self._stop_all(ended, tick)
            raise

    def _free(self, job: PoolJob) -> list[str] | None:
        """Return devices for a job, those with the fewest jobs first; None while there are none."""
        if not self.devices:
            return []
        if job.devices > len(self.devices):
            raise UserError(
                f"{job.name}: takes {job.devices} GPUs, and there are {len(self.devices)}: "
                f"{', '.join(self.devices)}"
            )
        held = Counter(name for one in self._running for name in one.devices)
        free = [name for name in self.devices if held[name] < self._per_device]
        taken = sorted(free, key=lambda name: held[name])[: job.devices]
        in_order = [name for name in self.devices if name in taken]
        return in_order if len(in_order) == job.devices else None

    def _start(self, job: PoolJob, devices: list[str]) -> None:
        threads = str(self.threads(job.devices))
        environment = {**start_environment(), **job.environment, CORES: threads}
        environment.setdefault("OMP_NUM_THREADS", threads)
        if devices:
            environment[VISIBLE] = ",".join(devices)
        try:
            job.output.parent.mkdir(parents=True, exist_ok=True)
            with job.output.open("ab") as output:
                process = subprocess.Popen(
                    job.command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment,
                )
        except OSError as error:
            raise DiskError(
                f"{error.filename or job.output}: {error.strerror}; the job {job.name} cannot start"
            ) from error
        self._running.append(_Running(job, process, devices))

    def _settle(self, ended: Callable[[PoolJob, int], None]) -> bool:
        """Take the jobs that have ended off their devices; tell whether there were any."""
        gone = [one for one in self._running if one.process.poll() is not None]
        for one in gone:
            self._running.remove(one)
            ended(one.job, one.process.returncode)
        for one in self._running:
            if one.told_at is not None and time.monotonic() - one.told_at > SAVE_SECONDS:
                one.process.kill()
        return bool(gone)

    def _tell(self, one: _Running) -> None:
        one.told_at = one.told_at or time.monotonic()
        one.process.terminate()

    def _stop_all(self, ended: Callable[[PoolJob, int], None], tick: Callable[[], None]) -> None:
        """Let all jobs save and end."""
        for one in self._running:
            self._tell(one)
        while self._running:
            time.sleep(TICK_SECONDS)
            with suppress(SegtrainError, OSError):  # there is another error to tell
                self._settle(ended)
                tick()
