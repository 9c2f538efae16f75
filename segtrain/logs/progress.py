"""Progress bars, and plain lines where stderr is a file."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import Self

from tqdm import tqdm

# Seconds between progress lines where stderr is a file: 240 an hour can still be read.
PLAIN_INTERVAL = 15.0
PLAIN = "{desc}: {n_fmt} of {total_fmt}, {rate_fmt}, {remaining} left"  # such a line


class Progress:
    """Show what is done, rate and time left of one pass over a data set or a file.

    It is a bar on a terminal, and whole plain lines where stderr is a file or a pipe, of which a
    short pass leaves none. `with Progress(total, "evaluating") as bar:` and then `bar.to(done)`.
    `unit` "B" counts bytes; of these some may be there at the `start`, and the `total` be unknown.
    """

    def __init__(
        self,
        total: int | None,
        name: str,
        enabled: bool = True,
        unit: str = "image",
        start: int = 0,
    ) -> None:
        terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            initial=start,
            desc=name,
            unit=unit,
            unit_scale=unit == "B",
            file=sys.stderr,
            leave=False,
            dynamic_ncols=True,
            disable=not enabled or not terminal,
        )
        self._plain = enabled and not terminal
        self._name = name
        self._unit = unit
        self._total = total
        self._start = start
        self._done = start
        self._begin = self._shown = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(OSError):
            self._bar.close()

    def to(self, done: int) -> None:
        """Show that `done` of the total are finished."""
        if self._total is not None:
            done = min(done, self._total)
        gained = done - self._done
        self._done = done
        now = time.monotonic()
        with suppress(OSError):
            self._bar.update(gained)
            if self._plain and now - self._shown >= PLAIN_INTERVAL:
                self._shown = now
                line = tqdm.format_meter(
                    self._done,
                    self._total,
                    now - self._begin,
                    initial=self._start,
                    unit=self._unit,
                    unit_scale=self._unit == "B",
                    prefix=self._name,
                    bar_format=PLAIN,
                )
                print(line, file=sys.stderr, flush=True)

    def add(self, count: int) -> None:
        """Show that `count` more are done."""
        self.to(self._done + count)


class Bar:
    """Show the progress of a training on a terminal: one line, drawn again and again."""

    def __init__(self, steps: int, start: int) -> None:
        self._bar = tqdm(
            total=steps, initial=start, unit="step", dynamic_ncols=True, file=sys.stderr
        )
        self._loss = ""

    def advance(self, step: int, loss: float | None, rate: float, left: float) -> None:
        """Show `step` updates and `rate` in images per second; the bar estimates `left` itself."""
        if loss is not None:
            self._loss = f"loss {loss:.4f}, "
        with suppress(OSError):
            self._bar.set_description_str("", refresh=False)
            self._bar.set_postfix_str(f"{self._loss}{rate:.1f} images/s", refresh=False)
            self._bar.update(step - self._bar.n)

    def evaluating(self, done: int, total: int) -> None:
        """Show that a validation has seen `done` of its images."""
        with suppress(OSError):
            self._bar.set_description_str(f"validating {done}/{total}", refresh=done == total)
            self._bar.update(0)

    def write(self, line: str) -> None:
        """Print a line above the bar."""
        with suppress(OSError):
            self._bar.write(line, file=sys.stdout)
            sys.stdout.flush()

    def close(self) -> None:
        """Leave the bar as it is."""
        with suppress(OSError):
            self._bar.close()


class Lines:
    """Show the progress of a training in a file: a plain line every `interval` seconds at most."""

    def __init__(self, steps: int, interval: float) -> None:
        self._steps = steps
        self._interval = interval
        self._shown = time.monotonic()
        self._loss = ""

    def advance(self, step: int, loss: float | None, rate: float, left: float) -> None:
        """Show `step` updates, `rate` in images per second and the seconds `left`."""
        if loss is not None:
            self._loss = f"loss {loss:.4f}  "
        self._show(
            f"step {step}/{self._steps}  {self._loss}{rate:.1f} images/s  {_duration(left)} left"
        )

    def evaluating(self, done: int, total: int) -> None:
        """Show that a validation has seen `done` of its images."""
        self._show(f"validating {done}/{total}")

    def write(self, line: str) -> None:
        """Print a line."""
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
