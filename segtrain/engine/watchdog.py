"""The watchdog: a thread that ends a training which stands still, with the true cause.

It reads what `runtime/heartbeat.py` holds. Of several processes it ends the one that the others
wait for, or names it where it cannot speak for itself: each leaves its signs of life in a file.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from segtrain.config import places, trust
from segtrain.config.schema import TrainConf
from segtrain.data.workers import end_workers
from segtrain.errors import InternalError, printable
from segtrain.runtime import parent
from segtrain.runtime.distributed import World
from segtrain.runtime.files import open_to_append, write_file
from segtrain.runtime.heartbeat import HEART
from segtrain.runtime.run_folder import ALIVE, STALLED, has_checkpoints

# All are chosen by hand. A first step may compile, a validation predict images of any size on a
# CPU, a save wait for a slow disk.
PATIENCE = 6.0  # times the limit, for what is no step
LOOKS = 16  # how often within the limit it looks, and how often at least
LOOK_SECONDS = 5.0
SILENT_LOOKS = 4  # without a sign of life: the whole process is stopped, or its machine gone
SPEAK_LOOKS = 12  # after which it is told by another that could not tell it itself
REMEMBERED = 100  # newest steps, of which the median is taken
WRITE_SECONDS = 5.0  # to write the stacks: what hangs may be the disk
IMAGES_SHOWN = 400  # characters


@dataclass
class Signs:
    """What one process last said of itself."""

    pid: int
    looks: int  # grows while its watchdog looks
    arrived: int
    idle: float  # seconds without a beat
    limit: float
    what: str
    images: str
    silent: int = field(default=0, compare=False)  # looks of ours without one of its own


class Watchdog:
    """Watch over a training inside `with Watchdog(...) as watchdog:`; `step()` after each update.

    Where `train.watchdog` is None it does nothing. A process that is not ours, where we are a
    `guest`, it does not end: it says the same, once each time that the training stands still.
    """

    def __init__(self, train: TrainConf, folder: Path, world: World, guest: bool = False) -> None:
        self._guest = guest
        self._times = train.watchdog
        self._floor = train.watchdog_floor
        self._folder = folder
        self._world = world
        self._ends: deque[float] = deque(maxlen=REMEMBERED + 1)  # of steps
        self._over = threading.Event()
        self._look_seconds = min(LOOK_SECONDS, self._floor / LOOKS)
        told = os.environ.get(parent.ERRORS)  # on this machine, and gone with the parent
        self._place = folder / ALIVE if told is None else Path(told)
        self._others: dict[int, Signs] = {}
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self._times is not None:
            if self._world.size > 1:
                with suppress(OSError):
                    self._place.mkdir(exist_ok=True)
                # At once: this process may be stopped before its watchdog looks for the first time.
                self._write(self._mine(looks=0, idle=0.0))
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join(WRITE_SECONDS)
            with suppress(OSError):
                self._file(self._world.rank).unlink(missing_ok=True)
                if self._place.name == ALIVE:
                    self._place.rmdir()  # the last one does; the parent's folder is the parent's

    def step(self) -> None:
        """Note that an update is made."""
        self._ends.append(time.monotonic())

    def limit(self) -> float:
        """Return after how many seconds without a sign of life this process stands still."""
        ends = list(self._ends)
        steps = [end - begin for begin, end in pairwise(ends)]
        usual = (self._times or 0) * statistics.median(steps) if steps else 0.0
        return max(self._floor, usual) * (PATIENCE if HEART.patient or not ends else 1.0)

    def _watch(self) -> None:
        last = time.monotonic()
        beats = -1
        idle = 0.0
        looks = late = 0
        while not self._over.wait(self._look_seconds):
            now = time.monotonic()
            # A process that was stopped as a whole, and goes on, has not stood still.
            passed = min(now - last, 2 * self._look_seconds)
            last = now
            idle = idle + passed if HEART.beats == beats else 0.0
            beats = HEART.beats
            looks += 1
            mine = self._mine(looks, idle)
            late = late + 1 if idle > mine.limit else 0
            if self._world.size == 1:
                if late == 1:
                    self._end(0, mine)
                continue
            self._write(mine)
            if not late:
                self._others.clear()
                continue
            self._read()
            rank = self._awaited(mine, late)
            if rank == self._world.rank:
                self._end(rank, mine)
            elif rank is not None and (self._stopped(rank) or late >= SPEAK_LOOKS):
                self._end(rank, self._others[rank])

    def _mine(self, looks: int, idle: float) -> Signs:
        return Signs(
            os.getpid(), looks, HEART.arrived, idle, self.limit(), HEART.what, HEART.images
        )

    def _awaited(self, mine: Signs, late: int) -> int | None:
        """Return the rank that the others wait for; None while it is at work, or not known yet.

        It is one that gives no sign of life, else the one that came to the fewest exchanges.
        """
        # One look more than silence takes: of ranks at the same exchange the stopped one is meant.
        if late <= SILENT_LOOKS:
            return None
        everyone = {**self._others, self._world.rank: mine}
        stopped = [rank for rank in everyone if self._stopped(rank)]
        rank = min(stopped or everyone, key=lambda rank: (everyone[rank].arrived, rank))
        at_work = everyone[rank].idle <= everyone[rank].limit
        return None if at_work and not stopped else rank

    def _stopped(self, rank: int) -> bool:
        return rank in self._others and self._others[rank].silent >= SILENT_LOOKS

    # ------------------------------------------------------------------ signs of life of others

    def _file(self, rank: int) -> Path:
        return self._place / f"alive_{rank}"

    def _write(self, signs: Signs) -> None:
        """Leave our signs for the others. A disk that fails here ends no run."""
        with suppress(OSError):
            write_file(self._file(self._world.rank), json.dumps(vars(signs)).encode())

    def _read(self) -> None:
        """Read those of the others; of one that never left any nothing is known."""
        for rank in range(self._world.size):
            if rank == self._world.rank:
                continue
            before = self._others.get(rank)
            signs = _signs(self._file(rank)) or before
            if signs is not None:
                silent = before.silent + 1 if before is not None and signs == before else 0
                self._others[rank] = replace(signs, silent=silent)

    # ------------------------------------------------------------------ the end

    def _end(self, rank: int, signs: Signs) -> None:
        """Tell why, once, and end this process with its workers; as a guest only tell it."""
        file = self._folder / STALLED / f"rank_{self._world.rank}.txt"
        said = self._cause(rank, signs)
        # Not in this thread: the disk may be what stands still.
        writing = threading.Thread(target=_write_stacks, args=(file, said), daemon=True)
        writing.start()
        writing.join(WRITE_SECONDS)
        stacks = "could not be written" if writing.is_alive() else f"in {file}"
        way = "the same command begins again"
        if has_checkpoints(self._folder):
            way = f"go on with: {trust.command(f'resume={self._folder}')}"
        error = InternalError(places.hidden(f"{said}; the stacks are {stacks}; {way}"))
        if self._guest:
            print(printable(f"segtrain: {error}"), file=sys.stderr)
            return
        try:
            if not parent.tell_parent(error, sure=True):
                os.write(2, f"{printable(f'segtrain: {error}')}\n".encode())
            end_workers()
            if rank != self._world.rank and parent.ERRORS in os.environ:
                os.kill(signs.pid, signal.SIGKILL)  # what is stopped answers nothing else
        finally:
            os._exit(error.exit_code)

    def _cause(self, rank: int, signs: Signs) -> str:
        who = f"process {rank} (pid {signs.pid})" if self._world.size > 1 else "the training"
        images = signs.images[:IMAGES_SHOWN]
        doing = f"{signs.what}{': ' if images else ''}{images}"
        if self._stopped(rank):
            why = "it is stopped, or its machine is gone"
            return f"{who} gives no sign of life: {why}; last seen {doing}"
        return (
            f"{who} has stood still for {signs.idle:.0f} s (limit {signs.limit:.0f} s, "
            f"train.watchdog), {doing}"
        )


def _signs(file: Path) -> Signs | None:
    """Read what `_write` left; None where nothing is there."""
    try:
        told: Mapping[str, Any] = json.loads(file.read_bytes())
        return Signs(**told)
    except (OSError, ValueError, TypeError):
        return None


def _write_stacks(file: Path, said: str) -> None:
    """Append the stacks of all threads to `file`."""
    with suppress(OSError):
        file.parent.mkdir(exist_ok=True)
        with open_to_append(file) as written:
            written.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {said}\n".encode())
            faulthandler.dump_traceback(written, all_threads=True)
