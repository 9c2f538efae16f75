"""Say where the time of a run goes: how long a GPU waits for data, and what would help."""

from __future__ import annotations

import os
from collections import deque

import torch

from segtrain.config.schema import RunConf, dataset_keys
from segtrain.engine.parts import Parts


class DeviceIdle:
    """Measure by events in the queue of the current GPU, without ever waiting for them.

    The host runs ahead of its GPU: while it waits for a batch, the GPU mostly computes earlier
    steps, and such a wait costs nothing. Clocks of the host cannot tell the two apart, and where
    the losses are read the host waits for the GPU, not for data. So an event is put into the queue
    where a wait begins and another where it ends. The first is passed once all that was queued
    before is computed, the second is queued when the batch is there: what lies between them is the
    time in which the GPU could have computed and had no data. Copying the batch to the GPU is
    queued between them too, and counts as such.
    """

    def __init__(self) -> None:
        self._waits: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        self._begun: torch.cuda.Event | None = None
        self._seconds = 0.0

    def begin(self) -> None:
        """From here on the host waits for data."""
        self._begun = _event()

    def end(self) -> None:
        """The data are there."""
        if self._begun is not None:
            self._waits.append((self._begun, _event()))
            self._begun = None

    def seconds(self) -> float:
        """Return the time of all waits that the GPU has passed: after losses are read, of all."""
        while self._waits and self._waits[0][1].query():
            first, second = self._waits.popleft()
            self._seconds += first.elapsed_time(second) / 1000  # it is in milliseconds
        return self._seconds


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def ways_out(run: RunConf, parts: Parts) -> dict[str, str]:
    """Return what to do where most of a run's time goes into something else than computing.

    By the names of `logs.clock.STAGES`; only what this run can still do.
    """
    data = []
    if parts.workers < (os.cpu_count() or 1):
        data.append(f"raise train.workers={parts.workers}")
    generated = len(parts.train_set) > 0 and parts.train_set.files(0) is None
    if not generated and dataset_keys(run.dataset).cache is None:
        data.append("make the cache (segdata prepare with dataset.cache=FOLDER)")
    seldom = "validate more seldom (train.eval_every)"
    save = seldom if run.train.save_every is None else "save more seldom (train.save_every)"
    return {
        "data": " or ".join(data) or "take smaller images, less augmentation or a faster disk",
        "validate": f"{seldom} or fewer images",
        "save": save,
        "log": "log more seldom (log.every) or leave out a writer",
    }
