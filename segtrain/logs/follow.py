"""Follow a run by the files that it writes: how far it is, and its best score so far. No torch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from segtrain.logs.metrics_file import METRICS, TIMING


class Followed:
    """A run that another process trains; `look` reads what it has written since the last look.

    `monitor` is a name of metrics.jsonl, `train/NAME` for one of training. Nothing is written, and
    what cannot be read is passed over: the run itself says what is wrong with it.
    """

    def __init__(
        self, folder: Path, steps: int, batch_size: int | str, monitor: str, mode: str
    ) -> None:
        self.folder = folder
        self.steps = steps
        self.step = 0  # of the last line
        self.validations: list[tuple[int, float | None]] = []  # step and monitored value, in order
        self._batch_size = batch_size
        self._phase = "train" if monitor.startswith("train/") else "val"
        self._name = monitor.removeprefix("train/")
        self._largest = mode == "max"
        self._metrics = _Tail(folder / METRICS)
        self._timing = _Tail(folder / TIMING)
        self._rate: float | None = None  # images per second of training

    def look(self) -> None:
        """Read on."""
        lines = self._metrics.read()
        if self._metrics.rewound:  # the run went on from an earlier step
            self.step = 0
            self.validations.clear()
        for line in lines:
            step = line.get("step")
            if not isinstance(step, int):
                continue
            self.step = step
            if line.get("phase") == self._phase and self._name in line:
                value = line[self._name]
                known = isinstance(value, int | float)
                self.validations.append((step, float(value) if known else None))
        for line in self._timing.read():
            rate = line.get("images_per_second")
            if isinstance(rate, int | float) and rate > 0:
                self._rate = float(rate)

    @property
    def best(self) -> tuple[float, int] | None:
        """The best monitored value and the first step that had it, None before there is one."""
        known = [(value, step) for step, value in self.validations if value is not None]
        if not known:
            return None
        first, *others = known
        for one in others:
            if self.better(one[0], first[0]):
                first = one
        return first

    def better(self, value: float, than: float) -> bool:
        """Tell whether a monitored value is better than another one."""
        return value > than if self._largest else value < than

    @property
    def seconds_left(self) -> float | None:
        """How long the steps left take at the last rate, validations not counted; None unknown."""
        if self._rate is None or isinstance(self._batch_size, str):  # the job finds its batch
            return None
        return max(0, self.steps - self.step) * self._batch_size / self._rate


class _Tail:
    """The lines that are added to a file of JSON objects."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._file: tuple[int, int] | None = None  # device and inode
        self.rewound = False  # whether the last `read` found another file, and began it anew

    def read(self) -> list[dict[str, Any]]:
        """Return the whole lines since the last call."""
        self.rewound = False
        try:
            with self._path.open("rb") as file:
                self._same(file.fileno())
                file.seek(self._offset)
                text = file.read()
        except OSError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [record for line in whole.splitlines() if (record := _record(line)) is not None]

    def _same(self, descriptor: int) -> None:
        """Begin anew where the file was replaced."""
        status = os.fstat(descriptor)
        file = (status.st_dev, status.st_ino)
        if file != self._file or status.st_size < self._offset:
            self.rewound = self._file is not None
            self._file = file
            self._offset = 0


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
