"""What a run writes down: console, train.log, metrics.jsonl, timing.jsonl, TensorBoard, progress. Rank 0 only.

metrics.jsonl holds one JSON object a line, `{"step", "phase": "train" | "val", names...}`, and only what is a function
of the run: it is reproducible to the byte, also over a kill and a resume. Floats are written so that they read back
exactly. JSON has no NaN: a number that is not finite, like one that does not exist (a class absent from the data), is
`null`. timing.jsonl holds the clocks and rates of the same lines. Steps count updates made: the first line is step 1.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
from tqdm import tqdm

from segtrain.errors import DataError, DiskError

METRICS, TIMING, TEXT = "metrics.jsonl", "timing.jsonl", "train.log"
PLAIN_INTERVAL = 15.0  # seconds between progress lines where stderr is a file


def overall(name: str) -> bool:
    """Whether a number is of the whole split: `mIoU`, and `segm/AP` of objects; not `IoU/car`, `segm/AP/car`, `loss/seg`."""
    group, _, _ = name.rpartition("/")
    return group in ("", "segm", "bbox")


class RunLog:
    """The log of one start of a run; every method does nothing where `enabled` is false (ranks above 0).

    `start` is the number of updates already made: call `rewind(run_dir, start)` first. `batch_size` is the global one.
    Raises DiskError, naming the file, when the disk refuses. A lost terminal does not stop a run.
    """

    def __init__(
        self,
        run_dir: Path,
        steps: int,
        start: int,
        batch_size: int,
        tensorboard: bool = True,
        progress: bool = True,
        enabled: bool = True,
    ) -> None:
        self.enabled = enabled
        if not enabled:
            return
        self._steps, self._batch_size = steps, batch_size
        self._clock = _Clock(start)
        self._metrics, self._timing, self._text = (_Appender(run_dir / name) for name in (METRICS, TIMING, TEXT))
        self._events_dir = run_dir / "tensorboard"
        self._events = self._open_events(start) if tensorboard else None
        on_terminal = progress and sys.stderr.isatty()
        self._progress = _Bar(steps, start) if on_terminal else _Lines(steps, PLAIN_INTERVAL if progress else math.inf)

    def advance(self, step: int, loss: float | None) -> None:
        """`step` updates are made; shows loss (the last known one for None), images per second and time left."""
        if self.enabled:
            self._clock.advance(step)
            rate = self._clock.rate()
            left = (self._steps - step) / rate if rate > 0 else 0.0
            self._progress.advance(step, loss, rate * self._batch_size, left)

    def evaluating(self, done: int, total: int) -> None:
        """A validation has seen `done` of its `total` images on this rank."""
        if self.enabled:
            self._progress.evaluating(done, total)

    def train(self, step: int, values: Mapping[str, float], seconds: Mapping[str, float] | None = None) -> None:
        """One training line. `seconds` are clocks by name; they and the rate since the last line go to timing.jsonl."""
        if not self.enabled:
            return
        self._write(step, "train", values)
        rate = self._clock.lap() * self._batch_size
        self._time(step, "train", {"images_per_second": rate, **(seconds or {})})
        self._scalar(step, "time/images_per_second", rate)

    def validation(self, step: int, numbers: Mapping[str, float | None]) -> None:
        """One validation line; on the console the overall numbers, without classes and terms of the loss."""
        if not self.enabled:
            return
        self._write(step, "val", numbers)
        self._time(step, "val", {"seconds": self._clock.pause()})
        shown = [f"{name} {'absent' if v is None else f'{v:.4f}'}" for name, v in numbers.items() if overall(name)]
        self.text(f"step {step}  val  {'  '.join(shown)}")

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """A picture (H, W, 3) uint8 RGB for TensorBoard."""
        if self.enabled and self._events is not None:
            with _writing(self._events_dir):
                self._events.add_image(name, picture, step, dataformats="HWC")

    def text(self, line: str) -> None:
        """A line (or more) for the console, and with the time of day for train.log."""
        if self.enabled:
            self._progress.write(line)
            self._text.add(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n".encode())

    def sync(self) -> None:
        """Bring metrics.jsonl to the disk: a checkpoint must not know more steps than it does."""
        if self.enabled:
            self._metrics.sync()

    def totals(self) -> dict[str, float]:
        """This start's wall time in seconds, and images per second of training, without validation."""
        if not self.enabled:
            return {}
        return {"wall_seconds": self._clock.elapsed(), "images_per_second": self._clock.mean() * self._batch_size}

    def close(self) -> None:
        """Close everything. The log cannot be used afterwards; closing twice is allowed."""
        if not self.enabled:
            return
        self.enabled = False
        self._progress.close()
        for file in (self._metrics, self._timing, self._text):
            file.close()
        if self._events is not None:
            with _writing(self._events_dir):
                self._events.close()

    def _write(self, step: int, phase: str, values: Mapping[str, float | None]) -> None:
        plain = {name: _plain(value) for name, value in values.items()}
        self._metrics.add(_line({"step": step, "phase": phase, **plain}))
        for name, value in plain.items():
            if value is not None:
                self._scalar(step, f"{phase}/{name}", value)

    def _time(self, step: int, phase: str, clocks: Mapping[str, float]) -> None:
        self._timing.add(_line({"step": step, "phase": phase, "elapsed": self._clock.elapsed(), **clocks}))

    def _scalar(self, step: int, name: str, value: float) -> None:
        if self._events is not None:
            with _writing(self._events_dir):
                self._events.add_scalar(name, value, step)

    def _open_events(self, start: int) -> Any:
        """A TensorBoard writer that hides what an earlier start wrote after step `start`."""
        from torch.utils.tensorboard import SummaryWriter  # not for runs that do without it

        with _writing(self._events_dir):
            return SummaryWriter(str(self._events_dir), purge_step=start + 1 if start else None)


def rewind(run_dir: Path, step: int) -> None:
    """Drop what metrics.jsonl and timing.jsonl say about steps after `step`, and a last line cut off by a kill.

    Each file is replaced as a whole or not at all; the lines kept keep their bytes. Raises DataError for a damaged
    line, DiskError when the disk refuses.
    """
    for path in (run_dir / METRICS, run_dir / TIMING):
        if not path.exists():
            continue
        kept = b"".join(line for line, record in _records(path) if record["step"] <= step)
        if len(kept) < path.stat().st_size:
            with _writing(path):
                _replace(path, kept)


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without one still being written; [] where it is missing. DataError when damaged."""
    path = run_dir / METRICS
    return [record for _, record in _records(path)] if path.exists() else []


class Progress:
    """`with Progress(total, "evaluating") as bar: bar.to(done)`: images, rate and ETA of a pass; plain lines in a file."""

    def __init__(self, total: int, name: str, enabled: bool = True) -> None:
        self._total = total
        interval = 0.1 if sys.stderr.isatty() else PLAIN_INTERVAL
        self._bar = tqdm(
            total=total, desc=name, unit="image", file=sys.stderr, mininterval=interval, ascii=not sys.stderr.isatty(),
            disable=not enabled, leave=False, dynamic_ncols=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(OSError):
            self._bar.close()

    def to(self, done: int) -> None:
        """`done` images of the total are finished."""
        with suppress(OSError):
            self._bar.update(min(done, self._total) - self._bar.n)


class _Appender:
    """A file that grows by whole lines, each handed to the system at once: a kill of the process loses none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)

    def add(self, line: bytes) -> None:
        rest = memoryview(line)
        with _writing(self.path):
            while rest:  # a disk that fills up may take a part
                rest = rest[self._file.write(rest) :]

    def sync(self) -> None:
        with _writing(self.path):
            os.fsync(self._file.fileno())
            _sync_folder(self.path.parent)

    def close(self) -> None:
        with _writing(self.path):
            self._file.close()


class _Clock:
    """Training time in seconds by the monotonic clock: what passes between updates, but not a validation in between."""

    def __init__(self, step: int) -> None:
        self._begin = self._last = time.monotonic()
        self._start = self._step = self._lap_step = step
        self._busy = self._lap_busy = 0.0

    def advance(self, step: int) -> None:
        now = time.monotonic()
        self._busy, self._last, self._step = self._busy + now - self._last, now, step

    def pause(self) -> float:
        """Seconds since the last update, which do not count."""
        waited, self._last = time.monotonic() - self._last, time.monotonic()
        return waited

    def rate(self) -> float:
        """Steps per second since the last lap; before there are any, of the whole start."""
        busy = self._busy - self._lap_busy
        return (self._step - self._lap_step) / busy if busy > 0 else self.mean()

    def lap(self) -> float:
        """`rate`, and begin a new lap."""
        rate = self.rate()
        self._lap_step, self._lap_busy = self._step, self._busy
        return rate

    def mean(self) -> float:
        return (self._step - self._start) / self._busy if self._busy > 0 else 0.0

    def elapsed(self) -> float:
        return time.monotonic() - self._begin


class _Bar:
    """Progress on a terminal: one line that is drawn again and again."""

    def __init__(self, steps: int, start: int) -> None:
        self._bar = tqdm(total=steps, initial=start, unit="step", dynamic_ncols=True, file=sys.stderr)
        self._loss = ""

    def advance(self, step: int, loss: float | None, rate: float, left: float) -> None:
        self._loss = self._loss if loss is None else f"loss {loss:.4f}, "  # the bar estimates the time left itself
        with suppress(OSError):
            self._bar.set_description_str("", refresh=False)
            self._bar.set_postfix_str(f"{self._loss}{rate:.1f} images/s", refresh=False)
            self._bar.update(step - self._bar.n)

    def evaluating(self, done: int, total: int) -> None:
        with suppress(OSError):
            self._bar.set_description_str(f"validating {done}/{total}", refresh=done == total)
            self._bar.update(0)

    def write(self, line: str) -> None:
        with suppress(OSError):
            self._bar.write(line, file=sys.stdout)
            sys.stdout.flush()

    def close(self) -> None:
        with suppress(OSError):
            self._bar.close()


class _Lines:
    """Progress in a file: a plain line every `interval` seconds at most."""

    def __init__(self, steps: int, interval: float) -> None:
        self._steps, self._interval = steps, interval
        self._shown = time.monotonic()
        self._loss = ""

    def advance(self, step: int, loss: float | None, rate: float, left: float) -> None:
        self._loss = self._loss if loss is None else f"loss {loss:.4f}  "
        self._show(f"step {step}/{self._steps}  {self._loss}{rate:.1f} images/s  {_duration(left)} left")

    def evaluating(self, done: int, total: int) -> None:
        self._show(f"validating {done}/{total}")

    def write(self, line: str) -> None:
        with suppress(OSError):
            print(line, flush=True)

    def close(self) -> None:
        """Nothing to do."""

    def _show(self, line: str) -> None:
        now = time.monotonic()
        if now - self._shown >= self._interval:
            self._shown = now
            with suppress(OSError):
                print(line, file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def _plain(value: float | None) -> float | int | None:
    """What JSON can hold: an int, a finite float, or None."""
    if value is None or isinstance(value, int):
        return value
    return float(value) if math.isfinite(value) else None


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _records(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """(bytes, record) of each whole line. Only the last may be torn: a kill does that, and nothing else is left out."""
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            whole = line.endswith(b"\n") and isinstance(record["step"], int)
        except (ValueError, TypeError, KeyError):
            whole = False
        if whole:
            yield line, record
        elif number < len(lines):
            raise DataError(f"{path}: line {number} is damaged ({line[:60]!r}); remove it, or start a new run")


def _replace(path: Path, content: bytes) -> None:
    """New content on the disk, whole or not at all."""
    temporary = path.with_name(f".tmp-{path.name}")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _writing(path: Path) -> Generator[None]:
    """Turn an OSError into a DiskError that names the path and the space left."""
    try:
        yield
    except OSError as error:
        free = "unknown"
        with suppress(OSError):
            free = f"{shutil.disk_usage(path.parent).free:,}"
        raise DiskError(
            f"{path}: cannot write ({error.strerror or error}); free bytes: {free}. "
            f"Make room or allow writing, then go on with: segtrain resume={path.parent}"
        ) from error
