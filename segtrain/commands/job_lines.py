"""What the terminal shows of many runs at once: a line for each, and the best of all so far."""

from __future__ import annotations

import shutil
import sys
import time
from contextlib import suppress
from datetime import timedelta
from typing import NamedTuple

from segtrain.errors import printable
from segtrain.logs.follow import Followed

DRAW_SECONDS = 0.5  # between two drawings on a terminal; the eye asks for no more
# Between the lines of a job where stderr is a file: with eight jobs 480 lines an hour.
PLAIN_SECONDS = 60.0


class Shown(NamedTuple):
    """A job that runs, as it is shown."""

    number: int
    name: str
    place: str  # where it computes, such as "GPU 2"; "" on the CPU
    run: Followed
    monitor: str
    began: float  # on the monotonic clock

    def line(self) -> str:
        """Say how far it is, its best score, and how long it takes still."""
        run = self.run
        left = run.seconds_left
        words = [
            f"[{self.number}]{f' {self.place}' if self.place else ''}",
            f"step {run.step}/{run.steps}",
            *([best_of(run, self.monitor)] if run.best else []),
            *([f"{_clock(left)} left"] if left is not None else []),
            self.name,
        ]
        return "  ".join(words)


def best_of(run: Followed, monitor: str) -> str:
    """Return the best score of a run in words, "" before there is one."""
    return f"best {monitor} {run.best[0]:.4f} at {run.best[1]}" if run.best else ""


class JobLines:
    """The lines of all running jobs: drawn in place on a terminal, now and then in a file.

    `total` is the number of jobs, None where it is not known. `progress` false: only what begins
    and ends is said.
    """

    def __init__(self, total: int | None, progress: bool = True) -> None:
        self._total = total
        self._terminal = progress and sys.stderr.isatty()
        self._interval = DRAW_SECONDS if self._terminal else PLAIN_SECONDS
        self._progress = progress
        self._running: dict[int, Shown] = {}
        self._ended = 0
        self._best: dict[str, tuple[float, Shown]] = {}  # by monitor
        self._drawn = 0  # lines on the terminal that are to be wiped out
        self._drawn_at = time.monotonic()

    def begin(self, number: int, name: str, place: str, run: Followed, monitor: str) -> None:
        """A job has begun."""
        shown = Shown(number, printable(name), place, run, monitor, time.monotonic())
        self._running[number] = shown
        if not self._terminal:
            self.say(f"[{number}] {name}{f' on {place}' if place else ''}")

    def end(self, number: int, complete: bool) -> None:
        """A job has ended; why one is not complete is for others to say."""
        shown = self._running.pop(number)
        self._look(shown)
        self._ended += 1
        if complete:
            took = _clock(time.monotonic() - shown.began)
            best = best_of(shown.run, shown.monitor)
            said = [f"[{number}] complete in {took}", *([best] if best else []), shown.name]
            self.say("  ".join(said))

    def skip(self) -> None:
        """A job that need not begin, or cannot, has ended too."""
        self._ended += 1

    def say(self, line: str, error: bool = False) -> None:
        """Print a line that stays."""
        self._wipe()
        with suppress(OSError):
            print(printable(line), file=sys.stderr if error else sys.stdout, flush=True)

    def tick(self) -> None:
        """Show the jobs again, if it is time to."""
        now = time.monotonic()
        if not self._progress or now - self._drawn_at < self._interval:
            return
        self._drawn_at = now
        for shown in self._running.values():
            self._look(shown)
        lines = [shown.line() for shown in self._running.values()]
        if self._terminal:
            self._draw([*lines, self._footer()])
        elif lines:
            with suppress(OSError):
                print("\n".join([*lines, self._footer()]), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave nothing on the terminal but what was said."""
        self._wipe()

    def _look(self, shown: Shown) -> None:
        shown.run.look()
        if (best := shown.run.best) is None:
            return
        before = self._best.get(shown.monitor)
        if before is None or shown.run.better(best[0], before[0]):
            self._best[shown.monitor] = (best[0], shown)

    def _footer(self) -> str:
        of = f" of {self._total}" if self._total else ""
        words = [f"{self._ended}{of} ended, {len(self._running)} running"]
        words += [
            f"best {monitor} so far {value:.4f}: [{shown.number}] {shown.name}"
            for monitor, (value, shown) in self._best.items()
        ]
        return "; ".join(words)

    def _draw(self, lines: list[str]) -> None:
        width, height = shutil.get_terminal_size()
        if len(lines) > height - 1:
            kept = max(1, height - 3)
            lines = [*lines[:kept], f"... and {len(lines) - 1 - kept} more", lines[-1]]
        self._wipe()
        with suppress(OSError):
            # One column less: a line that fills the last one makes some terminals begin a new one.
            sys.stderr.write("".join(f"{line[: width - 1]}\n" for line in lines))
            sys.stderr.flush()
            self._drawn = len(lines)

    def _wipe(self) -> None:
        """Wipe the drawn lines out: up to the first one, then all below."""
        if self._drawn:
            with suppress(OSError):
                sys.stderr.write(f"\x1b[{self._drawn}F\x1b[J")
                sys.stderr.flush()
            self._drawn = 0


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
