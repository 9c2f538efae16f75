"""Read a data set with its classes in the order of another one: classes are known by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segtrain.contracts import Dataset
from segtrain.structures.labels import LabelMap
from segtrain.structures.samples import Files, Sample, Target, Truth


def in_order(dataset: Dataset, names: Sequence[str]) -> Dataset | None:
    """Return `dataset` with its classes in the order of `names`, itself where they are.

    None where its classes are not those of `names`.
    """
    if list(dataset.labels.names) == list(names):
        return dataset
    if sorted(dataset.labels.names) != sorted(names):
        return None
    return Reordered(dataset, names)


class Reordered:
    """A data set whose classes are numbered in the order of `names`, which are just its own.

    Raw values of masks and ids of categories stay those of its files.
    """

    def __init__(self, dataset: Dataset, names: Sequence[str]) -> None:
        self.dataset = dataset
        self.labels: LabelMap = dataset.labels.in_order(names)
        self.ids = dataset.ids
        self.labelled = dataset.labelled
        self.labelled_with = dataset.labelled_with
        self.problems = dataset.problems
        self.notes = dataset.notes
        # Old train id -> new one; what is no class stays what it is.
        self._train_ids = np.arange(256, dtype=np.uint8)
        for old, name in enumerate(dataset.labels.names):
            self._train_ids[old] = self.labels.names.index(name)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        """Return a sample to train on."""
        return self._sample(self.dataset[index])

    def scored(self, index: int) -> Sample:
        """Return the sample with what the metric compares with."""
        return self._sample(self.dataset.scored(index))

    def target(self, index: int) -> Target:
        """Return what the sample is labelled with, without reading its image."""
        mask, instances = self.dataset.target(index)
        return Target(
            mask if mask is None else self._train_ids[mask],
            instances if instances is None else instances.renumbered(self._train_ids),
        )

    def truth(self, index: int) -> Truth:
        """Return what the metric compares with, without reading the image."""
        return self._truth(self.dataset.truth(index))

    def files(self, index: int) -> Files | None:
        """Return the files that the sample is read from."""
        return self.dataset.files(index)

    def extra_files(self) -> Mapping[str, Path]:
        """Return what is read beside `files`."""
        return self.dataset.extra_files()

    def doubts(self, index: int) -> Sequence[str]:
        """Return what is odd about the labels of a sample, though it may be meant."""
        return self.dataset.doubts(index)

    def sizes(self) -> np.ndarray | None:
        """Return (N, 2) height and width of every image."""
        return self.dataset.sizes()

    def encode_prediction(self, raw: np.ndarray, where: str) -> np.ndarray:
        """Return the train ids of a label map that another program predicted."""
        return self._train_ids[self.dataset.encode_prediction(raw, where)]

    def _sample(self, sample: Sample) -> Sample:
        """Return a sample of the data set with its classes renumbered."""
        mask = sample.mask
        instances = sample.instances
        truth = sample.truth
        return replace(
            sample,
            mask=mask if mask is None else self._train_ids[mask],
            instances=instances if instances is None else instances.renumbered(self._train_ids),
            truth=truth if truth is None else truth.renumbered(self._train_ids),
        )

    def _truth(self, truth: Truth) -> Truth:
        """Return what a metric compares with, its classes renumbered."""
        if isinstance(truth, Tensor):
            return torch.from_numpy(self._train_ids)[truth.long()]
        if isinstance(truth, np.ndarray):
            return self._train_ids[truth]
        return truth.renumbered(self._train_ids)
