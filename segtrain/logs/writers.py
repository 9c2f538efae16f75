"""Writers: where the numbers and pictures of a run go beside its own files.

A writer is built by `conf/writer/NAME.yaml` with two arguments that segtrain gives: `folder`, the
run folder, and `start`, the updates that were made before this process began. After a kill the run
repeats the steps since its last checkpoint: a writer that keeps what it wrote hides those. One that
keeps a record of the run (`contracts.Tracker`) is told its settings and its end too. W&B and MLflow
are in files of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from segtrain.errors import words_of
from segtrain.logs.metrics_file import writing
from segtrain.logs.run_log import overall


class TensorBoard:
    """Write TensorBoard event files in RUN/tensorboard.

    Errors: ImportError where TensorBoard is missing or does not fit what is installed beside it;
    DiskError.
    """

    def __init__(self, folder: Path, start: int) -> None:
        # Only here: importing it takes a second, and runs without this writer do without it.
        try:
            from torch.utils.tensorboard import SummaryWriter
            from torch.utils.tensorboard.summary import hparams
        except Exception as error:  # whatever its packages raise, no setting of the run is wrong
            raise ImportError(words_of(error)) from error

        self._hparams = hparams
        self._settings: dict[str, Any] = {}
        self._folder = folder / "tensorboard"
        with writing(self._folder):
            self._events = SummaryWriter(str(self._folder), purge_step=start + 1 if start else None)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write the numbers of `step`, by name."""
        with writing(self._folder):
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """Write a picture (H, W, 3) uint8 RGB."""
        with writing(self._folder):
            self._events.add_image(name, picture, step, dataformats="HWC")

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Remember the settings, which are hyper-parameters once the run has a score."""
        self._settings = dict(settings)

    def complete(self, numbers: Mapping[str, float]) -> None:
        """Write the settings as hyper-parameters of the scores, which are scalars already.

        `SummaryWriter.add_hparams` would make a run of its own for them.
        """
        scores = {
            name: value for name, value in numbers.items() if overall(name.removeprefix("val/"))
        }
        plain = (bool, int, float, str)
        values = {
            name: value if isinstance(value, plain) else str(value)
            for name, value in self._settings.items()
        }
        file = self._events.file_writer
        assert file is not None, "it is open until `close`"
        with writing(self._folder):
            for summary in self._hparams(values, scores):
                file.add_summary(summary)

    def close(self) -> None:
        """Bring everything to the disk."""
        with writing(self._folder):
            self._events.close()
