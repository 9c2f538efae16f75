"""What every data set shares: the members of the contract, with the answers most data sets give."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from segtrain.structures.labels import LabelMap
from segtrain.structures.samples import Files, Sample, Target, Truth


class BaseDataset(ABC):
    """Hold the members of `contracts.Dataset` that most data sets have in common.

    A subclass passes labels and ids to the constructor and defines `__getitem__`. Without more it
    is a set that is generated, not read: it has no files, and every answer comes from the samples.
    `MaskSet` and `ObjectSet` have the answers of sets with a file of labels for each image.
    """

    notes: Sequence[str] = ()  # of a subclass that has a constructor of its own
    labelled_with: ClassVar[Literal["masks", "instances"]] = "masks"  # which field of a `Sample`

    def __init__(
        self,
        labels: LabelMap,
        ids: Sequence[str],
        problems: list[str] | None = None,
        labelled: bool = True,
    ) -> None:
        self.labels = labels
        self.ids = list(ids)
        self.problems = [] if problems is None else problems
        self.labelled = labelled
        self.notes: list[str] = []

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Return a sample to train on. Errors: DataError for a file that cannot be used."""

    def scored(self, index: int) -> Sample:
        """Return the sample with what the metric compares with; here its annotation is all."""
        return self[index]

    def target(self, index: int) -> Target:
        """Return what the sample is labelled with. A set of files does not read the image."""
        sample = self[index]
        return Target(sample.mask, sample.instances)

    def truth(self, index: int) -> Truth:
        """Return what the metric compares with. A set of files does not read the image."""
        sample = self.scored(index)
        return sample.annotation if sample.truth is None else sample.truth

    def files(self, index: int) -> Files | None:
        """Return the files that the sample is read from; None for one that is generated."""
        return None

    def extra_files(self) -> Mapping[str, Path]:
        """Return what is read beside `files`, by names that say nothing of where it lies."""
        return {}

    def doubts(self, index: int) -> Sequence[str]:
        """Return what is odd about the labels of a sample, though it may be meant; here nothing."""
        return ()

    def sizes(self) -> np.ndarray | None:
        """Return (N, 2) height and width of every image; None where each would have to be made."""
        return None

    def encode_prediction(self, raw: np.ndarray, where: str) -> np.ndarray:
        """Return the train ids of a label map in raw values that another program predicted.

        Errors: DataError naming `where`.
        """
        return self.labels.encode(raw, where)
