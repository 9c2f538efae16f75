"""What the time of a start of a run goes into: one stopwatch, so that the parts make the whole."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, TypeVar

T = TypeVar("T")

# What the loop does, by its name in timing.jsonl -> in words. Computing is what is none of the
# others.
STAGES = {
    "data": "waiting for data",
    "compute": "computing",
    "validate": "validating",
    "save": "saving",
    "log": "logging",
}
SETUP = "setup"  # until the loop begins: data and weights are read, the run is checked


class Idle(Protocol):
    """What knows of a device how long it had nothing to do between `begin` and `end`."""

    def begin(self) -> None:
        """From here on the host waits for data."""
        ...

    def end(self) -> None:
        """The data are there."""
        ...

    def seconds(self) -> float:
        """Return how long the device had nothing to do in all of these, as far as is known."""
        ...


class Clock:
    """Measure in seconds what a start of a run does; at each moment it is one thing.

    It reads the monotonic clock, which a change of the machine's time does not move. Without
    `idle`, the time in which the host waits for data is that of waiting for data. With it, that is
    only the part in which the device had nothing left to compute.
    """

    def __init__(self, step: int, idle: Idle | None = None) -> None:
        self._opened = self._mark = self._entered = time.monotonic()
        self._doing = SETUP
        self._spent = dict.fromkeys((SETUP, *STAGES), 0.0)
        self._idle = idle
        self._start = self.step = self._lap_step = step
        self._lap = self._spent.copy()

    def begin(self) -> None:
        """Begin the loop: what was done until here is no part of it."""
        self._do("compute")

    @property
    def begun(self) -> bool:
        """Whether the loop has begun."""
        return self._doing != SETUP

    @contextmanager
    def spending(self, stage: str) -> Generator[None]:
        """Count the time inside the block to a stage; blocks inside it to their own."""
        before = self._do(stage)
        try:
            yield
        finally:
            self._do(before)

    def waiting(self, batches: Iterator[T]) -> Iterator[T]:
        """Yield what `batches` yields, and count the time until it does as waiting for data."""
        while True:
            with self.spending("data"):
                if self._idle is not None:
                    self._idle.begin()
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                finally:
                    if self._idle is not None:
                        self._idle.end()
            yield batch

    def spent(self) -> dict[str, float]:
        """Return the seconds of each stage of the loop until now."""
        self._count()
        spent = {stage: self._spent[stage] for stage in STAGES}
        if self._idle is not None:
            waited = self._idle.seconds()
            spent["compute"] += spent["data"] - waited
            spent["data"] = waited
        return spent

    def lap(self) -> tuple[float, dict[str, float]]:
        """Return the rate and the seconds by stage since the last lap, and begin a new one."""
        rate = self.rate()
        before = self._lap
        self._lap = self.spent()
        self._lap_step = self.step
        return rate, {stage: self._lap[stage] - before[stage] for stage in STAGES}

    def rate(self) -> float:
        """Return the steps per second since the last lap; before there are any, of the start.

        What is validated, saved and logged in between does not count.
        """
        self._count()
        seconds = _training(self._spent) - _training(self._lap)
        return (self.step - self._lap_step) / seconds if seconds > 0 else self.mean()

    def mean(self) -> float:
        """Return the steps per second of the whole start."""
        seconds = _training(self._spent)
        return (self.step - self._start) / seconds if seconds > 0 else 0.0

    def since_entered(self) -> float:
        """Return the seconds since the present stage was entered."""
        return time.monotonic() - self._entered

    def elapsed(self) -> float:
        """Return the seconds since the start, whatever was done."""
        return time.monotonic() - self._opened

    def _do(self, stage: str) -> str:
        """Begin a stage, and return the one that ends by that."""
        self._count()
        self._entered = self._mark
        before = self._doing
        self._doing = stage
        return before

    def _count(self) -> None:
        """Count the time until now to the present stage."""
        now = time.monotonic()
        self._spent[self._doing] += now - self._mark
        self._mark = now


def _training(spent: Mapping[str, float]) -> float:
    return spent["data"] + spent["compute"]


def shares(spent: Mapping[str, float]) -> dict[str, float]:
    """Return what part of the whole each stage is; they sum to 1. {} where no time has passed."""
    whole = sum(spent.values())
    return {stage: seconds / whole for stage, seconds in spent.items()} if whole > 0 else {}


def in_words(parts: Mapping[str, float], ways_out: Mapping[str, str]) -> str:
    """Return shares as text, the largest first, with the way out of it where there is one."""
    largest, *others = sorted(parts, key=lambda stage: -parts[stage])
    first = f"{100 * parts[largest]:.0f} % {STAGES[largest]}"
    if largest in ways_out:
        first += f": {ways_out[largest]}"
    rest = [f"{100 * parts[s]:.0f} % {STAGES[s]}" for s in others if parts[s] >= 0.005]
    if not rest:
        return first
    return f"{first}{'; ' if largest in ways_out else ', '}{', '.join(rest)}"
