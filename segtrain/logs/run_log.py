"""The log of a run: console, train.log, metrics.jsonl, timing.jsonl, progress. Rank 0 only.

Numbers and pictures also go to the run's writers: TensorBoard, W&B, MLflow, a user's own.

metrics.jsonl holds one JSON object a line, `{"step", "phase": "train" | "val", names...}`, and
only what is a function of the run: it is reproducible to the byte, also over a kill and a resume.
Floats are written so that they read back exactly. JSON has no NaN: a number that is not finite,
like one that does not exist (a class absent from the data), is `null`. timing.jsonl holds what the
machine did for the same lines: clocks, rates, what part of the time went into what, the norm of the
gradient. Each start ends with a line of the phase "all". bad_samples.jsonl lists the samples that a
run leaves out, and is reproducible too. spikes.jsonl lists updates whose loss or gradient was far
above what was usual since this start, or was skipped as it was not finite. Steps count updates
made: the first line is step 1.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from segtrain.contracts import Tracker
from segtrain.errors import UserError, words_of
from segtrain.logs.clock import Clock, Idle, in_words, shares
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

T = TypeVar("T")

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
    `batch_size` is the global one; `ways_out` say what to do where most of the time goes into
    something else than computing, by its name in `clock.STAGES`; `idle` is what `Clock` takes.
    Errors: DiskError naming the file, when the disk refuses
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
        ways_out: Mapping[str, str] | None = None,
        idle: Idle | None = None,
    ) -> None:
        self.enabled = enabled
        self._failed: set[str] = set()  # what was tried aside, and said to have failed
        if not enabled:
            return
        self._steps = steps
        self._batch_size = batch_size
        self._clock = Clock(start, idle)
        self._ways_out = ways_out or {}
        self._accounted = False  # whether it was said what the time went into
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
            self._clock.step = step
            rate = self._clock.rate()
            left = (self._steps - step) / rate if rate > 0 else 0.0
            self._progress.advance(step, loss, rate * self._batch_size, left)

    def begin(self) -> None:
        """Begin the loop: rates and shares of the time count from here."""
        if self.enabled:
            self._clock.begin()

    @contextmanager
    def spending(self, stage: str) -> Generator[None]:
        """Count the time inside the block to one of `clock.STAGES`, and to no rate."""
        with self._clock.spending(stage) if self.enabled else nullcontext():
            yield

    def waiting(self, batches: Iterator[T]) -> Iterator[T]:
        """Yield what `batches` yields; the time until it does is that of waiting for data."""
        return self._clock.waiting(batches) if self.enabled else batches

    def evaluating(self, done: int, total: int) -> None:
        """Show that a validation has seen `done` of its `total` images on this rank."""
        if self.enabled:
            self._progress.evaluating(done, total)

    def train(
        self, step: int, values: Mapping[str, float], beside: Mapping[str, float] | None = None
    ) -> None:
        """Write one training line.

        Rate and shares of the time since the last line go to timing.jsonl and the writers, and so
        does what is `beside` the numbers that make a run reproducible.
        """
        if not self.enabled:
            return
        rate, spent = self._clock.lap()
        clocks = {"images_per_second": rate * self._batch_size, **shares(spent)}
        with self.spending("log"):
            self._write(step, "train", values)
            self._time(step, "train", {**clocks, **(beside or {})})
            self._scalars(step, {f"time/{name}": value for name, value in clocks.items()})
            self._scalars(step, _known("train", beside or {}))

    def validation(self, step: int, numbers: Mapping[str, float | None]) -> None:
        """Write the numbers of one validation; the console shows those of the whole split.

        Those are the `overall` ones. Call it inside `spending("validate")`, whose time it writes.
        """
        if not self.enabled:
            return
        self._write(step, "val", numbers)
        self._time(step, "val", {"seconds": self._clock.since_entered()})
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

    def open_records(self, settings: Mapping[str, Any]) -> None:
        """Have the writers that keep a record of the run open theirs, see `contracts.Tracker`.

        It may take seconds: call it before `begin`.
        """

        def opened(writer: Writer) -> None:
            if isinstance(writer, Tracker) and (where := writer.begin(settings)):
                self.text(where)

        self._hand(opened)

    def complete(self, numbers: Mapping[str, float | None]) -> None:
        """Tell the final numbers to the writers that keep a record of the run."""
        known = _known("val", numbers)

        def told(writer: Writer) -> None:
            if isinstance(writer, Tracker):
                writer.complete(known)

        self._hand(told)

    @property
    def draws(self) -> bool:
        """Whether some writer takes pictures."""
        return self.enabled and bool(self._writers)

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

    def totals(self) -> dict[str, Any]:
        """Return this start's wall time in seconds, its images per second, and its shares.

        The rate is that of training: what is verified before, validated and saved does not count.
        The shares are those of the loop, and sum to 1.
        """
        if not self.enabled:
            return {}
        return {
            "wall_seconds": self._clock.elapsed(),
            "images_per_second": self._clock.mean() * self._batch_size,
            "shares": {name: round(part, 4) for name, part in shares(self._clock.spent()).items()},
        }

    def account(self) -> list[str]:
        """Write into timing.jsonl what the loop's time went into, and return that in words.

        That is done once; afterwards, and where no update was begun, the list is empty.
        """
        if not self.enabled or self._accounted or not self._clock.begun:
            return []
        self._accounted = True
        spent = self._clock.spent()
        parts = shares(spent)
        with self.aside(TIMING):
            self._time(self._clock.step, "all", {"seconds": sum(spent.values()), **parts})
        return [f"time   {in_words(parts, self._ways_out)}"] if parts else []

    def close(self) -> None:
        """Close everything. Nothing is written afterwards; closing twice is allowed."""
        if not self.enabled:
            return
        for line in self.account():
            self.text(line)
        self._hand(lambda writer: writer.close())
        self.enabled = False
        self._progress.close()
        for file in (self._metrics, self._timing, self._text, self._bad, self._spikes):
            if file is not None:
                file.close()

    def _write(self, step: int, phase: str, values: Mapping[str, float | None]) -> None:
        plain = {name: json_number(value) for name, value in values.items()}
        self._metrics.add(json_line({"step": step, "phase": phase, **plain}))
        self._scalars(step, _known(phase, values))

    def _time(self, step: int, phase: str, clocks: Mapping[str, float]) -> None:
        plain = {name: json_number(value) for name, value in clocks.items()}
        self._timing.add(
            json_line({"step": step, "phase": phase, "elapsed": self._clock.elapsed(), **plain})
        )

    def _scalars(self, step: int, values: Mapping[str, float]) -> None:
        if values:
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


def _known(phase: str, values: Mapping[str, float | None]) -> dict[str, float]:
    """Return the numbers that writers can show, by their names there."""
    plain = {f"{phase}/{name}": json_number(value) for name, value in values.items()}
    return {name: value for name, value in plain.items() if value is not None}
