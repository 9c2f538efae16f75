"""Writers: where the numbers and pictures of a run go beside its own files.

A writer is built by `conf/writer/NAME.yaml` with two arguments that segtrain gives: `folder`, the
run folder, and `start`, the updates that were made before this process began. After a kill the run
repeats the steps since its last checkpoint: a writer that keeps what it wrote hides those.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from segtrain.errors import words_of
from segtrain.logs.metrics_file import writing


class TensorBoard:
    """Write TensorBoard event files in RUN/tensorboard.

    Errors: ImportError where TensorBoard is missing or does not fit what is installed beside it;
    DiskError.
    """

    def __init__(self, folder: Path, start: int) -> None:
        # Only here: importing it takes a second, and runs without this writer do without it.
        try:
            from torch.utils.tensorboard import SummaryWriter
        except Exception as error:  # whatever its packages raise, no setting of the run is wrong
            raise ImportError(words_of(error)) from error

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

    def close(self) -> None:
        """Bring everything to the disk."""
        with writing(self._folder):
            self._events.close()
