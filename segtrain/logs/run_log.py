"""The log of a run: console, train.log, metrics.jsonl, timing.jsonl, progress. Rank 0 only.

Numbers and pictures also go to the run's writers: TensorBoard, a user's own.

metrics.jsonl holds one JSON object a line, `{"step", "phase": "train" | "val", names...}`, and
only what is a function of the run: it is reproducible to the byte, also over a kill and a resume.
Floats are written so that they read back exactly. JSON has no NaN: a number that is not finite,
like one that does not exist (a class absent from the data), is `null`. timing.jsonl holds the
clocks and rates of the same lines. bad_samples.jsonl lists the samples that a run leaves out, and
is reproducible too. spikes.jsonl lists updates whose loss or gradient was far above what was usual
since this start, or was skipped as it was not finite. Steps count updates made: the first line is
step 1.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from segtrain.errors import UserError, words_of
from segtrain.logs.metrics_file import (
    BAD_SAMPLES,
    METRICS,
    SPIKES,
    TEXT,
    TIMING,
    Appender,
    json_line,
    json_number,
    read_lines_of,
)
from segtrain.logs.progress import PLAIN_INTERVAL, Bar, Lines

if TYPE_CHECKING:
    from segtrain.contracts import Writer


# Chosen by hand: more lines than this say that something is wrong with the run, not with an update.
MOST_SPIKES = 1000


def overall(name: str) -> bool:
    """Tell whether a number is of the whole split.

    `mIoU` and `segm/AP` are; `IoU/car`, `segm/AP/car` and `loss/seg` are of a part.
    """
    group, _, _ = name.rpartition("/")
    return group in ("", "segm", "bbox")


class RunLog:
    """The log of one start of a run. Where `enabled` is false (ranks above 0), it does nothing.

    `start` is the number of updates already made: call `rewind(run_dir, start)` first.
    `batch_size` is the global one. Errors: DiskError naming the file, when the disk refuses
    metrics. A lost terminal does not stop a run, nor do a full train.log or a writer that fails:
    that is said once, and left out.
    """

    def __init__(
        self,
        run_dir: Path,
        steps: int,
        start: int,
        batch_size: int,
        writers: Sequence[Writer] = (),
        progress: bool = True,
        enabled: bool = True,
    ) -> None:
        self.enabled = enabled
        self._failed: set[str] = set()  # what was tried aside, and said to have failed
        if not enabled:
            return
        self._steps = steps
        self._batch_size = batch_size
        self._clock = _Clock(start)
        self._folder = run_dir
        self._bad: Appender | None = None  # from the first bad sample on
        self._spikes: Appender | None = None  # from the first one on
        self._spikes_left = MOST_SPIKES
        self._metrics = Appender(run_dir / METRICS)
        self._timing = Appender(run_dir / TIMING)
        self._text = Appender(run_dir / TEXT)
        self._writers = list(writers)
        on_terminal = progress and sys.stderr.isatty()
        self._progress = (
            Bar(steps, start)
            if on_terminal
            else Lines(steps, PLAIN_INTERVAL if progress else math.inf)
        )

    def advance(self, step: int, loss: float | None) -> None:
        """Show that `step` updates are made, with images per second and the time left.

        `loss` None keeps the last one on show.
        """
        if self.enabled:
            self._clock.advance(step)
            rate = self._clock.rate()
            left = (self._steps - step) / rate if rate > 0 else 0.0
            self._progress.advance(step, loss, rate * self._batch_size, left)

    def pause(self) -> None:
        """Leave the time since the last update out of the rate: it was no training."""
        if self.enabled:
            self._clock.pause()

    def evaluating(self, done: int, total: int) -> None:
        """Show that a validation has seen `done` of its `total` images on this rank."""
        if self.enabled:
            self._progress.evaluating(done, total)

    def train(
        self, step: int, values: Mapping[str, float], seconds: Mapping[str, float] | None = None
    ) -> None:
        """Write one training line.

        `seconds` are clocks by name; they and the rate since the last line go to timing.jsonl.
        """
        if not self.enabled:
            return
        self._write(step, "train", values)
        rate = self._clock.lap() * self._batch_size
        self._time(step, "train", {"images_per_second": rate, **(seconds or {})})
        self._scalars(step, {"time/images_per_second": rate})

    def validation(self, step: int, numbers: Mapping[str, float | None]) -> None:
        """Write the numbers of one validation; the console shows those of the whole split.

        Those are the `overall` ones. Its duration is not counted as training time.
        """
        if not self.enabled:
            return
        self._write(step, "val", numbers)
        seconds = self._clock.pause()  # the validation does not count as training
        self._time(step, "val", {"seconds": seconds})
        shown = [
            f"{name} {'absent' if v is None else f'{v:.4f}'}"
            for name, v in numbers.items()
            if overall(name)
        ]
        self.text(f"step {step}  val  {'  '.join(shown)}")

    @contextmanager
    def aside(self, what: str) -> Generator[None]:
        """Do what only describes the run: if it fails, that is said once, and the run goes on.

        Errors: UserError, for a setting that is wrong describes nothing.
        """
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            new = what not in self._failed
            self._failed.add(what)  # first: what fails may be the file that this is said in
            if self.enabled and new:
                self.text(f"warn   {what}: {words_of(error)}; the run goes on without it")

    def add(self, writer: Writer) -> None:
        """Hand numbers and pictures to one writer more, from here on."""
        self._writers.append(writer)

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """Hand a picture (H, W, 3) uint8 RGB to the writers."""
        self._hand(lambda writer: writer.image(step, name, picture))

    def bad_sample(self, step: int, name: str, file: str, reason: str) -> None:
        """List a sample that is left out from here on; `step` 0 is before the first."""
        if not self.enabled:
            return
        self._bad = self._bad or Appender(self._folder / BAD_SAMPLES)
        self._bad.add(json_line({"step": step, "sample": name, "file": file, "reason": reason}))
        self.text(f"warn   step {step}: {reason}; the next image takes its place ({BAD_SAMPLES})")

    def spike(
        self,
        step: int,
        numbers: Mapping[str, float | None],
        images: Sequence[str],
        skipped: bool = False,
    ) -> None:
        """List the numbers of an update that were out of the ordinary, with its images."""
        if not self.enabled:
            return
        with self.aside(SPIKES):
            if self._spikes is None:
                self._spikes_left = MOST_SPIKES - len(read_lines_of(self._folder / SPIKES))
                self._spikes = Appender(self._folder / SPIKES)
            self._spikes_left -= 1
            if self._spikes_left < 0:
                return
            plain = {name: json_number(value) for name, value in numbers.items()}
            line = {"step": step, **plain, "skipped": skipped, "images": list(images)}
            self._spikes.add(json_line(line))

    def text(self, line: str) -> None:
        """Write a line, or more, on the console, and with the time of day in train.log."""
        if self.enabled:
            self._progress.write(line)
            with self.aside(TEXT):
                self._text.add(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n".encode())

    def sync(self) -> None:
        """Bring what is reproducible to the disk: a checkpoint knows no more steps than it does."""
        if self.enabled:
            self._metrics.sync()
            if self._bad is not None:
                self._bad.sync()

    def totals(self) -> dict[str, float]:
        """Return this start's wall time in seconds, and its images per second.

        The rate is that of training: what `pause` left out does not count, nor do validations.
        """
        if not self.enabled:
            return {}
        return {
            "wall_seconds": self._clock.elapsed(),
            "images_per_second": self._clock.mean() * self._batch_size,
        }

    def close(self) -> None:
        """Close everything. Nothing is written afterwards; closing twice is allowed."""
        if not self.enabled:
            return
        self._hand(lambda writer: writer.close())
        self.enabled = False
        self._progress.close()
        for file in (self._metrics, self._timing, self._text, self._bad, self._spikes):
            if file is not None:
                file.close()

    def _write(self, step: int, phase: str, values: Mapping[str, float | None]) -> None:
        plain = {name: json_number(value) for name, value in values.items()}
        self._metrics.add(json_line({"step": step, "phase": phase, **plain}))
        known = {f"{phase}/{name}": value for name, value in plain.items() if value is not None}
        self._scalars(step, known)

    def _time(self, step: int, phase: str, clocks: Mapping[str, float]) -> None:
        self._timing.add(
            json_line({"step": step, "phase": phase, "elapsed": self._clock.elapsed(), **clocks})
        )

    def _scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._hand(lambda writer: writer.scalars(step, values))

    def _hand(self, work: Callable[[Writer], None]) -> None:
        """Let every writer work; one that fails is said once and left out from here on."""
        for writer in [*self._writers] if self.enabled else []:
            done = False
            with self.aside(f"writer {type(writer).__name__}"):
                work(writer)
                done = True
            if not done:
                self._writers.remove(writer)


class _Clock:
    """Measure training time in seconds: what passes between updates, without validations.

    It reads the monotonic clock, which a change of the machine's time does not move.
    """

    def __init__(self, step: int) -> None:
        self._begin = self._last = time.monotonic()
        self._start = self._step = self._lap_step = step
        self._busy = self._lap_busy = 0.0

    def advance(self, step: int) -> None:
        """Count the time since the last update, now that `step` are made."""
        now = time.monotonic()
        self._busy += now - self._last
        self._last = now
        self._step = step

    def pause(self) -> float:
        """Return the seconds since the last update, which do not count."""
        last = self._last
        self._last = time.monotonic()
        return self._last - last

    def rate(self) -> float:
        """Return the steps per second since the last lap; before there are any, of the start."""
        busy = self._busy - self._lap_busy
        return (self._step - self._lap_step) / busy if busy > 0 else self.mean()

    def lap(self) -> float:
        """Return `rate`, and begin a new lap."""
        rate = self.rate()
        self._lap_step = self._step
        self._lap_busy = self._busy
        return rate

    def mean(self) -> float:
        """Return the steps per second of the whole start."""
        return (self._step - self._start) / self._busy if self._busy > 0 else 0.0

    def elapsed(self) -> float:
        """Return the seconds since the start, validations included."""
        return time.monotonic() - self._begin
